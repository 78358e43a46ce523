/* Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
 * `send HEX` with the server's reply to these bytes.
 */
#include <msgpack.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

static char line[4 << 20], bytes[2 << 20];

static void print_hex(const char *data, size_t size) {
    for (size_t i = 0; i < size; i++) printf("%02x", (unsigned char)data[i]);
    puts("");
}

static void print_packed(size_t size) {
    msgpack_unpacked unpacked;
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    msgpack_unpacked_init(&unpacked);
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    msgpack_unpack_return read = msgpack_unpack_next(&unpacked, bytes, size, NULL);
    if (read != MSGPACK_UNPACK_SUCCESS)
        puts(read == MSGPACK_UNPACK_NOMEM_ERROR ? "! nested too deep" : "! not msgpack");
    else if (msgpack_pack_object(&packer, unpacked.data) == 0)
        print_hex(buffer.data, buffer.size);
    msgpack_sbuffer_destroy(&buffer);
    msgpack_unpacked_destroy(&unpacked);
}

int main(int argc, char **argv) {
    int major, minor, patch, no_linger = 0;
    void *sock = zmq_socket(zmq_ctx_new(), ZMQ_REQ);
    zmq_setsockopt(sock, ZMQ_LINGER, &no_linger, sizeof no_linger);
    if (argc < 2 || zmq_connect(sock, argv[1])) return 1;
    zmq_version(&major, &minor, &patch);
    printf("C %ld, msgpack-c %s, ", __STDC_VERSION__, msgpack_version());
    printf("libzmq %d.%d.%d\n", major, minor, patch);
    for (; fflush(stdout) == 0 && fgets(line, sizeof line, stdin);) {
        size_t size = 0;
        for (unsigned byte; sscanf(line + 5 + 2 * size, "%2x", &byte) == 1; size++)
            bytes[size] = (char)byte;
        if (strncmp(line, "pack", 4) == 0) {
            print_packed(size);
        } else {
            zmq_msg_t reply;
            zmq_msg_init(&reply);
            zmq_send(sock, bytes, size, 0);
            zmq_msg_recv(&reply, sock, 0);
            print_hex(zmq_msg_data(&reply), zmq_msg_size(&reply));
            zmq_msg_close(&reply);
        }
    }
    return 0;
}
