/*
 * Every Node library of the matrix, used as its own documents show, in one process.
 *
 * A line of stdin is a question for one library: {n, library, chat, openai, question, key, mode, patience}. A line of stdout is
 * what came of it: {n, text, end, told}. Many are asked at a time.
 *
 *   mode  read    until the library or the answer ends; `forget` does not close the library at `done`; `abort` leaves
 *                 at the first piece of text
 *   end   done | a code of the gateway's error event | a status | raises | closed (the library stopped, and said so)
 *         | ends (as if all had come) | aborted | waits (longer than `patience`, in seconds) | goes on (it asks again for ever)
 */
import {createInterface} from "node:readline";

import {createOpenAICompatible} from "@ai-sdk/openai-compatible";
import {ChatOpenAI} from "@langchain/openai";
import {fetchEventSource} from "@microsoft/fetch-event-source";
import {streamText} from "ai";
import {EventSourcePolyfill} from "event-source-polyfill";
import EventSource2 from "eventsource2";
import {EventSource as EventSource3} from "eventsource3";
import {EventSource as EventSource4} from "eventsource4";
import {EventSource as EventSource5} from "eventsource5";
import {EventSourceParserStream} from "eventsource-parser/stream";
import OpenAI from "openai";
import ReconnectingEventSource from "reconnecting-eventsource";
import {SSE} from "sse.js";
import {EventSource as EventSourceUndici} from "undici";

// What libraries for browsers take from theirs. The window shows no document: other libraries would refuse to send a key.
globalThis.window = Object.create(globalThis, {document: {value: undefined}});
globalThis.document = new EventTarget();

/** What sse.js needs of a browser's XMLHttpRequest. */
globalThis.XMLHttpRequest = class extends EventTarget {
  static HEADERS_RECEIVED = 2;
  readyState = 0;
  status = 0;
  responseText = "";
  control = new AbortController();
  headers = new Headers();

  get response() {
    return this.responseText;
  }

  open(method, url) {
    Object.assign(this, {method, url, readyState: 1});
  }

  setRequestHeader(name, value) {
    this.headers.append(name, value);
  }

  getAllResponseHeaders() {
    return [...this.reply.headers].map((header) => header.join(": ")).join("\r\n");
  }

  getResponseHeader(name) {
    return this.reply.headers.get(name);
  }

  abort() {
    this.control.abort();
  }

  tell(type, readyState = this.readyState) {
    this.readyState = readyState;
    if (type !== "readystatechange") this.dispatchEvent(new Event("readystatechange"));
    this.dispatchEvent(new Event(type));
  }

  async send(body) {
    const {method, headers, control} = this;
    try {
      this.reply = await fetch(this.url, {method, headers, body, signal: control.signal});
      this.status = this.reply.status;
      this.tell("readystatechange", 2);
      for await (const text of this.reply.body?.pipeThrough(new TextDecoderStream()) ?? []) {
        this.responseText += text;
        this.tell("progress", 3);
      }
      this.tell("load", 4);
    } catch {
      this.responseText = "";
      this.tell(control.signal.aborted ? "abort" : "error", 4);
    }
  }
};

const FORGOTTEN = 4_000; // ms in which one that was not closed may show whether it stops
const RETRY = 100; // ms

/** What one library made of one answer. */
class Answer {
  text = "";
  close = () => {};

  constructor({mode, patience}, lossy) {
    this.mode = mode;
    this.lossy = lossy;
    this.ended = new Promise((resolve) => (this.resolve = resolve));
    this.timer = setTimeout(() => this.end("waits"), patience * 1000);
  }

  /** An event of the gateway's format `events`. */
  take(type, data) {
    if (type === "token") this.add(JSON.parse(data).text);
    if (type === "restart") this.text = "";
    if (type === "error") this.end(JSON.parse(data).code);
    if (type === "done" && this.lossy) this.text = JSON.parse(data).full_text;
    if (type === "done" && this.mode !== "forget") this.end("done");
    else if (type === "done") setTimeout(() => this.end("goes on"), FORGOTTEN);
  }

