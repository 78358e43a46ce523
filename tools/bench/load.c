/* Load from C: many DEALER sockets in one thread, each with some requests in flight.
 *
 *   load ENDPOINT CONNECTIONS IN_FLIGHT MILLISECONDS BODY_BYTES < bodies > result
 *
 * Standard input holds the bodies to send in turn, all of BODY_BYTES. The result is a row
 * of native uint64: the nanoseconds it took, then each request's. Replies of one connection
 * count in the order in which they come: their mean is right even where two workers of the
 * server overtook each other.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#define BODIES_MAX (16u << 20)
#define IN_FLIGHT_MAX 128
#define REPLY_TIMEOUT_MS 5000
#define REQUESTS_MAX (64u << 20)

typedef struct {
    void *socket;
    uint64_t sent[IN_FLIGHT_MAX]; /* a ring: when each request in flight was sent */
    unsigned first;
} connection;

static char bodies[BODIES_MAX];
static size_t body_bytes, bodies_count, next_body;
static unsigned in_flight;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, zmq_strerror(zmq_errno()));
    exit(1);
}

static void send_one(connection *c, unsigned slot, uint64_t now)
{
    const char *body = bodies + body_bytes * (next_body++ % bodies_count);
    c->sent[slot] = now;
    if (zmq_send(c->socket, "", 0, ZMQ_SNDMORE) < 0 || zmq_send(c->socket, body, body_bytes, 0) < 0)
        fail("send");
}

/* Takes one reply; returns 0 when there is none. */
static int receive_one(connection *c)
{
    char reply[4096];
    int more;
    size_t size = sizeof more;
    if (zmq_recv(c->socket, reply, sizeof reply, ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() == EAGAIN)
            return 0;
        fail("receive");
    }
    do {
        zmq_getsockopt(c->socket, ZMQ_RCVMORE, &more, &size);
        if (more && zmq_recv(c->socket, reply, sizeof reply, 0) < 0)
            fail("receive");
    } while (more);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    int count = atoi(argv[2]), linger = 0;
    in_flight = (unsigned)atoi(argv[3]);
    body_bytes = (size_t)atoi(argv[5]);
    bodies_count = fread(bodies, 1, sizeof bodies, stdin) / body_bytes;
    if (in_flight > IN_FLIGHT_MAX || !bodies_count)
        return 2;
    void *context = zmq_ctx_new();
    connection *all = calloc((size_t)count, sizeof *all);
    zmq_pollitem_t *items = calloc((size_t)count, sizeof *items);
    uint64_t *latencies = malloc(REQUESTS_MAX * sizeof *latencies);
    for (int n = 0; n < count; n++) {
        all[n].socket = zmq_socket(context, ZMQ_DEALER);
        zmq_setsockopt(all[n].socket, ZMQ_LINGER, &linger, sizeof linger);
        if (zmq_connect(all[n].socket, argv[1]))
            fail("connect");
        items[n] = (zmq_pollitem_t){all[n].socket, 0, ZMQ_POLLIN, 0};
    }
    uint64_t began = now_ns(), now = began, end = began + (uint64_t)atoi(argv[4]) * 1000000u;
    size_t done = 0, pending = (size_t)count * in_flight;
    for (int n = 0; n < count; n++)
        for (unsigned slot = 0; slot < in_flight; slot++)
            send_one(&all[n], slot, now);
    while (pending && done < REQUESTS_MAX) {
        if (zmq_poll(items, count, REPLY_TIMEOUT_MS) <= 0)
            fail("no reply in time");
        for (int n = 0; n < count; n++)
            while ((items[n].revents & ZMQ_POLLIN) && done < REQUESTS_MAX && receive_one(&all[n])) {
                now = now_ns();
                latencies[done++] = now - all[n].sent[all[n].first];
                if (now < end)
                    send_one(&all[n], all[n].first, now);
                else
                    pending--;
                all[n].first = (all[n].first + 1) % in_flight;
            }
    }
    now -= began;
    fwrite(&now, sizeof now, 1, stdout);
    fwrite(latencies, sizeof *latencies, done, stdout);
    return 0;
}
