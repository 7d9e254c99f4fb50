// Reads lines of JSON from stdin, each the pieces of one event stream in base64, and writes for each a line of JSON: the
// events that client.js reads of them. It ends with its input.

import { createInterface } from "node:readline";
import { EventStreamParser } from "../../client/client.js";

for await (const line of createInterface({ input: process.stdin })) {
  const events = [];
  const decoder = new TextDecoder();
  const parser = new EventStreamParser((type, data) => events.push([type, data]));
  for (const piece of JSON.parse(line)) parser.push(decoder.decode(Buffer.from(piece, "base64"), { stream: true }));
  process.stdout.write(`${JSON.stringify(events)}\n`);
}
