/**
 * The chat page: a conversation, kept in this tab, and the state of the answer under way.
 *
 * Nothing a model says is ever read as HTML: every text goes in as text. A reload shows the conversation again and goes
 * on with an unfinished answer. How a stream is followed is client.js's business, and what is not said there
 * is not known here.
 */

import { resume, stored, stream } from "../client.js";

/** What the page says, by language. A figure stands where # is. */
const WORDS = {
  en: {
    title: "Chat",
    fresh: "New chat",
    greeting: "What would you like to know?",
    promise: "The answer survives a reload and a lost connection. Try it in mid-sentence.",
    examples: ["What can you do?", "Explain server-sent events", "Write a haiku about a river"],
    label: "Your message",
    placeholder: "Write a message",
    hint: "Enter sends, Shift+Enter starts a new line, Esc stops",
    log: "Conversation",
    send: "Send",
    stop: "Stop",
    retry: "Try again",
    thinking: "Thinking",
    gateTitle: "A key is needed",
    gateText: "This gateway asks who you are. The key stays in this tab.",
    gateLabel: "Key",
    cancel: "Cancel",
    use: "Use it",
    idle: "Ready",
    connecting: "Connecting…",
    open: "Waiting for the first word…",
    reasoning: "Thinking…",
    streaming: "Answering",
    reconnecting: "Connection lost, reconnecting…",
    waiting: "Retrying…",
    done: "Done",
    stopped: "Stopped",
    error: "Failed",
    seconds: "# s",
    again: "in # s",
    characters: "# characters",
    tokens: "# tokens",
  },
  zh: {
    title: "对话",
    fresh: "新对话",
    greeting: "想聊点什么？",
    promise: "刷新页面、断开网络，回答都不会丢。不妨在回答到一半时试试。",
    examples: ["你能做什么？", "什么是服务器推送事件？", "写一首关于河流的短诗"],
    label: "你的消息",
    placeholder: "输入消息",
    hint: "Enter 发送，Shift+Enter 换行，Esc 停止",
    log: "对话记录",
    send: "发送",
    stop: "停止",
    retry: "重试",
    thinking: "思考过程",
    gateTitle: "需要密钥",
    gateText: "网关需要确认你的身份。密钥只保存在这个标签页里。",
    gateLabel: "密钥",
    cancel: "取消",
    use: "使用",
    idle: "就绪",
    connecting: "正在连接…",
    open: "等待第一个字…",
    reasoning: "正在思考…",
    streaming: "正在回答",
    reconnecting: "连接已断开，正在重连…",
    waiting: "正在重试…",
    done: "已完成",
    stopped: "已停止",
    error: "出错了",
    seconds: "# 秒",
    again: "# 秒后",
    characters: "# 字",
    tokens: "# 个 token",
  },
};

/**
 * What an error means, by the gateway's codes, and then what to do if it is anything but pressing "Try again".
 * The first pattern that fits counts.
 */
const ADVICE = [
  [/^(unauthorized|auth_expired|http_401)$/, "A valid key is needed.", "需要有效的密钥。"],
  [/^forbidden$/, "This key may not be used here.", "这个密钥没有权限。"],
  [/^(rate_limited|too_many_streams|upstream_rate_limited|http_429)$/, "Too many requests. Wait a little.", "请求太频繁，请稍等片刻。"],
  [/^(token_limit|budget)$/, "The token budget is used up. Come back later.", "token 额度已用完，请稍后再来。"],
  [/^context_length_exceeded$/, "Too long for the model. Start a new chat.", "对话太长，请开始新对话。"],
  [/content_filter/, "The provider refused this. Say it differently.", "内容被模型服务拒绝，请换个说法。"],
  [/^(body_too_large|headers_too_large|http_413)$/, "The message is too long. Shorten it.", "消息太长，请缩短。"],
  [/^cursor_expired$/, "This answer is no longer kept. Ask again.", "这个回答已不再保留，请重新提问。"],
  [/^interrupted$/, "The page was left before the answer began. Ask again.", "回答开始之前页面就关闭了，请重新提问。"],
  [/^(network|connection_lost)$/, "The gateway cannot be reached. Check the network.", "连不上网关，请检查网络。"],
  [/^(overloaded|draining|drained)$/, "The gateway is busy or restarting. Try again soon.", "网关繁忙或正在重启，请稍后重试。"],
  [/^upstream_(auth|tls|refused)$/, "The model service refused the gateway. Tell whoever runs it.", "模型服务拒绝了网关的请求，请联系管理员。"],
  [/^upstream_(cut|reset|stalled)$/, "The model broke off in the middle.", "模型的回答中断了。"],
  [/^upstream/, "The model service is in trouble.", "模型服务暂时不可用。"],
];

