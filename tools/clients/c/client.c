/* A client of zkv in C. It needs libzmq and msgpack-c:
 *
 *   apt-get install gcc libc6-dev libzmq3-dev libmsgpack-dev
 *   cc client.c -o client -lzmq -lmsgpackc && ./client [tcp://127.0.0.1:5757]
 */
#include <err.h>
#include <msgpack.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include <zmq.h>

#define STR(it) (int)(it).via.str.size, (it).via.str.ptr /* for %.*s */
enum kind { READ, WRITE };
static const char *endpoint = "tcp://127.0.0.1:5757";
static char session[16], reply[24 << 20];

/* Packs a value for each letter: s a str, i an int, {N a map and [N an array of N items. */
static void pack(msgpack_packer *to, const char *format, va_list args) {
    for (; *format; format++) {
        const char *text = *format == 's' ? va_arg(args, char *) : "";
        if (*format == 's') msgpack_pack_str_with_body(to, text, strlen(text));
        if (*format == 'i') msgpack_pack_int(to, va_arg(args, int));
        if (*format == '{') msgpack_pack_map(to, (size_t)(*++format - '0'));
        if (*format == '[') msgpack_pack_array(to, (size_t)(*++format - '0'));
    }
}

/* The fields that make a write happen once, however often it is sent. */
static void pack_session(msgpack_packer *to, int seq, int again) {
    msgpack_pack_str_with_body(to, "session", 7);
    msgpack_pack_bin_with_body(to, session, sizeof session);
    msgpack_pack_str_with_body(to, "seq", 3);
    msgpack_pack_int(to, seq);
    msgpack_pack_str_with_body(to, "retry", 5);
    again ? msgpack_pack_true(to) : msgpack_pack_false(to);
}

/* The reply to a request of so many fields, until the next; a failure's has error and message. */
static msgpack_object ask(enum kind kind, size_t fields, const char *format, ...) {
    static void *context;
    static msgpack_unpacked unpacked;
    static int seq;
    if (!context) context = zmq_ctx_new();
    if (kind == WRITE) seq++;
    for (int wait_ms = 250, again = 0; wait_ms <= 4000; wait_ms *= 2, again = seq > 1) {
        msgpack_sbuffer body = {0};
        msgpack_packer to = {&body, msgpack_sbuffer_write};
        va_list args;
        msgpack_pack_map(&to, kind == WRITE ? fields + 3 : fields);
        va_start(args, format);
        pack(&to, format, args);
        va_end(args);
        if (kind == WRITE) pack_session(&to, seq, again);

        void *sock = zmq_socket(context, ZMQ_REQ); /* new, since one that waits cannot send */
        zmq_setsockopt(sock, ZMQ_LINGER, &(int){0}, sizeof(int));
        zmq_setsockopt(sock, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms);
        zmq_connect(sock, endpoint);
        zmq_send(sock, body.data, body.size, 0);
        int size = zmq_recv(sock, reply, sizeof reply, 0);
        zmq_close(sock);
        msgpack_sbuffer_destroy(&body);
        if (size > 0 && msgpack_unpack_next(&unpacked, reply, (size_t)size, NULL) > 0)
            return unpacked.data;
    }
    errx(1, "no reply: whether it was done is not known");
}

static msgpack_object get(msgpack_object map, const char *name) {
    for (uint32_t i = 0; i < map.via.map.size; i++) {
        msgpack_object key = map.via.map.ptr[i].key;
        if (key.via.str.size == strlen(name) && !memcmp(key.via.str.ptr, name, strlen(name)))
            return map.via.map.ptr[i].val;
    }
    errx(1, "no such field: %s", name);
}

int main(int argc, char **argv) {
    if (argc > 1) endpoint = argv[1];
    if (getentropy(session, sizeof session)) err(1, "getentropy");
    ask(WRITE, 2, "sss[0", "op", "txn", "then"); /* opens the session; may be done twice */

    msgpack_object put = ask(WRITE, 3, "sssss{2sss[2ss", "op", "put", "key", "user:1",
                             "value", "name", "Ada", "langs", "en", "fr");
    printf("put user:1: version %lu\n", get(put, "version").via.u64);
    msgpack_object user = get(ask(READ, 2, "ssss", "op", "get", "key", "user:1"), "value");
    msgpack_object *langs = get(user, "langs").via.array.ptr;
    printf("get user:1: %.*s speaks %.*s, %.*s\n", STR(get(user, "name")), STR(langs[0]),
           STR(langs[1]));
    msgpack_object bob = ask(WRITE, 4, "sssssss{1si", "op", "put", "key", "user:1", "value", "Bob",
                             "if", "version", 0);
    printf("put user:1 if version 0: %.*s, it has version %lu\n", STR(get(bob, "error")),
           get(bob, "version").via.u64);
    msgpack_object visits = ask(WRITE, 2, "ssss", "op", "incr", "key", "visits");
    printf("incr visits: %lu\n", get(visits, "value").via.u64);
    msgpack_object nobody = ask(READ, 2, "ssss", "op", "get", "key", "nobody");
    printf("get nobody: %.*s, %.*s\n", STR(get(nobody, "error")), STR(get(nobody, "message")));
}
