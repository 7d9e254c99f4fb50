/**
 * What failed and what ended: two tables of the newest records, the newest first. What a client, an upstream or a provider
 * chose (a name, a sentence) is shown as text, never read as HTML.
 */

import { write } from "./tables.js";
import { clock, count, duration, latency, say } from "./words.js";

/**
 * @typedef {{when: string, kind: "attempt" | "stream", route: string, upstream: string, target: string, url: string,
 *   status: number | null, code: string, sentence: string, hint: string, request_id: string, trace_id: string,
 *   stream_id: string, principal: string, outcome: string}} Failed
 * @typedef {{when: string, id: string, route: string, principal: string, upstream: string, model: string, outcome: string,
 *   finish_reason: string, seconds: number, first: number | null, input: number, output: number, estimated: boolean,
 *   attempts: number}} Gone
 * @typedef {{failures: Failed[], kept: number, ended: Gone[]}} Past
 */

/**
 * A column: its name, the lines of a cell, and whether they are figures. The first line is the value, further ones are
 * written smaller below it.
 * @template R @typedef {{name: import("./words.js").Word, lines: (record: R) => string[], figure?: boolean}} Column
 */

/** The most lines of a cell. */
const LINES = 3;

/** A table of records, as many rows as there are records. @template R */
class Listing {
  #body;
  #columns;
  #hue;

  /** @param {string} id of the table @param {Column<R>[]} columns @param {(record: R) => string} hue the colour of a row's dot */
  constructor(id, columns, hue) {
    this.table = /** @type {HTMLTableElement} */ (document.getElementById(id));
    this.frame = /** @type {HTMLElement} */ (this.table.parentElement);
    const section = /** @type {HTMLElement} */ (this.table.closest("section"));
    this.count = /** @type {HTMLElement} */ (section.querySelector(".count"));
    this.empty = /** @type {HTMLElement} */ (section.querySelector(".empty"));
    this.#body = this.table.tBodies[0];
    this.#columns = columns;
    this.#hue = hue;
    const head = /** @type {HTMLTableSectionElement} */ (this.table.tHead).rows[0];
    for (const { name, figure } of columns) {
      const cell = head.appendChild(document.createElement("th"));
      cell.scope = "col";
      cell.dataset.key = name;
      cell.textContent = say(name);
      cell.classList.toggle("figure", Boolean(figure));
    }
    this.show([], 0);
  }

  /** @param {R[]} records @param {number} kept how many the gateway has */
  show(records, kept) {
    const { rows } = this.#body;
    while (rows.length > records.length) rows[rows.length - 1].remove();
    while (rows.length < records.length) this.#row();
    records.forEach((record, index) => this.#fill(rows[index], record));
    write(this.count, kept > records.length ? say("newest", count(records.length), count(kept)) : records.length ? count(kept) : "");
    this.frame.hidden = !records.length;
    this.empty.hidden = Boolean(records.length);
  }

  #row() {
    const row = this.#body.insertRow();
    for (const { name, figure } of this.#columns) {
      const cell = row.insertCell();
      cell.className = figure ? `figure ${name}` : name;
      cell.dataset.label = say(name);
    }
  }

  /** @param {HTMLTableRowElement} row @param {R} record */
  #fill(row, record) {
    row.dataset.hue = this.#hue(record);
    this.#columns.forEach(({ lines }, index) => {
      const cell = row.cells[index];
      const texts = lines(record).filter(Boolean).slice(0, LINES);
      while (cell.children.length > texts.length) cell.lastElementChild?.remove();
      texts.forEach((text, line) => {
        const place = /** @type {HTMLElement} */ (cell.children[line] ?? cell.appendChild(Listing.#line(line)));
        if (place.textContent !== text) [place.textContent, place.title] = [text, text];
      });
    });
  }

  static #line(/** @type {number} */ line) {
    return Object.assign(document.createElement("span"), { dir: "auto", className: line ? "more" : "" });
  }
}

/** @extends {Listing<Failed>} */
export class Failures extends Listing {
  constructor() {
    super(
      "failures",
      [
        { name: "when", lines: ({ when }) => [clock(when)] },
        { name: "kind", lines: ({ kind, outcome }) => [say(kind), outcome] },
        { name: "route", lines: ({ route, principal }) => [route, principal] },
        { name: "where", lines: ({ upstream, target, url }) => [upstream, url || target] },
        { name: "code", lines: ({ code, status }) => [code, status === null ? "" : say("status", String(status))] },
        { name: "what", lines: ({ sentence, hint }) => [sentence || hint || "–", sentence ? hint : ""] },
        { name: "request", lines: ({ request_id, trace_id }) => [request_id, trace_id] },
      ],
      ({ kind }) => (kind === "stream" ? "--bad" : "--busy"),
    );
  }
}

/** Colours of outcomes; those that are not here are failures. @type {Record<string, string>} */
const HUES = { completed: "--good", stopped: "--faint", client_gone: "--faint", drained: "--busy", slow_reader: "--busy", budget: "--busy", auth_expired: "--busy" };

/** @extends {Listing<Gone>} */
export class Ended extends Listing {
  constructor() {
    super(
      "ended",
      [
        { name: "when", lines: ({ when }) => [clock(when)] },
        { name: "id", lines: ({ id }) => [id] },
        { name: "route", lines: ({ route }) => [route] },
        { name: "principal", lines: ({ principal }) => [principal] },
        { name: "upstream", lines: ({ upstream, model }) => [[upstream, model].filter(Boolean).join(" · ")] },
        { name: "outcome", lines: ({ outcome }) => [outcome] },
        { name: "finish", lines: ({ finish_reason }) => [finish_reason || "–"] },
        { name: "seconds", lines: ({ seconds }) => [duration(seconds)], figure: true },
        { name: "first", lines: ({ first }) => [first === null ? "–" : latency(first)], figure: true },
        { name: "tokens", lines: tokens, figure: true },
      ],
      ({ outcome }) => HUES[outcome] ?? "--bad",
    );
  }
}

function tokens(/** @type {Gone} */ { input, output, estimated }) {
  return [say(estimated ? "tokensAbout" : "tokensOf", count(input), count(output))];
}
