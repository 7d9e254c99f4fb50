/**
 * The upstreams and the streams. What a client or an upstream chose (a name, a model) is shown as text, never read as HTML.
 */

import { firsts, merge, quantile, sum, total } from "./series.js";
import { bytes, count, duration, latency, say, short, translate } from "./words.js";

/**
 * @typedef {{upstream: string, dialect: string, target: string, model: string | null, weight: number, open: number,
 *   served: number, state: string, retry_s: number}} Target
 * @typedef {{id: string, route: string, principal: string, upstream: string, model: string, state: string,
 *   age_s: number, events: number, readers: number, bytes: number}} Stream
 * @typedef {import("./series.js").Sample} Sample
 */

/** Milliseconds for which a stream that was ended here stays in the list. */
const FAREWELL = 2000;

/** @template {HTMLElement} E @returns {E} */
const element = (/** @type {string} */ id) => /** @type {E} */ (document.getElementById(id));

/** Writes only what is new: an unchanged page costs no layout. @param {Element} place @param {string} text */
export function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/** So many copies of a template below a parent. @returns {Element[]} */
function copies(/** @type {Element} */ parent, /** @type {string} */ template, /** @type {number} */ wanted) {
  while (parent.children.length > wanted) parent.lastElementChild?.remove();
  while (parent.children.length < wanted) {
    const copy = /** @type {HTMLTemplateElement} */ (element(template)).content.cloneNode(true);
    translate(/** @type {DocumentFragment} */ (copy));
    parent.append(copy);
  }
  return [...parent.children];
}

/** Upstreams with their targets. */
export function showUpstreams(/** @type {Target[]} */ targets, /** @type {Sample[]} */ samples) {
  const names = [...new Set(targets.map(({ upstream }) => upstream))];
  const cards = copies(element("upstreams"), "upstream", names.length);
  names.forEach((name, index) => {
    const card = cards[index];
    const own = targets.filter(({ upstream }) => upstream === name);
    const errors = merge(samples.map((sample) => sample.errors?.[name]));
    const tally = firsts(samples, name);
    write(find(card, ".name"), name);
    write(find(card, ".dialect"), own[0].dialect);
    write(find(card, ".asked"), count(sum(samples, ({ asked }) => asked?.[name])));
    write(find(card, ".failed"), count(total(errors)));
    write(find(card, ".first"), total(tally) ? `${latency(quantile(tally, 0.5))} · ${say("p95", latency(quantile(tally, 0.95)))}` : "–");
    showErrors(find(card, ".errors"), errors);
    showTargets(find(card, ".targets"), own);
  });
}

const find = (/** @type {Element} */ parent, /** @type {string} */ selector) =>
  /** @type {HTMLElement} */ (parent.querySelector(selector));

function showErrors(/** @type {Element} */ list, /** @type {Record<string, number>} */ errors) {
  const kinds = Object.entries(errors).sort(([, a], [, b]) => b - a);
  while (list.children.length > kinds.length) list.lastElementChild?.remove();
  kinds.forEach(([kind, number], index) => {
    write(list.children[index] ?? list.appendChild(document.createElement("li")), `${kind} ${count(number)}`);
  });
}

function showTargets(/** @type {Element} */ list, /** @type {Target[]} */ targets) {
  const items = copies(list, "target", targets.length);
  targets.forEach((target, index) => {
    const item = /** @type {HTMLElement} */ (items[index]);
    item.dataset.state = target.state;
    write(find(item, ".where"), target.model ? `${target.target} · ${target.model}` : target.target);
    write(find(item, ".how"), health(target));
    write(find(item, ".load"), say("load", count(target.open), count(target.served), count(target.weight)));
  });
}

function health(/** @type {Target} */ target) {
  if (target.state === "in service") return say("inService");
  return target.state === "on trial" ? say("onTrial") : say("outOfService", duration(target.retry_s));
}

/**
 * The columns of the streams: a name, how a value is shown, whether it is a figure, and what it is sorted by.
 * @typedef {{name: import("./words.js").Word, key?: keyof Stream, tell?: (stream: Stream) => string, figure?: boolean}} Column
 * @type {Column[]}
 */
