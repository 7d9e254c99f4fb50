/**
 * The chat page: which conversation is open, what is asked, and the state of the answer under way.
 *
 * - The conversation is sent with every question, so the model gets what the page shows.
 * - A question is asked once. Its answer goes on while another conversation is open, after a reload, and in every tab that
 *   opens its conversation.
 *
 * client.js follows streams, markdown.js shows texts, turn.js shows a question with its answer, chats.js keeps chats,
 * storage.js stands in where the browser denies its storages.
 */

/** @import * as Types from "../client.js" */
/** @import { Chat, Details, Entry, Turn } from "./chats.js" */

import { resume, stored, stream } from "../client.js";
import * as chats from "./chats.js";
import { copyOf, find, ready } from "./markdown.js";
import { lasting, local, recall, remember, session } from "./storage.js";
import { figures, view } from "./turn.js";
import { advice, cut, figure, introduce, passing, words } from "./words.js";

const KEYS = { open: "gateway-open", asked: "gateway-asked", credential: "gateway-credential", theme: "gateway-theme" };
const MAX_MODEL = 120; // characters of a name
const MAX_SENT = { turns: 20, characters: 400_000 };
/** Blocks that a screen reader may still have to read. */
const MAX_SPOKEN = 6;
/** Milliseconds. */
const COPIED = 1_500; // for which a button says "Copied"
const SURE = 3_000; // for which a button asks "Delete?"
const FRESH = 60_000; // in which another tab that asked gets to know its stream
const DETAILS = 1_000; // for which an error waits for what the gateway knows of it
const THEMES = ["auto", "light", "dark"];
const INTERRUPTED = { code: "interrupted", retryable: true };
/** Codes of errors that a key would cure. */
const KEYLESS = /^(unauthorized|auth_expired|http_401)$/;
/** Codes of errors of which the gateway knows nothing. */
const UNTOLD = /^(network|connection_lost|interrupted|not_a_stream|cursor_expired|http_.*)$/;
/** Names under which a browser finds a gateway on its own machine. */
const HERE = /^(localhost|.*\.localhost|127\.[\d.]+|\[::1\])$/;
/** A URL that the page's body names. @param {"chat" | "streams" | "failure" | "answer"} name */
const base = (name) => new URL(document.body.dataset[name] ?? "", document.baseURI);

/** @template {HTMLElement} E @returns {E} */
const element = (/** @type {string} */ id) => /** @type {E} */ (document.getElementById(id));
const log = element("log");
const send = /** @type {HTMLButtonElement} */ (element("send"));
const stop = element("stop");
const message = /** @type {HTMLTextAreaElement} */ (element("message"));
const gate = /** @type {HTMLDialogElement} */ (element("gate"));

let chat = chats.load(recall(session, KEYS.open)) ?? chats.newChat();
/**
 * An answer under way; `due` is when it is tried again, in milliseconds since 1970.
 * @typedef {{answer: Types.Answer | null, turn: Turn, state: Types.State, due: number, error: Types.Failure | null}} Run
 */
/** By conversation. @type {Map<string, Run>} */
const running = new Map();
/** @type {ReturnType<typeof view>[]} */ let views = [];
let painting = 0;
let following = true;
/** The turn whose question is in the composer, to be asked anew. */ let editing = -1;

// ---- asking and following ----

function ask(/** @type {string} */ question) {
  /** @type {Turn} */ const turn = { question, answer: "", thinking: "", tools: [], outcome: "pending", begun: Date.now() };
  chat.turns.push(turn);
  rewind(0, chat.turns.length - chats.MAX_TURNS);
  remember(session, KEYS.asked, String(turn.begun));
  keep(chat);
  show(turn);
  toEnd();
  const body = { messages: messagesOf(chat.turns) };
  follow(turn, (listeners) => stream({ ...listeners, url: base("chat"), body }));
}

