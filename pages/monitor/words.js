/** What the page says, in the browser's language: Chinese, or English. # stands for a figure or a name. */

const WORDS = {
  en: {
    title: "Gateway monitor",
    connecting: "Connecting…",
    live: "Live",
    lost: "Connection to the gateway lost. Trying again…",
    lostShort: "Disconnected",
    noEventSource: "This browser has no EventSource, or denies it to this page: there is nothing to show.",
    back: "Connected again.",
    restarted: "Connected again: this is a new process.",
    serving: "Serving",
    draining: "Draining",
    reloadFailed: "Reload failed",
    drainNotice: "The gateway is shutting down and takes no new streams. Still running: #.",
    reloadNotice: "The new configuration has a mistake, so the old one stays in use. The log says which.",
    process: "# · process # · up #",
    of: "of #",
    figureStreams: "Streams now",
    figureStarted: "Streams started",
    figureTokens: "Output tokens",
    figureFirst: "First token",
    figureErrors: "Errors",
    figureReaders: "Connections",
    figureLag: "Event loop lag p99",
    figureCpu: "CPU",
    figureMemory: "Memory",
    figureLog: "Stream logs",
    perSecond: "per second",
    perMinute: "# per minute",
    ofEnded: "per second, last minute",
    p95: "p95 #",
    ofStreams: "# of # in 5 min",
    lagNote: "last minute",
    cpuNote: "of one core",
    memoryNote: "resident",
    plotStreams: "Streams",
    plotEvents: "Events per second",
    plotFirst: "First token",
    plotEnded: "How streams ended",
    ago: "# ago",
    now: "now",
    minutesAgo: "−# min",
    upstreams: "Upstreams",
    asked: "Asked",
    failed: "Failed",
    inService: "in service",
    outOfService: "out of service, tried again in #",
    onTrial: "on trial",
    load: "# open · # served · weight #",
    streams: "Streams",
    filter: "Filter streams",
    filterHint: "Filter by route, principal, model…",
    listed: "# oldest of #",
    matching: "# of #",
    noMatch: "No stream matches.",
    noStreams: "No streams now.",
    noStreamsOpen: "No streams now. Open # and ask something.",
    id: "Stream",
    route: "Route",
    principal: "Principal",
    upstream: "Upstream",
    state: "State",
    age: "Age",
    events: "Events",
    readers: "Readers",
    bytes: "Bytes",
    actions: "Actions",
    failures: "Failures",
    failuresAll: "All as JSON",
    noFailures: "Nothing failed since the start.",
    newest: "# newest of #",
    when: "When",
    kind: "What",
    attempt: "attempt",
    stream: "stream",
    where: "Where",
    code: "Code",
    what: "Why",
    request: "Request",
    status: "status #",
    ended: "Ended streams",
    noEnded: "No stream has ended since the start.",
    outcome: "Outcome",
    finish: "Finish reason",
    seconds: "Duration",
    first: "First token",
    tokens: "Tokens in, out",
    tokensOf: "#, #",
    tokensAbout: "≈ #, #",
    stop: "Stop",
    stopNamed: "Stop stream #",
    stopYes: "End it",
    stopNo: "Keep",
    stopping: "Ending…",
    stopped: "Stream # was ended.",
    alreadyEnded: "Stream # had already ended.",
    stopFailed: "Stream # could not be ended: #.",
  },
  zh: {
    title: "网关监控",
    connecting: "正在连接…",
    live: "实时",
    lost: "与网关的连接已断开，正在重试…",
    lostShort: "已断开",
    noEventSource: "浏览器没有 EventSource，或者不允许本页使用，因此无法显示数据。",
    back: "已重新连接。",
    restarted: "已重新连接：这是一个新进程。",
    serving: "服务中",
    draining: "排空中",
    reloadFailed: "重载失败",
    drainNotice: "网关即将退出，不再接受新的流。仍在运行：#。",
    reloadNotice: "新配置有错误，仍在使用之前的配置。原因见日志。",
    process: "# · 进程 # · 已运行 #",
    of: "上限 #",
    figureStreams: "当前流",
    figureStarted: "新建流",
    figureTokens: "输出 token",
    figureFirst: "首个 token",
    figureErrors: "错误率",
    figureReaders: "连接",
    figureLag: "事件循环延迟 p99",
    figureCpu: "CPU",
    figureMemory: "内存",
    figureLog: "流日志",
    perSecond: "每秒",
    perMinute: "每分钟 #",
    ofEnded: "每秒，近 1 分钟",
    p95: "p95 #",
    ofStreams: "5 分钟内 #/#",
    lagNote: "近 1 分钟",
    cpuNote: "单核占比",
    memoryNote: "常驻",
    plotStreams: "流",
    plotEvents: "每秒事件数",
    plotFirst: "首个 token",
    plotEnded: "流的结局",
    ago: "#前",
    now: "现在",
    minutesAgo: "−# 分",
    upstreams: "上游",
    asked: "请求",
    failed: "失败",
    inService: "服务中",
    outOfService: "已熔断，# 后重试",
    onTrial: "试探中",
    load: "# 个进行中 · 共 # 次 · 权重 #",
    streams: "流",
    filter: "筛选流",
    filterHint: "按路由、主体、模型等筛选",
    listed: "最早的 # 个，共 # 个",
    matching: "#/#",
    noMatch: "没有匹配的流。",
    noStreams: "当前没有流。",
    noStreamsOpen: "当前没有流。打开 # 提个问题吧。",
    id: "流",
    route: "路由",
    principal: "主体",
    upstream: "上游",
    state: "状态",
    age: "时长",
    events: "事件",
    readers: "读者",
    bytes: "字节",
    actions: "操作",
    failures: "失败记录",
    failuresAll: "全部（JSON）",
    noFailures: "启动以来没有失败。",
    newest: "最新的 # 条，共 # 条",
    when: "时间",
    kind: "类型",
    attempt: "尝试",
    stream: "流",
    where: "位置",
    code: "错误代码",
    what: "原因",
    request: "请求",
    status: "状态码 #",
    ended: "已结束的流",
    noEnded: "启动以来还没有流结束。",
    outcome: "结局",
    finish: "结束原因",
    seconds: "时长",
    first: "首个 token",
    tokens: "输入、输出 token",
    tokensOf: "#、#",
    tokensAbout: "≈ #、#",
    stop: "停止",
    stopNamed: "停止流 #",
    stopYes: "结束",
    stopNo: "保留",
    stopping: "正在结束…",
    stopped: "流 # 已结束。",
    alreadyEnded: "流 # 之前已结束。",
    stopFailed: "无法结束流 #：#。",
  },
};

