/**
 * Four plots of the last five minutes, drawn again with every sample.
 *
 * The caption shows the newest figures, or those of a moment that the pointer or the arrow keys choose. Screen readers
 * get the same words as the picture's label.
 */

import { SPAN, buckets, endings, firsts, quantile, rate } from "./series.js";
import { count, duration, latency, say, short } from "./words.js";

const COLUMN = 5;
const MARGIN = { left: 4, right: 4, top: 8, bottom: 18 };
/** The scale of first-token times, in seconds. */
const FASTEST = 0.01;
const SLOWEST = 60;

/** The colour of every outcome; they stand in a column in this order, from below. */
const OUTCOMES = {
  completed: "--good",
  stopped: "--calm",
  client_gone: "--calm-2",
  drained: "--calm-3",
  budget: "--busy",
  auth_expired: "--busy",
  slow_reader: "--busy-2",
  timeout: "--bad-2",
  upstream_stalled: "--bad-2",
  upstream_error: "--bad",
};

/**
 * @typedef {import("./series.js").Sample} Sample
 * @typedef {import("./series.js").Series} Series
 * @typedef {{paint: (sheet: Sheet, series: Series) => void, tell: (samples: Sample[]) => string}} Kind
 */

/** One canvas, with its measures and colours. */
class Sheet {
  constructor(/** @type {HTMLCanvasElement} */ canvas, /** @type {number} */ end) {
    const { width, height } = canvas.getBoundingClientRect();
    const scale = devicePixelRatio;
    const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
    const style = getComputedStyle(canvas);
    this.ink = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.ink.setTransform(scale, 0, 0, scale, 0, 0);
    this.ink.clearRect(0, 0, width, height);
    this.ink.font = `11px ${style.fontFamily}`;
    // A variable holds a colour for each scheme. The browser picks one only where it is used, so it is used for a moment.
    this.colour = (/** @type {string} */ name) => ((canvas.style.color = `var(${name})`), style.color);
    this.end = end;
    this.left = MARGIN.left;
    this.top = MARGIN.top;
    this.width = width - MARGIN.left - MARGIN.right;
    this.height = height - MARGIN.top - MARGIN.bottom;
    this.bottom = this.top + this.height;
  }

  x = (/** @type {number} */ t) => this.left + this.width * (1 - (this.end - t) / SPAN);

  /** Where the column that ends then begins, and how wide it is; the newest one is not whole yet. */
  column(/** @type {number} */ end) {
    const from = this.x(Math.max(end - COLUMN, this.end - SPAN)) + 0.5;
    return [from, Math.max(1, this.x(Math.min(end, this.end)) - from - 0.5)];
  }

  /** Minutes below, and lines across at these values, each with its words. */
  frame(/** @type {[number, string][]} */ lines, /** @type {(value: number) => number} */ y) {
    const { ink } = this;
    ink.lineWidth = 1;
    ink.strokeStyle = this.colour("--line");
    ink.fillStyle = this.colour("--faint");
    ink.textBaseline = "bottom";
    for (const [value, text] of lines) {
      const at = Math.round(y(value)) + 0.5;
      this.stroke([[this.left, at], [this.left + this.width, at]]);
      ink.textAlign = "left";
      ink.fillText(text, this.left + 2, at - 1);
    }
    ink.textBaseline = "alphabetic";
    for (const minute of [4, 3, 2, 1, 0]) {
      ink.textAlign = minute ? "center" : "right";
      const text = minute ? say("minutesAgo", String(minute)) : say("now");
      ink.fillText(text, this.x(this.end - minute * 60), this.bottom + 14);
    }
  }

  stroke(/** @type {[number, number][]} */ points) {
    this.ink.beginPath();
    for (const [x, y] of points) this.ink.lineTo(x, y);
    this.ink.stroke();
  }

  /** A line with a faint body below. A gap of more than a few seconds stays a gap. */
  area(/** @type {[number, number][]} */ points, /** @type {(value: number) => number} */ y, /** @type {string} */ hue) {
    for (const run of runs(points)) {
      const drawn = run.map(([t, value]) => /** @type {[number, number]} */ ([this.x(t), y(value)]));
      const [[first], [last]] = [drawn[0], drawn[drawn.length - 1]];
      this.ink.fillStyle = this.ink.strokeStyle = hue;
      this.ink.globalAlpha = 0.16;
      this.ink.beginPath();
      for (const [x, height] of [[first, this.bottom], ...drawn, [last, this.bottom]]) this.ink.lineTo(x, height);
      this.ink.fill();
      this.ink.globalAlpha = 1;
      this.line(drawn, hue);
    }
  }

