/**
 * The chat page: which conversation is open, what is asked, and the state of the answer under way.
 *
 * - The conversation is sent with every question, so what the page shows is what the model is told.
 * - An answer under way goes on while another conversation is looked at, after a reload, and in every tab that opens its
 *   conversation; it is asked for once.
 * How a stream is followed is client.js's business, how a text is shown markdown.js's; what is not said there is not
 * known here.
 */

import { resume, stored, stream } from "../client.js";
import * as chats from "./chats.js";
import { copyOf, ready } from "./markdown.js";
import { figures, view } from "./turn.js";
import { advice, figure, introduce, passing, words } from "./words.js";

const KEYS = { open: "gateway-open", asked: "gateway-asked", credential: "gateway-credential", theme: "gateway-theme" };
const MAX_SENT = { turns: 20, characters: 400_000 };
const MAX_SPOKEN = 6;
const COPIED = 1_500;
const SURE = 3_000;
const FRESH = 60_000;
const THEMES = ["auto", "light", "dark"];
const INTERRUPTED = { code: "interrupted", retryable: true };
const KEYLESS = /^(unauthorized|auth_expired|http_401)$/;
const base = (name) => new URL(document.body.dataset[name] ?? "", document.baseURI);

/** @param {string} id @returns {any} */
const element = (id) => document.getElementById(id);
const [log, message, send, stop, gate] = ["log", "message", "send", "stop", "gate"].map(element);

let chat = chats.load(sessionStorage.getItem(KEYS.open)) ?? chats.newChat();
/** Answers under way, by conversation. @type {Map<string, {answer: any, turn: any, state: string, due: number, error: any}>} */
const running = new Map();
/** @type {ReturnType<typeof view>[]} */ let views = [];
let painting = 0;
let following = true;
/** The turn whose question is in the composer, to be asked anew. */ let editing = -1;

// ---- asking and following ----

function ask(question) {
  const turn = { question, answer: "", thinking: "", tools: [], outcome: "pending", begun: Date.now() };
  chat.turns.push(turn);
  rewind(0, chat.turns.length - chats.MAX_TURNS);
  sessionStorage.setItem(KEYS.asked, String(turn.begun));
  keep(chat);
  show(turn);
  toEnd();
  const body = { messages: messagesOf(chat.turns) };
  follow(turn, (listeners) => stream({ ...listeners, url: base("chat"), body }));
}