const chinese = navigator.language.toLowerCase().startsWith("zh");
const language = chinese ? "zh-CN" : "en";
const words = chinese ? WORDS.zh : WORDS.en;

/** @typedef {keyof typeof words} Word */

/** The words of this name, with figures in the places of #. @param {Word} name @param {...string} figures */
export function say(name, ...figures) {
  return words[name].replace(/#/g, () => figures.shift() ?? "");
}

/** Puts the words in their places below a node. @param {ParentNode} node */
export function translate(node) {
  /** @type {NodeListOf<HTMLElement>} */ const places = node.querySelectorAll("[data-words]");
  for (const place of places) place.textContent = say(/** @type {Word} */ (place.dataset.words));
}

document.documentElement.lang = language;

const compact = new Intl.NumberFormat(language, { notation: "compact", maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat(language, { maximumFractionDigits: 0 });

/** A number in three digits. */
export const short = (/** @type {number} */ value) => compact.format(value);

/** The time of day, of a moment in ISO 8601. */
export const clock = (/** @type {string} */ moment) => new Date(moment).toLocaleTimeString(language, { hour12: false });

/** A count. */
export const count = (/** @type {number} */ value) => whole.format(value);

/** A share, between 0 and 1 (a CPU may use more). */
export const percent = (/** @type {number} */ value) =>
  value && value < 0.1 ? `${(value * 100).toFixed(1)}%` : `${Math.round(value * 100)}%`;

/** Bytes. */
export function bytes(/** @type {number} */ value) {
  const power = Math.min(4, Math.floor(Math.log2(Math.max(1, value)) / 10));
  const scaled = value / 1024 ** power;
  return `${power && scaled < 10 ? scaled.toFixed(1) : Math.round(scaled)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** A latency, in seconds. */
export function latency(/** @type {number} */ seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${Number(seconds.toFixed(seconds < 10 ? 1 : 0))} s`;
}

/** How long something lasts, in seconds. */
export function duration(/** @type {number} */ seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.floor(seconds)} s`;
  const [days, hours] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600)];
  const two = (/** @type {number} */ part) => String(Math.floor(part)).padStart(2, "0");
  const clock = `${hours ? `${hours % 24}:${two((seconds / 60) % 60)}` : Math.floor(seconds / 60)}:${two(seconds % 60)}`;
  return days ? `${days} d ${clock}` : clock;
}