  /** A 204: the cursor was that of the end, so all was read. */
  nothingLeft() {
    this.end(this.mode === "forget" ? "closed" : "done");
  }

  add(text) {
    this.text += text;
    if (this.mode === "abort" && this.text) this.end("aborted");
  }

  end(how, told = "") {
    clearTimeout(this.timer);
    this.close();
    this.resolve({text: this.text, end: String(how), told: String(told)});
  }

  /** How a library that throws tells of the end. */
  failed(error) {
    const status = error.status ?? error.statusCode ?? error.lastError?.statusCode;
    this.end(status >= 400 ? status : "raises", error.message);
  }
}

const body = ({question}) => JSON.stringify({message: question});
const bearer = ({key}) => ({Authorization: `Bearer ${key}`});
const get = ({chat, question, key}) => `${chat}?${new URLSearchParams({message: question, token: key})}`;
const post = (ask) => ({
  method: "POST",
  headers: {"Content-Type": "application/json", ...bearer(ask)},
  body: body(ask),
});

/** An EventSource of any maker: it reconnects by itself, so an error without data that left it open is none. */
function eventSource(make) {
  return (ask, answer) => {
    const source = make(get(ask));
    answer.close = () => source.close();
    for (const type of ["token", "restart", "done"]) {
      source.addEventListener(type, (event) => answer.take(type, event.data));
    }
    source.addEventListener("error", (event) => {
      const status = event.status ?? event.code; // of a refusal, after which it stops
      if (event.data) answer.take("error", event.data);
      else if (status === 204) answer.nothingLeft();
      else if (source.readyState === 2 || status) answer.end(status ?? "closed");
    });
  };
}

/** A reconnecting EventSource that makes new ones for ever: only what the page hears of `done` and `error` ends it. */
function reconnecting(ask, answer) {
  const source = new ReconnectingEventSource(get(ask), {eventSourceClass: EventSource4, max_retry_time: RETRY});
  answer.close = () => source.close();
  for (const type of ["token", "restart", "done", "error"]) {
    source.addEventListener(type, (event) => event.data && answer.take(type, event.data));
  }
  if (answer.mode !== "read") return;
  setTimeout(() => answer.text || answer.end("goes on"), FORGOTTEN);
}

/** fetch-event-source: a drop is asked for again, with the cursor; a refusal and the end are not. */
function fetchEvents(ask, answer) {
  const control = new AbortController();
  answer.close = () => control.abort();
  const lasting = (error) => {
    throw error; // thrown on, it ends the library; otherwise it asks again
  };
  fetchEventSource(ask.chat, {
    ...post(ask),
    openWhenHidden: true,
    signal: control.signal,
    async onopen(response) {
      if (response.status === 204) answer.nothingLeft();
      else if (!response.ok) lasting(Object.assign(new Error(await response.text()), {status: response.status}));
    },
    onmessage({event, data}) {
      answer.take(event, data);
    },
    onclose() {
      throw new Error("the body ended, but not the answer"); // without this the library takes it for the end
    },
    onerror(error) {
      if (error.status) lasting(error);
    },
  }).catch((error) => answer.failed(error));
}

/** sse.js with its two options for a drop. */
function sseJs(ask, answer) {
  const source = new SSE(ask.chat, {
    payload: body(ask),
    headers: {"Content-Type": "application/json", ...bearer(ask)},
    autoReconnect: true,
    useLastEventId: true,
    reconnectDelay: RETRY,
    maxRetries: 20,
  });
  answer.close = () => source.close();
  for (const type of ["token", "restart", "done"]) {
    source.addEventListener(type, (event) => answer.take(type, event.data));
  }
  source.addEventListener("error", (event) => {
    if (event.responseCode >= 400) answer.end(event.responseCode);
    else if (event.data) answer.take("error", event.data);
  });
}

