/** The browser's side of a stream of the gateway. */

/** A new answer. Callbacks may be called before this returns. */
export function stream(options: StreamOptions): Answer;

/**
 * An answer that was begun before: at `url` (`/streams/ID`), from `cursor` on or from its first word, or as `storage`
 * kept it over a reload. null when nothing was kept.
 *
 * What a storage keeps belongs to the tab that kept it: a tab that was duplicated gets the outcome `closed`.
 */
export function resume(options: ResumeOptions): Answer | null;

/** What a storage keeps of an answer under way, to be shown before `resume` goes on. */
export function stored(storage: StorageOption, key?: string): Kept | null;

/** What is used of a storage. */
export type Area = Pick<Storage, "getItem" | "setItem" | "removeItem">;

/**
 * A storage, or a function that names one: `() => sessionStorage`. Browsers that block a site's data throw where a page
 * names its storages; then nothing is kept, and all else works.
 */
export type StorageOption = Area | (() => Area | null);

export interface StreamOptions extends Callbacks {
  /** The chat route. */
  url: string | URL;
  message?: string;
  /** The conversation, for the gateway's history. */
  session?: string;
  /**
   * Sent as `Authorization: Bearer`, and never in a URL: for an EventSource, which sends no header, it is traded for a
   * ticket. Where the gateway has no tickets (`auth.tickets`), fetch takes the place of the EventSource.
   */
  credential?: string;
  /**
   * `auto`, the default, is an EventSource (GET) where that can do everything: not with a `credential`, which it cannot
   * send, nor with a `body`, a long message, another format than `events`, or on another origin, where Firefox does
   * not reconnect. Those are sent by fetch (POST).
   */
  mode?: "auto" | "eventsource" | "fetch";
  /** The route's format, `events` unless told; or a function for a mapping of your own. */
  format?: FormatName | Reader;
  /** Further query parameters. */
  params?: Record<string, string>;
  /** Further members of the POST body, e.g. `messages` in place of `message`. */
  body?: Record<string, unknown>;
  /** Send cookies to another origin. */
  withCredentials?: boolean;
  /** Aborting it stops the answer. */
  signal?: AbortSignal;
  /** Where streams are followed and stopped; `/streams/` at the url's origin unless told. */
  streams?: string | URL;
  /** Where tickets are bought; `../tickets` beside `streams` unless told. */
  tickets?: string | URL;
  /** Keeps what `resume` needs, e.g. `() => sessionStorage`. */
  storage?: StorageOption;
  storageKey?: string;
  /** The longest wait in seconds that is sat out before the answer fails; 60 unless told. */
  patience?: number;
  /** Whether tabs that follow the same stream use one connection; true unless told, where the browser can (https). */
  share?: boolean;
  /** Whether onText spreads bursts like a typewriter; true unless told. */
  smooth?: boolean;
}

export interface ResumeOptions extends Omit<StreamOptions, "url" | "message">, Partial<Omit<Kept, "streams" | "tab">> {
  /** `/streams/ID`; left out, what `storage` keeps. */
  url?: string | URL;
}

export interface Callbacks {
  /** The stream has an id. Not called for one that ended before it was followed. */
  onConnected?(start: Connected): void;
  /** What is to be shown now, smoothed: the whole text, again and again. */
  onText?(text: string): void;
  /** The moment that a piece came, and the text with it. */
  onToken?(piece: string, text: string): void;
  onThinking?(piece: string, thinking: string): void;
  onTool?(piece: ToolPiece, calls: ToolCall[]): void;
  /** What came so far is void: another model answers anew. */
  onRestart?(): void;
  /** Also after a stop. */
  onDone?(result: Result): void;
  onError?(error: Failure): void;
  onState?(state: State, situation: Situation): void;
}

