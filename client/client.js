/**
 * The browser's side of a stream: start an answer, follow it over every drop, reload and tab, stop it.
 *   const answer = stream({ url: "/api/chat", message: "Hi", onText: (text) => show(text) });
 *   const { outcome, text } = await answer.done; // or answer.stop(), which ends the generation
 *
 * The parts, each with one duty. A part calls upwards only through the functions that it was given:
 *
 *   Answer                 the states, the callbacks, the outcome; listens to the page (left, hidden, offline)
 *    ├─ Transcript         what came so far, and the cursor behind it
 *    ├─ Connection         one link after another, until the stream has ended
 *    │   ├─ Question       the requests: start, follow, stop
 *    │   ├─ EventSourceLink, FetchLink   one connection: bytes in, events out
 *    │   ├─ TicketLink     an EventSourceLink whose URL has a ticket, because a credential must not stand there
 *    │   └─ BackOff        when the next link is made
 *    ├─ Keeper             what a storage remembers over a reload, and whether this tab may use it
 *    ├─ Tabs               one connection for all tabs that follow the stream
 *    └─ Typewriter         bursts of text shown as if they were written
 *   Keeper and Tabs ask for locks through `lock`.
 *
 * The states. Only Answer changes them, in `#enter` and `#finish`:
 *
 *                     accepted          first piece of text
 *   connecting ────────────────► open ────────────────────► streaming
 *       │                        │  ▲                        │
 *       │ no connection          │  │ accepted               │ no connection
 *       ▼                        ▼  │                        ▼
 *   ┌──────────────────────────────────────────────────────────────┐
 *   │ reconnecting  it dropped: BackOff or the browser tries again │
 *   │ waiting       the gateway said "later": BackOff tries again  │
 *   │ offline       the browser has no network: `online` ends it   │
 *   └──────────────────────────────────────────────────────────────┘
 *
 *   Every state may become one of these, and none of these changes any more:
 *     done      the stream has ended
 *     stopped   by stop(), by the signal, or by another reader
 *     error     a lasting one, or no attempt is left
 *     closed    by close(), or because this tab is a duplicate
 *
 * What always holds:
 * - A start is sent again only where the gateway said that nothing was begun. Once the stream has an id, it is followed
 *   by that id, which never costs a second answer.
 * - Text and cursor change together, so what a storage or another tab holds can always be continued.
 * - Exactly one of onDone and onError is called, or neither after close(). `done` always resolves and never rejects.
 * - Every wait and every buffer is bounded: see LIMITS and WAITS.
 *
 * Each browser API has one part that uses it, because any of them may be missing, throw when it is named or called,
 * reject, or never answer (privacy settings, sandboxed frames, old browsers). The answer is whole without it:
 *   EventSource        EventSourceLink    fetch takes over
 *   streams, decoders  FetchLink          the text comes in one piece, at the end
 *   AbortController    FetchLink, lock    the body's reader is cancelled; no locks
 *   locks              lock               this tab shares nothing, and goes on with what its storage keeps
 *   BroadcastChannel   Tabs               this tab shares nothing
 *   storages           Keeper, stored     a reload forgets the answer
 *   Intl.Segmenter     Typewriter         code points are shown in place of graphemes
 *   crypto             token              Math.random
 * Nothing is tried again without a pause and a bound.
 * The options, their defaults and all types are in client.d.ts.
 */

/** @import * as Types from "./client.d.ts" */

