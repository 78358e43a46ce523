"""Sockets and threads, and nothing else: it is handed a function from request bodies to
reply bodies, and imports no other module of zkv.

    clients (ROUTER, tcp or ipc) ══ proxy, in C ══ workers (DEALER, inproc) ── worker threads

A worker takes whatever waits, up to 64 requests or 8 MiB, has the batch answered at once,
and sends each reply back in its own envelope.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket as unix
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import zmq

log = logging.getLogger(__name__)

Handle = Callable[[Sequence[bytes]], list[bytes]]

BATCH_MAX: Final = 64
BATCH_BYTES_MAX: Final = 8 * 2**20
IN_FLIGHT_MAX: Final = 128
"""Requests that one connection may have under way; a REQ client never has more than one.
libzmq drops replies that find no room, and tells of free room half a high-water mark late,
so there is room for twice as many."""

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

STOP_AGAIN_MS: Final = 100
"""After how long a worker is told to stop again, if none has."""

_INPROC: Final = "inproc://workers"
_STOP: Final = "inproc://stop"
_IPC: Final = "ipc://"


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
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        handle: Handle,
        *,
        workers: int,
        message_bytes_max: int,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._handle = handle
        self._on_crash = on_crash
        self._context = zmq.Context()
        self._clients = self._context.socket(zmq.ROUTER)
        try:
            self.endpoints = [
                _listen(self._clients, endpoint, message_bytes_max) for endpoint in endpoints
            ]
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
        self._proxy = threading.Thread(target=self._guard, args=(self._route,), name="zkv-proxy")

    def start(self) -> None:
        """Begins to answer."""
        for thread in [*self._threads, self._proxy]:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """Answers what has reached a worker, delivers the replies, and closes everything.

        A worker is told to stop by a request, whose reply comes behind all of its others: when
        it is here, they are with the ROUTER, which has `LINGER_MS` to send them.
        """
        for endpoint in self.endpoints:
            if endpoint.startswith(_IPC):
                with suppress(FileNotFoundError):
                    os.unlink(endpoint.removeprefix(_IPC))
        with self._context.socket(zmq.DEALER) as stop:
            stop.routing_id = self._stop_name
            stop.linger = 0
            stop.connect(_STOP)
            left = len(self._threads)
            while left:
                stop.send(b"")  # again, since the last one may have gone to one that had stopped
                if stop.poll(STOP_AGAIN_MS):
                    stop.recv()
                    left -= 1
                elif self._crashed.is_set():
                    break
        self._context.term()

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
            clients.rcvhwm = BATCH_MAX
            clients.connect(_INPROC)
            bodies: list[bytes] = []
            stopping = False
            while not stopping:
                if len(bodies) == 1:
                    _look_again(clients)
                envelopes, bodies, stopping = _receive_batch(clients, self._stop_name)
                if bodies:
                    began = time.perf_counter()
                    for envelope, reply in zip(envelopes, self._handle(bodies), strict=True):
                        _send(clients, envelope, reply)
                    if time.perf_counter() - began > YIELD_BEHIND_S:
                        os.sched_yield()
            _send(clients, [self._stop_name], b"")
            while True:  # to the end: a proxy that nobody takes requests from delivers no replies
                clients.recv()


def _look_again(clients: zmq.Socket[bytes]) -> None:
    """Waits a moment for a request, without sleeping; other threads go first."""
    until = time.perf_counter() + LOOK_AGAIN_S
    while not _waits(clients) and time.perf_counter() < until:
        os.sched_yield()


def _receive_batch(
    clients: zmq.Socket[bytes], stop_name: bytes
) -> tuple[list[list[bytes]], list[bytes], bool]:
    """Waits for a request and takes all that wait; the last item is whether to stop."""
    envelopes: list[list[bytes]] = []
    bodies: list[bytes] = []
    size = 0
    name: bytes | None = clients.recv()
    while name is not None:
        envelope = [name]
        while (frame := clients.recv(copy=False)).more:  # only such a frame tells
            envelope.append(frame.bytes)
        body = frame.bytes
        if len(envelope) > 2 and b"" in envelope[:-1]:  # several frames behind the delimiter
            del envelope[envelope.index(b"") + 1 :]
            body = b""
        if name == stop_name:
            return envelopes, bodies, True
        envelopes.append(envelope)
        bodies.append(body)
        size += len(body)
        full = len(bodies) == BATCH_MAX or size >= BATCH_BYTES_MAX
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


def _send(clients: zmq.Socket[bytes], envelope: list[bytes], reply: bytes) -> None:
    for frame in envelope:
        _send_frame(clients, frame, zmq.SNDMORE)
    _send_frame(clients, reply, copy=False)  # a large one is not copied, libzmq keeps it


_send_frame = zmq.backend.Socket.send
"""What `zmq.Socket.send` calls, for about half of its price: 0.2 µs, or 0.3 with copy=False."""


def _listen(clients: zmq.Socket[bytes], endpoint: str, message_bytes_max: int) -> str:
    """Binds, with the options that keep one peer from harming the rest; returns the address."""
    clients.linger = LINGER_MS
    clients.rcvhwm = IN_FLIGHT_MAX
    clients.sndhwm = 2 * IN_FLIGHT_MAX
    # A message over the limit gets an error reply; libzmq closes on one of more than twice.
    clients.maxmsgsize = 2 * message_bytes_max
    clients.handshake_ivl = 5000
    clients.backlog = 512
    clients.ipv6 = "[" in endpoint
    clients.tcp_keepalive = 1
    clients.tcp_keepalive_idle = 60
    clients.tcp_keepalive_intvl = 10
    clients.tcp_keepalive_cnt = 3
    try:
        _refuse_ipc_in_use(endpoint)
        clients.bind(endpoint)
    except zmq.ZMQError as error:
        raise OSError(error.errno, zmq.strerror(error.errno or 0), endpoint) from None
    return clients.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _refuse_ipc_in_use(endpoint: str) -> None:
    """libzmq would unlink the socket of a server that lives, and take its clients."""
    path = endpoint.removeprefix(_IPC)
    if path != endpoint and os.path.exists(path):
        with unix.socket(unix.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                raise zmq.ZMQError(zmq.EADDRINUSE)
