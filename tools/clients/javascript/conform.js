// Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
// `send HEX` with the server's reply to these bytes.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { decode, encode } from "@msgpack/msgpack";
import { Request, version } from "zeromq";

const options = { useBigInt64: true };
const socket = new Request({ linger: 0 });
socket.connect(process.argv[2]);
const about = readFileSync("node_modules/@msgpack/msgpack/package.json");
console.log(`Node ${process.versions.node}, @msgpack/msgpack ${JSON.parse(about).version}, libzmq ${version}`);
for await (const line of createInterface({ input: process.stdin })) {
  const [verb, hex] = line.split(" ");
  const bytes = Buffer.from(hex, "hex");
  try {
    if (verb === "send") await socket.send(bytes);
    const reply = verb === "pack" ? encode(decode(bytes, options), options) : (await socket.receive())[0];
    console.log(Buffer.from(reply).toString("hex"));
  } catch (error) {
    console.log(`! ${error.message}`);
  }
}
