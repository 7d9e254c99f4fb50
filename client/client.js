/**
 * The browser's side of a stream: start an answer, follow it over every drop, reload and tab, stop it.
 *   const answer = stream({ url: "/api/chat", message: "Hi", onText: (text) => show(text) });
 *   const { outcome, text } = await answer.done; // or answer.stop(), which ends the generation
 *
 * What always holds:
 * - A start is sent again only where the gateway said that nothing was begun; from then on the stream is followed by its
 *   id, which never costs a second answer.
 * - Text and cursor change together, so what a storage or another tab holds can always be continued.
 * - Exactly one of onDone and onError is called, or neither after close(); `done` always resolves and never rejects.
 * - Every wait and every buffer is bounded: see LIMITS and WAITS.
 * It does not know how an answer is shown. Its types, and what each option means, are in client.d.ts.
 */

/** @import * as Types from "./client.d.ts" */

/** Attempts in a row: to start, `blind` if nobody says when, a `known` stream; characters a url may have and an event. */
const LIMITS = { attempts: 6, blind: 2, known: 20, url: 4_000, event: 8_000_000 };
/** Milliseconds. */
const WAITS = {
  retry: 1_000, // where the server has not said
  ceiling: 30_000,
  probe: 250,
  idle: 45_000, // three heartbeats
  stop: 3_000,
  unknown: 30_000, // how long a stopped start may still tell its id
  save: 250,
  claim: 500, // a tab that is left gives its locks back in less
  reply: 2_000, // of the tab that has the connection
};
const KEY = "gateway-stream";
const PATIENCE = 60;

/** @param {Types.StreamOptions} options @returns {Types.Answer} */
export function stream(options) {
  return new Answer(options).begin();
}

/** @param {Types.ResumeOptions} options @returns {Types.Answer | null} */
export function resume(options) {
  const kept = options.storage && !options.url ? stored(options.storage, options.storageKey) : null;
  if (kept) return new Answer({ ...options, ...kept, url: kept.streams }).begin();
  if (!options.url) return null;
  const url = new URL(options.url, document.baseURI);
  const streamId = decodeURIComponent(url.pathname.split("/").pop() ?? "");
  return new Answer({ ...options, tab: "", url, streamId, streams: new URL(".", url) }).begin();
}

/** @param {Storage} storage @returns {Types.Kept | null} */
export function stored(storage, key = KEY) {
  try {
    return JSON.parse(storage.getItem(key) ?? "null");
  } catch {
    return null; // what somebody else wrote there is no stream of ours
  }
}

/** @typedef {Omit<Types.Kept, "streams">} Place where to go on, and what came before */
/** @typedef {Types.StreamOptions & Partial<Place>} Options */

class Answer {
  /** @type {Options} */ #options;
  #streams;
  /** @type {Types.Reader} */ #read;
  #native = false; // an EventSource, or fetch
  #posts = false;
  #ended = false;
  #stopping = false;
  #connected = false; // onConnected was called
  #sent = false; // a start is under way and may have begun a generation
  #fresh = true; // no event was received on this connection
  #offline = false; // the browser said so while we looked; before that it may only mean "no network but this machine"
  #away = false; // in the browser's back/forward cache
  #attempt = 0;
  #due = 0;
  #heard = 0;
  #retry = WAITS.retry;
  #tab;
  #owned = new AbortController();
  #life = new AbortController();
  /** @type {Types.Failure | null} */ #refusal = null;
  /** @type {EventSource | null} */ #source = null;
  /** @type {AbortController | null} */ #abort = null;
  /** @type {Tabs | null} */ #tabs = null;
  /** @type {Typewriter | null} */ #typewriter = null;
  /** @type {Record<string, number>} */ #timers = {};
  /** @type {(result: Types.Result) => void} */ #resolve = () => {};