  line(/** @type {[number, number][]} */ drawn, /** @type {string} */ hue, dash = /** @type {number[]} */ ([])) {
    this.ink.strokeStyle = hue;
    this.ink.lineWidth = 1.75;
    this.ink.lineJoin = "round";
    this.ink.setLineDash(dash);
    this.stroke(drawn);
    this.ink.setLineDash([]);
  }
}

/** Points that follow each other closely. @param {[number, number][]} points */
function runs(points) {
  /** @type {[number, number][][]} */ const found = [];
  let before = -Infinity;
  for (const point of points) {
    if (point[0] - before > 4) found.push([]);
    found[found.length - 1].push(point);
    before = point[0];
  }
  return found;
}

/** The next round number. */
function ceiling(/** @type {number} */ value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  return [1, 2, 4, 5, 10].map((step) => step * power).find((round) => round >= value) ?? 10 * power;
}

/** A scale from 0, with two lines. @returns {(value: number) => number} */
function linear(/** @type {Sheet} */ sheet, /** @type {number} */ most) {
  const top = ceiling(most);
  const y = (/** @type {number} */ value) => sheet.bottom - (sheet.height - 8) * (value / top);
  sheet.frame([top, top / 2].map((value) => [value, short(value)]), y);
  sheet.frame([[0, ""]], y);
  return y;
}

/** @type {Kind} */
const streams = {
  paint(sheet, { samples }) {
    const y = linear(sheet, Math.max(4, ...samples.map((sample) => sample.streams)));
    sheet.area(samples.map(({ t, streams }) => [t, streams]), y, sheet.colour("--accent"));
  },
  tell: (samples) => count(samples[samples.length - 1].streams),
};

/** @type {Kind} */
const events = {
  paint(sheet, { samples }) {
    const y = linear(sheet, Math.max(10, ...samples.map((sample) => rate([sample], ({ events }) => events))));
    sheet.area(samples.map((sample) => [sample.t, rate([sample], ({ events }) => events)]), y, sheet.colour("--second"));
  },
  tell: (samples) => short(rate(samples, (sample) => sample.events)),
};

/** Each column is the distribution of five seconds; the lines are its median and its 95th percentile. @type {Kind} */
const first = {
  paint(sheet, series) {
    const decades = Math.log10(SLOWEST / FASTEST);
    const clipped = (/** @type {number} */ value) => Math.min(SLOWEST, Math.max(FASTEST, value));
    const y = (/** @type {number} */ value) =>
      sheet.bottom - (sheet.height - 8) * (Math.log10(clipped(value) / FASTEST) / decades);
    sheet.frame([0.01, 0.1, 1, 10].map((value) => [value, latency(value)]), y);
    const columns = series.columns(COLUMN).map(([end, samples]) => ({ end, tally: firsts(samples) }));
    const hue = sheet.colour("--accent");
    sheet.ink.fillStyle = hue;
    for (const { end, tally } of columns) {
      const rows = buckets(tally);
      const [from, width] = sheet.column(end);
      const most = Math.max(...rows.map(([, , number]) => number));
      for (const [lower, upper, number] of rows) {
        sheet.ink.globalAlpha = 0.12 + 0.4 * Math.sqrt(number / most);
        sheet.ink.fillRect(from, y(upper), width, Math.max(2, y(lower) - y(upper) - 1));
      }
    }
    sheet.ink.globalAlpha = 1;
    for (const [share, dash] of /** @type {[number, number[]][]} */ ([[0.5, []], [0.95, [4, 3]]])) {
      const middles = columns.map(({ end, tally }) => [Math.min(end - COLUMN / 2, sheet.end), quantile(tally, share)]);
      const points = middles.filter(([, value]) => !Number.isNaN(value)).map(([t, value]) => [sheet.x(t), y(value)]);
      sheet.line(/** @type {[number, number][]} */ (points), sheet.colour("--ink"), dash);
    }
  },
  tell(samples) {
    const tally = firsts(samples);
    return `p50 ${latency(quantile(tally, 0.5))} · p95 ${latency(quantile(tally, 0.95))}`;
  },
};

