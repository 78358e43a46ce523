// A client of zkv in JavaScript. It needs zeromq and @msgpack/msgpack:
//
//   npm install zeromq @msgpack/msgpack              # in this folder: npm install
//   node client.js [tcp://127.0.0.1:5757]

import { randomUUID } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";
import { Request } from "zeromq";

const WAITS_MS = [250, 500, 1000, 2000, 4000]; // for a reply, attempt by attempt

class Zkv {
  #session = randomUUID();
  #seq = 0;
  #socket;

  constructor(endpoint) { this.endpoint = endpoint; }

  // A write happens once, however often it is sent.
  write(request) {
    return this.ask({ ...request, session: this.#session, seq: ++this.#seq });
  }

  // The reply; that of a failure has `error` and `message`.
  async ask(request) {
    for (const wait of WAITS_MS) {
      const reply = await this.#exchange(encode(request), wait);
      if (reply) return decode(reply);
      if (request.seq > 1) request = { ...request, retry: true };
    }
    throw new Error("no reply: whether it was done is not known");
  }

  async #exchange(body, wait) {
    if (!this.#socket) {
      this.#socket = new Request({ linger: 0 });
      this.#socket.connect(this.endpoint);
    }
    this.#socket.receiveTimeout = wait;
    await this.#socket.send(body);
    try {
      return (await this.#socket.receive())[0];
    } catch {
      this.#socket.close(); // a REQ that waits for a reply cannot send: the next is a new one
      this.#socket = undefined;
    }
  }
}

const zkv = new Zkv(process.argv[2] ?? "tcp://127.0.0.1:5757");
await zkv.write({ op: "txn", then: [] }); // opens the session; may be done twice
const ada = { name: "Ada", langs: ["en", "fr"] };
const put = await zkv.write({ op: "put", key: "user:1", value: ada });
console.log(`put user:1: version ${put.version}`);
const { value: user } = await zkv.ask({ op: "get", key: "user:1" });
console.log(`get user:1: ${user.name} speaks ${user.langs.join(", ")}`);
const bob = await zkv.write({ op: "put", key: "user:1", value: "Bob", if: { version: 0 } });
console.log(`put user:1 if version 0: ${bob.error}, it has version ${bob.version}`);
const visits = await zkv.write({ op: "incr", key: "visits" });
console.log(`incr visits: ${visits.value}`);
const nobody = await zkv.ask({ op: "get", key: "nobody" });
if (!nobody.ok) console.log(`get nobody: ${nobody.error}, ${nobody.message}`);