/** The conversation in OpenAI's shape: the question, and as many turns before it as MAX_SENT allows. */
function messagesOf(/** @type {Turn[]} */ turns) {
  const messages = [{ role: "user", content: turns[turns.length - 1].question }];
  let room = MAX_SENT.characters;
  for (const { question, answer, outcome } of turns.slice(-1 - MAX_SENT.turns, -1).reverse()) {
    room -= question.length + answer.length;
    if (room < 0) break;
    if (answer) messages.unshift({ role: "user", content: question }, { role: "assistant", content: answer });
    else if (outcome === "stopped") messages.unshift({ role: "user", content: question });
  }
  return messages;
}

/** Go on with an answer that was under way when the page was left, or that another tab has asked for. */
function goOn(/** @type {Turn} */ turn) {
  const kept = stored(session, keyOf(chat));
  const id = kept?.streamId ?? turn.stream;
  if (!id) return isAsked(turn) || conclude(chat, turn, { outcome: "error", text: "", error: INTERRUPTED });
  const { text = "", thinking = "", tools = [] } = kept ?? {};
  Object.assign(turn, { answer: text, thinking, tools });
  follow(turn, (listeners) => resume({ ...listeners, ...kept, url: new URL(encodeURIComponent(id), base("streams")) }));
}

/** Whether another tab asked this question, and is about to say which stream answers it. */
function isAsked(/** @type {Turn} */ { begun }) {
  return recall(session, KEYS.asked) !== String(begun) && Date.now() - begun < FRESH;
}

/** @typedef {Omit<Types.StreamOptions, "url">} Listening */

/** @param {Turn} turn @param {(listeners: Listening) => Types.Answer | null} start */
function follow(turn, start) {
  const its = chat;
  /** @type {Run} */ const run = { answer: null, turn, state: "connecting", due: 0, error: null };
  running.set(its.id, run);
  run.answer = start(listeners(its, run));
  drawList();
}

const keyOf = (/** @type {Chat} */ { id }) => `gateway-stream:${id}`;

/**
 * What client.js is told of every answer. The callbacks get the conversation with them: the visitor may look at another.
 * @param {Chat} its @param {Run} run @returns {Listening}
 */
function listeners(its, run) {
  const { turn } = run;
  return {
    mode: "fetch",
    streams: base("streams"),
    storage: session,
    storageKey: keyOf(its),
    credential: recall(session, KEYS.credential) ?? undefined,
    onConnected: ({ streamId }) => {
      change(its, turn, { stream: streamId });
      keep(its);
    },
    onThinking: (_, thinking) => change(its, turn, { thinking, thought: Math.max(0, elapsed(turn) - first(turn)) }),
    onToken: () => first(turn),
    onText: (answer) => change(its, turn, { answer }),
    onTool: (_, tools) => change(its, turn, { tools, first: first(turn) }),
    onRestart: () => change(its, turn, { answer: "", thinking: "", tools: [] }),
    onDone: (result) => running.get(its.id) === run && conclude(its, turn, result),
    onError: (error) => fail(its, run, error),
    onState: (state, { seconds, error }) => {
      Object.assign(run, { state, due: seconds ? Date.now() + seconds * 1000 : 0, error: error ?? null });
      if (its.id === chat.id && state !== "error") enter(state); // `fail` has a question first
    },
  };
}

/** Concludes with an error, and with what the gateway knows of it where the visitor runs it. @param {Chat} its @param {Run} run @param {Types.Failure} error */
async function fail(its, run, error) {
  const { turn, answer } = run;
  const details = await detailsOf(error, turn.stream, answer?.requestId);
  if (running.get(its.id) === run) conclude(its, turn, { outcome: "error", text: turn.answer, error, details });
}