/** A parser and a loop: ask again with the cursor until the answer has ended. */
async function parser(ask, answer) {
  const control = new AbortController();
  let cursor = "";
  let over = false;
  answer.close = () => {
    over = true;
    control.abort();
  };
  while (!over) {
    const request = post(ask);
    if (cursor) request.headers["Last-Event-ID"] = cursor;
    try {
      const response = await fetch(ask.chat, {...request, signal: control.signal});
      if (response.status === 204) return answer.nothingLeft();
      if (!response.ok) return answer.end(response.status);
      const events = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
      for await (const {id, event, data} of events) {
        if (id) cursor = id;
        answer.take(event, data);
      }
    } catch (error) {
      if (!cursor) return answer.failed(error); // nothing to continue from
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY));
  }
}

async function openai(ask, answer) {
  const client = new OpenAI({baseURL: ask.openai, apiKey: ask.key});
  const messages = [{role: "user", content: ask.question}];
  const stream = await client.chat.completions.create({model: "m", messages, stream: true});
  answer.close = () => stream.controller.abort();
  let reason = null;
  for await (const chunk of stream) {
    answer.add(chunk.choices[0]?.delta.content ?? "");
    reason = chunk.choices[0]?.finish_reason ?? reason;
  }
  answer.end(reason ? "done" : "ends");
}

async function langchain(ask, answer) {
  const options = {model: "m", apiKey: ask.key, maxRetries: 1, configuration: {baseURL: ask.openai}};
  const control = new AbortController();
  answer.close = () => control.abort();
  let reason = null;
  for await (const chunk of await new ChatOpenAI(options).stream(ask.question, {signal: control.signal})) {
    answer.add(chunk.content);
    reason = chunk.response_metadata.finish_reason ?? reason;
  }
  answer.end(reason ? "done" : "ends");
}

async function aiSdk(ask, answer) {
  const control = new AbortController();
  answer.close = () => control.abort();
  const provider = createOpenAICompatible({name: "gateway", baseURL: ask.openai, apiKey: ask.key});
  const quiet = {onError() {}};
  const {fullStream} = streamText({model: provider("m"), prompt: ask.question, abortSignal: control.signal, ...quiet});
  for await (const part of fullStream) {
    if (part.type === "text-delta") answer.add(part.text);
    if (part.type === "error") return answer.failed(part.error);
    if (part.type === "finish") answer.end(part.finishReason === "stop" ? "done" : "ends", part.finishReason);
  }
}

const LIBRARIES = {
  "eventsource 2": eventSource((url) => new EventSource2(url)),
  "eventsource 3": eventSource((url) => new EventSource3(url)),
  "eventsource 4": eventSource((url) => new EventSource4(url)),
  "eventsource 5": eventSource((url) => new EventSource5(url)),
  "undici": eventSource((url) => new EventSourceUndici(url)),
  "event-source-polyfill": eventSource((url) => new EventSourcePolyfill(url)),
  "reconnecting-eventsource": reconnecting,
  "fetch-event-source": fetchEvents,
  "sse.js": sseJs,
  "eventsource-parser": parser,
  "openai (Node)": openai,
  "@langchain/openai": langchain,
  "ai": aiSdk,
};

// They take the cursor of an event before they have read its last byte. A drop in between loses this event, so the
// page takes the whole text of `done`.
const LOSSY = ["eventsource 2", "fetch-event-source"];

for await (const line of createInterface({input: process.stdin})) {
  const ask = JSON.parse(line);
  const answer = new Answer(ask, LOSSY.includes(ask.library));
  Promise.resolve(LIBRARIES[ask.library](ask, answer)).catch((error) => answer.failed(error));
  answer.ended.then((result) => process.stdout.write(`${JSON.stringify({n: ask.n, ...result})}\n`));
}
process.exit(0);
