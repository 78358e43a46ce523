"""Sockets and threads, and nothing else: it is handed a function from request bodies to
reply bodies, and knows nothing of what is in them.

    clients (ROUTER, tcp or ipc) ══ proxy, in C ══ workers (DEALER, inproc) ── worker threads

A worker takes whatever waits, up to 64 requests or 8 MiB, has the batch answered at once,
and sends each reply back in its own envelope. Nothing here waits for a slow peer: replies have
all the room that they need (`unread` bounds their bytes), so a worker never waits for the proxy.
And when requests take long, a worker takes in all that wait, and lets connections take turns,
so the proxy never waits long for a worker.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket as unix
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import zmq

from zkv.connections import GREETING_S, Connections
from zkv.turns import Turns
from zkv.unread import Unread

log = logging.getLogger(__name__)

Handle = Callable[[Sequence[bytes], int], list[bytes]]
"""From the bodies of requests, and how many bytes their replies may have in all, to the bodies
of their replies: of all, or of the first ones when these took long, but of one at least."""

ENVELOPE_BYTES_MAX: Final = 4096
ENVELOPE_FRAMES_MAX: Final = 64
"""Of what a reply has to repeat; more is no request."""
FRAME_BYTES: Final = 64
"""What a frame takes in libzmq, beside its bytes."""
BATCH_MAX: Final = 64
BATCH_BYTES_MAX: Final = 8 * 2**20
FULL_BATCHES_MAX: Final = 64
"""After so many full batches one after the other, a worker takes in all that wait."""
TAKE_IN_S: Final = 0.003
BURST: Final = 1000
"""How often it does so from then on; but after each batch while more wait than the proxy hands on
at a stretch. The proxy then hands on the replies since: the fewer times, the fewer packets."""
TAKE_IN_MOST_S: Final = 0.02
"""How long it goes on with that while there is no end to what comes."""

AHEAD_MAX: Final = 256
"""Requests that wait in front of a worker, beside those that it has taken in."""
CONNECTION_AHEAD_MAX: Final = 128
"""Those of one connection that wait for the proxy; more wait in the network's buffers. libzmq
wakes its I/O thread each time that half of them are gone."""
TURNS_MAX: Final = 16_384
TURNS_BYTES_MAX: Final = 64 * 2**20
"""Requests that a worker takes in while others take long. Then it takes in one for one."""

FEW_CONNECTIONS: Final = 64
"""With more of them it is looked again and again at how many bytes `unread` may leave uncounted."""
CONNECTION_UNREAD_BYTES_MAX: Final = 32 * 2**20
"""Replies that a connection may leave unread before its requests wait: the largest has 24 MiB."""
HELD_MAX: Final = 128
"""Requests of such a connection that are kept; it must not have more under way."""
HELD_AGAIN_MS: Final = 20
"""How soon a worker looks whether such a connection has read, when it has nothing else to do."""

ASK_FIRST: Final = 8
"""Behind so many requests more are likely to wait, so a worker takes them without asking."""

LOOK_AGAIN_S: Final = 100e-6
"""How long a worker that served one client looks for its next request before it sleeps. To be
woken costs more than that takes: a lone client waits 208 µs for a reply instead of 262."""

YIELD_BEHIND_S: Final = 100e-6
"""A worker that took longer for a batch, as when it is synced, has the threads that send the
replies go first; else these wait until the next batch is being synced. 8 clients that put
get 12,100 requests/s instead of 11,000; those that get would have a tenth less."""

LINGER_MS: Final = 1000
"""How long a stopping server goes on sending the replies it has made."""

STOP_TURNS_S: Final = 1.0
"""How long a stopping worker goes on with the requests that it has taken in."""
STOP_AGAIN_MS: Final = 100
"""After how long a worker is told to stop again, if none has."""
STOP_S: Final = 4.0
"""How long a stop may take in all; what hangs longer than that is left alone."""

_INPROC: Final = "inproc://workers"
_STOP: Final = "inproc://stop"
_IPC: Final = "ipc://"
_ABSTRACT: Final = "ipc://@"  # no file has that name


def keep_to_one_cpu() -> None:
    """Has this thread, and all that it starts from now on, stay on the CPU where it is now.

    The I/O thread, the proxy and a worker hand each request on, one after the other; they
    gain little from more than one CPU, and to wake a thread on another one costs more than
    to switch to it. Measured on 2 virtual CPUs, with an echo for a handler: 8 REQ processes
    29,000 requests/s instead of 22,000, two REQ clients p50 153 µs instead of 245; 50
    connections with 16 requests under way each, 130,000 requests/s either way. As batch
    jobs they do not break in on each other, so more is done at a time: 8 % more requests.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError):  # a container may forbid it
        fields_behind_name = Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()
        os.sched_setaffinity(0, {int(fields_behind_name[36])})  # field 39, "processor": proc(5)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class Server:
    """Listens on endpoints until it is stopped.

    Raises OSError, with the endpoint as its filename, for an endpoint that cannot be
    listened on. `on_crash` is called from a thread that ends though it should not.
    `old_peers` lets in those that speak ZMTP 1 or 2, whose greeting is hardly checked: then
    what a web page sends may be taken for a request.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        handle: Handle,
        *,
        workers: int,
        message_bytes_max: int,
        unread_bytes_max: int,
        connections_max: int,
        on_crash: Callable[[BaseException], None],
        old_peers: bool = False,
    ) -> None:
        self._handle = handle
        self._on_crash = on_crash
        self._context = zmq.Context()
        self._clients = self._context.socket(zmq.ROUTER)
        _protect(self._clients, message_bytes_max, old_peers=old_peers)
        self._unread = Unread(unread_bytes_max, CONNECTION_UNREAD_BYTES_MAX)
        self._connections = Connections(
            self._context,
            self._clients,
            open_max=connections_max,
            unread=self._unread,
        )
        try:
            self.endpoints = [_listen(self._clients, endpoint) for endpoint in endpoints]
        except OSError:
            self._context.destroy(linger=0)
            raise
        self._stop_name = secrets.token_bytes(16)  # which no client can take for its own
        self._clients.bind(_STOP)
        self._workers = self._context.socket(zmq.DEALER)
        self._workers.sndhwm = 1  # what waits for a slow worker waits where others can take it
        self._workers.linger = 0
        self._workers.bind(_INPROC)
        self._crashed = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(self._work,), name=f"zkv-worker-{n}")
            for n in range(workers)
        ]
        others = (("zkv-proxy", self._route), ("zkv-connections", self._connections.run))
        self._threads += [
            threading.Thread(target=self._guard, args=(run,), name=name) for name, run in others
        ]
        self._workers_left = workers

    def start(self) -> None:
        """Begins to answer."""
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def info(self) -> dict[str, int]:
        """See `Connections.info`."""
        return self._connections.info()

    def stop(self) -> bool:
        """Answers what has reached a worker, delivers the replies, and closes everything.

        Returns whether all of that was done within `STOP_S`. A worker is told to stop by a
        request, whose reply comes after all of its others: when it is here, they are with the
        ROUTER, which has `LINGER_MS` to send them.
        """
        until = time.monotonic() + STOP_S
        for endpoint in self.endpoints:
            if endpoint.startswith(_IPC) and not endpoint.startswith(_ABSTRACT):
                with suppress(FileNotFoundError):
                    os.unlink(endpoint.removeprefix(_IPC))
        with self._context.socket(zmq.DEALER) as stop:
            stop.routing_id = self._stop_name
            stop.linger = 0
            stop.connect(_STOP)
            while self._workers_left and time.monotonic() < until and not self._crashed.is_set():
                stop.send(b"")  # again, since the last one may have gone to one that had stopped
                if stop.poll(STOP_AGAIN_MS):
                    stop.recv()
                    self._workers_left -= 1
        ending = threading.Thread(target=self._context.term, daemon=True)
        ending.start()
        ending.join(until + LINGER_MS / 1000 - time.monotonic())
        return not ending.is_alive()

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except zmq.ContextTerminated:
            return  # by `stop`
        except BaseException as error:
            self._crashed.set()
            self._on_crash(error)
            raise

    def _route(self) -> None:
        """The proxy's thread.

        A steerable one, which can be told to end, asks a third socket each time: of 8 clients
        a get would cost the server 26 µs instead of 25, and 2 clients would wait 84 µs, not 81.
        """
        with self._clients, self._workers:
            zmq.proxy(self._clients, self._workers)

    def _work(self) -> None:
        with self._context.socket(zmq.DEALER) as clients:
            clients.rcvhwm = AHEAD_MAX
            clients.sndhwm = 0  # or it waits for the proxy, which may wait for it
            clients.connect(_INPROC)
            bodies: list[bytes] = []
            stopping, full_batches = False, 0
            while not stopping:
                if len(bodies) == 1:
                    _look_again(clients)
                envelopes, bodies, stopping = _receive_batch(clients, self._stop_name)
                answered = 0 if self._any_held() else self._answer(clients, envelopes, bodies)
                full_batches = full_batches + 1 if answered == BATCH_MAX else 0
                if answered < len(bodies) or full_batches == FULL_BATCHES_MAX:
                    turns = Turns()
                    turns.add(envelopes[answered:], bodies[answered:])
                    stopping = self._take_turns(clients, turns, stopping)
                    full_batches = 0
            _send(clients, [self._stop_name], b"")
            while True:  # to the end: a proxy that nobody takes requests from delivers no replies
                clients.recv()

    def _answer(
        self, clients: zmq.Socket[bytes], envelopes: list[list[bytes]], bodies: list[bytes]
    ) -> int:
        """Sends the replies to a batch, or to as much of it as is handled now; returns how many."""
        if not bodies:
            return 0
        began = time.perf_counter()
        unread = self._unread
        replies = self._handle(bodies, unread.bytes_max - unread.bytes)
        since_mark, mark_bytes = unread.since_mark, unread.mark_bytes
        for envelope, reply in zip(envelopes, replies, strict=False):
            connection = envelope[0]
            size = len(reply) + len(b"".join(envelope)) + FRAME_BYTES * len(envelope)
            size = since_mark[connection] = since_mark.get(connection, 0) + size
            last = reply if size < mark_bytes else unread.mark(connection, reply)
            for frame in envelope:
                _send_frame(clients, frame, zmq.SNDMORE)
            _send_frame(clients, last)
        if time.perf_counter() - began > YIELD_BEHIND_S:
            os.sched_yield()
        return len(replies)

    def _any_held(self) -> bool:
        """Whether there are connections that get no replies for now."""
        if self._unread.bytes or len(self._unread.since_mark) > FEW_CONNECTIONS:
            self._unread.look()
        return bool(self._unread.held)

    def _take_turns(self, clients: zmq.Socket[bytes], turns: Turns, stopping: bool) -> bool:
        """Answers requests, and those that come meanwhile, until none waits; returns whether to
        stop. One that stops goes on for a while, and takes nothing in.
        """
        take_in_at, stop_at = 0.0, time.monotonic() + STOP_TURNS_S
        while True:
            now = time.monotonic()
            if not stopping and (now >= take_in_at or turns.requests > BURST):
                stopping = self._take_in(clients, turns)
                take_in_at, stop_at = now + TAKE_IN_S, now + STOP_TURNS_S
            if not turns.requests or (stopping and now > stop_at):
                return stopping
            self._any_held()
            envelopes, bodies = turns.take(BATCH_MAX, BATCH_BYTES_MAX, self._unread.held)
            answered = self._answer(clients, envelopes, bodies)
            if answered < len(bodies):
                turns.put_back(envelopes[answered:], bodies[answered:])
            if not bodies:  # all that wait are held
                if stopping:
                    return stopping
                clients.poll(HELD_AGAIN_MS)

    def _take_in(self, clients: zmq.Socket[bytes], turns: Turns) -> bool:
        """Takes in requests that wait, as far as there is room; returns whether to stop.

        Requests of connections that are held do not keep those of others out.
        """
        taken, until = 0, time.monotonic() + TAKE_IN_MOST_S
        if turns.requests >= TURNS_MAX or turns.bytes >= TURNS_BYTES_MAX:
            self._unread.dropped += turns.drop({*self._unread.held})
        while turns.requests < TURNS_MAX and turns.bytes < TURNS_BYTES_MAX:
            envelopes, bodies, stopping = _receive_batch(clients, self._stop_name, wait=False)
            taken += len(bodies)
            more = len(bodies) == BATCH_MAX
            if self._unread.held:
                envelopes, bodies = self._drop_of_held(turns, envelopes, bodies)
            turns.add(envelopes, bodies)
            done = not (more or taken >= AHEAD_MAX) or time.monotonic() > until
            if stopping or done:
                return stopping
            if not more:  # the proxy had to wait, and now has the rest of its burst
                taken = 0
                os.sched_yield()
        return False

    def _drop_of_held(
        self, turns: Turns, envelopes: list[list[bytes]], bodies: list[bytes]
    ) -> tuple[list[list[bytes]], list[bytes]]:
        """Gives up requests of connections that are held and have enough of them waiting."""
        kept = [
            at
            for at, (connection, *_) in enumerate(envelopes)
            if connection not in self._unread.held or turns.waiting(connection) < HELD_MAX
        ]
        self._unread.dropped += len(bodies) - len(kept)
        return [envelopes[at] for at in kept], [bodies[at] for at in kept]


def _look_again(clients: zmq.Socket[bytes]) -> None:
    """Waits a moment for a request, without sleeping; other threads go first."""
    until = time.perf_counter() + LOOK_AGAIN_S
    while not _waits(clients) and time.perf_counter() < until:
        os.sched_yield()


def _receive_batch(
    clients: zmq.Socket[bytes], stop_name: bytes, *, wait: bool = True
) -> tuple[list[list[bytes]], list[bytes], bool]:
    """Envelopes and bodies of all requests that wait, up to a batch of them; if asked to, it
    waits for the first. The last item is whether to stop.
    """
    envelopes: list[list[bytes]] = []
    bodies: list[bytes] = []
    size = 0
    name = clients.recv() if wait else _receive_next(clients, BATCH_MAX)
    while name is not None:
        envelope = [name]
        full = False
        while (frame := clients.recv(copy=False)).more:  # only such a frame tells
            envelope.append(frame.bytes)
            if len(envelope) > ENVELOPE_FRAMES_MAX + 1:
                full = True  # this takes long
                while clients.recv(copy=False).more:
                    pass
                break
        body = frame.bytes
        if full:
            envelope, body = [name], b""
        elif len(envelope) > 2 and b"" in envelope[:-1]:  # several frames after the delimiter
            del envelope[envelope.index(b"") + 1 :]
            body = b""
        if len(envelope) > 1 and len(b"".join(envelope)) > ENVELOPE_BYTES_MAX:
            envelope, body = [name], b""
        if name == stop_name:
            return envelopes, bodies, True
        envelopes.append(envelope)
        bodies.append(body)
        size += len(body)
        full = full or len(bodies) == BATCH_MAX or size >= BATCH_BYTES_MAX
        name = None if full else _receive_next(clients, len(bodies))
    return envelopes, bodies, False


def _receive_next(clients: zmq.Socket[bytes], received: int) -> bytes | None:
    """The first frame of another message, if one waits.

    To ask first takes 1.0 µs each time, to be told by a `zmq.Again` 3.4 µs once.
    """
    if received < ASK_FIRST:
        return clients.recv() if _waits(clients) else None
    try:
        return clients.recv(zmq.NOBLOCK)
    except zmq.Again:
        return None


def _waits(clients: zmq.Socket[bytes]) -> bool:
    """Whether a message waits; half the price of the socket's own `poll`."""
    return bool(zmq.zmq_poll([(clients, zmq.POLLIN)], 0))