const chinese = navigator.language.toLowerCase().startsWith("zh");
const words = chinese ? WORDS.zh : WORDS.en;
const KEYS = { conversation: "gateway-chat", credential: "gateway-credential" };
const MAX_TURNS = 100;
const chat = new URL(document.body.dataset.chat, document.baseURI);
const streams = new URL(document.body.dataset.streams, document.baseURI);

/** @template {HTMLElement} E @param {string} id @returns {E} */
const element = (id) => /** @type {E} */ (document.getElementById(id));
const log = element("log");
/** @type {HTMLTextAreaElement} */ const message = element("message");
/** @type {HTMLButtonElement} */ const send = element("send");
const stop = element("stop");
/** @type {HTMLDialogElement} */ const gate = element("gate");
/** @type {HTMLInputElement} */ const credential = element("credential");

/** The conversation, as it is kept: question, answer and how it ended, turn by turn. */
let conversation = JSON.parse(sessionStorage.getItem(KEYS.conversation) ?? "null") ?? newConversation();
/** @type {ReturnType<typeof stream> | null} */ let answering = null;
/** @type {ReturnType<typeof view> | null} */ let shown = null;
/** @type {{state: string, due: number, error?: any}} */ let situation = { state: "idle", due: 0 };
let painting = 0;

function newConversation() {
  // crypto.randomUUID exists on https pages alone
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return { session: Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""), turns: [] };
}

function keep() {
  conversation.turns.splice(0, conversation.turns.length - MAX_TURNS);
  sessionStorage.setItem(KEYS.conversation, JSON.stringify(conversation));
}

// ---- asking and following ----

function ask(question) {
  const turn = { question, answer: "", thinking: "", tools: [], outcome: "pending", begun: Date.now() };
  conversation.turns.push(turn);
  keep();
  shown?.update();
  shown = view(turn);
  scrollToEnd();
  answering = stream({ ...listeners(turn), url: chat, message: question, session: conversation.session });
}

/** Go on with the answer that was under way when the page was left. */
function goOn(turn) {
  const kept = stored(sessionStorage);
  if (!kept) return conclude(turn, { outcome: "error", text: "", error: { code: "interrupted", retryable: true } });
  turn.answer = kept.text;
  turn.thinking = kept.thinking;
  paint();
  answering = resume(listeners(turn));
}

function listeners(turn) {
  return {
    streams,
    storage: sessionStorage,
    credential: sessionStorage.getItem(KEYS.credential) ?? undefined,
    onStart: ({ session }) => (conversation.session = session ?? conversation.session),
    onThinking: (_, thinking) => change(turn, { thinking }),
    onToken: (_, answer) => change(turn, { answer }),
    onTool: (call) => change(turn, { tools: withCall(turn.tools, call) }),
    onRestart: () => change(turn, { answer: "", thinking: "", tools: [] }),
    onDone: (result) => conclude(turn, result),
    onError: (error) => conclude(turn, { outcome: "error", text: turn.answer, error }),
    onState: enter,
  };
}

function change(turn, changes) {
  Object.assign(turn, changes);
  painting ||= requestAnimationFrame(paint);
}

