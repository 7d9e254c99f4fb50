/**
 * The browser's side of a stream: start an answer, follow it over every drop and reload, stop it.
 *   const answer = stream({ url: "/api/chat", message: "Hi", onToken: (piece, text) => show(text) });
 *   const { outcome, text } = await answer.done; // or answer.stop(), which ends the generation
 *
 * It speaks the gateway's `events` format. What always holds:
 * - A start is sent again only where the gateway said that nothing was begun; from then on the stream is followed by its
 *   id, which never costs a second answer. (The first reconnects of an EventSource are the browser's.)
 * - Text and cursor change together, so what a storage holds can always be continued.
 * - Exactly one of onDone and onError is called, or neither after close(); `done` always resolves and never rejects.
 * - Every wait and every buffer is bounded: see LIMITS and WAITS.
 * It does not know how an answer is shown.
 */

/** Attempts in a row: to start, `blind` if nobody says when, a `known` stream; characters a url may have; ms. */
const LIMITS = { attempts: 6, blind: 2, known: 20, url: 4_000, event: 8_000_000 };
const WAITS = { retry: 1_000, backoff: 500, ceiling: 30_000, probe: 250, idle: 45_000, stop: 3_000, save: 250 };
const KEY = "gateway-stream";
const TYPES = ["connected", "thinking", "token", "tool", "restart", "done", "error"];

/**
 * @typedef {{code: string, message: string, retryable: boolean, retry_after?: number | null, status?: number}} Failure
 * `code` is one of the gateway's, or `network`, `connection_lost`, `not_a_stream`; `retry_after` is in seconds.
 * @typedef {"done" | "stopped" | "error" | "closed"} Outcome
 * @typedef {{outcome: Outcome, text: string, thinking: string, finish_reason?: string, error?: Failure,
 *   usage?: {prompt_tokens: number, completion_tokens: number, total_tokens: number} | null}} Result `text` is the answer as far as it came
 * @typedef {"connecting" | "open" | "streaming" | "reconnecting" | "waiting" | Outcome} State
 * `open`: waiting for the first token. `reconnecting`: the connection dropped. `waiting`: the gateway said to come back.
 * A situation's `seconds` are those until the next attempt; without them it is under way, or only the browser knows.
 * @typedef {{id: string, cursor: string, text: string, thinking: string, streams: string}} Kept
 * @typedef {Settings & Partial<Kept>} Options those of Kept are for `resume`: where to go on, and what came before
 * @typedef {object} Settings
 * @property {string | URL} url the chat route; for `resume`, `/streams/ID`
 * @property {string} [message]
 * @property {string} [session] the conversation, for the gateway's history
 * @property {string} [credential] sent as `Authorization: Bearer`, by an EventSource as `?token=`
 * @property {"eventsource" | "fetch"} [mode] `eventsource` unless told
 * @property {Record<string, string>} [params] further query parameters
 * @property {Record<string, unknown>} [body] further members of the POST body
 * @property {boolean} [withCredentials] send cookies to another origin
 * @property {string | URL} [streams] where streams are followed and stopped; `/streams/` at the url's origin unless told
 * @property {Storage} [storage] keeps what `resume` needs, e.g. sessionStorage
 * @property {string} [storageKey]
 * @property {number} [patience] the longest wait in seconds that is sat out; 60 unless told
 * @property {(start: {id: string, session: string, resumed: boolean}) => void} [onStart]
 * @property {(piece: string, thinking: string) => void} [onThinking]
 * @property {(piece: string, text: string) => void} [onToken]
 * @property {(call: any) => void} [onTool] one element of OpenAI's `delta.tool_calls`
 * @property {() => void} [onRestart] what came so far is void
 * @property {(result: Result) => void} [onDone] also after a stop
 * @property {(error: Failure) => void} [onError]
 * @property {(state: State, situation: {seconds?: number | null, attempt?: number, error?: Failure}) => void} [onState]
 */

/** A new answer. @param {Options} options */
export function stream(options) {
  return new Answer(options).begin();
}

/** An answer begun before, by `url` and `cursor` or as a storage kept it, or null. @param {Partial<Options>} options */
export function resume(options) {
  const kept = options.storage ? stored(options.storage, options.storageKey) : null;
  if (!options.url) return kept && new Answer({ ...options, ...kept, url: kept.streams }).begin();
  const url = new URL(options.url, document.baseURI);
  const id = decodeURIComponent(url.pathname.split("/").pop() ?? "");
  return new Answer({ ...options, url, id, streams: new URL(".", url) }).begin();
}

/** What a storage keeps of an answer under way. @param {Storage} storage @returns {Kept | null} */
export function stored(storage, key = KEY) {
  return JSON.parse(storage.getItem(key) ?? "null");
}