/** null for everybody who does not run the gateway: it tells only a browser on its own machine. @returns {Promise<Details | null>} */
async function detailsOf(/** @type {Types.Failure} */ { code }, /** @type {string | undefined} */ stream, /** @type {string | null | undefined} */ request) {
  if (!HERE.test(location.hostname) || UNTOLD.test(code) || KEYLESS.test(code) || !(stream || request)) return null;
  const url = base("failure");
  url.searchParams.set(stream ? "stream" : "request", stream || request || "");
  const credential = recall(session, KEYS.credential);
  /** @type {HeadersInit} */ const headers = credential ? { Authorization: `Bearer ${credential}` } : {};
  try {
    const told = await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(DETAILS) });
    return told.ok ? await told.json() : null;
  } catch {
    return null; // the error is shown without details
  }
}

const elapsed = (/** @type {Turn} */ turn) => (Date.now() - turn.begun) / 1000;
const first = (/** @type {Turn} */ turn) => (turn.first ??= elapsed(turn));

/** @param {Chat} its @param {Turn} turn @param {Partial<Turn>} changes */
function change(its, turn, changes) {
  Object.assign(turn, changes);
  if (its.id === chat.id) painting ||= requestAnimationFrame(paint);
}

/**
 * @param {Chat} its @param {Turn} turn
 * @param {Pick<Types.Result, "outcome" | "text" | "usage" | "finishReason"> & {error?: Partial<Types.Failure>, details?: Details | null}} result
 */
function conclude(its, turn, { outcome, text, error, finishReason: finish, details, usage = null }) {
  Object.assign(turn, { outcome, answer: text, error, finish, details: details ?? undefined, usage, seconds: elapsed(turn) });
  running.delete(its.id);
  keep(its);
  drawList();
  if (text && turn.stream && outcome !== "error") nameModel(its.id, turn.stream);
  if (its.id !== chat.id) return;
  paint();
  enter(outcome);
  if (outcome === "error") say(advice(error, Boolean(turn.details)));
  if (cut(turn)) say(cut(turn));
  if (KEYLESS.test(error?.code ?? "")) askForKey();
}

/** Shows which model answered, as no event of an answer says so. Meanwhile the conversation may have gone on, or be gone. @param {string} id @param {string} stream */
async function nameModel(id, stream) {
  const model = await modelOf(stream);
  const its = id === chat.id ? chat : chats.load(id);
  const turn = its?.turns.find((one) => one.stream === stream);
  if (!model || !its || !turn || !chats.load(id)) return;
  turn.model = model;
  chats.save(its);
  views.find((one) => one.turn === turn)?.update(its.turns.at(-1) === turn);
}

/** "" where nobody knows. */
async function modelOf(/** @type {string} */ stream) {
  const url = base("answer");
  url.searchParams.set("stream", stream);
  const credential = recall(session, KEYS.credential);
  /** @type {HeadersInit} */ const headers = credential ? { Authorization: `Bearer ${credential}` } : {};
  try {
    const told = await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(DETAILS) });
    const { model } = told.ok ? await told.json() : {};
    return typeof model === "string" ? model.slice(0, MAX_MODEL) : "";
  } catch {
    return ""; // the answer is whole without it
  }
}

/** The visitor is asked for a key, and told if the one that was given is not good. */
function askForKey() {
  element("gate-text").textContent = recall(session, KEYS.credential) ? words.gateWrong : words.gateText;
  gate.showModal();
}

/** Ask the last question again, in the same place. */
function again() {
  const turn = chat.turns.pop();
  views.pop()?.nodes.forEach((node) => node.remove());
  if (turn) ask(turn.question);
}

function edit(/** @type {Turn} */ turn) {
  setEditing(chat.turns.indexOf(turn));
  setText(turn.question);
  message.focus();
}

function setEditing(/** @type {number} */ index) {
  editing = index;
  views.forEach(({ nodes }, at) => nodes[0].classList.toggle("editing", at === index));
}

/** Drop turns, and what is shown of them. @param {number} index */
function rewind(index, count = Infinity) {
  if (count <= 0) return;
  chat.turns.splice(index, count);
  views.splice(index, count).forEach(({ nodes }) => nodes.forEach((node) => node.remove()));
}

// ---- conversations ----

