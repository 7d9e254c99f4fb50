/** What the page says, in the browser's language: Chinese, or English. # stands for a figure. */

/** @import * as Types from "../client.js" */

const WORDS = {
  en: {
    title: "Chat",
    chats: "Chats",
    fresh: "New chat",
    openChats: "Chats",
    closeChats: "Close the list of chats",
    kept: "Chats stay in this browser.",
    unkept: "This browser blocks the data of this site: chats are not kept when the page is left.",
    rename: "Rename",
    remove: "Delete",
    sure: "Delete?",
    themeAuto: "Colours: as the system",
    themeLight: "Colours: light",
    themeDark: "Colours: dark",
    greeting: "What would you like to know?",
    promise: "The answer survives a reload and a lost connection. Try it in mid-sentence.",
    examples: ["What can you do?", "Explain server-sent events", "Write a haiku about a river"],
    label: "Your message",
    placeholder: "Write a message",
    hint: "Enter sends · Shift+Enter new line · Esc stops",
    log: "Conversation",
    question: "Question",
    answer: "Answer",
    send: "Send",
    stop: "Stop",
    retry: "Try again",
    edit: "Edit",
    copy: "Copy the answer",
    copyCode: "Copy",
    copied: "Copied",
    regenerate: "Regenerate",
    latest: "Scroll to the end",
    thinking: "Thinking",
    image: "Image",
    taskDone: "Done",
    taskOpen: "To do",
    save: "Save this chat as Markdown",
    gateTitle: "A key is needed",
    gateWrong: "This key was not accepted: it is wrong, or no longer valid.",
    gateText: "You get one from the person who runs this gateway. It stays in this tab.",
    gateLabel: "Key",
    cancel: "Cancel",
    use: "Use this key",
    idle: "Ready",
    connecting: "Connecting…",
    open: "Waiting for the first word…",
    reasoning: "Thinking…",
    streaming: "Answering",
    reconnecting: "Connection lost, reconnecting…",
    waiting: "Retrying…",
    offline: "Offline. It goes on as soon as there is a network.",
    done: "Done",
    stopped: "Stopped",
    error: "Failed",
    limited: "The answer was cut off by the length limit.",
    limitedShort: "Cut off by the length limit",
    filtered: "The answer was cut off by the provider's content filter.",
    filteredShort: "Cut off by the content filter",
    why: "Details",
    whyHint: "What to check",
    whySentence: "The provider said",
    whyCode: "Code",
    whyUpstream: "Upstream",
    whyUrl: "Asked",
    whyStatus: "Status",
    whyRequest: "Request",
    seconds: "# s",
    again: "in # s",
    characters: "# characters",
    tokens: "# tokens",
    speed: "# tok/s",
    first: "first word after # s",
  },
  zh: {
    title: "对话",
    chats: "对话列表",
    fresh: "新对话",
    openChats: "对话列表",
    closeChats: "关闭对话列表",
    kept: "对话只保存在这个浏览器里。",
    unkept: "浏览器禁止本站保存数据：离开页面后，对话不会保留。",
    rename: "重命名",
    remove: "删除",
    sure: "确定删除？",
    themeAuto: "外观：跟随系统",
    themeLight: "外观：浅色",
    themeDark: "外观：深色",
    greeting: "想聊点什么？",
    promise: "刷新页面、断开网络，回答都不会丢。不妨在回答到一半时试试。",
    examples: ["你能做什么？", "什么是服务器推送事件？", "写一首关于河流的短诗"],
    label: "你的消息",
    placeholder: "输入消息",
    hint: "Enter 发送 · Shift+Enter 换行 · Esc 停止",
    log: "对话记录",
    question: "提问",
    answer: "回答",
    send: "发送",
    stop: "停止",
    retry: "重试",
    edit: "编辑",
    copy: "复制回答",
    copyCode: "复制",
    copied: "已复制",
    regenerate: "重新生成",
    latest: "回到底部",
    thinking: "思考过程",
    image: "图片",
    taskDone: "已完成",
    taskOpen: "待办",
    save: "把对话保存为 Markdown",
    gateTitle: "需要密钥",
    gateWrong: "这个密钥不被接受：可能有误，或已失效。",
    gateText: "请向网关的管理员索取。密钥只保存在这个标签页里。",
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
    offline: "网络已断开，恢复后自动继续。",
    done: "已完成",
    stopped: "已停止",
    error: "出错了",
    limited: "回答达到长度上限，被截断了。",
    limitedShort: "已达长度上限",
    filtered: "回答被模型服务的内容过滤器截断了。",
    filteredShort: "被内容过滤器截断",
    why: "详情",
    whyHint: "请检查",
    whySentence: "模型服务的说明",
    whyCode: "错误代码",
    whyUpstream: "上游",
    whyUrl: "请求地址",
    whyStatus: "状态码",
    whyRequest: "请求 ID",
    seconds: "# 秒",
    again: "# 秒后",
    characters: "# 字",
    tokens: "# 个 token",
    speed: "每秒 # 个 token",
    first: "首字 # 秒",
  },
};

