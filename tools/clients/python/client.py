# A client of zkv in Python, with nothing of zkv. It needs pyzmq and msgpack:
#
#   pip install pyzmq msgpack
#   python client.py [tcp://127.0.0.1:5757]

import secrets
import sys

import msgpack
import zmq

WAITS_MS = 250, 500, 1000, 2000, 4000  # for a reply, attempt by attempt


class Zkv:
    def __init__(self, endpoint="tcp://127.0.0.1:5757"):
        self.endpoint, self.socket = endpoint, None
        self.session, self.seq = secrets.token_hex(16), 0
        self.write(op="txn", then=[])  # opens the session; may be done twice, since it does nothing

    def write(self, **request):
        """A write happens once, however often it is sent."""
        self.seq += 1
        return self.ask(**request, session=self.session, seq=self.seq)

    def ask(self, **request):
        """The reply; that of a failure has `error` and `message`."""
        for wait in WAITS_MS:
            if reply := self.exchange(msgpack.packb(request), wait):
                return msgpack.unpackb(reply, timestamp=0)
            if request.get("seq", 1) > 1:
                request["retry"] = True
        raise TimeoutError("no reply: whether it was done is not known")

    def exchange(self, body, wait):
        if self.socket is None:
            self.socket = zmq.Context.instance().socket(zmq.REQ)
            self.socket.linger = 0
            self.socket.connect(self.endpoint)
        self.socket.send(body)
        if self.socket.poll(wait):
            return self.socket.recv()
        self.socket.close()  # a REQ that waits for a reply cannot send: the next is a new one
        self.socket = None
        return None


zkv = Zkv(*sys.argv[1:])
put = zkv.write(op="put", key="user:1", value={"name": "Ada", "langs": ["en", "fr"]})
print(f"put user:1: version {put['version']}")
user = zkv.ask(op="get", key="user:1")["value"]
print(f"get user:1: {user['name']} speaks {', '.join(user['langs'])}")
bob = zkv.write(op="put", key="user:1", value="Bob", **{"if": {"version": 0}})
print(f"put user:1 if version 0: {bob['error']}, it has version {bob['version']}")
print(f"incr visits: {zkv.write(op='incr', key='visits')['value']}")
nobody = zkv.ask(op="get", key="nobody")
if not nobody["ok"]:
    print(f"get nobody: {nobody['error']}, {nobody['message']}")