class Answer {
  #options;
  #streams;
  #native = true; // an EventSource, or fetch
  #posts = false;
  #ended = false;
  #stopping = false;
  #begun = false;
  #fresh = true; // no event was received on this connection
  #attempt = 0;
  #retry = WAITS.retry;
  /** @type {State} */ #state = "connecting";
  /** @type {Failure | null} */ #refusal = null;
  /** @type {EventSource | null} */ #source = null;
  /** @type {AbortController | null} */ #abort = null;
  /** @type {Record<string, number>} */ #timers = {};
  /** @type {(result: Result) => void} */ #resolve = () => {};

  constructor(/** @type {Options} */ options) {
    this.#options = options;
    this.#streams = new URL(options.streams ?? "/streams/", new URL(options.url, document.baseURI));
    this.id = options.id ?? null;
    this.cursor = options.cursor ?? "";
    this.text = options.text ?? "";
    this.thinking = options.thinking ?? "";
    /** @type {Promise<Result>} */
    this.done = new Promise((resolve) => (this.#resolve = resolve));
  }

  begin() {
    addEventListener("pagehide", this.#keep);
    addEventListener("online", this.#hurry);
    this.#native = this.#options.mode !== "fetch" && this.#url().href.length <= LIMITS.url;
    this.#posts = !this.#native && !this.id;
    this.#enter("connecting");
    if (this.#native) this.#listen();
    else this.#pull();
    return this;
  }

  /** End the generation; resolves when the gateway was told. The last of the text may still arrive. */
  async stop() {
    if (this.#ended || this.#stopping) return;
    this.#stopping = true;
    if (!this.id && ["waiting", "reconnecting"].includes(this.#state)) return this.#finish("stopped");
    this.#timers.stop = setTimeout(() => this.#finish("stopped"), WAITS.stop);
    if (this.id) await this.#tellStop();
  }

  /** Leave without stopping; `resume` may come back for as long as the gateway keeps the stream. */
  close() {
    if (this.#ended) return;
    this.#finish("closed");
    this.#keep();
  }

  #listen() {
    const source = new EventSource(this.#url(), { withCredentials: this.#options.withCredentials ?? false });
    this.#source = source;
    source.onopen = () => this.#opened();
    // The gateway's own `error` events share their name with the browser's notice of a lost connection.
    const hear = (/** @type {Event} */ event) => {
      if (event instanceof MessageEvent) this.#receive(event.type, event.data, event.lastEventId);
      else this.#dropped(source);
    };
    for (const type of TYPES) source.addEventListener(type, hear);
  }

  /** The browser tries again at one pace for ever; a known stream is taken over by fetch then, another one given up. */
  #dropped(/** @type {EventSource} */ source) {
    if (this.#ended) return;
    const shut = source.readyState === EventSource.CLOSED;
    if (!shut && ++this.#attempt <= LIMITS.attempts) return this.#enter("reconnecting");
    if (!shut && !this.id) return this.#fail(LOST);
    // An EventSource hides the status that shut it; the same question by fetch learns it, or reads on. Not at once:
    // a page that is being left shuts its EventSource too, and must not ask anew.
    source.close();
    this.#native = false;
    this.#timers.again = setTimeout(this.#pull, WAITS.probe);
  }

  #pull = async () => {
    this.#timers.again = 0;
    this.#abort = new AbortController();
    this.#watch();
    try {
      const answer = await fetch(this.#url(), this.#request(this.#abort.signal));
      if (answer.status === 204) return this.#finish("done");
      if (!answer.ok) return this.#refused(await failureOf(answer));
      if (!answer.headers.get("Content-Type")?.startsWith("text/event-stream")) return this.#fail(NOT_A_STREAM);
      this.id ??= answer.headers.get("X-Stream-Id");
      this.#opened();
      await this.#consume(/** @type {ReadableStream<BufferSource>} */ (answer.body));
    } catch (error) {
      if (error instanceof RangeError) return this.#fail({ ...NOT_A_STREAM, message: error.message });
    } finally {
      clearTimeout(this.#timers.idle);
    }
    this.#lost();
  };

  async #consume(/** @type {ReadableStream<BufferSource>} */ body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new EventStreamParser((type, data, id) => this.#receive(type, data, id), this.cursor);
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      this.#watch();
      parser.push(read.value);
      this.#retry = parser.retry ?? this.#retry;
      if (parser.lastEventId !== this.cursor) this.#fresh = false; // an id alone: the stream is ours
      this.cursor = parser.lastEventId;
    }
  }

  #lost() {
    if (this.#ended) return;
    if (this.#refusal) this.#again("waiting", this.#refusal);
    else if (this.id || !this.#posts) this.#again("reconnecting", LOST);
    else this.#fail(NETWORK); // the POST may have begun a generation: sending it again might pay for a second one
  }

  /** An HTTP status said no. */
  #refused(/** @type {Failure} */ failure) {
    const status = failure.status ?? 0;
    const passing = this.id ? status >= 500 || status === 429 || status === 408 : status === 429 || status === 503;
    if (passing) this.#again("waiting", failure);
    else this.#fail(failure);
  }

  /** An `error` event said no, for now. An EventSource comes back for ever and never says when: fetch takes over. */
  #told(/** @type {Failure} */ failure) {
    this.#refusal = failure;
    if (!this.#native) return; // the connection is about to close
    this.#source?.close();
    this.#native = false;
    this.#lost();
  }

  #again(/** @type {State} */ state, /** @type {Failure} */ failure) {
    const after = failure.retry_after ?? 0;
    const limit = this.id ? LIMITS.known : after || failure === LOST ? LIMITS.attempts : LIMITS.blind;
    if (++this.#attempt > limit || after > (this.#options.patience ?? 60)) return this.#fail(failure);
    const floor = Math.max(this.#retry, after * 1000);
    const wait = floor + Math.random() * Math.min(WAITS.ceiling, WAITS.backoff * 2 ** this.#attempt);
    this.#enter(state, { seconds: wait / 1000, attempt: this.#attempt, error: failure });
    this.#timers.again = setTimeout(this.#pull, wait);
  }

  #hurry = () => {
    if (!this.#timers.again || this.#state !== "reconnecting") return;
    clearTimeout(this.#timers.again);
    this.#pull();
  };

  #opened() {
    this.#fresh = true;
    this.#refusal = null;
    this.#enter("open");
  }

  #watch() {
    clearTimeout(this.#timers.idle); // heartbeats are three times as frequent: silence is a dead connection
    this.#timers.idle = setTimeout(() => this.#abort?.abort(), WAITS.idle);
  }

  #url() {
    const { url, message, session, credential, params } = this.#options;
    const target = this.id ? new URL(encodeURIComponent(this.id), this.#streams) : new URL(url, document.baseURI);
    const start = this.id || this.#posts ? {} : { message, session_id: session };
    const headers = this.#native ? { last_event_id: this.cursor, token: credential } : {};
    const query = { ...params, ...start, ...headers };
    for (const [name, value] of Object.entries(query)) if (value) target.searchParams.set(name, value);
    return target;
  }

  #request(/** @type {AbortSignal} */ signal) {
    const { message, session: session_id, body } = this.#options;
    const headers = new Headers({ Accept: "text/event-stream" });
    if (this.cursor) headers.set("Last-Event-ID", this.cursor);
    if (this.id || !this.#posts) return this.#signed({ headers, signal, cache: "no-store" });
    headers.set("Content-Type", "application/json");
    return this.#signed({ method: "POST", headers, signal, body: JSON.stringify({ message, session_id, ...body }) });
  }

  async #tellStop() {
    const url = new URL(`${encodeURIComponent(this.id ?? "")}/stop`, this.#streams);
    const answer = fetch(url, this.#signed({ method: "POST", headers: new Headers(), keepalive: true }));
    await answer.catch(() => this.#finish("stopped")); // the gateway cancels what nobody reads
  }

  /** @param {RequestInit & {headers: Headers}} request @returns {RequestInit} */
  #signed(request) {
    const { credential, withCredentials } = this.#options;
    if (credential) request.headers.set("Authorization", `Bearer ${credential}`);
    return { ...request, credentials: withCredentials ? "include" : "same-origin" };
  }

  #receive(/** @type {string} */ type, /** @type {string} */ data, /** @type {string} */ id) {
    if (this.#ended || !TYPES.includes(type)) return;
    const value = JSON.parse(data);
    const refusal = type === "error" && value.retryable && this.#fresh && id === this.cursor;
    this.#fresh = false;
    if (refusal) return this.#told(value);
    this.cursor = id || this.cursor;
    this.#timers.save ||= setTimeout(this.#keep, WAITS.save);
    this.#apply(type, value);
  }

  #apply(/** @type {string} */ type, /** @type {any} */ value) {
    if (type === "connected") return this.#connected(value);
    if (type === "done") return this.#finish(value.finish_reason === "stopped" ? "stopped" : "done", value);
    if (type === "error") return value.code === "stopped" ? this.#finish("stopped") : this.#fail(value);
    this.#attempt = 0;
    if (this.#state !== "streaming") this.#enter("streaming");
    if (type === "thinking") this.#call("onThinking", value.text, (this.thinking += value.text));
    if (type === "token") this.#call("onToken", value.text, (this.text += value.text));
    if (type === "tool") this.#call("onTool", value);
    if (type === "restart") this.#call("onRestart", (this.text = this.thinking = ""));
  }

  #connected(/** @type {any} */ { stream_id: id, session_id: session, resumed }) {
    this.id = id ?? this.id;
    if (!this.#begun) this.#call("onStart", { id, session, resumed });
    this.#begun = true;
    if (this.#stopping) this.#tellStop();
  }

  #call(/** @type {string} */ name, /** @type {any[]} */ ...values) {
    try {
      /** @type {any} */ (this.#options)[name]?.(...values);
    } catch (error) {
      reportError(error); // a caller's mistake does not end the stream
    }
  }

  #enter(/** @type {State} */ state, situation = {}) {
    this.#state = state;
    this.#call("onState", state, situation);
  }

  #fail(/** @type {Failure} */ error) {
    this.#finish(this.#stopping ? "stopped" : "error", { error });
  }

  #finish(/** @type {Outcome} */ outcome, /** @type {any} */ detail = {}) {
    if (this.#ended) return;
    this.#ended = true;
    this.#source?.close();
    this.#abort?.abort();
    Object.values(this.#timers).forEach(clearTimeout);
    removeEventListener("pagehide", this.#keep);
    removeEventListener("online", this.#hurry);
    if (outcome !== "closed") this.#options.storage?.removeItem(this.#options.storageKey ?? KEY);
    const { full_text, ...rest } = detail;
    this.text = full_text ?? this.text;
    const result = { outcome, text: this.text, thinking: this.thinking, ...rest };
    this.#enter(outcome, { error: result.error });
    if (outcome === "error") this.#call("onError", result.error);
    else if (outcome !== "closed") this.#call("onDone", result);
    this.#resolve(result);
  }

  #keep = () => {
    this.#timers.save = 0;
    const { storage, storageKey = KEY } = this.#options;
    const { id, cursor, text, thinking } = this;
    const kept = JSON.stringify({ id, cursor, text, thinking, streams: this.#streams });
    if (id) storage?.setItem(storageKey, kept);
  };
}

const NETWORK = { code: "network", message: "The gateway cannot be reached.", retryable: true };
const LOST = { code: "connection_lost", message: "The connection was lost.", retryable: true };
const NOT_A_STREAM = { code: "not_a_stream", message: "The answer is no event stream.", retryable: false };

/** What an HTTP answer other than 2xx says. @param {Response} answer @returns {Promise<Failure>} */
async function failureOf(answer) {
  const { status } = answer;
  const problem = await answer.json().catch(() => ({}));
  const seconds = Number(answer.headers.get("Retry-After") ?? problem.retry_after ?? NaN);
  const { code = `http_${status}`, message = problem.detail ?? problem.title ?? `HTTP status ${status}.` } = problem;
  const { retryable = status === 429 || status >= 500 } = problem;
  return { status, code, message, retryable, retry_after: isNaN(seconds) ? null : seconds };
}

/** A text/event-stream, decoded; its text may come cut anywhere. Source: WHATWG HTML 9.2.6. */
export class EventStreamParser {
  /** @type {number | null} */ retry = null;
  #rest = "";
  #carriage = false;
  #type = "";
  #data = "";
  #id;

  constructor(/** @type {(type: string, data: string, id: string) => void} */ onEvent, lastEventId = "") {
    this.onEvent = onEvent;
    this.lastEventId = this.#id = lastEventId;
  }

  /** @throws {RangeError} for an event larger than LIMITS.event */
  push(/** @type {string} */ text) {
    if (!text) return;
    const fresh = this.#carriage && text.startsWith("\n") ? text.slice(1) : text;
    this.#carriage = text.endsWith("\r");
    const lines = (this.#rest + fresh).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#line(line);
    if (this.#rest.length + this.#data.length > LIMITS.event) throw new RangeError("An event is too large.");
  }

  #line(/** @type {string} */ line) {
    if (!line) return this.#dispatch();
    const [, name, value] = /** @type {RegExpExecArray} */ (/^([^:]*):? ?([^]*)$/.exec(line));
    if (name === "event") this.#type = value;
    if (name === "data") this.#data += `${value}\n`;
    if (name === "id" && !value.includes("\0")) this.#id = value;
    if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
  }

  #dispatch() {
    const [type, data] = [this.#type || "message", this.#data];
    this.lastEventId = this.#id;
    this.#type = this.#data = "";
    if (data) this.onEvent(type, data.slice(0, -1), this.lastEventId);
  }
}