function keep(/** @type {Chat} */ its) {
  chats.save(its);
  if (its.id === chat.id) remember(session, KEYS.open, its.id);
  drawList();
}

function open(/** @type {Chat} */ its) {
  views.forEach(({ nodes }) => nodes.forEach((node) => node.remove()));
  views = [];
  editing = -1;
  chat = its;
  remember(session, KEYS.open, its.id);
  element("welcome").hidden = its.turns.length > 0;
  element("voice").replaceChildren();
  const run = running.get(its.id);
  if (run) its.turns.splice(-1, 1, run.turn);
  its.turns.forEach(show);
  toEnd();
  enter(run?.state ?? "idle");
  drawList();
  const last = its.turns.at(-1);
  if (!run && last?.outcome === "pending") goOn(last);
}

/** Open a new conversation, and stop the answer under way in this one. */
function startAnew() {
  running.get(chat.id)?.answer?.stop();
  open(chats.newChat());
  closeDrawer();
  message.focus();
}

function discard(/** @type {string} */ id) {
  const run = running.get(id);
  running.delete(id);
  run?.answer?.stop();
  chats.remove(id);
  if (id === chat.id) open(chats.newChat());
  drawList();
}

/** Another tab wrote: a question that it asked is followed here too, an answer that has ended is shown. */
function adopt(/** @type {string | null} */ id) {
  if (id === null) return drawList();
  if (id !== chat.id || running.has(id)) return;
  const its = chats.load(id);
  if (its && essence(its) !== essence(chat)) open(its);
}