const COLUMNS = [
  { name: "id" },
  { name: "route" },
  { name: "principal" },
  { name: "upstream", tell: (/** @type {Stream} */ stream) => [stream.upstream, stream.model].filter(Boolean).join(" · ") },
  { name: "state" },
  { name: "age", key: "age_s", tell: (/** @type {Stream} */ stream) => duration(stream.age_s), figure: true },
  { name: "events", tell: (/** @type {Stream} */ stream) => short(stream.events), figure: true },
  { name: "readers", tell: (/** @type {Stream} */ stream) => count(stream.readers), figure: true },
  { name: "bytes", tell: (/** @type {Stream} */ stream) => bytes(stream.bytes), figure: true },
];
/** @type {(keyof Stream)[]} */ const SEARCHED = ["id", "route", "principal", "upstream", "model", "state"];

/** The list of streams: it can be sorted and filtered, and each stream can be stopped. */
export class Streams {
  /** @type {Stream[]} */ #streams = [];
  /** @type {Map<string, HTMLTableRowElement>} */ #rows = new Map();
  /** @type {{key: string, down: boolean}} */ #sort = { key: "age_s", down: true };
  #running = 0;

  constructor(/** @type {(id: string) => Promise<string>} */ stop, /** @type {() => string | null} */ open) {
    this.stop = stop;
    this.open = open;
    this.table = /** @type {HTMLTableElement} */ (element("streams"));
    this.head = /** @type {HTMLTableSectionElement} */ (this.table.tHead).rows[0];
    this.body = this.table.tBodies[0];
    this.filter = /** @type {HTMLInputElement} */ (element("filter"));
    this.filter.placeholder = say("filterHint");
    this.filter.addEventListener("input", () => this.#draw());
    this.#head();
  }

  show(/** @type {Stream[]} */ streams, /** @type {number} */ running) {
    this.#streams = streams;
    this.#running = running;
    this.#draw();
  }

  #head() {
    const row = this.head;
    for (const { name, key = name, figure } of COLUMNS) {
      const cell = row.appendChild(document.createElement("th"));
      const button = cell.appendChild(document.createElement("button"));
      cell.scope = "col";
      cell.dataset.key = key;
      cell.classList.toggle("figure", Boolean(figure));
      button.type = "button";
      button.textContent = say(name);
      button.addEventListener("click", () => this.#by(key, Boolean(figure)));
    }
    const last = row.appendChild(document.createElement("th"));
    last.append(Object.assign(document.createElement("span"), { className: "hidden", textContent: say("actions") }));
    this.#arrows();
  }

  #by(/** @type {string} */ key, /** @type {boolean} */ figure) {
    this.#sort = { key, down: this.#sort.key === key ? !this.#sort.down : figure };
    this.#arrows();
    this.#draw(true);
  }

  #arrows() {
    const { key, down } = this.#sort;
    for (const cell of this.head.cells) {
      if (cell.dataset.key === key) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
  }

  #draw(asked = false) {
    const wanted = this.filter.value.trim().toLowerCase();
    const fits = (/** @type {Stream} */ stream) => SEARCHED.some((key) => String(stream[key]).toLowerCase().includes(wanted));
    const shown = wanted ? this.#streams.filter(fits) : this.#streams;
    const known = new Set(shown.map(({ id }) => id));
    for (const [id, row] of this.#rows) if (!known.has(id) && !row.dataset.ended) this.#drop(id);
    for (const stream of shown) this.#fill(stream);
    // Rows must not move under a pointer: it would stop the wrong stream.
    if (asked || !this.body.matches(":hover, :focus-within")) this.#order(shown);
    this.#note(shown.length, Boolean(wanted));
  }