/** Attempts in a row, and lengths in characters. */
const LIMITS = {
  attempts: 6, // to start, where the server said when to come back
  blind: 2, // to start, where nobody said when
  known: 20, // to follow a stream whose id or cursor is known
  url: 4_000, // of a request without a body
  event: 8_000_000,
  calls: 128, // of tools in an answer
  losses: 3, // of the lock to other tabs, until this one stops sharing
};
/** Milliseconds. */
const WAITS = {
  retry: 1_000, // where the server sent no `retry:`
  ceiling: 30_000, // of the random part between two attempts
  probe: 250, // until a lost start counts as failed, and before fetch takes over from an EventSource
  idle: 45_000, // of silence make a connection dead: three heartbeats
  whole: 900_000, // for an answer that cannot be read in pieces
  stop: 3_000, // until an answer counts as stopped without the gateway's word
  unknown: 30_000, // for which a stopped start is still read, because only its id can stop it
  save: 250,
  claim: 500, // for a tab's lock; a tab that is left gives its locks back in less
  deaf: 250, // for the browser to confirm that a request for a lock is withdrawn
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

/** @param {Types.StorageOption} storage @returns {Types.Kept | null} */
export function stored(storage, key = KEY) {
  try {
    return JSON.parse(areaOf(storage)?.getItem(key) ?? "null");
  } catch {
    return null; // something else of the page wrote there, or the browser denies the storage
  }
}

/** Storages are named by a function where naming them may throw. @returns {Types.Area | null} */
function areaOf(/** @type {Types.StorageOption | undefined} */ storage) {
  return (typeof storage === "function" ? attempt(storage) : storage) ?? null;
}

/** What a function gives; null where the browser denies it. @template T @param {() => T} run @returns {T | null} */
function attempt(run) {
  try {
    return run();
  } catch {
    return null;
  }
}

/**
 * `Place` is where to go on, and what came before; `End` is what an answer's last state says beside its name.
 * @typedef {Omit<Types.Kept, "streams">} Place
 * @typedef {Types.StreamOptions & Partial<Place>} Options
 * @typedef {{text?: string, finishReason?: string, usage?: Types.Usage | null, error?: Types.Failure}} End
 */

// ---- the answer ----

class Answer {
  #options;
  #said;
  #connection;
  #keeper;
  /** @type {Tabs | null} */ #tabs = null; // there once the stream has an id
  /** @type {Typewriter | null} */ #typewriter = null;
  #ended = false;
  #stopping = false;
  #announced = false; // onConnected was called
  #away = false; // in the browser's back/forward cache
  #deadline = 0; // the timer of a stop that nobody confirms
  /** @type {(() => void)[]} */ #listening = []; // each ends a listener on the page
  /** @type {(result: Types.Result) => void} */ #resolve = () => {};

  /** @type {Types.State} */ state = "connecting";

  constructor(/** @type {Options} */ options) {
    const { onText, smooth = true, text = "", patience } = options;
    const question = new Question(options);
    this.#options = options;
    this.#said = new Transcript(options);
    this.#keeper = new Keeper(options, this.#said, question.streams.href);
    const reader = readerOf(options.format ?? "events");
    this.#connection = new Connection(question, this.#said, reader, patience ?? PATIENCE, {
      state: () => this.state,
      enter: (state, situation) => this.#enter(state, situation),
      identify: (id) => this.#identify(id),
      take: (readings) => this.#take(readings),
      fail: (error) => this.#fail(error),
      finish: (outcome) => this.#finish(outcome),
    });
    if (onText && smooth) this.#typewriter = new Typewriter((shown) => this.#call("onText", shown), { shown: text });
    /** @type {Promise<Types.Result>} */
    this.done = new Promise((resolve) => (this.#resolve = resolve));
  }

  get streamId() {
    return this.#said.streamId;
  }

  get session() {
    return this.#said.session;
  }

  get requestId() {
    return this.#connection.requestId;
  }

  get cursor() {
    return this.#said.cursor;
  }

  get text() {
    return this.#said.text;
  }

  get thinking() {
    return this.#said.thinking;
  }

  get tools() {
    return this.#said.tools;
  }

  begin() {
    this.#attend();
    this.#enter("connecting");
    if (this.#options.signal?.aborted) this.#finish("stopped");
    else if (this.#keeper.tab) this.#claim();
    else if (this.streamId) this.#join();
    else this.#connection.connect();
    return this;
  }

  async stop() {
    if (this.#ended || this.#stopping) return;
    this.#stopping = this.#connection.stopping = true;
    if (!this.streamId && !this.#connection.sent) return this.#finish("stopped");
    this.#deadline = setTimeout(() => this.#finish("stopped"), WAITS.stop);
    if (this.streamId) await this.#sendStop(this.streamId);
  }

  close() {
    if (this.#ended) return;
    this.#keeper.save();
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

  /** If it does not arrive, the gateway cancels a generation that nobody reads. */
  async #sendStop(/** @type {string} */ id) {
    await this.#connection.sendStop(id).catch(() => this.#finish("stopped"));
  }

  // -- what the stream says --

  #take(/** @type {Types.Reading[]} */ readings) {
    if (!this.#ended) this.#keeper.saveSoon();
    for (const [kind, value] of readings) {
      if (kind === "connected") this.#identify(value.streamId ?? null, value);
      else if (this.#ended) return; // it is read on for its id alone
      else if (kind === "done") this.#finish(value.finishReason === "stopped" ? "stopped" : "done", value);
      else if (kind === "error" && value.code === "stopped") this.#finish("stopped");
      else if (kind === "error") this.#fail(value);
      else if (isPiece(kind, value)) this.#add(/** @type {Piece} */ ([kind, value]));
    }
  }

  #add(/** @type {Piece} */ piece) {
    const { restarts } = this.#said;
    const at = this.#said.length(piece[0]);
    this.#apply(piece);
    this.#tabs?.post({ kind: "event", reading: piece, at, restarts, ...this.#said.mark() });
  }

  /** A piece of the answer, from the stream or from another tab. */
  #apply(/** @type {Piece} */ piece) {
    const [kind, value] = piece;
    const said = this.#said;
    this.#connection.progressed();
    if (this.state !== "streaming") this.#enter("streaming");
    if (kind === "restart") return this.#restart();
    said.add(piece);
    if (kind === "thinking") this.#call("onThinking", value, said.thinking);
    if (kind === "tool") this.#call("onTool", value, said.tools);
    if (kind === "token") this.#call("onToken", value, said.text);
    if (kind === "token") this.#show(true);
  }

  /** Another model answers anew: what came so far is void. */
  #restart() {
    this.#said.restart();
    this.#call("onRestart");
    this.#show();
  }

  #show(grown = false) {
    if (this.#typewriter) this.#typewriter.write(this.text, grown);
    else this.#call("onText", this.text);
  }

  /** The stream may have an id now, and with it readers in other tabs and somebody to be stopped. */
  #identify(/** @type {string | null} */ id, /** @type {Partial<Types.Connected>} */ start = {}) {
    const said = this.#said;
    const { session = said.session, resumed = said.restarts > 0 || said.cursor !== "" } = start;
    const news = !said.streamId && id;
    said.streamId = id ?? said.streamId;
    said.session = session;
    if (news && this.#stopping) this.#sendStop(news);
    if (this.#ended) return this.#connection.disconnect(); // it was read on for the id alone
    if (news) this.#join();
    if (!said.streamId || this.#announced) return;
    this.#call("onConnected", { streamId: said.streamId, session, resumed });
    this.#announced = true;
  }

  #call(/** @type {keyof Types.Callbacks} */ name, /** @type {any[]} */ ...values) {
    try {
      /** @type {any} */ (this.#options)[name]?.(...values);
    } catch (error) {
      setTimeout(() => {
        throw error; // a caller's mistake is reported, and does not end the stream
      });
    }
  }

  // -- the states --

  #enter(/** @type {Types.State} */ state, /** @type {Types.Situation} */ situation = {}) {
    if (this.#ended) return;
    this.state = state;
    this.#tabs?.post({ kind: "state", state, situation });
    this.#call("onState", state, situation);
  }

  #fail(/** @type {Types.Failure} */ error) {
    this.#finish(this.#stopping ? "stopped" : "error", { error });
  }

  #finish(/** @type {Types.Outcome} */ outcome, /** @type {End} */ end = {}) {
    if (this.#ended) return;
    this.#ended = true;
    const { error, text = this.text, finishReason, usage } = end;
    this.#leave(outcome, end);
    this.#said.text = text;
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

  /** Gives back what the answer holds: timers, connection, locks, listeners, and what the storage keeps. */
  #leave(/** @type {Types.Outcome} */ outcome, /** @type {End} */ end) {
    clearTimeout(this.#deadline);
    this.#connection.end(this.#stopping);
    // Another tab may be better off: it is open still, or has a credential that is accepted.
    const ours = outcome === "closed" || [401, 403].includes(end.error?.status ?? 0);
    if (!ours) this.#tabs?.post({ kind: "end", outcome, detail: end });
    this.#tabs?.leave();
    this.#keeper.leave(outcome !== "closed");
    for (const end of this.#listening) end();
  }

  // -- the page: left, hidden, frozen, offline --

  #attend() {
    this.#listen(window, "pagehide", this.#onHide);
    this.#listen(window, "pageshow", this.#onShow);
    this.#listen(window, "offline", () => this.#connection.pause());
    this.#listen(window, "online", () => this.#connection.unpause(!this.#follows()));
    this.#listen(document, "visibilitychange", this.#onLook);
    this.#listen(document, "freeze", () => this.#keeper.save());
    this.#listen(document, "resume", this.#onLook);
    if (this.#options.signal) this.#listen(this.#options.signal, "abort", () => this.stop());
  }

  /** Until the answer is over. @param {EventTarget} target @param {string} type @param {(event: any) => void} hear */
  #listen(target, type, hear) {
    target.addEventListener(type, hear);
    this.#listening.push(() => target.removeEventListener(type, hear));
  }

  #onHide = (/** @type {PageTransitionEvent} */ event) => {
    this.#keeper.save();
    this.#keeper.release(); // a reload is about to claim it
    this.#away = event.persisted && this.#said.known;
    if (!this.#away) return;
    this.#connection.disconnect(); // a browser caches no page that has a connection or a lock
    this.#tabs?.leave();
    this.#tabs = null;
  };

  #onShow = (/** @type {PageTransitionEvent} */ event) => {
    const { sent, connected } = this.#connection;
    if (this.#away) this.#join();
    else if (event.persisted && sent && !this.#said.known && !connected) this.#fail(INTERRUPTED);
    this.#away = false;
  };

  #onLook = () => {
    if (unwatched()) this.#keeper.save();
    else if (this.#follows()) this.#tabs?.check();
    else this.#connection.check();
  };

  // -- other tabs --

  /** Go on with what the storage keeps, unless it is another tab's: a tab that was duplicated has a copy of it. */
  async #claim() {
    if (await this.#keeper.own()) return this.#ended || this.#join();
    this.#keeper.forget();
    this.#finish("closed");
  }

  /** Follow the stream by its id: by a connection of this tab, or by one that it shares. */
  #join() {
    if (this.#ended) return;
    if (this.#keeper.keeps && (!this.#keeper.tab || this.#away)) this.#keeper.own();
    const shares = this.#options.share !== false && this.streamId;
    this.#tabs = new Tabs(shares ? `gateway-stream:${this.streamId}` : null, {
      lead: () => this.#connection.connected || this.#connection.connect(),
      follow: () => this.#connection.disconnect(),
      snapshot: () => ({ kind: "snapshot", state: this.state, ...this.#said.all(), ...this.#said.mark() }),
      hear: (message) => this.#hear(message),
    });
    this.#tabs.join();
  }

  #follows() {
    return Boolean(this.#tabs && !this.#tabs.leads);
  }

  /** What the tab that has the connection says. */
  #hear(/** @type {News} */ message) {
    if (this.#ended) return;
    if (message.kind === "end") this.#finish(message.outcome, message.detail);
    else if (message.kind === "state") this.#enter(message.state, message.situation);
    else if (message.kind === "snapshot") this.#adopt(message);
    else this.#catchUp(message);
  }

  #adopt(/** @type {Snapshot} */ { session, text, thinking, tools, state, ...place }) {
    const said = this.#said;
    this.#identify(this.streamId, { session, resumed: true });
    if (place.restarts > said.restarts) this.#restart();
    said.restarts = Math.max(said.restarts, place.restarts);
    if (state !== this.state) this.#enter(state);
    this.#catchUp({ reading: ["thinking", thinking], at: 0, ...place });
    this.#catchUp({ reading: ["token", text], at: 0, ...place });
    if (place.restarts < said.restarts) return;
    if (place.position > said.position) said.tools = tools;
    if (place.position === said.position) said.cursor = place.cursor;
  }

  /** Messages may repeat what this tab has; none may leave a gap. */
  #catchUp(/** @type {Piecemeal} */ { reading: [kind, value], at, restarts, position, cursor }) {
    const said = this.#said;
    const length = said.length(kind);
    if (restarts < said.restarts) return;
    if (restarts > said.restarts || at > length) return this.#tabs?.greet();
    const news = typeof value === "string" ? value.slice(length - at) : at === length ? value : "";
    if (news || kind === "restart") this.#apply(/** @type {Piece} */ ([kind, news]));
    if (this.#ended || position !== said.position) return;
    said.cursor = cursor;
    this.#keeper.saveSoon();
  }
}

/** @typedef {["token" | "thinking", string] | ["tool", Types.ToolPiece] | ["restart", null]} Piece what adds to an answer */

/** What came of an answer so far, and the cursor that stands behind it. Tokens, thoughts and tool calls only grow. */
class Transcript {
  constructor(/** @type {Options} */ { streamId, cursor = "", text = "", thinking = "", tools = [], restarts = 0 }) {
    /** @type {string | null} */ this.streamId = streamId ?? null;
    /** @type {string | null} */ this.session = null;
    this.cursor = cursor;
    this.text = text;
    this.thinking = thinking;
    this.tools = [...tools];
    this.restarts = restarts; // how often another model began anew
  }

  /** Whether the stream can be followed without starting another one. */
  get known() {
    return Boolean(this.streamId || this.cursor);
  }

  add(/** @type {Piece} */ [kind, value]) {
    if (kind === "token") this.text += value;
    if (kind === "thinking") this.thinking += value;
    if (kind === "tool") this.tools = withPiece(this.tools, value);
  }

  restart() {
    this.text = this.thinking = "";
    this.tools = [];
    this.restarts += 1;
  }

  /** How much of a kind came: characters, or pieces of tool calls. */
  length(/** @type {Piece[0]} */ kind) {
    if (kind === "tool") return this.tools.reduce((sum, call) => sum + (call?.pieces ?? 0), 0);
    return kind === "token" ? this.text.length : kind === "thinking" ? this.thinking.length : 0;
  }

  /** How much came in all. Tabs that are equally far may use each other's cursor. */
  get position() {
    return this.length("token") + this.length("thinking") + this.length("tool");
  }

  mark() {
    return { position: this.position, cursor: this.cursor };
  }

  all() {
    const { streamId, session, text, thinking, tools, restarts } = this;
    return { streamId, session, text, thinking, tools, restarts };
  }
}

// ---- the connection ----

/**
 * What a connection asks of its answer.
 * @typedef {object} Owner
 * @property {() => Types.State} state
 * @property {(state: Types.State, situation?: Types.Situation) => void} enter
 * @property {(id: string | null) => void} identify
 * @property {(readings: Types.Reading[]) => void} take
 * @property {(error: Types.Failure) => void} fail
 * @property {(outcome: Types.Outcome) => void} finish
 */

/**
 * One link after another, until the stream has ended. What the end of a link leads to:
 *
 *   | the link ended because            | stream unknown           | id or cursor known                |
 *   |-----------------------------------|--------------------------|-----------------------------------|
 *   | over: 204, nothing is left        | –                        | done                              |
 *   | unreadable: no event stream       | error                    | error                             |
 *   | refused: an HTTP status           | BackOff if it says when  | BackOff if it may pass            |
 *   | lost, after an event said "later" | BackOff                  | BackOff                           |
 *   | lost                              | error: the start may     | BackOff                           |
 *   |                                   | have begun an answer     |                                   |
 *   | dropped: an EventSource, which    | error                    | the browser, LIMITS.attempts      |
 *   | tries again by itself             |                          | times, then fetch                 |
 *   | shut: an EventSource, for good    | fetch, to learn why;     | one more EventSource, after the   |
 *   |                                   | error, if it was open or | pause; then fetch, to learn why   |
 *   |                                   | of another origin        |                                   |
 *   | denied: there is no EventSource,  | fetch                    | fetch                             |
 *   | or no ticket for one              |                          |                                   |
 *
 * An EventSource that was accepted has a cursor, even where no event showed it yet: the browser may try again. That one is
 * shut is no refusal: Firefox shuts those of other origins as soon as a connection fails, so a start may have been taken.
 */
class Connection {
  #question;
  #said;
  #read;
  #owner;
  #backOff;
  #native; // the next link is an EventSource, else fetch
  /** @type {EventSourceLink | TicketLink | FetchLink | null} */ #link = null;
  #fresh = true; // no event was received on this link
  #shut = false; // so was the last EventSource, and nothing new came since
  #offline = false; // the browser said so while we looked; before that it may only mean "no network but this machine"
  #ended = false; // the answer is over
  #timer = 0; // of a start that was lost, then of one that was stopped
  /** @type {string | null} */ requestId = null; // of the request that was answered last
  sent = false; // a start is under way, or may have begun a generation
  stopping = false; // the answer is to be stopped: no start is sent again

  /** @param {Question} question @param {Transcript} said @param {Types.Reader} read @param {number} patience @param {Owner} owner */
  constructor(question, said, read, patience, owner) {
    this.#question = question;
    this.#said = said;
    this.#read = read;
    this.#owner = owner;
    this.#native = question.native;
    this.#backOff = new BackOff(patience * 1000, () => this.connect());
  }

  /** Whether there is a link, or one will be made. */
  get connected() {
    return Boolean(this.#link || this.#backOff.pending);
  }

  connect() {
    const [question, said] = [this.#question, this.#said];
    /** @type {Hearing} */
    const hearing = {
      answered: (id) => (this.requestId = id),
      opened: (id) => this.#opened(id),
      event: (type, data, id) => this.#receive(type, data, id),
      advanced: (cursor, retry) => this.#advance(cursor, retry),
      ended: (end) => this.#follow(end),
    };
    const ask = async (/** @type {AbortSignal | undefined} */ signal) => fetch(question.url(said), question.request(said, signal));
    this.sent = true;
    this.#backOff.begun = performance.now();
    this.#link?.close();
    const open = (/** @type {string} */ ticket) =>
      new EventSourceLink(question.url(said, true, ticket), question.withCredentials, hearing);
    if (this.#native && question.secret) this.#link = new TicketLink((signal) => fetch(...question.ticket(said, signal)), open, hearing);
    else if (this.#native) this.#link = attempt(() => open(""));
    else this.#link = new FetchLink(ask, said.cursor, hearing);
    if (!this.#link) this.#follow({ how: "denied" });
  }

  disconnect() {
    this.#link?.close();
    this.#link = null;
    this.#backOff.cancel();
  }

  /** The answer is over. A start that was stopped before its id came is read on for a while: only the id can stop it. */
  end(/** @type {boolean} */ stopped) {
    this.#ended = true;
    clearTimeout(this.#timer);
    if (!stopped || !this.sent || this.#said.streamId) return this.disconnect();
    this.#backOff.cancel();
    this.#timer = setTimeout(() => this.disconnect(), WAITS.unknown);
  }

  /** Resolves when the gateway was told. */
  async sendStop(/** @type {string} */ id) {
    return fetch(...this.#question.stop(id));
  }

  /** Something new came: the next attempt is a first one again. */
  progressed() {
    this.#shut = false;
    this.#backOff.reset();
  }

  // -- what a link says --

  #opened(/** @type {string | null | undefined} */ id) {
    this.#fresh = true;
    this.#backOff.refusal = null;
    this.#owner.enter("open");
    if (id !== undefined) this.#owner.identify(id);
  }

  #receive(/** @type {string} */ type, /** @type {string} */ data, /** @type {string} */ id) {
    let readings;
    try {
      readings = this.#read(type, data);
    } catch (error) {
      return this.#owner.fail({ ...NOT_A_STREAM, message: `An event cannot be read: ${error}` });
    }
    const [first] = readings;
    const later = first?.[0] === "error" && first[1].retryable && this.#fresh && id === this.#said.cursor;
    if (first) this.#fresh = false;
    if (later) return this.#postpone(first[1]);
    this.#said.cursor = id || this.#said.cursor;
    this.#owner.take(readings);
  }

  /** An id without an event moves the cursor too: the stream is ours. */
  #advance(/** @type {string} */ cursor, /** @type {number | null} */ retry) {
    if (retry !== null) this.#backOff.retry = retry;
    if (cursor !== this.#said.cursor) this.#fresh = false;
    this.#said.cursor = cursor;
  }

  /** The first event of a link is an error that says "later". An EventSource never says when: fetch takes over. */
  #postpone(/** @type {Types.Failure} */ failure) {
    this.#backOff.refusal = failure;
    this.sent = false;
    if (!this.#native) return; // the gateway is about to close it
    this.#native = false;
    this.#follow({ how: "lost" });
  }

  // -- what comes after a link: see the table above --

  #follow(/** @type {LinkEnd} */ end) {
    const { known } = this.#said;
    if (end.how === "dropped" && !this.#ended && this.#leaveToBrowser(end.opened)) return;
    this.disconnect();
    if (this.#ended) return;
    if (end.how === "over") this.#owner.finish("done");
    if (end.how === "unreadable") this.#owner.fail(end.failure);
    if (end.how === "refused") this.#refused(end.failure);
    if (end.how === "lost") {
      const { refusal } = this.#backOff;
      if (refusal) this.#again("waiting", refusal);
      else if (known) this.#again("reconnecting", LOST);
      // Sending it again might pay for a second answer. Not at once an error: a page that is being left loses it too.
      else this.#timer = setTimeout(() => this.#owner.fail(NETWORK), WAITS.probe);
    }
    if (end.how === "dropped" || end.how === "shut") {
      if (!known && (end.how === "dropped" || end.opened)) return this.#owner.fail(end.opened ? LOST : NETWORK);
      if (!known && this.#question.abroad) return this.#owner.fail(UNTOLD);
      if (end.how === "shut" && end.opened && !this.#shut) {
        this.#shut = true;
        return this.#again("reconnecting", LOST);
      }
      this.#native = false;
      if (end.how === "shut") this.sent = false; // by an answer that began nothing, or because the page is left
      // An EventSource hides the status that shut it; the same question by fetch learns it, or reads on. Not at once:
      // a page that is being left shuts its EventSource too, and must not ask anew.
      this.#backOff.start(WAITS.probe);
    }
    if (end.how === "denied") {
      this.#native = this.sent = false;
      this.connect();
    }
  }

  /** An EventSource tries again at the server's pace, for ever, and asks the same question: not where that starts anew. */
  #leaveToBrowser(/** @type {boolean} */ opened) {
    const { cursor, streamId } = this.#said;
    const resumes = opened && (cursor || !streamId) && !this.#offline;
    if (!resumes || !this.#backOff.countsOn()) return false;
    this.#owner.enter("reconnecting");
    return true;
  }

  #refused(/** @type {Types.Failure} */ failure) {
    this.sent = false;
    const { status, code, retryable } = failure;
    const busy = status === 429 || status === 503;
    // A stream that exists may be asked for again; a start only where the gateway itself, no proxy, said that it may.
    const mayPass = this.#said.known ? status === 408 || (status ?? 0) >= 500 : retryable && !code.startsWith("http_");
    if (busy || mayPass) this.#again("waiting", failure);
    else this.#owner.fail(failure);
  }

  #again(/** @type {Types.State} */ state, /** @type {Types.Failure} */ failure) {
    if (this.stopping && !this.#said.known) return this.#owner.finish("stopped");
    const wait = this.#backOff.next(failure, this.#said.known);
    if (wait === null) return this.#owner.fail(failure);
    if (this.#offline) return this.#owner.enter("offline", { error: failure });
    this.#backOff.start(wait);
    this.#owner.enter(state, { seconds: wait / 1000, attempt: this.#backOff.attempt, error: failure });
  }

  // -- the network and the page --

  /** The browser has no network. An open link is kept: it may lead to this very machine. */
  pause() {
    this.#offline = true;
    if (!this.#backOff.pending) return;
    this.#backOff.cancel();
    this.#owner.enter("offline");
  }

  /** The network is back. @param {boolean} leads whether this tab is the one that connects */
  unpause(leads) {
    const was = this.#offline;
    this.#offline = false;
    if (!leads) return;
    if (this.#owner.state() === "offline") this.#backOff.hurry();
    else if (!this.#hurried() && was) this.#reopen();
  }

  /** Somebody looks at the page again: no time to lose, and after a long silence no trust in the link. */
  check() {
    if (!this.#hurried() && this.#link && this.#link.silence > WAITS.idle) this.#reopen();
  }

  #hurried() {
    const waits = this.#owner.state() === "reconnecting" && this.#backOff.pending;
    if (waits) this.#backOff.hurry();
    return waits;
  }

  /** The link may be dead without anybody having said so: a new one, if that costs no second answer. */
  #reopen() {
    if (!this.#said.known || !this.#link) return;
    this.disconnect();
    this.#native = false;
    this.#owner.enter("reconnecting");
    this.#backOff.hurry();
  }
}

/** The requests of one answer: its start, following it, stopping it. */
class Question {
  #options;

  constructor(/** @type {Options} */ options) {
    const { mode = "auto", format = "events", credential, body, streamId, withCredentials = false } = options;
    this.#options = options;
    this.withCredentials = withCredentials;
    /** Whether there is a credential that no URL may show. */
    this.secret = Boolean(credential);
    const target = new URL(options.url, document.baseURI);
    this.streams = new URL(options.streams ?? "/streams/", target);
    const fits = this.url({ streamId: streamId ?? null, cursor: options.cursor ?? "" }, true).href.length <= LIMITS.url;
    this.abroad = target.origin !== window.origin;
    const able = !body && !credential && !streamId && format === "events" && !this.abroad;
    /** Whether it begins with an EventSource. Not of itself on another origin: Firefox shuts that at any trouble. */
    this.native = fits && (mode === "eventsource" || (mode === "auto" && able));
    /** Whether a start is a POST; else it is a GET, also by fetch where an EventSource began it. */
    this.posts = !this.native && !streamId;
  }

  /**
   * @param {{streamId: string | null, cursor: string}} place
   * @param {boolean} [native] an EventSource, which sends no header
   * @param {string} [ticket] stands for the credential
   */
  url({ streamId, cursor }, native = false, ticket = "") {
    const { url, message, session, params } = this.#options;
    const target = streamId ? new URL(encodeURIComponent(streamId), this.streams) : new URL(url, document.baseURI);
    const start = streamId || this.posts ? {} : { message, session_id: session };
    const headers = native ? { last_event_id: cursor, ticket } : {};
    const query = { ...params, ...start, ...headers };
    for (const [name, value] of Object.entries(query)) if (value) target.searchParams.set(name, value);
    return target;
  }

  /** @param {{streamId: string | null, cursor: string}} place @param {AbortSignal} [signal] @returns {RequestInit} */
  request({ streamId, cursor }, signal) {
    const { message, session: session_id, body } = this.#options;
    const headers = new Headers({ Accept: "text/event-stream" });
    if (cursor) headers.set("Last-Event-ID", cursor);
    if (streamId || !this.posts) return this.#signed({ headers, signal, cache: "no-store" });
    headers.set("Content-Type", "application/json");
    return this.#signed({ method: "POST", headers, signal, body: JSON.stringify({ message, session_id, ...body }) });
  }

  /** A ticket for the stream, or for its start. @param {{streamId: string | null}} place @param {AbortSignal} [signal] @returns {[URL, RequestInit]} */
  ticket({ streamId }, signal) {
    const url = new URL(this.#options.tickets ?? "../tickets", this.streams);
    const headers = new Headers({ "Content-Type": "application/json" });
    const body = JSON.stringify(streamId ? { stream_id: streamId } : {});
    return [url, this.#signed({ method: "POST", headers, body, signal, cache: "no-store" })];
  }

  /** @param {string} id @returns {[URL, RequestInit]} */
  stop(id) {
    const url = new URL(`${encodeURIComponent(id)}/stop`, this.streams);
    return [url, this.#signed({ method: "POST", headers: new Headers(), keepalive: true })];
  }

  /** @param {RequestInit & {headers: Headers}} request @returns {RequestInit} */
  #signed(request) {
    const { credential } = this.#options;
    if (credential) request.headers.set("Authorization", `Bearer ${credential}`);
    return { ...request, credentials: this.withCredentials ? "include" : "same-origin" };
  }
}

// ---- a link: one connection ----

/**
 * How a link ended; and what it says while it lasts. After close() it says nothing more, and `ended` is its last word,
 * but for an EventSource that was dropped: it may open again.
 * @typedef {{how: "over" | "lost" | "denied"} | {how: "refused" | "unreadable", failure: Types.Failure}
 *   | {how: "dropped" | "shut", opened: boolean}} LinkEnd
 * @typedef {object} Hearing
 * @property {(requestId: string | null) => void} answered the server answered, whatever it said
 * @property {(streamId?: string | null) => void} opened the server accepts; with what its headers say, where they can be read
 * @property {(type: string, data: string, id: string) => void} event
 * @property {(cursor: string, retry: number | null) => void} advanced where it is after some events, and the server's pace
 * @property {(end: LinkEnd) => void} ended
 */

const EVENT_TYPES = ["connected", "thinking", "token", "tool", "restart", "done", "error", "message"];

/** The browser's EventSource. It reads `retry:` itself, and heartbeats are not seen here. */
class EventSourceLink {
  #source;
  #heard = performance.now();
  #timer = 0;

  /** @throws where the browser has no EventSource, or denies it */
  constructor(/** @type {URL} */ url, /** @type {boolean} */ withCredentials, /** @type {Hearing} */ hearing) {
    const source = (this.#source = new EventSource(url, { withCredentials }));
    let opened = false;
    source.onopen = () => {
      opened = true;
      clearTimeout(this.#timer);
      this.#heard = performance.now();
      hearing.opened();
    };
    const hear = (/** @type {Event} */ event) => {
      // The gateway's own `error` events share their name with the browser's notice of a lost connection.
      if (!("data" in event)) {
        clearTimeout(this.#timer);
        return hearing.ended({ how: source.readyState === EventSource.CLOSED ? "shut" : "dropped", opened });
      }
      const { type, data, lastEventId } = /** @type {MessageEvent} */ (event);
      this.#heard = performance.now();
      hearing.event(type, data, lastEventId);
    };
    for (const type of EVENT_TYPES) source.addEventListener(type, hear);
    this.#timer = setTimeout(() => {
      this.close();
      hearing.ended({ how: "lost" });
    }, WAITS.idle);
  }

  /** Milliseconds since it was heard. */
  get silence() {
    return performance.now() - this.#heard;
  }

  close() {
    clearTimeout(this.#timer);
    this.#source.close();
  }
}

/**
 * An EventSource whose credential stays out of its URL: fetch sends the credential and gets a ticket first. A gateway that
 * gives no tickets denies the EventSource, so that fetch takes over.
 */
class TicketLink {
  #abort = attempt(() => new AbortController());
  /** @type {EventSourceLink | null} */ #source = null;
  #hearing;
  #closed = false;
  #begun = performance.now();
  #timer;

  /** @param {(signal?: AbortSignal) => Promise<Response>} ask @param {(ticket: string) => EventSourceLink} open @param {Hearing} hearing */
  constructor(ask, open, hearing) {
    this.#hearing = hearing;
    this.#timer = setTimeout(() => this.#end({ how: "lost" }), WAITS.idle);
    this.#run(ask, open);
  }

  /** Milliseconds since it was heard. */
  get silence() {
    return this.#source?.silence ?? performance.now() - this.#begun;
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#source?.close();
  }

  #end(/** @type {LinkEnd} */ end) {
    if (this.#closed) return;
    this.close();
    this.#hearing.ended(end);
  }

  /** @param {(signal?: AbortSignal) => Promise<Response>} ask @param {(ticket: string) => EventSourceLink} open */
  async #run(ask, open) {
    const answer = await ask(this.#abort?.signal).catch(() => null);
    if (!answer || this.#closed) return this.#end({ how: "lost" });
    this.#hearing.answered(answer.headers.get("X-Request-Id"));
    if (answer.status === 404 || answer.status === 405) return this.#end({ how: "denied" });
    if (!answer.ok) return this.#end({ how: "refused", failure: await failureOf(answer) });
    const { ticket = "" } = await answer.json().catch(() => ({}));
    if (this.#closed) return;
    clearTimeout(this.#timer);
    this.#source = ticket ? attempt(() => open(ticket)) : null;
    if (!this.#source) this.#end({ how: "denied" });
  }
}

/**
 * An answer of fetch, read as it comes. It is lost when nothing came for WAITS.idle: heartbeats count. Where its body
 * cannot be read in pieces, it is read whole.
 */
class FetchLink {
  #abort = attempt(() => new AbortController());
  /** @type {ReadableStreamDefaultReader<BufferSource> | null} */ #reader = null;
  #hearing;
  #closed = false;
  #heard = 0;
  #timer = 0;

  /** @param {(signal?: AbortSignal) => Promise<Response>} ask @param {string} cursor @param {Hearing} hearing */
  constructor(ask, cursor, hearing) {
    this.#hearing = hearing;
    this.#run(ask, cursor);
  }

  /** Milliseconds since it was heard. */
  get silence() {
    return performance.now() - this.#heard;
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#abort?.abort();
    if (!this.#abort) this.#reader?.cancel().catch(() => {}); // it is broken already
  }

  #end(/** @type {LinkEnd} */ end) {
    if (this.#closed) return;
    this.close();
    this.#hearing.ended(end);
  }

  async #run(/** @type {(signal?: AbortSignal) => Promise<Response>} */ ask, /** @type {string} */ cursor) {
    /** @type {LinkEnd} */ let end = { how: "lost" };
    try {
      this.#watch();
      end = await this.#read(await ask(this.#abort?.signal), cursor);
    } catch (error) {
      if (error instanceof RangeError) end = { how: "unreadable", failure: { ...NOT_A_STREAM, message: error.message } };
    }
    this.#end(end);
  }

  /** @param {Response} answer @param {string} cursor @returns {Promise<LinkEnd>} */
  async #read(answer, cursor) {
    if (this.#closed) return { how: "lost" };
    this.#hearing.answered(answer.headers.get("X-Request-Id"));
    if (answer.status === 204) return { how: "over" };
    if (!answer.ok) return { how: "refused", failure: await failureOf(answer) };
    if (!answer.headers.get("Content-Type")?.startsWith("text/event-stream")) return { how: "unreadable", failure: NOT_A_STREAM };
    this.#hearing.opened(answer.headers.get("X-Stream-Id"));
    const parser = new EventStreamParser((type, data, id) => this.#closed || this.#hearing.event(type, data, id), cursor);
    for await (const text of this.#texts(answer)) {
      if (this.#closed) break;
      this.#watch();
      parser.push(text);
      if (!this.#closed) this.#hearing.advanced(parser.lastEventId, parser.retry);
    }
    return { how: "lost" };
  }

  /** The body's text: in pieces as they come, or, where the browser gives no such reader, in one piece at its end. */
  async *#texts(/** @type {Response} */ answer) {
    const decoder = attempt(() => new TextDecoder());
    this.#reader = decoder && attempt(() => /** @type {ReadableStream<BufferSource>} */ (answer.body).getReader());
    if (!decoder || !this.#reader) {
      this.#watch(WAITS.whole);
      yield await answer.text();
      return;
    }
    for (let read = await this.#reader.read(); !read.done; read = await this.#reader.read())
      yield decoder.decode(read.value, { stream: true });
  }

  #watch(wait = WAITS.idle) {
    if (this.#closed) return;
    this.#heard = performance.now();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#end({ how: "lost" }), wait);
  }
}

// ---- back-off: when to try again ----

/**
 * Exponential, with full jitter on top of what the server asked for: its `retry:`, its Retry-After, or WAITS.retry.
 * Source: WHATWG HTML 9.2.3.
 */
class BackOff {
  #patience;
  #run;
  #due = 0;
  #timer = 0;
  attempt = 0; // in a row, without anything new
  begun = -Infinity; // when the last one was
  retry = WAITS.retry;
  /** @type {Types.Failure | null} */ refusal = null; // "later", said by an event; null once a link was accepted

  /** @param {number} patience the longest wait in milliseconds that is sat out @param {() => void} run */
  constructor(patience, run) {
    this.#patience = patience;
    this.#run = run;
  }

  get pending() {
    return this.#timer !== 0;
  }

  /** Milliseconds to wait after a failure; null if it is not worth it. @param {Types.Failure} failure @param {boolean} known */
  next(failure, known) {
    const floor = Math.max(this.retry, (failure.retryAfter ?? 0) * 1000);
    const limit = known ? LIMITS.known : failure.retryAfter || failure === LOST ? LIMITS.attempts : LIMITS.blind;
    if (++this.attempt > limit || floor > this.#patience) return null;
    const wait = floor + Math.random() * Math.min(WAITS.ceiling, this.retry * 2 ** (this.attempt - 1));
    this.#due = performance.now() + wait;
    return wait;
  }

  /** Counts an attempt of the browser's own; false if it was one too many. */
  countsOn() {
    return ++this.attempt <= LIMITS.attempts;
  }

  start(/** @type {number} */ wait) {
    this.cancel();
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#run();
    }, wait);
  }

  /** Now, unless the server said when, or the last attempt was a moment ago: a network may come and go all the time. */
  hurry() {
    this.reset();
    const due = Math.max(this.begun + WAITS.retry, this.refusal ? this.#due : 0);
    this.start(Math.max(0, due - performance.now()));
  }

  cancel() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  reset() {
    this.attempt = 0;
  }
}

// ---- the keeper: what is remembered over a reload ----

/**
 * Keeps in a storage what `resume` needs. A tab that is duplicated copies its storage, so a place is kept under the name
 * of its tab, and only the tab that holds the lock of that name may go on with it.
 */
class Keeper {
  #storage;
  #key;
  #said;
  #streams;
  #timer = 0;
  #release = () => {}; // gives the tab's lock back
  tab;

  /** @param {Options} options @param {Transcript} said @param {string} streams */
  constructor({ storage, storageKey = KEY, tab = "" }, said, streams) {
    this.#storage = areaOf(storage);
    this.#key = storageKey;
    this.#said = said;
    this.#streams = streams;
    this.tab = tab; // unguessable; empty until it is needed
  }

  get keeps() {
    return Boolean(this.#storage);
  }

  save() {
    this.#cancel();
    const { streamId, cursor, text, thinking, tools, restarts } = this.#said;
    if (!this.#storage || !streamId) return;
    const place = { streamId, streams: this.#streams, tab: this.tab };
    if (this.#write({ ...place, cursor, text, thinking, tools, restarts })) return;
    this.forget(); // too long to keep: from the beginning, then
    this.#write(place);
  }

  saveSoon() {
    this.#timer ||= setTimeout(() => this.save(), WAITS.save);
  }

  forget() {
    attempt(() => this.#storage?.removeItem(this.#key));
  }

  /** Whether the storage took it. @returns {boolean} */
  #write(/** @type {Types.Kept} */ place) {
    return Boolean(attempt(() => (this.#storage?.setItem(this.#key, JSON.stringify(place)), true)));
  }

  /**
   * Whether what the storage keeps is this tab's; if so, it is until `release`. True where there are no locks.
   * @returns {Promise<boolean>}
   */
  own() {
    this.tab ||= token();
    this.release();
    return new Promise((resolve) => {
      const [held, lost, denied] = [true, false, true].map((owns) => () => resolve(owns));
      this.#release = lock(`gateway-tab:${this.tab}`, { wait: WAITS.claim }, { held, lost, denied });
    });
  }

  release() {
    this.#release();
  }

  /** The answer is over. */
  leave(/** @type {boolean} */ forgets) {
    this.#cancel();
    this.release();
    if (forgets) this.forget();
  }

  #cancel() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }
}

/** Unguessable, where the browser has means for that; crypto.randomUUID exists on https pages alone. */
function token() {
  const bytes = attempt(() => crypto.getRandomValues(new Uint8Array(16))) ?? Uint8Array.from({ length: 16 }, () => Math.random() * 256);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Asks once for a lock of the browser's, which one tab of the site can have. What becomes of it:
 *
 *   asked ──held──► this tab's ──lost──► another tab's, which took it
 *     ├──lost: another tab had it for the whole `wait`
 *     └──denied: no locks here. They are missing, or forbidden in this page, or nothing is heard of them at all
 *
 * Only an AbortError says "lost": every other failure says that asking again would fail again.
 * @param {string} name
 * @param {{steal?: boolean, wait?: number}} how `steal` takes it from whoever has it; `wait` in milliseconds, 0 for ever
 * @param {{held: () => void, lost: () => void, denied: () => void}} hearing at most one `held`, then at most one of the others
 * @returns {() => void} gives the lock back, or the place in the queue for it; nothing is heard afterwards
 */
function lock(name, { steal = false, wait = 0 }, { held, lost, denied }) {
  let over = false;
  let timer = 0;
  const withdrawal = attempt(() => new AbortController());
  /** @type {(value?: null) => void} */ let giveBack = () => {};

  const end = (/** @type {() => void} */ hear) => {
    clearTimeout(timer);
    if (!over) hear();
    over = true;
  };
  const hold = () => {
    clearTimeout(timer);
    if (over) return null;
    held();
    return new Promise((resolve) => (giveBack = resolve));
  };
  const ask = async () => {
    if (!withdrawal) throw new TypeError("A request for a lock could not be withdrawn.");
    await navigator.locks.request(name, steal ? { steal } : { signal: withdrawal.signal }, hold);
  };

  if (wait)
    timer = setTimeout(() => {
      withdrawal?.abort();
      timer = setTimeout(() => end(denied), WAITS.deaf);
    }, wait);
  ask().then(
    () => end(denied), // it was never held, or else `over`
    (error) => end(error?.name === "AbortError" ? lost : denied),
  );
  return () => {
    end(() => {});
    withdrawal?.abort();
    giveBack(null);
  };
}

// ---- tabs: one connection for all that follow a stream ----

/**
 * What tabs tell each other. `at` is how long the piece's kind was before the piece, `position` how far its teller is.
 * @typedef {{reading: Piece, at: number, restarts: number, position: number, cursor: string}} Piecemeal
 * @typedef {{kind: "snapshot", state: Types.State, session: string | null, text: string, thinking: string,
 *   tools: Types.ToolCall[], restarts: number, position: number, cursor: string}} Snapshot
 * @typedef {Snapshot | {kind: "event"} & Piecemeal | {kind: "state", state: Types.State, situation: Types.Situation}
 *   | {kind: "end", outcome: Types.Outcome, detail: End}} News
 * @typedef {{kind: "hello"} | News} Message
 */

/**
 * Tabs that follow one stream. The tab that holds the lock of the stream's name leads: it has the connection and tells
 * the others. When it is closed, the lock goes to the next tab; when it keeps silent, another tab takes the lock:
 *
 *   follows ──has the lock──► leads ──the lock was taken──► follows, and asks for the lock after a pause
 *      ├─ hello; no answer for WAITS.reply: take the lock
 *      └─ alone: it leads for good, and has nobody to tell
 *
 * Alone is a tab that is told to share nothing (`name` is null), whose browser denies locks or the channel, or that lost
 * the lock LIMITS.losses times: tabs that take it from each other do not hear each other.
 */
class Tabs {
  #name;
  #owner;
  /** @type {BroadcastChannel | null} */ #channel = null; // null where it is alone
  #release = () => {}; // gives back the lock, or the place in the queue for it
  #heard = performance.now();
  #losses = 0;
  #timer = 0; // of the next hello, of the answer to one, or of the next request
  leads = false;

  /**
   * @param {string | null} name
   * @param {{lead: () => void, follow: () => void, snapshot: () => Snapshot, hear: (message: News) => void}} owner
   */
  constructor(name, owner) {
    this.#name = name ?? "";
    this.#owner = owner;
    this.#channel = name === null ? null : attempt(() => new BroadcastChannel(name));
    if (this.#channel) this.#channel.onmessage = ({ data }) => this.#hear(data);
  }

  join() {
    if (!this.#channel) return this.#alone();
    this.#request();
    this.greet();
  }

  leave() {
    clearTimeout(this.#timer);
    this.leads = false;
    this.#release();
    attempt(() => this.#channel?.close());
    this.#channel = null;
  }

  /** Tell the other tabs. Those that follow have nothing to tell. */
  post(/** @type {Message} */ message) {
    if (this.leads) this.#send(message);
  }

  /** Ask the tab that leads for what came so far; where it is frozen, or gone without its lock, take its place. */
  greet() {
    this.#send({ kind: "hello" });
    if (this.#channel) this.#after(WAITS.reply, () => this.leads || this.#request(true));
  }

  /** Somebody looks at this tab again. */
  check() {
    if (performance.now() - this.#heard > WAITS.idle) this.greet();
  }

  #send(/** @type {Message} */ message) {
    if (!this.#channel) return;
    try {
      this.#channel.postMessage(message);
    } catch {
      this.#alone();
    }
  }

  #hear(/** @type {Message} */ message) {
    if (message.kind === "hello") return this.post(this.#owner.snapshot());
    if (this.leads) return;
    this.#heard = performance.now();
    this.#after(WAITS.idle, () => this.greet());
    this.#owner.hear(message);
  }

  #after(/** @type {number} */ wait, /** @type {() => void} */ run) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(run, wait);
  }

  #request(steal = false) {
    this.#release();
    this.#release = lock(this.#name, { steal, wait: steal ? WAITS.claim : 0 }, {
      held: () => {
        clearTimeout(this.#timer);
        this.leads = true;
        this.#owner.lead();
      },
      lost: () => this.#lost(),
      denied: () => this.#alone(),
    });
  }

  /** Another tab took the lock, because this one kept silent. */
  #lost() {
    if (++this.#losses > LIMITS.losses) return this.#alone();
    if (this.leads) this.#owner.follow();
    this.leads = false;
    this.#send({ kind: "hello" });
    this.#after(WAITS.claim, () => {
      this.#request();
      this.greet();
    });
  }

  #alone() {
    this.leave();
    this.leads = true;
    this.#owner.lead();
  }
}

// ---- formats ----

/** @returns {Types.Reader} */
function readerOf(/** @type {Types.StreamOptions["format"] & {}} */ format) {
  return typeof format === "function" ? format : FORMATS[format]();
}

/** Whether a record has this name itself: any object answers to `constructor`. @param {object} record @param {string} name */
const has = (record, name) => Object.prototype.hasOwnProperty.call(record, name);

/** What an event of each of the gateway's formats says. @type {Record<Types.FormatName, () => Types.Reader>} */
const FORMATS = {
  events: () => (type, data) => (has(NAMED, type) ? [NAMED[type](JSON.parse(data))] : []),
  data: () => (_, data) => {
    if (data === "[DONE]") return [["done", {}]];
    const { content, restart, error } = JSON.parse(data);
    return [error ? ["error", failure(error)] : restart ? ["restart", null] : ["token", content ?? ""]];
  },
  typed: () => (_, data) => {
    const { type, ...value } = JSON.parse(data);
    return has(TYPED, type) ? [TYPED[type](value)] : [];
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

/** Whether an answer can be added to by this: a piece of another kind, or of a call that no list has room for, is left out. */
function isPiece(/** @type {unknown} */ kind, /** @type {any} */ value) {
  if (kind === "tool") return Boolean(value) && typeof value === "object" && isIndex(value.index ?? 0);
  return kind === "restart" || ((kind === "token" || kind === "thinking") && typeof value === "string");
}

function isIndex(/** @type {unknown} */ index) {
  return Number.isInteger(index) && Number(index) >= 0 && Number(index) < LIMITS.calls;
}

/** OpenAI's pieces of tool calls, put together by their index. */
function withPiece(/** @type {Types.ToolCall[]} */ calls, /** @type {Types.ToolPiece} */ piece) {
  const index = piece.index ?? 0;
  const { name, arguments: text } = piece.function ?? {};
  const old = calls[index] ?? { id: "", name: "", arguments: "", pieces: 0 };
  const added = (/** @type {unknown} */ part) => (typeof part === "string" ? part : "");
  const all = [...calls];
  all[index] = {
    id: piece.id ?? old.id,
    name: old.name + added(name),
    arguments: old.arguments + added(text),
    pieces: old.pieces + 1,
  };
  return all;
}

// ---- failures ----

const NETWORK = failure({ code: "network", message: "The gateway cannot be reached.", retryable: true });
const LOST = failure({ code: "connection_lost", message: "The connection was lost.", retryable: true });
const UNTOLD = failure({ code: "network", message: "The gateway cannot be reached, or refused the question.", retryable: true });
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

const unwatched = () => attempt(() => document.hidden) ?? false;
const unmoving = () => attempt(() => matchMedia("(prefers-reduced-motion: reduce)").matches) ?? false;
/** Stands in for a segmenter in browsers without one. */
const CODE_POINTS = {
  *segment(/** @type {string} */ text) {
    let index = 0;
    for (const segment of text) {
      yield { index, segment };
      index += segment.length;
    }
  },
};

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
  /** @type {{segment: (text: string) => Iterable<{index: number, segment: string}>}} */
  #graphemes = attempt(() => new Intl.Segmenter(undefined, { granularity: "grapheme" })) ?? CODE_POINTS;

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

  /** @param {string} text @param {boolean} [grown] it is known to begin with the last one: comparing costs a long text dear */
  write(text, grown = false) {
    const now = performance.now();
    if (!grown && !text.startsWith(this.shown)) this.#reveal(0);
    this.#text = text;
    if (this.#written) this.#gap += (Math.min(now - this.#written, this.#within) - this.#gap) / 4;
    this.#written = now;
    const span = Math.min(this.#within, Math.max(50, this.#gap * 1.5));
    this.#rate = Math.max(PACE.floor, (text.length - this.#shown) / span);
    const asleep = this.#frame && now - this.#stepped > this.#within; // no frames come: an iframe out of sight
    if (asleep || unwatched() || unmoving()) return this.flush();
    if (!this.#frame) this.#start(now);
  }

  /** Show all of it now. */
  flush() {
    this.#rest();
    if (this.#shown < this.#text.length) this.#reveal(this.#text.length);
  }

  #start(/** @type {number} */ now) {
    this.#stepped = now;
    this.#frame = attempt(() => requestAnimationFrame(this.#step)) ?? 0;
    if (!this.#frame) return this.flush();
    document.addEventListener("visibilitychange", this.#hide);
  }

  #rest() {
    if (this.#frame) cancelAnimationFrame(this.#frame);
    this.#frame = this.#credit = 0;
    document.removeEventListener("visibilitychange", this.#hide);
  }

  #hide = () => unwatched() && this.flush();

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