/** What an error means, by its code, and what to do unless that is to try again; and where that is to tell who runs the
 * gateway, what who runs it is told instead. The first row that fits counts. @type {[RegExp, string, string, string?, string?][]} */
const ADVICE = [
  [/^(unauthorized|auth_expired|http_401)$/, "A valid key is needed.", "需要有效的密钥。"],
  [/^forbidden$/, "This key may not be used here.", "这个密钥没有权限。"],
  [/^(rate_limited|too_many_streams|upstream_rate_limited|http_429)$/, "Too many requests. Wait a little.", "请求太频繁，请稍等片刻。"],
  [/^(token_limit|budget)$/, "The limit of tokens is reached. Come back later.", "token 额度已用完，请稍后再来。"],
  [/^context_length_exceeded$/, "Too long for the model. Start a new chat.", "对话太长，请开始新对话。"],
  [/content_filter/, "The model service refused this text. Try other words.", "内容被模型服务拒绝，请换个说法。"],
  [/^(body_too_large|headers_too_large|http_413)$/, "The message is too long. Shorten it.", "消息太长，请缩短。"],
  [/^cursor_expired$/, "This answer is no longer kept. Ask again.", "这个回答已不再保留，请重新提问。"],
  [/^interrupted$/, "The page was left before the answer began. Ask again.", "回答开始之前页面就关闭了，请重新提问。"],
  [/^(network|connection_lost)$/, "The gateway cannot be reached. Check the network.", "连不上网关，请检查网络。"],
  [/^(overloaded|draining|drained)$/, "The gateway is busy or restarting. Try again soon.", "网关繁忙或正在重启，请稍后重试。"],
  [
    /^model_not_found$/,
    "The model service does not have this model. Tell the person who runs the gateway.",
    "模型服务没有这个模型，请联系管理员。",
    "The model service does not have this model. What to check is below.",
    "模型服务没有这个模型，原因见下方详情。",
  ],
  [
    /^upstream_(auth|tls|refused)$/,
    "The model service refused the gateway. Tell the person who runs the gateway.",
    "模型服务拒绝了网关的请求，请联系管理员。",
    "The model service refused the gateway. What to check is below.",
    "模型服务拒绝了网关的请求，原因见下方详情。",
  ],
  [
    /^upstream_unreachable$/,
    "The model service cannot be reached. Try again soon.",
    "连不上模型服务，请稍后重试。",
    "The model service cannot be reached. What to check is below.",
    "连不上模型服务，原因见下方详情。",
  ],
  [/^upstream_(cut|reset|stalled)$/, "The model broke off in the middle.", "模型的回答中断了。"],
  [/^upstream/, "The model service is in trouble.", "模型服务暂时不可用。"],
];

