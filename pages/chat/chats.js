/**
 * Conversations, kept in this browser for all of its tabs.
 *
 * They are bounded: MAX_CHATS of MAX_TURNS each, and the oldest makes room where the browser has none. A conversation is
 * written as soon as it has a question.
 */

/** @import * as Types from "../client.js" */

import { forget, isFull, local, recall, remember } from "./storage.js";

const MAX_CHATS = 50;
export const MAX_TURNS = 100;
const MAX_TITLE = 60;
const INDEX = "gateway-chats";
const keyOf = (/** @type {string} */ id) => `gateway-chat:${id}`;

/**
 * A question and its answer. Times are in seconds since the question, but for `begun`: milliseconds since 1970.
 * @typedef {object} Turn
 * @property {string} question
 * @property {string} answer
 * @property {string} thinking
 * @property {Types.ToolCall[]} tools
 * @property {"pending" | Types.Outcome} outcome
 * @property {number} begun
 * @property {string} [stream] the id of the stream that brings the answer
 * @property {number} [first] until the first word
 * @property {number} [thought] from the first thought to the last
 * @property {number} [seconds] until the end
 * @property {string} [finish] why the model ended, in the provider's word
 * @property {Partial<Types.Failure>} [error]
 * @property {Details} [details] of the error, where the visitor runs the gateway
 * @property {Types.Usage | null} [usage]
 * @property {string} [model] that answered, in the provider's word
 */

/**
 * What the gateway tells of a failure to who runs it; "" and null where it knows nothing.
 * @typedef {{code: string, sentence: string, hint: string, upstream: string, target: string, url: string,
 *   status: number | null, request_id: string}} Details
 */

/** @typedef {{id: string, turns: Turn[]}} Chat */
/** @typedef {{id: string, title: string, at: number}} Entry a chat in the list; `at` is when it was last asked something */

/** @returns {Chat} */
export function newChat() {
  return { id: Array.from(randomBytes(16), (byte) => byte.toString(16).padStart(2, "0")).join(""), turns: [] };
}

/** crypto.randomUUID exists on https pages alone. Without any crypto, an id is still not likely to be met twice. */
function randomBytes(/** @type {number} */ count) {
  try {
    return crypto.getRandomValues(new Uint8Array(count));
  } catch {
    return Uint8Array.from({ length: count }, () => Math.random() * 256);
  }
}

/** The newest first. @returns {Entry[]} */
export function list() {
  return read(INDEX) ?? [];
}

/** @returns {Chat | null} */
export function load(/** @type {string | null} */ id) {
  const turns = id ? read(keyOf(id)) : null;
  return id && turns ? { id, turns } : null;
}

export function save(/** @type {Chat} */ { id, turns }) {
  if (!turns.length) return;
  const entries = list();
  const [title] = turns[0].question.trim().split("\n");
  const entry = entries.find((one) => one.id === id) ?? { id, title: title.slice(0, MAX_TITLE), at: 0 };
  entry.at = turns[turns.length - 1].begun;
  write(keyOf(id), turns.slice(-MAX_TURNS), id);
  setIndex([entry, ...entries.filter((one) => one !== entry)]);
}

export function rename(/** @type {string} */ id, /** @type {string} */ title) {
  const name = title.trim().slice(0, MAX_TITLE);
  setIndex(list().map((entry) => (entry.id === id && name ? { ...entry, title: name } : entry)));
}

export function remove(/** @type {string} */ id) {
  forget(local, keyOf(id));
  setIndex(list().filter((entry) => entry.id !== id));
}

/** Calls when another tab changed the list (null) or a conversation (its id). */
export function watch(/** @type {(id: string | null) => void} */ changed) {
  addEventListener("storage", ({ key }) => {
    if (key === INDEX || key === null) changed(null);
    else if (key.startsWith(keyOf(""))) changed(key.slice(keyOf("").length));
  });
}

function setIndex(/** @type {Entry[]} */ entries) {
  entries.sort((one, other) => other.at - one.at);
  for (const { id } of entries.splice(MAX_CHATS)) forget(local, keyOf(id));
  remember(local, INDEX, JSON.stringify(entries));
}

/**
 * Drops the oldest chats, but never this one, until there is room. Where the browser refuses for another reason, no chat is
 * dropped for it. @param {string} key @param {Turn[]} value @param {string} id
 */
function write(key, value, id) {
  const text = JSON.stringify(value);
  const others = list().filter((entry) => entry.id !== id);
  // This chat alone may be more than the browser keeps: then there is none left to drop.
  while (isFull(remember(local, key, text)) && others.length) remove(/** @type {Entry} */ (others.pop()).id);
}

/** @returns {any} null where nothing is kept, or nothing that can be read */
function read(/** @type {string} */ key) {
  try {
    return JSON.parse(recall(local, key) ?? "null");
  } catch {
    return null;
  }
}
