"""The limit: zkv's topology, ROUTER–proxy–DEALER workers, in plain pyzmq, doing nothing.

Every request gets one and the same reply, that of a get of 100 bytes, so both directions
carry as many bytes as zkv's do and the same clients can ask. It is told how many frames stand
before a request's body: 1, or 2 with a delimiter. Prints its endpoint; ends when it is killed.
"""

from __future__ import annotations

import sys
import threading

import msgpack
import zmq

REPLY = msgpack.packb({"ok": True, "revision": 1, "value": "x" * 100, "version": 1})
WORKERS = 1  # as many as zkv's


def work(context: zmq.Context[zmq.Socket[bytes]], frames: int) -> None:
    """The fastest of what was tried, in requests/s at 50 connections × 16: this 289 k, with
    zmq.Socket's own `send`, which is a Python function around this one, 222 k, frames with
    copy=False and `more` 143 k, recv_multipart and send_multipart 74 k.
    """
    with context.socket(zmq.DEALER) as clients:
        clients.sndhwm = 0  # or it waits for the proxy, which may wait for it
        clients.connect("inproc://workers")
        recv, send = clients.recv, zmq.backend.Socket.send
        while True:
            for _ in range(frames):
                send(clients, recv(), zmq.SNDMORE)
            recv()
            send(clients, REPLY)


def main(frames: int) -> None:
    context = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    clients.sndhwm = workers.rcvhwm = 0
    clients.bind("tcp://127.0.0.1:*")
    workers.bind("inproc://workers")
    for _ in range(WORKERS):
        threading.Thread(target=work, args=(context, frames), daemon=True).start()
    print(clients.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), flush=True)
    zmq.proxy(clients, workers)


if __name__ == "__main__":
    main(int(sys.argv[1]))