function conclude(turn, { outcome, text, error, usage }) {
  Object.assign(turn, { outcome, answer: text, error, usage, seconds: (Date.now() - turn.begun) / 1000 });
  answering = null;
  keep();
  paint();
  enter(outcome);
  if (/^(unauthorized|auth_expired|http_401)$/.test(error?.code ?? "")) gate.showModal();
}

/** OpenAI's pieces of tool calls, put together by their index. */
function withCall(calls, { index = 0, function: piece = {} }) {
  const { name = "", arguments: text = "" } = calls[index] ?? {};
  const whole = { name: name + (piece.name ?? ""), arguments: text + (piece.arguments ?? "") };
  return Object.assign([...calls], { [index]: whole });
}

function again() {
  const turn = conversation.turns.pop();
  shown?.nodes.forEach((node) => node.remove());
  ask(turn.question);
}

// ---- showing ----

/** The two articles of a turn, and how to bring them up to date. */
function view(turn) {
  const part = /** @type {HTMLTemplateElement} */ (element("turn")).content.cloneNode(true);
  const nodes = [...part.children];
  const [question, answer] = nodes;
  const [thinking, text, tools, note] = answer.children;
  question.firstElementChild.textContent = turn.question;
  question.lang = languageOf(turn.question);
  thinking.firstElementChild.textContent = words.thinking;
  note.lastElementChild.textContent = words.retry;
  note.lastElementChild.addEventListener("click", again);
  let chosen = false;
  thinking.firstElementChild.addEventListener("click", () => (chosen = true));
  element("welcome").hidden = true;
  log.append(part);
  const update = () => {
    answer.setAttribute("aria-busy", String(turn.outcome === "pending"));
    answer.lang = languageOf(turn.answer || turn.thinking);
    thinking.hidden = !turn.thinking;
    if (!chosen) thinking.open = !turn.answer && !turn.tools.length;
    grow(thinking.lastElementChild, turn.thinking);
    write(text, turn.answer);
    tools.replaceChildren(...turn.tools.filter(Boolean).map((call) => item(`${call.name}(${call.arguments})`)));
    annotate(note, turn);
  };
  update();
  return { nodes, update };
}

function paint() {
  cancelAnimationFrame(painting);
  painting = 0;
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  shown?.update();
  if (following) scrollToEnd();
}

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
}

function annotate(note, turn) {
  const failed = turn.outcome === "error";
  note.hidden = !failed && turn.outcome !== "stopped";
  note.dataset.outcome = turn.outcome;
  note.firstElementChild.textContent = failed ? advice(turn.error) : words.stopped;
  note.lastElementChild.hidden = turn !== conversation.turns.at(-1);
}

function advice({ code, message: said }) {
  const known = ADVICE.find(([pattern]) => pattern.test(code));
  return known ? known[chinese ? 2 : 1] : `${words.error}: ${said ?? code}`;
}

