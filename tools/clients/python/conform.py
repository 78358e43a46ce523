# Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
# `send HEX` with the server's reply to these bytes.

import platform
import sys

import msgpack
import zmq

socket = zmq.Context().socket(zmq.REQ)
socket.linger = 0
socket.connect(sys.argv[1])
msgpack_version = ".".join(map(str, msgpack.version))
about = f"Python {platform.python_version()}, msgpack {msgpack_version}"
print(f"{about}, libzmq {zmq.zmq_version()}", flush=True)
for line in sys.stdin:
    verb, hex_ = line.rstrip("\n").split(" ")
    data = bytes.fromhex(hex_)
    try:
        if verb == "pack":
            reply = msgpack.packb(msgpack.unpackb(data, timestamp=0, strict_map_key=False))
        else:
            socket.send(data)
            reply = socket.recv()
        print(reply.hex(), flush=True)
    except (ValueError, TypeError) as error:
        print(f"! {error}", flush=True)