/** An answer under way. */
export interface Answer {
  /** null until the gateway said it. */
  readonly streamId: string | null;
  readonly session: string | null;
  /** The gateway's name for the request that it answered last, as in its log; null where no header can be read. */
  readonly requestId: string | null;
  readonly cursor: string;
  readonly state: State;
  /** The answer as far as it came. */
  readonly text: string;
  readonly thinking: string;
  readonly tools: ToolCall[];
  /** Resolves when it is over, whatever became of it; never rejects. */
  readonly done: Promise<Result>;
  /** End the generation; resolves when the gateway was told, which is as soon as the id is known. */
  stop(): Promise<void>;
  /** Leave without stopping; `resume` may come back for as long as the gateway keeps the stream. */
  close(): void;
  /**
   * Stop this one and ask the same question again. The gateway's history of a `session` remembers both answers.
   * @throws {TypeError} for an answer of `resume`, which knows no question
   */
  regenerate(changes?: Partial<StreamOptions>): Answer;
}

export type Outcome = "done" | "stopped" | "error" | "closed";

/**
 * `open`: waiting for the first word. `reconnecting`: the connection dropped. `waiting`: the gateway said to come back.
 * `offline`: the browser has no network; it goes on as soon as there is one.
 */
export type State = "connecting" | "open" | "streaming" | "reconnecting" | "waiting" | "offline" | Outcome;

export interface Situation {
  /** Until the next attempt; left out where it is under way, or only the browser knows. */
  seconds?: number;
  /** How many there were in a row. */
  attempt?: number;
  error?: Failure;
}

export interface Connected {
  streamId: string;
  session: string | null;
  resumed: boolean;
}

export interface Result {
  outcome: Outcome;
  /** The answer as far as it came. */
  text: string;
  thinking: string;
  tools: ToolCall[];
  finishReason?: string;
  usage?: Usage | null;
  /** With the outcome `error`, and where a stopped one failed. */
  error?: Failure;
}

export interface Failure {
  /** The gateway's; or `network`, `connection_lost`, `interrupted`, `not_a_stream`, `http_STATUS`. */
  code: string;
  /** English, for developers. */
  message: string;
  /** Whether the same question may be answered later. */
  retryable: boolean;
  /** Seconds after which to come back; null where nobody knows. */
  retryAfter: number | null;
  /** The HTTP status; null where it came inside a stream, or not at all. */
  status: number | null;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

/** One element of OpenAI's `delta.tool_calls`. */
export interface ToolPiece {
  /** 0 to 127; a piece with any other is left out. */
  index?: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

/** A call as far as it came; `arguments` is JSON when it is whole. */
export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
  pieces: number;
}

/** What a storage keeps. */
export interface Kept {
  streamId: string;
  streams: string;
  tab: string;
  cursor?: string;
  text?: string;
  thinking?: string;
  tools?: ToolCall[];
  restarts?: number;
}

export type FormatName = "events" | "data" | "typed" | "openai";

/** What an event says; none, one, or several things. Throws for what it cannot read. */
export type Reader = (type: string, data: string) => Reading[];

export type Reading =
  | ["connected", Partial<Connected>]
  | ["token" | "thinking", string]
  | ["tool", ToolPiece]
  | ["restart", null]
  | ["done", { text?: string; finishReason?: string; usage?: Usage | null }]
  | ["error", Failure];

/** A text/event-stream, decoded; its text may come cut anywhere. Source: WHATWG HTML 9.2.6. */
export class EventStreamParser {
  constructor(onEvent: (type: string, data: string, id: string) => void, lastEventId?: string);
  /** Milliseconds; null until the stream said it. */
  retry: number | null;
  lastEventId: string;
  /** @throws {RangeError} for an event of more than 8 million characters */
  push(text: string): void;
}

/**
 * Shows a text that comes in bursts as if it were written: each burst is spread over the time until the next one is
 * likely to come, `within` milliseconds (1,000 unless told) at most, and no character is shown in part. In a hidden page, and
 * for readers who want no motion, all of it is shown at once.
 */
export class Typewriter {
  constructor(show: (shown: string) => void, options?: { within?: number; shown?: string });
  readonly shown: string;
  /** The whole text so far; one that does not begin with what is shown replaces it. `grown`: it does, no need to compare. */
  write(text: string, grown?: boolean): void;
  /** Show all of it now. */
  flush(): void;
}