/** Text with its code fences set apart: `p` and `pre` elements, each grown in place so that a selection survives. */
function write(parent, text) {
  const parts = fenced(text);
  parts.forEach(({ tag, text: piece }, index) => {
    const old = parent.children[index];
    if (old?.localName === tag) return grow(old, piece);
    const node = document.createElement(tag);
    node.dir = tag === "pre" ? "ltr" : "auto";
    grow(node, piece);
    if (old) old.replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > parts.length) parent.lastElementChild.remove();
}

function grow(node, text) {
  const old = node.textContent;
  if (old && text.startsWith(old)) node.firstChild.appendData(text.slice(old.length));
  else if (old !== text) node.textContent = text;
}

/** A text in pieces by its lines of ```; an open fence lasts to the end. */
function fenced(text) {
  const parts = text.split(/^ {0,3}```.*\n?/m).map((piece, index) => ({ tag: index % 2 ? "pre" : "p", text: piece.trimEnd() }));
  return parts.filter((part) => part.text).map((part) => ({ ...part, text: part.text.replace(/^\n+/, "") }));
}

function item(text) {
  const node = document.createElement("li");
  node.textContent = text;
  return node;
}

/** The language of a text as far as fonts and voices care: Chinese, or unknown. */
function languageOf(text) {
  return /[\u3400-\u9fff]/.test(text) && !/[\u3040-\u30ff]/.test(text) ? "zh-CN" : "";
}

// ---- the state ----

function enter(state, { seconds = null, error } = {}) {
  situation = { state, due: seconds === null ? 0 : Date.now() + seconds * 1000, error };
  element("status").dataset.state = state;
  stop.hidden = !answering && !["connecting", "open", "streaming"].includes(state);
  send.hidden = !stop.hidden;
  tick();
}

function tick() {
  const turn = conversation.turns.at(-1);
  const text = saying(situation, turn);
  if (element("state").textContent !== text) element("state").textContent = text; // said aloud whenever it is set
  element("figures").textContent = figures(turn).join(" · ");
}

/** What the status line says; an error's own words stand in the conversation. */
function saying({ state, error }, turn) {
  if (state === "streaming" && turn?.thinking && !turn.answer) return words.reasoning;
  if (state !== "waiting") return words[state];
  const [meaning] = advice(error).split(/[.。，]/);
  return chinese ? `${meaning}，${words.waiting}` : `${meaning}. ${words.waiting}`;
}

function figures(turn) {
  const { state, due } = situation;
  const figure = (key, value) => words[key].replace("#", value);
  if (!turn || state === "idle") return [];
  const left = Math.ceil((due - Date.now()) / 1000);
  if (["reconnecting", "waiting", "error"].includes(state)) return left > 0 ? [figure("again", left)] : [];
  const seconds = figure("seconds", (turn.seconds ?? (Date.now() - turn.begun) / 1000).toFixed(1));
  const length = turn.answer && figure("characters", [...turn.answer].length);
  const tokens = turn.usage && figure("tokens", turn.usage.completion_tokens);
  return [seconds, tokens || length].filter(Boolean);
}

// ---- the visitor ----

function submit() {
  const question = message.value.trim();
  if (!question || answering) return;
  message.value = "";
  fit();
  ask(question);
}

function fit() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight + 2}px`;
  send.disabled = !message.value.trim();
}

function startAnew() {
  answering?.stop();
  answering?.close();
  answering = shown = null;
  sessionStorage.removeItem("gateway-stream");
  conversation = newConversation();
  keep();
  log.querySelectorAll("article").forEach((article) => article.remove());
  element("welcome").hidden = false;
  enter("idle");
  message.focus();
}

function example(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => ask(text));
  const node = document.createElement("li");
  node.append(button);
  return node;
}

function speak() {
  document.documentElement.lang = chinese ? "zh-CN" : "en";
  document.title = words.title;
  for (const node of document.querySelectorAll("[data-words]")) node.textContent = words[node.dataset.words];
  message.placeholder = words.placeholder;
  message.title = words.hint;
  log.setAttribute("aria-label", words.log);
  element("examples").replaceChildren(...words.examples.map(example));
}

function listen() {
  element("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  element("fresh").addEventListener("click", startAnew);
  stop.addEventListener("click", () => answering?.stop());
  message.addEventListener("input", fit);
  message.addEventListener("keydown", (event) => {
    // while an input method composes, Enter chooses a word (229 is how Safari says so)
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && !gate.open) answering?.stop();
  });
  addEventListener("pagehide", keep);
  element("gate-cancel").addEventListener("click", () => gate.close("cancel"));
  gate.addEventListener("cancel", () => (gate.returnValue = "cancel")); // Esc keeps the value of the last time
  gate.addEventListener("close", () => {
    if (gate.returnValue !== "use") return;
    sessionStorage.setItem(KEYS.credential, credential.value);
    credential.value = "";
    again();
  });
}

speak();
listen();
for (const turn of conversation.turns) shown = view(turn);
enter("idle");
fit();
scrollToEnd();
setInterval(tick, 200);
if (conversation.turns.at(-1)?.outcome === "pending") goOn(conversation.turns.at(-1));
if (matchMedia("(pointer: fine)").matches) message.focus();