/** The conversation as models know it, as much of its end as is sent. */
function messagesOf(turns) {
  const messages = [{ role: "user", content: turns.at(-1).question }];
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
function goOn(turn) {
  const kept = stored(sessionStorage, keyOf(chat));
  const id = kept?.streamId ?? turn.stream;
  if (!id) return isAsked(turn) || conclude(chat, turn, { outcome: "error", text: "", error: INTERRUPTED });
  const { text = "", thinking = "", tools = [] } = kept ?? {};
  Object.assign(turn, { answer: text, thinking, tools });
  follow(turn, (listeners) => resume({ ...listeners, ...kept, url: new URL(encodeURIComponent(id), base("streams")) }));
}

/** Whether another tab is about to say what its question's stream is. */
function isAsked({ begun }) {
  return sessionStorage.getItem(KEYS.asked) !== String(begun) && Date.now() - begun < FRESH;
}

function follow(turn, start) {
  const its = chat;
  const run = { answer: null, turn, state: "connecting", due: 0, error: null };
  running.set(its.id, run);
  run.answer = start(listeners(its, run));
  drawList();
}

const keyOf = ({ id }) => `gateway-stream:${id}`;

function listeners(its, run) {
  const { turn } = run;
  return {
    mode: "fetch",
    streams: base("streams"),
    storage: sessionStorage,
    storageKey: keyOf(its),
    credential: sessionStorage.getItem(KEYS.credential) ?? undefined,
    onConnected: ({ streamId }) => keep(its, change(its, turn, { stream: streamId })),
    onThinking: (_, thinking) => change(its, turn, { thinking, thought: Math.max(0, elapsed(turn) - first(turn)) }),
    onToken: () => first(turn),
    onText: (answer) => change(its, turn, { answer }),
    onTool: (_, tools) => change(its, turn, { tools, first: first(turn) }),
    onRestart: () => change(its, turn, { answer: "", thinking: "", tools: [] }),
    onDone: (result) => running.get(its.id) === run && conclude(its, turn, result),
    onError: (error) => running.get(its.id) === run && conclude(its, turn, { outcome: "error", text: turn.answer, error }),
    onState: (state, { seconds, error }) => {
      Object.assign(run, { state, due: seconds ? Date.now() + seconds * 1000 : 0, error });
      if (its.id === chat.id) enter(state);
    },
  };
}

const elapsed = (turn) => (Date.now() - turn.begun) / 1000;
const first = (turn) => (turn.first ??= elapsed(turn));

function change(its, turn, changes) {
  Object.assign(turn, changes);
  if (its.id === chat.id) painting ||= requestAnimationFrame(paint);
}

function conclude(its, turn, { outcome, text, error, usage = null }) {
  Object.assign(turn, { outcome, answer: text, error, usage, seconds: elapsed(turn) });
  running.delete(its.id);
  keep(its);
  drawList();
  if (its.id !== chat.id) return;
  paint();
  enter(outcome);
  if (outcome === "error") say(advice(error));
  if (KEYLESS.test(error?.code ?? "")) gate.showModal();
}

/** Ask the last question again, in the same place. */
function again() {
  const turn = chat.turns.pop();
  views.pop()?.nodes.forEach((node) => node.remove());
  ask(turn.question);
}

function edit(turn) {
  setEditing(chat.turns.indexOf(turn));
  setText(turn.question);
  message.focus();
}

function setEditing(/** @type {number} */ index) {
  editing = index;
  views.forEach(({ nodes }, at) => nodes[0].classList.toggle("editing", at === index));
}

/** Drop turns, and what is shown of them. */
function rewind(index, count = Infinity) {
  if (count <= 0) return;
  chat.turns.splice(index, count);
  views.splice(index, count).forEach(({ nodes }) => nodes.forEach((node) => node.remove()));
}

// ---- conversations ----

function keep(its) {
  chats.save(its);
  if (its.id === chat.id) sessionStorage.setItem(KEYS.open, its.id);
  drawList();
}

function open(its) {
  views.forEach(({ nodes }) => nodes.forEach((node) => node.remove()));
  views = [];
  editing = -1;
  chat = its;
  sessionStorage.setItem(KEYS.open, its.id);
  element("welcome").hidden = its.turns.length > 0;
  element("voice").replaceChildren();
  const run = running.get(its.id);
  if (run) its.turns.splice(-1, 1, run.turn);
  its.turns.forEach(show);
  toEnd();
  enter(run?.state ?? "idle");
  drawList();
  if (!run && its.turns.at(-1)?.outcome === "pending") goOn(its.turns.at(-1));
}

/** A new conversation; the answer under way in this one is not wanted any more. */
function startAnew() {
  running.get(chat.id)?.answer?.stop();
  open(chats.newChat());
  closeDrawer();
  message.focus();
}

function discard(id) {
  const run = running.get(id);
  running.delete(id);
  run?.answer?.stop();
  chats.remove(id);
  if (id === chat.id) open(chats.newChat());
  drawList();
}

/** Another tab wrote: what it asks is followed here, what it concluded is shown. */
function adopt(id) {
  if (id === null) return drawList();
  if (id !== chat.id || running.has(id)) return;
  const its = chats.load(id);
  if (its && essence(its) !== essence(chat)) open(its);
}

const essence = ({ turns }) => JSON.stringify(turns.map(({ question, outcome, answer, stream: id }) => [question, outcome, answer, id]));

function drawList() {
  const entries = chats.list();
  const titled = entries.find(({ id }) => id === chat.id);
  element("title").textContent = titled?.title ?? words.title;
  if (element("list").querySelector("input, .sure")) return; // somebody is at it
  element("list").replaceChildren(...entries.map(item));
}

function item({ id, title }) {
  const node = copyOf("chat");
  const [opener, renamer, remover] = node.children;
  opener.firstElementChild.textContent = title;
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

function rename(node, id, title) {
  const input = Object.assign(document.createElement("input"), { value: title, ariaLabel: words.rename, maxLength: 60 });
  node.replaceChildren(input);
  input.select();
  let finished = false; // to take it away is to take the focus from it
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

/** Asks in place, for a while. */
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

function show(turn) {
  const shown = view(turn, turn.outcome === "pending" ? (block) => say(block.textContent ?? "") : undefined);
  element("welcome").hidden = true;
  log.append(...shown.nodes);
  shown.nodes[1].querySelector(".note button").addEventListener("click", again);
  shown.nodes[1].querySelector(".regenerate").addEventListener("click", again);
  shown.nodes[1].querySelector(".actions .copy").addEventListener("click", (event) => copy(event.currentTarget, turn.answer));
  shown.nodes[0].querySelector(".edit").addEventListener("click", () => edit(turn));
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

/** Said aloud by whole blocks: a word at a time nobody could follow. */
function say(text) {
  const node = document.createElement("p");
  node.textContent = text;
  element("voice").append(node);
  while (element("voice").children.length > MAX_SPOKEN) element("voice").firstElementChild.remove();
}

async function copy(button, text) {
  await (navigator.clipboard?.writeText(text) ?? copyByHand(text)).catch(() => copyByHand(text));
  button.classList.add("copied");
  const label = button.textContent.trim() ? "textContent" : "ariaLabel";
  const before = button[label];
  button[label] = words.copied;
  setTimeout(() => {
    button.classList.remove("copied");
    button[label] = before;
  }, COPIED);
}

/** On plain http pages the clipboard is reached by a selection alone. */
async function copyByHand(text) {
  const area = Object.assign(document.createElement("textarea"), { value: text, className: "hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// ---- the state ----

function enter(state) {
  const run = running.get(chat.id);
  element("status").dataset.state = state;
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
  const state = element("status").dataset.state;
  const text = saying(state, run, turn);
  if (element("state").textContent !== text) element("state").textContent = text; // said aloud whenever it is set
  element("figures").textContent = shownFigures(state, run, turn).join(" · ");
}

/** What the status line says; an error's own words stand in the conversation. */
function saying(state, run, turn) {
  if (state === "streaming" && turn?.thinking && !turn.answer) return words.reasoning;
  return state === "waiting" && run ? passing(run.error) : words[state];
}

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

function example(text) {
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

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem(KEYS.theme, theme);
  const label = { auto: words.themeAuto, light: words.themeLight, dark: words.themeDark }[theme];
  element("theme").ariaLabel = element("theme").title = label;
}

function redress() {
  const index = THEMES.indexOf(document.documentElement.dataset.theme ?? "auto");
  dress(THEMES[(index + 1) % THEMES.length]);
}

function onEnter(event) {
  // while an input method composes, Enter chooses a word (229 is how Safari says so)
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  submit();
}

function onKey(event) {
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
  sessionStorage.setItem(KEYS.credential, element("credential").value);
  element("credential").value = "";
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
  element("latest").addEventListener("click", toEnd);
  stop.addEventListener("click", () => running.get(chat.id)?.answer?.stop());
  message.addEventListener("input", fit);
  message.addEventListener("keydown", onEnter);
  addEventListener("keydown", onKey);
  log.addEventListener("scroll", onScroll, { passive: true });
  log.addEventListener("click", ({ target }) => {
    const button = target.closest(".code .copy");
    if (button) copy(button, button.closest(".code").querySelector("code").textContent);
  });
  addEventListener("pagehide", () => running.has(chat.id) && keep(chat));
  element("gate-cancel").addEventListener("click", () => gate.close("cancel"));
  gate.addEventListener("cancel", () => (gate.returnValue = "cancel")); // Esc keeps the value of the last time
  gate.addEventListener("close", onGate);
}

introduce();
message.placeholder = words.placeholder;
message.title = words.hint;
log.ariaLabel = words.log;
element("examples").replaceChildren(...words.examples.map(example));
dress(document.documentElement.dataset.theme ?? "auto");
listen();
await ready;
open(chat);
fit();
chats.watch(adopt);
setInterval(tick, 200);
if (matchMedia("(pointer: fine)").matches) message.focus();
