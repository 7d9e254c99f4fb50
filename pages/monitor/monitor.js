/**
 * The monitor page: shows what the gateway's feed sends.
 *
 * One EventSource brings a `sample` every second, and with it `now`, the state of the process, and `past`, what failed and
 * what ended, where that is new. When it connects, it brings the samples of the last five minutes at once. The gateway
 * sends counts; the page calculates rates and quantiles.
 * While its tab is hidden, the page has no connection.
 */

import { Plot } from "./plots.js";
import { Ended, Failures } from "./past.js";
import { SPAN, Series, endings, firsts, merge, quantile, rate } from "./series.js";
import { Streams, showUpstreams, write } from "./tables.js";
import { bytes, count, duration, latency, percent, say, short, translate } from "./words.js";

/**
 * Milliseconds. A sample is due every second, so `silence` means that the connection is dead. `again` is the pause before
 * a new one, twice as long after each that brought nothing, up to `rarely`: somebody may leave the page open overnight.
 */
const WAITS = { silence: 5000, again: 2000, rarely: 30_000, notice: 5000, draw: 100 };

/**
 * The state of the process, as `now` brings it. @typedef {object} Now
 * @property {string} version @property {number} pid @property {number} since in seconds since 1970
 * @property {boolean} draining @property {boolean} reloaded whether the last reload worked
 * @property {string | null} listen where browsers reach it
 * @property {{streams: number, readers: number, log: number}} max
 * @property {number} running all streams; `streams` are the oldest of them
 * @property {import("./tables.js").Stream[]} streams @property {import("./tables.js").Target[]} targets
 */

/** @template {HTMLElement} E @returns {E} */
const element = (/** @type {string} */ id) => /** @type {E} */ (document.getElementById(id));

const series = new Series();
/** @type {Now | null} */ let now = null;
/** @type {import("./past.js").Past | null} */ let past = null; // null also where the page shows it
/** @type {EventSource | null} */ let source = null;
/** @type {Record<string, number>} */ const timers = {};
let pause = WAITS.again;