/** The conversation as a Markdown file, saved where the browser saves downloads. */
function save() {
  const title = element("title").textContent ?? words.title;
  const turns = chat.turns.map(({ question, answer }) => `## ${words.question}\n\n${question}\n\n## ${words.answer}\n\n${answer}\n`);
  const href = URL.createObjectURL(new Blob([`# ${title}\n\n${turns.join("\n")}`], { type: "text/markdown" }));
  Object.assign(document.createElement("a"), { href, download: `${title.replace(/[^\p{L}\p{N} -]/gu, "_").slice(0, 60)}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(href), COPIED);
}

const essence = (/** @type {Chat} */ { turns }) => JSON.stringify(turns.map(({ question, outcome, answer, stream: id }) => [question, outcome, answer, id]));

function drawList() {
  const entries = chats.list();
  const titled = entries.find(({ id }) => id === chat.id);
  element("title").textContent = titled?.title ?? words.title;
  element("save").hidden = !titled;
  if (element("list").querySelector("input, .sure")) return; // it is being renamed or deleted from
  element("list").replaceChildren(...entries.map(item));
}

function item(/** @type {Entry} */ { id, title }) {
  const node = copyOf("chat");
  const [opener, renamer, remover] = [".open", ".rename", ".remove"].map((selector) => find(node, selector));
  find(opener, ".name").textContent = title;
  opener.title = title;
  node.classList.toggle("running", running.has(id));
  if (id === chat.id) opener.setAttribute("aria-current", "page");
  opener.addEventListener("click", () => {
    if (id !== chat.id) open(chats.load(id) ?? chats.newChat());
    closeDrawer();
  });
  renamer.addEventListener("click", () => rename(node, id, title));
  remover.addEventListener("click", () => remove(remover, id));
  return node;
}

/** @param {HTMLElement} node @param {string} id @param {string} title */
function rename(node, id, title) {
  const input = Object.assign(document.createElement("input"), { value: title, ariaLabel: words.rename, maxLength: 60 });
  node.replaceChildren(input);
  input.select();
  let finished = false; // removing the input blurs it, which would finish a second time
  const finish = (/** @type {boolean} */ changed) => {
    if (finished) return;
    finished = true;
    node.remove();
    if (changed) chats.rename(id, input.value);
    drawList();
  };
  input.addEventListener("blur", () => finish(true));
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing) return;
    if (event.key === "Enter" || event.key === "Escape") finish(event.key === "Enter");
  });
}

/** The first click asks "Delete?" for a while, the second one deletes. @param {HTMLElement} button @param {string} id */
function remove(button, id) {
  if (button.classList.contains("sure")) {
    button.classList.remove("sure");
    return discard(id);
  }
  button.classList.add("sure");
  button.ariaLabel = button.title = button.dataset.sure = words.sure;
  setTimeout(() => {
    button.classList.remove("sure");
    drawList();
  }, SURE);
}

// ---- showing ----

function show(/** @type {Turn} */ turn) {
  const shown = view(turn, turn.outcome === "pending" ? (block) => say(block.textContent ?? "") : undefined);
  const [question, answer] = shown.nodes;
  const copier = find(answer, ".actions .copy");
  element("welcome").hidden = true;
  log.append(question, answer);
  find(answer, ".note button").addEventListener("click", again);
  find(answer, ".regenerate").addEventListener("click", again);
  copier.addEventListener("click", () => copy(copier, turn.answer));
  find(question, ".edit").addEventListener("click", () => edit(turn));
  views.push(shown);
  views.slice(-2).forEach((one) => one.update(one === shown));
}

function paint() {
  cancelAnimationFrame(painting);
  painting = 0;
  views.at(-1)?.update(true);
  if (following) toEnd();
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

/** For screen readers, a whole block at once: single words could not be followed. */
function say(/** @type {string} */ text) {
  const node = document.createElement("p");
  node.textContent = text;
  element("voice").append(node);
  while (element("voice").children.length > MAX_SPOKEN) element("voice").firstElementChild?.remove();
}

/** @param {HTMLElement} button @param {string} text */
async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyByHand(text);
  }
  button.classList.add("copied");
  const label = button.textContent?.trim() ? "textContent" : "ariaLabel";
  const before = button[label];
  button[label] = words.copied;
  setTimeout(() => {
    button.classList.remove("copied");
    button[label] = before;
  }, COPIED);
}

/** Pages on plain http have no clipboard, and some browsers deny it, maybe late; a selection can be copied. The focus
 * goes back to where it was, as somebody may be typing already. */
function copyByHand(/** @type {string} */ text) {
  const focused = document.activeElement;
  const area = Object.assign(document.createElement("textarea"), { value: text, className: "hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus({ preventScroll: true });
}

// ---- the state ----

/** @typedef {Types.State | "idle"} Shown of the answer under way, or of the last one; `idle` where nothing was asked */

function enter(/** @type {Shown} */ state) {
  const run = running.get(chat.id);
  const turn = chat.turns.at(-1);
  element("status").dataset.state = state;
  element("status").classList.toggle("cut", state === "done" && Boolean(turn && cut(turn)));
  const busy = Boolean(run);
  if (busy === stop.hidden) {
    stop.hidden = !busy;
    send.hidden = busy;
  }
  tick();
}

function tick() {
  const run = running.get(chat.id);
  const turn = chat.turns.at(-1);
  const state = /** @type {Shown} */ (element("status").dataset.state);
  const text = saying(state, run, turn);
  if (element("state").textContent !== text) element("state").textContent = text; // screen readers read it whenever it is set
  element("figures").textContent = shownFigures(state, run, turn).join(" · ");
}

/**
 * What the status line says; an error's own words stand in the conversation.
 * @param {Shown} state @param {Run | undefined} run @param {Turn | undefined} turn
 */
function saying(state, run, turn) {
  if (state === "streaming" && turn?.thinking && !turn.answer) return words.reasoning;
  if (state === "closed") return "";
  if (state === "done" && turn && cut(turn)) return cut(turn, true);
  return state === "waiting" && run ? passing(run.error) : words[state];
}

/** @param {Shown} state @param {Run | undefined} run @param {Turn | undefined} turn @returns {string[]} */
function shownFigures(state, run, turn) {
  if (!turn || ["idle", "offline", "error"].includes(state)) return [];
  if (!["reconnecting", "waiting"].includes(state)) return figures(turn).slice(0, turn.usage ? 3 : 2);
  const left = Math.ceil(((run?.due ?? 0) - Date.now()) / 1000);
  return left > 0 ? [figure("again", left)] : [];
}

// ---- the visitor ----

function submit() {
  const question = message.value.trim();
  if (!question || running.has(chat.id)) return;
  message.value = "";
  if (editing >= 0) rewind(editing);
  fit();
  ask(question);
}

function setText(/** @type {string} */ text) {
  message.value = text;
  fit();
}

function fit() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight + 2}px`;
  send.disabled = !message.value.trim();
  if (!message.value) setEditing(-1);
}

function example(/** @type {string} */ text) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  button.addEventListener("click", () => ask(text));
  const node = document.createElement("li");
  node.append(button);
  return node;
}

function closeDrawer() {
  document.body.classList.remove("drawn");
  element("drawer").ariaExpanded = "false";
}

function toggleDrawer() {
  element("drawer").ariaExpanded = String(document.body.classList.toggle("drawn"));
}

function dress(/** @type {string} */ theme) {
  document.documentElement.dataset.theme = theme;
  remember(local, KEYS.theme, theme);
  const label = theme === "dark" ? words.themeDark : theme === "light" ? words.themeLight : words.themeAuto;
  element("theme").ariaLabel = element("theme").title = label;
}

function redress() {
  const index = THEMES.indexOf(document.documentElement.dataset.theme ?? "auto");
  dress(THEMES[(index + 1) % THEMES.length]);
}

function onEnter(/** @type {KeyboardEvent} */ event) {
  // While an input method composes, Enter chooses a word. Safari says so by the code 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  submit();
}

function onKey(/** @type {KeyboardEvent} */ event) {
  if (event.isComposing || gate.open) return;
  if (event.key === "Escape" && document.body.classList.contains("drawn")) closeDrawer();
  else if (event.key === "Escape" && running.has(chat.id)) running.get(chat.id)?.answer?.stop();
  else if (event.key === "Escape" && editing >= 0) setText("");
  if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  startAnew();
}

function onScroll() {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  element("latest").hidden = following;
}

function onGate() {
  if (gate.returnValue !== "use") return;
  const credential = /** @type {HTMLInputElement} */ (element("credential"));
  remember(session, KEYS.credential, credential.value);
  credential.value = "";
  again();
}

function listen() {
  element("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  element("fresh").addEventListener("click", startAnew);
  element("drawer").addEventListener("click", toggleDrawer);
  element("curtain").addEventListener("click", closeDrawer);
  element("theme").addEventListener("click", redress);
  element("save").addEventListener("click", save);
  element("latest").addEventListener("click", toEnd);
  stop.addEventListener("click", () => running.get(chat.id)?.answer?.stop());
  message.addEventListener("input", fit);
  message.addEventListener("keydown", onEnter);
  addEventListener("keydown", onKey);
  log.addEventListener("scroll", onScroll, { passive: true });
  log.addEventListener("click", ({ target }) => {
    const button = target instanceof Element && target.closest(".code .copy");
    const code = button && button.closest(".code")?.querySelector("code");
    if (code) copy(/** @type {HTMLElement} */ (button), code.textContent ?? "");
  });
  addEventListener("pagehide", () => running.has(chat.id) && keep(chat));
  element("gate-cancel").addEventListener("click", () => gate.close("cancel"));
  gate.addEventListener("cancel", () => (gate.returnValue = "cancel")); // Esc leaves the value as it was
  gate.addEventListener("close", onGate);
}

introduce();
message.placeholder = words.placeholder;
message.title = words.hint;
log.ariaLabel = words.log;
element("examples").replaceChildren(...words.examples.map(example));
dress(document.documentElement.dataset.theme ?? "auto");
if (!lasting) element("kept").textContent = element("promise").textContent = words.unkept;
listen();
await ready;
open(chat);
fit();
chats.watch(adopt);
setInterval(tick, 200);
if (matchMedia("(pointer: fine)").matches) message.focus();
