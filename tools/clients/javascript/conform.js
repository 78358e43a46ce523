// Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
// `send HEX` with the server's reply to these bytes.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { decode, encode } from "@msgpack/msgpack";
import { Request, version } from "zeromq";

const options = { useBigInt64: true };
const socket = new Request({ linger: 0 });
socket.connect(process.argv[2]);
const about = JSON.parse(readFileSync("node_modules/@msgpack/msgpack/package.json"));
const msgpack = `@msgpack/msgpack ${about.version}`;
console.log(`Node ${process.versions.node}, ${msgpack}, libzmq ${version}`);
for await (const line of createInterface({ input: process.stdin })) {
  const [verb, hex] = line.split(" ");
  const bytes = Buffer.from(hex, "hex");
  try {
    let reply;
    if (verb === "pack") {
      reply = encode(decode(bytes, options), options);
    } else {
      await socket.send(bytes);
      [reply] = await socket.receive();
    }
    console.log(Buffer.from(reply).toString("hex"));
  } catch (error) {
    console.log(`! ${error.message}`);
  }
}
