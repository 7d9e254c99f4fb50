/**
 * The monitor: what the gateway's feed says, put in its places.
 *
 * One EventSource brings a `sample` a second (the last five minutes of them at once when it connects) and with the
 * newest one `now`, the state of things. The page reckons, the gateway only tells. It asks for nothing while its tab
 * is hidden.
 */

import { Plot } from "./plots.js";
import { SPAN, Series, endings, firsts, merge, quantile, rate } from "./series.js";
import { Streams, showUpstreams } from "./tables.js";
import { bytes, count, duration, latency, percent, say, short, translate } from "./words.js";

/** Milliseconds. A sample is due every second: so much silence is a dead connection. */
const WAITS = { silence: 5000, again: 2000, notice: 5000, draw: 100 };

/** @template {HTMLElement} E @returns {E} */
const element = (/** @type {string} */ id) => /** @type {E} */ (document.getElementById(id));

const series = new Series();
/** @type {any} */ let now = null;
/** @type {EventSource | null} */ let source = null;
/** @type {Record<string, number>} */ const timers = {};

translate(document);
document.title = say("title");
const plots = [.../** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-plot]"))].map((figure) => new Plot(figure, series));
const streams = new Streams(stop, chatUrl);

/** @typedef {import("./series.js").Sample} Sample */

/** The figures on top: a name, what it says, and a note. @type {[string, () => [string, string, string?]][]} */
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
const errors = ({ all, bad }) => [all ? percent(bad / all) : "–", say("ofStreams", short(bad), short(all)), level(bad / (all || 1), 0.01, 0.05)];

/** @returns {[string, string, string]} */
const lag = (/** @type {number} */ seconds) => [latency(seconds), say("lagNote"), level(seconds, 0.05, 0.25)];

/** @returns {[string, string, string]} */
const cpu = (/** @type {number} */ share) => [percent(share), say("cpuNote"), level(share, 0.7, 0.9)];

/** @returns {[string, string, string]} */
const log = (/** @type {number} */ used) => [bytes(used), now ? say("of", bytes(now.max.log)) : "", level(used / (now?.max.log ?? Infinity), 0.8, 0.95)];

/** How much a figure should be noticed. */
function level(/** @type {number} */ value, /** @type {number} */ busy, /** @type {number} */ bad) {
  return value >= bad ? "bad" : value >= busy ? "busy" : "";
}

// -- the feed --

function connect() {
  source = new EventSource("events");
  source.addEventListener("sample", ({ data }) => hear(() => series.add(JSON.parse(data))));
  source.addEventListener("now", ({ data }) => hear(() => (now = JSON.parse(data))));
  source.onerror = () => lose();
  watch();
}

/** Everything that came is drawn together, as the last five minutes come as hundreds of events. */
function hear(/** @type {() => void} */ take) {
  const pid = now?.pid;
  take();
  if (pid !== now?.pid && pid) tell(say("restarted"));
  else if (document.body.dataset.link === "lost") tell(say("back"));
  link("live");
  watch();
  timers.draw ||= setTimeout(draw, WAITS.draw);
}

function watch() {
  clearTimeout(timers.silence);
  timers.silence = setTimeout(() => (lose(), again()), WAITS.silence);
}

/** The browser tries again by itself, unless it was told no; then it is tried here. */
function lose() {
  link("lost");
  element("notice").hidden = false;
  element("notice").dataset.kind = "bad";
  clearTimeout(timers.notice);
  element("notice").textContent = say("lost");
  if (source?.readyState === EventSource.CLOSED) again();
}

function again() {
  source?.close();
  clearTimeout(timers.again);
  clearTimeout(timers.silence);
  timers.again = setTimeout(connect, WAITS.again);
}

/** Something good to know, for a moment. */
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
  const text = say(state === "lost" ? "lostShort" : state);
  if (element("link-text").textContent !== text) element("link-text").textContent = text;
}

document.addEventListener("visibilitychange", () => {
  for (const name of ["again", "silence"]) clearTimeout(timers[name]);
  source?.close();
  if (!document.hidden) connect();
  else if (document.body.dataset.link === "live") link("connecting");
});

// -- the page --

function draw() {
  timers.draw = 0;
  if (!series.newest) return;
  drawFigures();
  for (const plot of plots) plot.draw();
  if (now) drawNow();
}

function drawFigures() {
  const list = element("figures");
  FIGURES.forEach(([name, figure], index) => {
    const place = /** @type {HTMLElement} */ (list.children[index] ?? addFigure(list, name));
    const [value, note, kind = ""] = figure();
    place.dataset.kind = kind;
    if (place.children[1].textContent !== value) place.children[1].textContent = value;
    if (place.children[2].textContent !== note) place.children[2].textContent = note;
  });
}

function addFigure(/** @type {HTMLElement} */ list, /** @type {any} */ name) {
  const place = list.appendChild(document.createElement("div"));
  place.dataset.figure = name;
  place.append(...["dt", "dd", "dd"].map((tag) => document.createElement(tag)));
  place.children[0].textContent = say(name);
  place.children[2].className = "faint";
  return place;
}

function drawNow() {
  const state = now.draining ? "draining" : now.reloaded ? "serving" : "reloadFailed";
  const place = element("state");
  place.dataset.state = state;
  if (place.lastElementChild.textContent !== say(state)) place.lastElementChild.textContent = say(state);
  const warning = now.draining ? say("drainNotice", count(now.running)) : now.reloaded ? "" : say("reloadNotice");
  element("warning").hidden = !warning;
  if (element("warning").textContent !== warning) element("warning").textContent = warning;
  element("process").textContent = say("process", now.version, String(now.pid), duration(series.newest.t - now.since));
  document.title = `${count(now.running)} · ${say("title")}`;
  showUpstreams(now.targets, series.samples);
  streams.show(now.streams, now.running);
}

/** Where somebody can start a stream: the chat page, as seen from here. */
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