  #drop(/** @type {string} */ id) {
    this.#rows.get(id)?.remove();
    this.#rows.delete(id);
  }

  #fill(/** @type {Stream} */ stream) {
    const row = this.#rows.get(stream.id) ?? this.#row(stream);
    if (row.dataset.ended) return;
    row.dataset.state = stream.state;
    COLUMNS.forEach(({ name, tell }, index) => {
      const text = tell ? tell(stream) : String(stream[/** @type {keyof Stream} */ (name)]);
      const place = /** @type {HTMLElement} */ (row.cells[index].firstElementChild);
      if (place.textContent !== text) [place.textContent, place.title] = [text, text];
    });
  }

  #row(/** @type {Stream} */ stream) {
    const row = this.body.insertRow();
    for (const { name, figure } of COLUMNS) {
      const cell = row.insertCell();
      cell.className = figure ? "figure" : name;
      cell.dataset.label = say(name);
      cell.append(Object.assign(document.createElement("span"), { dir: "auto" }));
    }
    row.insertCell().className = "action";
    this.#rows.set(stream.id, row);
    this.#offer(row, stream.id);
    return row;
  }

  #order(/** @type {Stream[]} */ shown) {
    const { key, down } = this.#sort;
    const by = /** @type {keyof Stream} */ (key);
    const sorted = [...shown].sort((a, b) => compare(a[by], b[by]) * (down ? -1 : 1));
    const rows = sorted.flatMap(({ id }) => this.#rows.get(id) ?? []);
    rows.forEach((row, index) => this.body.rows[index] !== row && this.body.insertBefore(row, this.body.rows[index] ?? null));
  }

  #note(/** @type {number} */ shown, /** @type {boolean} */ filtered) {
    const listed = this.#streams.length;
    const more = this.#running > listed;
    const text = filtered ? say("matching", count(shown), count(listed)) : more ? say("listed", count(listed), count(this.#running)) : listed ? count(listed) : "";
    write(element("count"), text);
    this.table.hidden = !this.#rows.size;
    element("empty").hidden = Boolean(this.#rows.size);
    if (!this.#rows.size) this.#empty(filtered && listed > 0);
  }

  #empty(/** @type {boolean} */ filtered) {
    const place = element("empty");
    const url = filtered ? null : this.open();
    const text = filtered ? say("noMatch") : url ? say("noStreamsOpen", url) : say("noStreams");
    if (place.textContent === text) return;
    const [before, after] = url ? text.split(url) : [text, ""];
    const link = url ? [Object.assign(document.createElement("a"), { href: url, textContent: url, target: "_blank", rel: "noreferrer" })] : [];
    place.replaceChildren(before, ...link, after);
  }

  // -- stopping a stream, in its row: "Stop", then "End it" or "Keep", then it is gone --

  #offer(/** @type {HTMLTableRowElement} */ row, /** @type {string} */ id) {
    const button = this.#button(say("stop"), say("stopNamed", id), () => this.#ask(row, id));
    row.cells[COLUMNS.length].replaceChildren(button);
    return button;
  }

  #ask(/** @type {HTMLTableRowElement} */ row, /** @type {string} */ id) {
    const keep = this.#button(say("stopNo"), "", () => this.#offer(row, id).focus());
    const end = this.#button(say("stopYes"), `${say("stopNamed", id)}: ${say("stopYes")}`, () => this.#end(row, id));
    end.className = "danger";
    // "Keep" comes last, where "Stop" was: the second click of a double click does no harm.
    row.cells[COLUMNS.length].replaceChildren(end, keep);
    for (const button of [end, keep]) button.addEventListener("keydown", ({ key }) => key === "Escape" && keep.click());
    end.focus();
  }

  async #end(/** @type {HTMLTableRowElement} */ row, /** @type {string} */ id) {
    row.dataset.ended = "yes";
    row.cells[COLUMNS.length].textContent = say("stopping");
    const told = await this.stop(id);
    row.cells[COLUMNS.length].textContent = "";
    find(row, ".state span").textContent = told || "–";
    if (!told) this.#spare(row, id);
    else setTimeout(() => (this.#drop(id), this.#draw()), FAREWELL);
  }

  #spare(/** @type {HTMLTableRowElement} */ row, /** @type {string} */ id) {
    delete row.dataset.ended;
    this.#offer(row, id).focus();
  }

  #button(/** @type {string} */ text, /** @type {string} */ label, /** @type {() => unknown} */ act) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    if (label) button.setAttribute("aria-label", label);
    button.addEventListener("click", act);
    return button;
  }
}

/** @param {string | number} a @param {string | number} b */
function compare(a, b) {
  return typeof a === "number" ? a - Number(b) : String(a).localeCompare(String(b));
}