translate(document);
document.title = say("title");
const plots = [.../** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-plot]"))].map((figure) => new Plot(figure, series));
const streams = new Streams(stop, chatUrl);
const [failures, ended] = [new Failures(), new Ended()];

/** @typedef {import("./series.js").Sample} Sample */
/** @typedef {import("./words.js").Word} Word */

/** The figures on top: a name; and the value, a note, and how much to notice it. @type {[Word, () => [string, string, string?]][]} */
const FIGURES = [
  ["figureStreams", () => [count(series.newest.streams), now ? say("of", short(now.max.streams)) : ""]],
  ["figureStarted", () => [short(rate(series.last(10), started)), `${say("perSecond")} · ${say("perMinute", short(rate(series.last(60), started) * 60))}`]],
  ["figureTokens", () => [short(rate(series.last(60), ({ tokens }) => tokens?.output)), say("ofEnded")]],
  ["figureFirst", () => quantiles(firsts(series.last(SPAN)))],
  ["figureErrors", () => errors(endings(series.samples))],
  ["figureReaders", () => [count(series.newest.readers), now ? say("of", short(now.max.readers)) : ""]],
  ["figureLag", () => lag(quantile(merge(series.last(60).map((sample) => sample.lag)), 0.99))],
  ["figureCpu", () => cpu(rate(series.last(10), ({ cpu, s }) => cpu * s))],
  ["figureMemory", () => [series.newest.rss ? bytes(series.newest.rss) : "–", say("memoryNote")]],
  ["figureLog", () => log(series.newest.log)],
];

const started = (/** @type {Sample} */ sample) => sample.started;

/** @returns {[string, string]} */
const quantiles = (/** @type {Record<string, number>} */ tally) => [latency(quantile(tally, 0.5)), say("p95", latency(quantile(tally, 0.95)))];

/** @returns {[string, string, string]} */
const errors = (/** @type {ReturnType<typeof endings>} */ { all, bad }) => [all ? percent(bad / all) : "–", say("ofStreams", short(bad), short(all)), level(bad / (all || 1), 0.01, 0.05)];

/** @returns {[string, string, string]} */
const lag = (/** @type {number} */ seconds) => [latency(seconds), say("lagNote"), level(seconds, 0.05, 0.25)];

/** @returns {[string, string, string]} */
const cpu = (/** @type {number} */ share) => [percent(share), say("cpuNote"), level(share, 0.7, 0.9)];

/** @returns {[string, string, string]} */
const log = (/** @type {number} */ used) => [bytes(used), now ? say("of", bytes(now.max.log)) : "", level(used / (now?.max.log ?? Infinity), 0.8, 0.95)];

/** How much to notice a value: "bad", "busy" or "", by two thresholds. */
function level(/** @type {number} */ value, /** @type {number} */ busy, /** @type {number} */ bad) {
  return value >= bad ? "bad" : value >= busy ? "busy" : "";
}

// -- the feed --

function connect() {
  source?.close();
  try {
    source = new EventSource("events");
  } catch {
    return complain(say("noEventSource")); // it would fail again
  }
  source.addEventListener("sample", ({ data }) => hear(() => series.add(JSON.parse(data))));
  source.addEventListener("now", ({ data }) => hear(() => (now = JSON.parse(data))));
  source.addEventListener("past", ({ data }) => hear(() => (past = JSON.parse(data))));
  source.onerror = () => lose();
  watch();
}

/** Draws a little later, once for all that came: the last five minutes come as hundreds of events. */
function hear(/** @type {() => void} */ take) {
  const pid = now?.pid;
  take();
  if (pid !== now?.pid && pid) tell(say("restarted"));
  else if (document.body.dataset.link === "lost") tell(say("back"));
  link("live");
  pause = WAITS.again;
  watch();
  timers.draw ||= setTimeout(draw, WAITS.draw);
}

function watch() {
  clearTimeout(timers.silence);
  timers.silence = setTimeout(() => (lose(), again()), WAITS.silence);
}

/** The connection is lost. The browser tries again by itself; where it gave up, `again` does. */
function lose() {
  complain(say("lost"));
  if (source?.readyState === EventSource.CLOSED) again();
}

function complain(/** @type {string} */ text) {
  link("lost");
  clearTimeout(timers.notice);
  element("notice").hidden = false;
  element("notice").dataset.kind = "bad";
  element("notice").textContent = text;
}

function again() {
  source?.close();
  clearTimeout(timers.again);
  clearTimeout(timers.silence);
  timers.again = setTimeout(connect, pause);
  pause = Math.min(pause * 2, WAITS.rarely);
}

/** Shows a message for a moment. */
function tell(/** @type {string} */ text) {
  const notice = element("notice");
  notice.hidden = false;
  notice.dataset.kind = "good";
  notice.textContent = text;
  clearTimeout(timers.notice);
  timers.notice = setTimeout(() => (notice.hidden = true), WAITS.notice);
}

function link(/** @type {"connecting" | "live" | "lost"} */ state) {
  document.body.dataset.link = state;
  write(element("link-text"), say(state === "lost" ? "lostShort" : state));
}

document.addEventListener("visibilitychange", () => {
  for (const name of ["again", "silence"]) clearTimeout(timers[name]);
  source?.close();
  pause = WAITS.again;
  if (!document.hidden) connect();
  else if (document.body.dataset.link === "live") link("connecting");
});

// -- the page --

function draw() {
  timers.draw = 0;
  if (!series.newest) return;
  drawFigures();
  for (const plot of plots) plot.draw();
  if (now) drawNow(now);
  if (past) drawPast(past);
}

function drawPast(/** @type {import("./past.js").Past} */ { failures: failed, kept, ended: over }) {
  past = null;
  failures.show(failed, kept);
  ended.show(over, over.length);
}

function drawFigures() {
  const list = element("figures");
  FIGURES.forEach(([name, figure], index) => {
    const place = /** @type {HTMLElement} */ (list.children[index] ?? addFigure(list, name));
    const [value, note, kind = ""] = figure();
    place.dataset.kind = kind;
    write(place.children[1], value);
    write(place.children[2], note);
  });
}

function addFigure(/** @type {HTMLElement} */ list, /** @type {Word} */ name) {
  const place = list.appendChild(document.createElement("div"));
  place.dataset.figure = name;
  place.append(...["dt", "dd", "dd"].map((tag) => document.createElement(tag)));
  place.children[0].textContent = say(name);
  place.children[2].className = "faint";
  return place;
}

function drawNow(/** @type {Now} */ now) {
  const state = now.draining ? "draining" : now.reloaded ? "serving" : "reloadFailed";
  element("state").dataset.state = state;
  write(element("state").children[1], say(state));
  const warning = now.draining ? say("drainNotice", count(now.running)) : now.reloaded ? "" : say("reloadNotice");
  element("warning").hidden = !warning;
  write(element("warning"), warning);
  element("process").textContent = say("process", now.version, String(now.pid), duration(series.newest.t - now.since));
  document.title = `${count(now.running)} · ${say("title")}`;
  showUpstreams(now.targets, series.samples);
  streams.show(now.streams, now.running);
}

/** The chat page's address, where somebody can start a stream; null where it is not known. */
function chatUrl() {
  if (!now?.listen) return null;
  const [, host, port] = /^(.*):(\d+)$/.exec(now.listen) ?? [];
  const everywhere = ["0.0.0.0", "[::]"].includes(host);
  return `http://${everywhere ? location.hostname : host}:${port}/`;
}

/** Ends a stream; its state then, or "" where that could not be done. @param {string} id */
async function stop(id) {
  const answer = await fetch(`streams/${encodeURIComponent(id)}/stop`, { method: "POST" }).catch(() => null);
  const ended = answer?.ok || answer?.status === 404;
  if (answer?.ok) element("told").textContent = say("stopped", id);
  else if (ended) element("told").textContent = say("alreadyEnded", id);
  else tellFailure(say("stopFailed", id, answer ? String(answer.status) : say("lostShort")));
  return answer?.ok ? (await answer.json()).state : ended ? "–" : "";
}

function tellFailure(/** @type {string} */ text) {
  tell(text);
  element("notice").dataset.kind = "bad";
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if (!document.hidden) connect();