  constructor(/** @type {Options} */ options) {
    const { streamId = null, cursor = "", text = "", thinking = "", tools = [], restarts = 0, tab = "" } = options;
    this.#options = options;
    this.#streams = new URL(options.streams ?? "/streams/", new URL(options.url, document.baseURI));
    this.#read = readerOf(options.format ?? "events");
    this.#tab = tab;
    Object.assign(this, { streamId, cursor, text, thinking, tools: [...tools], restarts });
    const { onText, smooth = true } = options;
    if (onText && smooth) this.#typewriter = new Typewriter((shown) => this.#call("onText", shown), { shown: text });
    /** @type {Promise<Types.Result>} */
    this.done = new Promise((resolve) => (this.#resolve = resolve));
  }

  /** @type {string | null} */ streamId = null;
  /** @type {string | null} */ session = null;
  /** @type {Types.State} */ state = "connecting";
  /** @type {Types.ToolCall[]} */ tools = [];
  cursor = "";
  text = "";
  thinking = "";
  restarts = 0;

  begin() {
    this.#attend();
    this.#native = this.#isNative();
    this.#posts = !this.#native && !this.streamId;
    this.#enter("connecting");
    if (this.#options.signal?.aborted) this.#finish("stopped");
    else if (this.#tab) this.#claim();
    else if (this.streamId) this.#join();
    else this.#connect();
    return this;
  }

  async stop() {
    if (this.#ended || this.#stopping) return;
    this.#stopping = true;
    if (!this.streamId && !this.#sent) return this.#finish("stopped");
    this.#timers.stop = setTimeout(() => this.#finish("stopped"), WAITS.stop);
    if (this.streamId) await this.#tellStop();
  }

  close() {
    if (this.#ended) return;
    this.#keep();
    this.#finish("closed");
  }

  /** @param {Partial<Types.StreamOptions>} [changes] @returns {Types.Answer} */
  regenerate(changes = {}) {
    const { streamId: _, cursor: __, text, thinking, tools, restarts, tab, ...asked } = this.#options;
    const options = { ...asked, ...changes };
    if (!options.message && !options.body) throw new TypeError("A stream that was taken up has no question to ask again.");
    this.stop();
    return new Answer(options).begin();
  }

  // ---- the connection ----

  #isNative() {
    const { mode = "auto", format = "events", credential, body } = this.#options;
    if (mode !== "auto") return mode === "eventsource" && this.#url(true).href.length <= LIMITS.url;
    return !body && !credential && !this.streamId && format === "events" && this.#url(true).href.length <= LIMITS.url;
  }

  #connect() {
    if (this.#native) this.#listen();
    else this.#pull();
  }

  #isConnected() {
    return Boolean(this.#source || this.#abort || this.#timers.again);
  }

  #disconnect() {
    this.#source?.close();
    this.#abort?.abort();
    this.#source = this.#abort = null;
    for (const name of ["again", "idle"]) this.#cancel(name);
  }

  #listen() {
    const { withCredentials = false } = this.#options;
    const source = (this.#source = new EventSource(this.#url(), { withCredentials }));
    this.#sent = true;
    let opened = false;
    source.onopen = () => {
      opened = true;
      this.#opened();
    };
    // The gateway's own `error` events share their name with the browser's notice of a lost connection.
    const hear = (/** @type {Event} */ event) => {
      if (event instanceof MessageEvent) this.#receive(event.type, event.data, event.lastEventId);
      else this.#dropped(source, opened);
    };
    for (const type of EVENT_TYPES) source.addEventListener(type, hear);
  }

  /** The browser tries again at the server's pace, for ever; what it must not ask anew is taken from it. */
  #dropped(/** @type {EventSource} */ source, /** @type {boolean} */ opened) {
    if (source !== this.#source) return;
    if (this.#ended) return this.#disconnect();
    const shut = source.readyState === EventSource.CLOSED;
    const again = opened && (this.cursor || !this.streamId) && !this.#offline;
    if (!shut && again && ++this.#attempt <= LIMITS.attempts) return this.#enter("reconnecting");
    this.#disconnect();
    this.#native = false;
    if (shut) this.#sent = false; // by an answer that began nothing, or by leaving the page
    if (!shut && !this.#known()) return this.#fail(opened ? LOST : NETWORK);
    // An EventSource hides the status that shut it; the same question by fetch learns it, or reads on. Not at once:
    // a page that is being left shuts its EventSource too, and must not ask anew.
    this.#timers.again = setTimeout(this.#pull, WAITS.probe);
  }

  #pull = async () => {
    this.#timers.again = 0;
    const abort = (this.#abort = new AbortController());
    this.#sent = true;
    this.#watch();
    try {
      const answer = await fetch(this.#url(), this.#request(abort.signal));
      if (answer.status === 204) return this.#finish("done");
      if (!answer.ok) return this.#refused(await failureOf(answer));
      if (!answer.headers.get("Content-Type")?.startsWith("text/event-stream")) return this.#fail(NOT_A_STREAM);
      this.#opened();
      this.#identify(answer.headers.get("X-Stream-Id"));
      await this.#consume(/** @type {ReadableStream<BufferSource>} */ (answer.body));
    } catch (error) {
      if (error instanceof RangeError) return this.#fail({ ...NOT_A_STREAM, message: error.message });
    }
    if (this.#abort === abort) this.#lost();
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
    this.#disconnect();
    if (this.#refusal) this.#again("waiting", this.#refusal);
    else if (this.#known()) this.#again("reconnecting", LOST);
    // It may have begun a generation: sending it again might pay for a second one. A page that is being left loses it too.
    else this.#timers.lost = setTimeout(() => this.#fail(NETWORK), WAITS.probe);
  }

  /** An HTTP status said no. */
  #refused(/** @type {Types.Failure} */ failure) {
    this.#disconnect();
    this.#sent = false;
    const status = failure.status ?? 0;
    const begins = status === 429 || status === 503 || (failure.retryable && !failure.code.startsWith("http_"));
    const passing = this.#known() ? status >= 500 || status === 429 || status === 408 : begins;
    if (passing) this.#again("waiting", failure);
    else this.#fail(failure);
  }

  /** An `error` event said no, for now. An EventSource comes back for ever and never says when: fetch takes over. */
  #told(/** @type {Types.Failure} */ failure) {
    this.#refusal = failure;
    this.#sent = false;
    if (!this.#native) return; // the connection is about to close
    this.#native = false;
    this.#lost();
  }

  /** Exponential back-off with full jitter on top of what the server asked for. Source: WHATWG HTML 9.2.3. */
  #again(/** @type {Types.State} */ state, /** @type {Types.Failure} */ failure) {
    if (this.#stopping && !this.#known()) return this.#finish("stopped");
    const floor = Math.max(this.#retry, (failure.retryAfter ?? 0) * 1000);
    const limit = this.#known() ? LIMITS.known : failure.retryAfter || failure === LOST ? LIMITS.attempts : LIMITS.blind;
    if (++this.#attempt > limit || floor > (this.#options.patience ?? PATIENCE) * 1000) return this.#fail(failure);
    const wait = floor + Math.random() * Math.min(WAITS.ceiling, this.#retry * 2 ** (this.#attempt - 1));
    this.#due = performance.now() + wait;
    if (this.#offline) return this.#enter("offline", { error: failure });
    this.#timers.again = setTimeout(this.#pull, wait);
    this.#enter(state, { seconds: wait / 1000, attempt: this.#attempt, error: failure });
  }

  #opened() {
    this.#fresh = true;
    this.#refusal = null;
    this.#heard = performance.now();
    this.#enter("open");
  }

  #watch() {
    this.#heard = performance.now();
    this.#cancel("idle");
    this.#timers.idle = setTimeout(() => this.#abort?.abort(), WAITS.idle);
  }

  #known() {
    return Boolean(this.streamId || this.cursor);
  }

  #url(native = this.#native) {
    const { url, message, session, credential, params } = this.#options;
    const id = this.streamId;
    const target = id ? new URL(encodeURIComponent(id), this.#streams) : new URL(url, document.baseURI);
    const start = id || this.#posts ? {} : { message, session_id: session };
    const headers = native ? { last_event_id: this.cursor, token: credential } : {};
    const query = { ...params, ...start, ...headers };
    for (const [name, value] of Object.entries(query)) if (value) target.searchParams.set(name, value);
    return target;
  }

  #request(/** @type {AbortSignal} */ signal) {
    const { message, session: session_id, body } = this.#options;
    const headers = new Headers({ Accept: "text/event-stream" });
    if (this.cursor) headers.set("Last-Event-ID", this.cursor);
    if (this.streamId || !this.#posts) return this.#signed({ headers, signal, cache: "no-store" });
    headers.set("Content-Type", "application/json");
    return this.#signed({ method: "POST", headers, signal, body: JSON.stringify({ message, session_id, ...body }) });
  }

  async #tellStop() {
    const url = new URL(`${encodeURIComponent(this.streamId ?? "")}/stop`, this.#streams);
    const answer = fetch(url, this.#signed({ method: "POST", headers: new Headers(), keepalive: true }));
    await answer.catch(() => this.#finish("stopped")); // the gateway cancels what nobody reads
  }

  /** @param {RequestInit & {headers: Headers}} request @returns {RequestInit} */
  #signed(request) {
    const { credential, withCredentials } = this.#options;
    if (credential) request.headers.set("Authorization", `Bearer ${credential}`);
    return { ...request, credentials: withCredentials ? "include" : "same-origin" };
  }

  // ---- what the stream says ----

  #receive(/** @type {string} */ type, /** @type {string} */ data, /** @type {string} */ id) {
    if (this.#ended && !this.#stopping) return;
    this.#heard = performance.now();
    const readings = this.#readings(type, data);
    const [kind, value] = readings[0] ?? [];
    const refusal = kind === "error" && value.retryable && this.#fresh && id === this.cursor;
    if (readings.length) this.#fresh = false;
    if (refusal) return this.#told(value);
    this.cursor = id || this.cursor;
    this.#timers.save ||= setTimeout(this.#keep, WAITS.save);
    for (const reading of readings) this.#take(reading);
  }

  #readings(/** @type {string} */ type, /** @type {string} */ data) {
    try {
      return this.#read(type, data);
    } catch (error) {
      this.#fail({ ...NOT_A_STREAM, message: `An event cannot be read: ${error}` });
      return [];
    }
  }

  #take(/** @type {Types.Reading} */ [kind, value]) {
    if (kind === "connected") return this.#identify(value.streamId ?? null, value);
    if (this.#ended) return;
    if (kind === "done") return this.#finish(value.finishReason === "stopped" ? "stopped" : "done", value);
    if (kind === "error") return value.code === "stopped" ? this.#finish("stopped") : this.#fail(value);
    const place = { at: this.#length(kind), restarts: this.restarts };
    this.#apply(kind, value);
    this.#tell({ kind: "event", reading: [kind, value], ...place, position: this.#position(), cursor: this.cursor });
  }

  #apply(/** @type {string} */ kind, /** @type {any} */ value) {
    this.#attempt = 0;
    if (this.state !== "streaming") this.#enter("streaming");
    if (kind === "thinking") this.#call("onThinking", value, (this.thinking += value));
    if (kind === "token") this.#write(value);
    if (kind === "tool") this.#call("onTool", value, (this.tools = withPiece(this.tools, value)));
    if (kind === "restart") this.#restart();
  }

  #write(/** @type {string} */ piece) {
    this.text += piece;
    this.#call("onToken", piece, this.text);
    this.#show();
  }

  #show() {
    if (this.#typewriter) this.#typewriter.write(this.text);
    else this.#call("onText", this.text);
  }

  #restart() {
    this.text = this.thinking = "";
    this.tools = [];
    this.restarts += 1;
    this.#call("onRestart");
    this.#show();
  }

  #identify(/** @type {string | null} */ id, { session = this.session, resumed = this.restarts > 0 || this.cursor !== "" } = {}) {
    const news = id && !this.streamId;
    this.streamId = id ?? this.streamId;
    this.session = session;
    if (news && this.#stopping) this.#tellStop();
    if (this.#ended) return this.#disconnect(); // a stopped start that was waited for
    if (news) this.#join();
    if (!this.#connected && this.streamId) this.#call("onConnected", { streamId: this.streamId, session, resumed });
    this.#connected ||= Boolean(this.streamId);
  }

  #call(/** @type {string} */ name, /** @type {any[]} */ ...values) {
    try {
      /** @type {any} */ (this.#options)[name]?.(...values);
    } catch (error) {
      reportError(error); // a caller's mistake does not end the stream
    }
  }

  #enter(/** @type {Types.State} */ state, /** @type {Types.Situation} */ situation = {}) {
    if (this.#ended) return;
    this.state = state;
    this.#tell({ kind: "state", state, situation });
    this.#call("onState", state, situation);
  }

  #fail(/** @type {Types.Failure} */ error) {
    this.#finish(this.#stopping ? "stopped" : "error", { error });
  }

  #finish(/** @type {Types.Outcome} */ outcome, /** @type {any} */ detail = {}) {
    if (this.#ended) return;
    this.#ended = true;
    const { error, text = this.text, finishReason, usage } = detail;
    this.#leave(outcome, detail);
    this.text = text;
    this.#typewriter?.write(text);
    this.#typewriter?.flush();
    const { thinking, tools } = this;
    const result = { outcome, text, thinking, tools, finishReason, usage, error };
    this.state = outcome;
    this.#call("onState", outcome, { error });
    if (outcome === "error") this.#call("onError", error);
    else if (outcome !== "closed") this.#call("onDone", result);
    this.#resolve(result);
  }

  #leave(/** @type {Types.Outcome} */ outcome, /** @type {any} */ detail) {
    const { storage, storageKey = KEY } = this.#options;
    const asksStill = this.#stopping && this.#sent && !this.streamId;
    for (const name of Object.keys(this.#timers)) this.#cancel(name);
    if (asksStill) this.#timers.idle = setTimeout(() => this.#disconnect(), WAITS.unknown); // its id is needed to stop it
    else this.#disconnect();
    const ours = outcome === "closed" || [401, 403].includes(detail.error?.status); // others may do better
    if (!ours) this.#tell({ kind: "end", outcome, detail });
    this.#tabs?.leave();
    this.#owned.abort();
    this.#life.abort();
    if (outcome !== "closed") storage?.removeItem(storageKey);
  }

  #cancel(/** @type {string} */ name) {
    clearTimeout(this.#timers[name]);
    this.#timers[name] = 0;
  }

  // ---- the page: left, hidden, frozen, offline ----

  #attend() {
    const { signal } = this.#life;
    addEventListener("pagehide", this.#hide, { signal });
    addEventListener("pageshow", this.#back, { signal });
    addEventListener("offline", this.#pause, { signal });
    addEventListener("online", this.#hurry, { signal });
    document.addEventListener("visibilitychange", this.#look, { signal });
    document.addEventListener("freeze", this.#keep, { signal });
    document.addEventListener("resume", this.#look, { signal });
    this.#options.signal?.addEventListener("abort", () => this.stop(), { signal });
  }

  #keep = () => {
    this.#cancel("save");
    const { storage, storageKey = KEY } = this.#options;
    const { streamId, cursor, text, thinking, tools, restarts } = this;
    if (!storage || !streamId || this.#ended) return;
    const place = { streamId, streams: this.#streams.href, tab: this.#tab };
    try {
      storage.setItem(storageKey, JSON.stringify({ ...place, cursor, text, thinking, tools, restarts }));
    } catch {
      storage.removeItem(storageKey); // too long to keep: from the beginning, then
      storage.setItem(storageKey, JSON.stringify(place));
    }
  };

  #hide = (/** @type {PageTransitionEvent} */ event) => {
    this.#keep();
    this.#owned.abort(); // a reload is about to claim it
    this.#away = event.persisted && this.#known();
    if (!this.#away) return;
    this.#disconnect(); // a page with a connection or a lock is not kept for the way back
    this.#tabs?.leave();
    this.#tabs = null;
  };

  #back = (/** @type {PageTransitionEvent} */ event) => {
    if (this.#away) this.#join();
    else if (event.persisted && this.#sent && !this.#known() && !this.#isConnected()) this.#fail(INTERRUPTED);
    this.#away = false;
  };

  #pause = () => {
    this.#offline = true;
    if (!this.#timers.again) return; // an open connection may lead to this very machine
    this.#cancel("again");
    this.#enter("offline");
  };

  #hurry = () => {
    const was = this.#offline;
    this.#offline = false;
    if (this.#follows()) return;
    if (this.state === "offline") this.#soon(this.#due - performance.now());
    else if (this.state === "reconnecting" && this.#timers.again) this.#soon(0);
    else if (was) this.#reopen();
  };

  #look = () => {
    const silent = performance.now() - this.#heard > WAITS.idle;
    if (document.hidden) this.#keep();
    else if (this.#follows()) silent && this.#greet();
    else if (this.state === "reconnecting" && this.#timers.again) this.#soon(0);
    else if (silent) this.#reopen();
  };

  #soon(/** @type {number} */ wait) {
    this.#cancel("again");
    this.#attempt = 0;
    this.#timers.again = setTimeout(this.#pull, Math.max(0, this.#refusal ? wait : 0));
  }

  /** The network changed, or nothing was heard for long: the connection may be dead without anybody having said so. */
  #reopen() {
    if (!this.#known() || !(this.#source || this.#abort)) return;
    this.#disconnect();
    this.#native = false;
    this.#enter("reconnecting");
    this.#pull();
  }

  // ---- other tabs ----

  /** A tab that was duplicated has a copy of what the other one keeps, and no right to it. */
  async #claim() {
    if (await this.#own()) return this.#ended || this.#join();
    this.#options.storage?.removeItem(this.#options.storageKey ?? KEY);
    this.#finish("closed");
  }

  /** Whether what the storage keeps is this tab's. */
  #own() {
    this.#tab ||= token();
    if (this.#owned.signal.aborted) this.#owned = new AbortController();
    return held(`gateway-tab:${this.#tab}`, this.#owned.signal, WAITS.claim);
  }

  #join() {
    if (this.#ended) return;
    if (this.#options.storage && (!this.#tab || this.#away)) this.#own();
    const shares = this.#options.share !== false && navigator.locks && this.streamId;
    if (!shares) return this.#isConnected() || this.#connect();
    this.#tabs = new Tabs(`gateway-stream:${this.streamId}`, this.#hear, this.#lead, this.#follow);
    this.#tabs.join();
    this.#greet();
  }

  #follows() {
    return Boolean(this.#tabs && !this.#tabs.leads);
  }

  #lead = () => {
    this.#cancel("greet");
    if (!this.#isConnected()) this.#connect();
  };

  #follow = () => {
    this.#disconnect();
    this.#greet();
  };

  /** Ask the tab that has the connection for what came so far; where it keeps silent, take its place. */
  #greet = () => {
    this.#tabs?.post({ kind: "hello" });
    this.#cancel("greet");
    this.#timers.greet = setTimeout(() => this.#tabs?.seize(), WAITS.reply);
  };

  #tell(/** @type {any} */ message) {
    if (this.#tabs?.leads) this.#tabs.post(message);
  }

  #hear = (/** @type {any} */ message) => {
    if (message.kind === "hello") return this.#tell(this.#snapshot());
    if (this.#tabs?.leads || this.#ended) return;
    this.#heard = performance.now();
    this.#cancel("greet");
    this.#timers.greet = setTimeout(this.#greet, WAITS.idle);
    if (message.kind === "end") return this.#finish(message.outcome, message.detail);
    if (message.kind === "state") return this.#enter(message.state, message.situation);
    if (message.kind === "snapshot") this.#adopt(message);
    else this.#catchUp(message);
  };

  #snapshot() {
    const { streamId, session, text, thinking, tools, restarts, cursor, state } = this;
    const position = this.#position();
    return { kind: "snapshot", streamId, session, text, thinking, tools, restarts, cursor, state, position };
  }

  #adopt(/** @type {any} */ { session, text, thinking, tools, state, ...place }) {
    this.#identify(this.streamId, { session, resumed: true });
    if (place.restarts > this.restarts) this.#restart();
    this.restarts = Math.max(this.restarts, place.restarts);
    if (state !== this.state) this.#enter(state);
    this.#catchUp({ reading: ["thinking", thinking], at: 0, ...place });
    this.#catchUp({ reading: ["token", text], at: 0, ...place });
    if (place.restarts < this.restarts) return;
    if (place.position > this.#position()) this.tools = tools;
    if (place.position === this.#position()) this.cursor = place.cursor;
  }

  /** Messages may repeat what this tab has; none may leave a gap. */
  #catchUp(/** @type {any} */ { reading: [kind, value], at, restarts, position, cursor }) {
    const length = this.#length(kind);
    if (restarts < this.restarts) return;
    if (restarts > this.restarts || at > length) return this.#greet();
    const news = typeof value === "string" ? value.slice(length - at) : at === length ? value : "";
    if (news || kind === "restart") this.#apply(kind, news);
    if (position !== this.#position()) return;
    this.cursor = cursor;
    this.#timers.save ||= setTimeout(this.#keep, WAITS.save);
  }

  /** How much of a kind came so far. */
  #length(/** @type {string} */ kind) {
    if (kind === "tool") return this.tools.reduce((sum, call) => sum + (call?.pieces ?? 0), 0);
    return kind === "token" ? this.text.length : kind === "thinking" ? this.thinking.length : 0;
  }

  #position() {
    return ["token", "thinking", "tool"].reduce((sum, kind) => sum + this.#length(kind), 0);
  }
}

/** Tabs that follow one stream: one has the connection and tells the others; when it goes, the next one takes over. */
class Tabs {
  leads = false;
  #name;
  #lead;
  #follow;
  #channel;
  #release = () => {};
  /** @type {AbortController | null} */ #turn = null;

  /** @param {string} name @param {(message: any) => void} hear @param {() => void} lead @param {() => void} follow */
  constructor(name, hear, lead, follow) {
    this.#name = name;
    this.#lead = lead;
    this.#follow = follow;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => hear(data);
  }

  join(steal = false) {
    this.#turn?.abort();
    const turn = (this.#turn = new AbortController());
    const options = steal ? { steal } : { signal: turn.signal };
    navigator.locks.request(this.#name, options, () => this.#hold(turn)).catch(() => this.#lost(turn));
  }

  /** The tab that leads is frozen, or gone without its lock. */
  seize() {
    if (!this.leads) this.join(true);
  }

  post(/** @type {any} */ message) {
    this.#channel.postMessage(message);
  }

  leave() {
    this.#turn?.abort();
    this.#turn = null;
    this.leads = false;
    this.#release();
    this.#channel.close();
  }

  #hold(/** @type {AbortController} */ turn) {
    if (turn !== this.#turn) return;
    this.leads = true;
    this.#lead();
    return new Promise((resolve) => (this.#release = () => resolve(null)));
  }

  #lost(/** @type {AbortController} */ turn) {
    if (turn !== this.#turn) return;
    this.leads = false;
    this.join();
    this.#follow();
  }
}

/** Whether this tab has a lock, which it then holds until the signal; true where there are no locks. */
function held(/** @type {string} */ name, /** @type {AbortSignal} */ signal, /** @type {number} */ wait) {
  if (!navigator.locks) return Promise.resolve(true);
  return new Promise((resolve) => {
    const patience = AbortSignal.timeout(wait);
    const hold = () => {
      resolve(true);
      return signal.aborted ? null : new Promise((release) => signal.addEventListener("abort", () => release(null)));
    };
    navigator.locks.request(name, { signal: patience }, hold).catch(() => resolve(false));
  });
}

/** Unguessable; crypto.randomUUID exists on https pages alone. */
function token() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- formats ----

/** @returns {Types.Reader} */
function readerOf(/** @type {Types.StreamOptions["format"] & {}} */ format) {
  return typeof format === "function" ? format : FORMATS[format]();
}

const EVENT_TYPES = ["connected", "thinking", "token", "tool", "restart", "done", "error", "message"];

/** What an event of each of the gateway's formats says. @type {Record<Types.FormatName, () => Types.Reader>} */
const FORMATS = {
  events: () => (type, data) => (type in NAMED ? [NAMED[type](JSON.parse(data))] : []),
  data: () => (_, data) => {
    if (data === "[DONE]") return [["done", {}]];
    const { content, restart, error } = JSON.parse(data);
    return [error ? ["error", failure(error)] : restart ? ["restart", null] : ["token", content ?? ""]];
  },
  typed: () => (_, data) => {
    const { type, ...value } = JSON.parse(data);
    return type in TYPED ? [TYPED[type](value)] : [];
  },
  openai: () => {
    /** @type {{finishReason?: string, usage?: Types.Usage | null}} */ const end = {};
    return (_, data) => (data === "[DONE]" ? [["done", end]] : chunkReadings(JSON.parse(data), end));
  },
};

/** @type {Record<string, (value: any) => Types.Reading>} */
const NAMED = {
  connected: ({ stream_id: streamId, session_id: session, resumed }) => ["connected", { streamId, session, resumed }],
  thinking: ({ text }) => ["thinking", text],
  token: ({ text }) => ["token", text],
  tool: (piece) => ["tool", piece],
  restart: () => ["restart", null],
  done: ({ full_text: text, finish_reason: finishReason, usage }) => ["done", { text, finishReason, usage }],
  error: (value) => ["error", failure(value)],
};

/** @type {Record<string, (value: any) => Types.Reading>} */
const TYPED = {
  chunk: ({ content }) => ["token", content],
  restart: () => ["restart", null],
  done: () => ["done", {}],
  error: (value) => ["error", failure(value)],
};

/** @param {any} chunk @param {{finishReason?: string, usage?: Types.Usage | null}} end @returns {Types.Reading[]} */
function chunkReadings({ choices, usage, error }, end) {
  if (error) return [["error", failure(error)]];
  const { delta = {}, finish_reason } = choices?.[0] ?? {};
  end.finishReason = finish_reason ?? end.finishReason;
  end.usage = usage ?? end.usage;
  /** @type {Types.Reading[]} */ const readings = (delta.tool_calls ?? []).map((/** @type {any} */ piece) => ["tool", piece]);
  if (delta.content) readings.unshift(["token", delta.content]);
  if (delta.reasoning_content) readings.unshift(["thinking", delta.reasoning_content]);
  return readings;
}

/** OpenAI's pieces of tool calls, put together by their index. */
function withPiece(/** @type {Types.ToolCall[]} */ calls, /** @type {Types.ToolPiece} */ piece) {
  const { index = 0, id, function: part = {} } = piece;
  const old = calls[index] ?? { id: "", name: "", arguments: "", pieces: 0 };
  const name = old.name + (part.name ?? "");
  const call = { id: id ?? old.id, name, arguments: old.arguments + (part.arguments ?? ""), pieces: old.pieces + 1 };
  return Object.assign([...calls], { [index]: call });
}

// ---- failures ----

const NETWORK = failure({ code: "network", message: "The gateway cannot be reached.", retryable: true });
const LOST = failure({ code: "connection_lost", message: "The connection was lost.", retryable: true });
const NOT_A_STREAM = failure({ code: "not_a_stream", message: "The answer is no event stream." });
const INTERRUPTED = failure({ code: "interrupted", message: "The page was left before the answer began.", retryable: true });

/** @param {any} said @returns {Types.Failure} */
function failure({ code = "error", message = "", retryable = false, retry_after = null, status = null }) {
  return { code: String(code), message, retryable, retryAfter: retry_after, status };
}

/** What an HTTP answer other than 2xx says. @param {Response} answer @returns {Promise<Types.Failure>} */
async function failureOf(answer) {
  const { status } = answer;
  const problem = await answer.json().catch(() => ({}));
  const said = problem.error ?? problem;
  const seconds = Number(answer.headers.get("Retry-After") ?? said.retry_after ?? NaN);
  const { code = `http_${status}`, message = said.detail ?? said.title ?? `HTTP status ${status}.` } = said;
  const { retryable = status === 429 || status >= 500 } = said;
  return failure({ code, message, retryable, retry_after: isNaN(seconds) ? null : seconds, status });
}

// ---- reading and showing text ----

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

/** Characters a millisecond below which no text is shown; of a step of the screen, the longest; of a cut, the reach. */
const PACE = { floor: 0.03, frame: 100, reach: 256 };
/** What an emoji may still become: the rest of it can be in the next piece. */
const GROWING = /\p{Extended_Pictographic}|\p{Regional_Indicator}|[\ud800-\udbff]$/u;

/**
 * Shows a text that comes in bursts as if it were written. A burst is spread over the time until the next one is likely
 * to come, `within` milliseconds at most; no character is shown in part. Where nobody looks or motion is not
 * wanted, all of it is shown at once.
 */
export class Typewriter {
  #show;
  #within;
  #shown;
  #text;
  #gap = 100;
  #rate = 0;
  #credit = 0;
  #written = 0;
  #stepped = 0;
  #frame = 0;
  #graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

  /** @param {(shown: string) => void} show @param {{within?: number, shown?: string}} [options] */
  constructor(show, { within = 1_000, shown = "" } = {}) {
    this.#show = show;
    this.#within = within;
    this.#text = shown;
    this.#shown = shown.length;
  }

  get shown() {
    return this.#text.slice(0, this.#shown);
  }

  write(/** @type {string} */ text) {
    const now = performance.now();
    if (!text.startsWith(this.shown)) this.#reveal(0);
    this.#text = text;
    if (this.#written) this.#gap += (Math.min(now - this.#written, this.#within) - this.#gap) / 4;
    this.#written = now;
    const span = Math.min(this.#within, Math.max(50, this.#gap * 1.5));
    this.#rate = Math.max(PACE.floor, (text.length - this.#shown) / span);
    if (document.hidden || matchMedia("(prefers-reduced-motion: reduce)").matches) return this.flush();
    if (!this.#frame) this.#start(now);
  }

  /** Show all of it now. */
  flush() {
    this.#rest();
    if (this.#shown < this.#text.length) this.#reveal(this.#text.length);
  }

  #start(/** @type {number} */ now) {
    this.#stepped = now;
    this.#frame = requestAnimationFrame(this.#step);
    document.addEventListener("visibilitychange", this.#hide);
  }

  #rest() {
    cancelAnimationFrame(this.#frame);
    this.#frame = this.#credit = 0;
    document.removeEventListener("visibilitychange", this.#hide);
  }

  #hide = () => document.hidden && this.flush();

  #step = (/** @type {number} */ now) => {
    const elapsed = Math.max(0, Math.min(now - this.#stepped, PACE.frame));
    this.#credit = Math.min(this.#credit + elapsed * this.#rate, this.#text.length - this.#shown);
    this.#stepped = now;
    const length = this.#cut(now);
    this.#credit -= length;
    if (length) this.#reveal(this.#shown + length);
    if (this.#shown === this.#text.length) return this.#rest();
    this.#frame = requestAnimationFrame(this.#step);
  };

  /** The length of the whole graphemes that the credit pays for. */
  #cut(/** @type {number} */ now) {
    let end = 0;
    const ahead = this.#text.slice(this.#shown, this.#shown + this.#credit + PACE.reach);
    for (const { index, segment } of this.#graphemes.segment(ahead)) {
      if (index + segment.length > this.#credit) break;
      end = index + segment.length;
    }
    if (end && this.#shown + end === this.#text.length) return this.#whole(ahead.slice(0, end), now);
    return end;
  }

  #whole(/** @type {string} */ ahead, /** @type {number} */ now) {
    const last = [...this.#graphemes.segment(ahead)].pop();
    const waits = last && now - this.#written < this.#within && GROWING.test(last.segment);
    return waits ? last.index : ahead.length;
  }

  #reveal(/** @type {number} */ length) {
    this.#shown = length;
    this.#show(this.shown);
  }
}