def _send(clients: zmq.Socket[bytes], envelope: list[bytes], reply: bytes | zmq.Frame) -> None:
    for frame in envelope:
        _send_frame(clients, frame, zmq.SNDMORE)
    _send_frame(clients, reply)


_send_frame = zmq.backend.Socket.send
"""What `zmq.Socket.send` calls, for about half of its price."""


def _protect(clients: zmq.Socket[bytes], message_bytes_max: int, *, old_peers: bool) -> None:
    """Sets the options that keep one peer from harming the rest."""
    clients.linger = LINGER_MS
    clients.rcvhwm = CONNECTION_AHEAD_MAX
    clients.sndhwm = 0  # or replies would be dropped; `unread` bounds them
    # A message over the limit gets an error reply; libzmq closes on one of more than twice.
    clients.maxmsgsize = 2 * message_bytes_max
    clients.handshake_ivl = GREETING_S * 1000
    if not old_peers:
        clients.zap_domain = b"zkv"  # nobody is asked, but libzmq then takes ZMTP 3 only
    clients.backlog = 512
    clients.tcp_keepalive = 1
    clients.tcp_keepalive_idle = 60
    clients.tcp_keepalive_intvl = 10
    clients.tcp_keepalive_cnt = 3


def _listen(clients: zmq.Socket[bytes], endpoint: str) -> str:
    """Binds; returns the address."""
    clients.ipv6 = "[" in endpoint
    try:
        _refuse_file_in_use(endpoint)
        clients.bind(endpoint)
    except zmq.ZMQError as error:
        raise OSError(error.errno, zmq.strerror(error.errno or 0), endpoint) from None
    return clients.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _refuse_file_in_use(endpoint: str) -> None:
    """libzmq would unlink whatever is there: also a file that is no socket, even where the name
    is an abstract one, and the socket of a server that lives, whose clients it would take.
    """
    path = endpoint.removeprefix(_IPC)
    if path == endpoint or not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise zmq.ZMQError(zmq.ENOTSOCK)
    with unix.socket(unix.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise zmq.ZMQError(zmq.EADDRINUSE)