/** What to check, in Chinese, by how the gateway's own sentence begins. The URL that was asked is shown below it. @type {[string, string][]} */
const HINTS = [
  ["The port speaks TLS", "这个端口使用 TLS：请在 URL 中写 https://。"],
  ["The port does not speak TLS", "这个端口不使用 TLS：请在 URL 中写 http://，或改用使用 TLS 的端口。"],
  ["Check that the URL has the host's name", "请检查 URL 中的主机名是否与证书一致。自建的证书机构用 SSL_CERT_FILE 信任；verify_tls: false 则不检查证书。"],
  ["If the port speaks TLS", "如果这个端口使用 TLS，请在 URL 中写 https://。"],
  ["Check the name in `model`", "请对照模型服务的列表，检查 model 中的名称（目标、上游、路由或请求里的）。"],
  ["The URL may lack /v1", "URL 可能缺少 /v1，请看下方的请求地址。"],
  ["Ollama's own API is not below /v1", "Ollama 自己的接口不在 /v1 下：请缩短 URL，或改用 dialect: openai。"],
  ["This may be no Ollama", "这里可能不是 Ollama。其他服务大多使用 dialect: openai，URL 以 /v1 结尾。"],
  ["Check the path of the URL", "请检查 URL 的路径和 dialect，请看下方的请求地址。"],
  ["Redirects are not followed", "网关不跟随重定向：请直接写重定向到的 URL。"],
  ["Check the provider's account", "请检查模型服务的账户：余额、套餐和限额。"],
  ["Check api_key of the upstream", "请检查上游的 api_key：是否已设置，是否属于这个服务，能否使用这个模型和地区。"],
  ["Check the host in the URL", "请检查 URL 中的主机：这里解析不到这个名称。"],
  ["Check that the server runs, and that its port speaks TLS", "请检查服务是否在运行，端口是否使用 TLS；否则 URL 请写 http://。"],
  ["Check that the server runs, and its port", "请检查服务是否在运行，端口是否正确。在容器里，localhost 是容器自己。"],
  ["Check that the server runs, its port", "请检查服务是否在运行，端口是否正确，防火墙是否放行。"],
  ["What it does not know", "模型服务不认识的参数，可以用上游的 omit 去掉。"],
  ["If the model may think for longer", "如果模型需要思考更久，请调大 timeouts.first_event。"],
];

const chinese = navigator.language.toLowerCase().startsWith("zh");
export const words = chinese ? WORDS.zh : WORDS.en;

/** @typedef {{[K in keyof typeof words]: (typeof words)[K] extends string ? K : never}[keyof typeof words]} Word */

export const figure = (/** @type {Word} */ key, /** @type {string | number} */ value) => words[key].replace("#", String(value));

/** What an error means and what to do. @param {Partial<Types.Failure>} [error] @param {boolean} [operator] whether the reader runs the gateway */
export function advice({ code = "", message = "" } = {}, operator = false) {
  const [, english, translated, ...own] = ADVICE.find(([pattern]) => pattern.test(code)) ?? [];
  const told = operator ? own[chinese ? 1 : 0] : undefined;
  return told ?? (chinese ? translated : english) ?? `${words.error}: ${message || code}`;
}

/** What to check, in the page's language where that is known. */
export function advised(/** @type {string} */ hint) {
  const [, translated] = (chinese && HINTS.find(([begins]) => hint.startsWith(begins))) || [];
  return translated ?? hint;
}

/** What cut an answer off that ended well, "" where nothing did. @param {import("./chats.js").Turn} turn @param {boolean} [short] */
export function cut({ outcome, finish }, short = false) {
  if (outcome !== "done") return "";
  if (finish === "length") return short ? words.limitedShort : words.limited;
  return finish !== "content_filter" ? "" : short ? words.filteredShort : words.filtered;
}

/** What an error means, and that the page tries again by itself. @param {Partial<Types.Failure> | null} error */
export function passing(error) {
  const [meaning] = advice(error ?? {}).split(/[.。，]/);
  return chinese ? `${meaning}，${words.waiting}` : `${meaning}. ${words.waiting}`;
}

/** Puts the words in their places below a node. */
export function speak(/** @type {ParentNode} */ root) {
  const marked = (/** @type {string} */ name) => /** @type {NodeListOf<HTMLElement>} */ (root.querySelectorAll(`[data-${name}]`));
  for (const node of marked("words")) node.textContent = words[/** @type {Word} */ (node.dataset.words)];
  for (const node of marked("label")) node.ariaLabel = node.title = words[/** @type {Word} */ (node.dataset.label)];
}

/** The page itself: its language, its title. */
export function introduce() {
  document.documentElement.lang = chinese ? "zh-CN" : "en";
  document.title = words.title;
  speak(document);
}

/** The language of a text, as fonts and voices need to know it: Chinese, or unknown. */
export function languageOf(/** @type {string} */ text) {
  return /[\u3400-\u9fff]/.test(text) && !/[\u3040-\u30ff]/.test(text) ? "zh-CN" : "";
}