/** @type {Kind} */
const ended = {
  paint(sheet, series) {
    const columns = series.columns(COLUMN).map(([end, samples]) => ({ end, ...endings(samples) }));
    const y = linear(sheet, Math.max(4, ...columns.map(({ all }) => all)));
    for (const { end, ended } of columns) {
      const [from, width] = sheet.column(end);
      let below = 0;
      for (const [name, hue] of Object.entries(OUTCOMES)) {
        const number = ended[name] ?? 0;
        sheet.ink.fillStyle = sheet.colour(hue);
        if (number) sheet.ink.fillRect(from, y(below + number), width, y(below) - y(below + number));
        below += number;
      }
    }
  },
  tell: (samples) => count(endings(samples).all),
};

/** @type {Record<string, Kind>} */
const KINDS = { streams, events, first, ended };
/** Kinds whose caption shows the figures of a whole column rather than of a second. */
const WIDE = new Set(["first", "ended"]);

/** A plot in its figure. */
export class Plot {
  /** @type {number | null} seconds before the end, chosen by pointer or key */ #chosen = null;

  constructor(/** @type {HTMLElement} */ figure, /** @type {Series} */ series) {
    this.name = figure.dataset.plot ?? "";
    this.kind = KINDS[this.name];
    this.series = series;
    this.title = /** @type {HTMLElement} */ (figure.querySelector("figcaption span"));
    this.reading = /** @type {HTMLElement} */ (figure.querySelector(".reading"));
    this.legend = figure.querySelector(".legend");
    this.canvas = /** @type {HTMLCanvasElement} */ (figure.querySelector("canvas"));
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => this.#choose(null));
    this.canvas.addEventListener("blur", () => this.#choose(null));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  draw() {
    const { newest } = this.series;
    if (!newest || !this.canvas.clientWidth) return;
    const sheet = new Sheet(this.canvas, newest.t);
    this.kind.paint(sheet, this.series);
    if (this.#chosen !== null) this.#mark(sheet);
    this.#tell(this.#samples(newest.t));
  }

  #samples(/** @type {number} */ end) {
    const wide = WIDE.has(this.name) ? (this.#chosen === null ? SPAN : COLUMN) : 1.5;
    const at = end - (this.#chosen ?? 0);
    return this.series.samples.filter(({ t }) => t <= at + 0.5 && t > at - wide);
  }

  #tell(/** @type {Sample[]} */ samples) {
    const told = samples.length ? this.kind.tell(samples) : "–";
    const text = this.#chosen === null ? told : `${say("ago", duration(this.#chosen))}: ${told}`;
    const more = this.legend ? `. ${legend(this.legend, samples).join(", ")}` : "";
    this.reading.textContent = text;
    this.canvas.setAttribute("aria-label", `${this.title.textContent}: ${text}${more}`);
  }

  #mark(/** @type {Sheet} */ sheet) {
    const x = sheet.x(sheet.end - (this.#chosen ?? 0));
    sheet.ink.strokeStyle = sheet.colour("--ink");
    sheet.ink.lineWidth = 1;
    sheet.stroke([[x, sheet.top], [x, sheet.bottom]]);
  }

  #point(/** @type {PointerEvent} */ event) {
    const { left, width } = this.canvas.getBoundingClientRect();
    const across = (event.clientX - left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    this.#choose(Math.round(SPAN * (1 - across)));
  }

  #key(/** @type {KeyboardEvent} */ event) {
    const step = { ArrowLeft: 5, ArrowRight: -5, Home: SPAN, End: -SPAN }[event.key];
    if (!step) return;
    event.preventDefault();
    this.#choose((this.#chosen ?? 0) + step);
  }

  #choose(/** @type {number | null} */ seconds) {
    this.#chosen = seconds === null ? null : Math.min(SPAN, Math.max(0, seconds));
    this.draw();
  }
}

/** Outcomes with their colours, and what is written of them. @param {Element} list @param {Sample[]} samples */
function legend(list, samples) {
  const { ended } = endings(samples);
  const items = Object.entries(OUTCOMES).filter(([name]) => ended[name]);
  const wanted = items.map(([name]) => `${name} ${count(ended[name])}`);
  while (list.children.length > items.length) list.lastElementChild?.remove();
  items.forEach(([, hue], index) => {
    const item = /** @type {HTMLElement} */ (list.children[index] ?? list.appendChild(document.createElement("li")));
    item.dataset.hue = hue;
    if (item.textContent !== wanted[index]) item.textContent = wanted[index];
  });
  return wanted;
}
