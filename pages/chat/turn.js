/** A question and its answer on the page. */

/** @import * as Types from "../client.js" */
/** @import { Turn } from "./chats.js" */

import { Prose } from "./markdown.js";
import { advice, advised, cut, figure, languageOf, speak, words } from "./words.js";

/** Characters of an answer under way that say which language it is in. */
const MAX_READ = 4_000;
const NOTHING = { begun: 0, answer: "", count: 0 };
/** The answer whose characters were counted last. */
let counted = NOTHING;

/**
 * The two articles of a turn, and how they are brought up to date.
 * @param {Turn} turn
 * @param {(block: Element) => void} [say] is given every block of the answer when it is whole
 */
export function view(turn, say) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById("turn"));
  const part = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
  speak(part);
  const [question, answer] = elementsOf(part);
  const [thinking, text, tools, note, why, actions] = elementsOf(answer);
  const details = /** @type {HTMLDetailsElement} */ (thinking);
  question.ariaLabel = words.question;
  elementsOf(question)[1].textContent = turn.question;
  question.lang = languageOf(turn.question);
  answer.ariaLabel = words.answer;
  let chosen = false;
  elementsOf(details)[0].addEventListener("click", () => (chosen = true));
  const prose = new Prose(text, say);
  let written = "";

  function update(/** @type {boolean} */ last) {
    const growing = turn.outcome === "pending";
    answer.ariaBusy = String(growing);
    answer.lang = languageOf((turn.answer || turn.thinking).slice(0, growing ? MAX_READ : undefined));
    showThinking(details, turn, chosen);
    const state = `${growing} ${turn.answer.length}`;
    if (state !== written) prose.write(turn.answer, growing);
    written = state;
    showTools(tools, turn);
    showNote(note, turn, last);
    showWhy(/** @type {HTMLDetailsElement} */ (why), turn, last);
    showActions(actions, turn, last);
  }

  return { nodes: [question, answer], turn, update };
}

/** The template has them, so they are there. @returns {HTMLElement[]} */
const elementsOf = (/** @type {ParentNode} */ parent) => /** @type {HTMLElement[]} */ ([...parent.children]);

/** Open while the model only thinks, unless the visitor chose. @param {HTMLDetailsElement} details @param {Turn} turn @param {boolean} chosen */
function showThinking(details, turn, chosen) {
  const [summary, body] = elementsOf(details);
  details.hidden = !turn.thinking;
  if (!chosen) details.open = turn.outcome === "pending" && !turn.answer && !turn.tools.length;
  elementsOf(summary)[1].textContent = turn.thought ? figure("seconds", turn.thought.toFixed(1)) : "";
  const written = body.firstChild;
  if (written instanceof Text && turn.thinking.startsWith(written.data)) written.appendData(turn.thinking.slice(written.length));
  else if (body.textContent !== turn.thinking) body.textContent = turn.thinking;
}

/** A line for each call; while its arguments grow, only what is new is added. @param {HTMLElement} list @param {Turn} turn */
function showTools(list, { tools }) {
  const calls = tools.filter(Boolean);
  while (list.children.length > calls.length) list.lastElementChild?.remove();
  calls.forEach(({ name, arguments: text }, index) => {
    const node = list.children[index] ?? list.appendChild(document.createElement("li"));
    const [head, written, end] = node.childNodes;
    if (head instanceof Text && written instanceof Text && head.data === `${name}(` && text.startsWith(written.data)) {
      if (text.length > written.length) written.appendData(text.slice(written.length));
    } else if (!end || node.textContent !== `${name}(${text})`) node.replaceChildren(`${name}(`, text, ")");
  });
}

/** @param {HTMLElement} note @param {Turn} turn @param {boolean} last whether it is the last turn, which can be asked again */
function showNote(note, turn, last) {
  const [text, retry] = elementsOf(note);
  const failed = turn.outcome === "error";
  const shortened = cut(turn);
  note.hidden = !failed && !shortened && turn.outcome !== "stopped";
  note.dataset.outcome = shortened ? "cut" : turn.outcome;
  text.textContent = failed ? advice(turn.error, Boolean(turn.details)) : shortened || words.stopped;
  retry.hidden = !last || Boolean(shortened && turn.answer); // which has a button of its own
}

/** What the gateway knows of an error, for who runs it. What a provider said is shown as text. @param {HTMLDetailsElement} why @param {Turn} turn @param {boolean} last */
function showWhy(why, { outcome, details }, last) {
  why.hidden = outcome !== "error" || !details;
  const list = elementsOf(why)[1];
  if (why.hidden || !details || list.children.length) return;
  const { hint, sentence, code, upstream, target, url, status, request_id: request } = details;
  /** @type {[import("./words.js").Word, string][]} */
  const rows = [
    ["whyHint", advised(hint)],
    ["whySentence", sentence],
    ["whyCode", code],
    ["whyUpstream", [upstream, target].filter(Boolean).join(" · ")],
    ["whyUrl", url],
    ["whyStatus", status === null ? "" : String(status)],
    ["whyRequest", request],
  ];
  for (const [name, value] of rows) {
    if (!value) continue;
    const [term, description] = ["dt", "dd"].map((tag) => document.createElement(tag));
    term.textContent = words[name];
    description.textContent = value;
    description.dir = "auto";
    description.className = name;
    list.append(term, description);
  }
  why.open = last;
}

/** @param {HTMLElement} actions @param {Turn} turn @param {boolean} last */
function showActions(actions, turn, last) {
  const [, regenerate, model, text] = elementsOf(actions);
  actions.hidden = turn.outcome === "pending" || !turn.answer;
  regenerate.hidden = !last || turn.outcome !== "done";
  model.hidden = !turn.model;
  model.textContent = model.title = turn.model ?? "";
  text.textContent = figures(turn).join(" · ");
}

/** How many characters the answer has, a pair of surrogates being one. While it grows, only what is new is counted. */
function charactersOf(/** @type {Turn} */ { begun, answer, outcome }) {
  if (counted.answer === answer && counted.begun === begun) return counted.count;
  const grown = counted.begun === begun && outcome === "pending" && counted.answer.length < answer.length;
  const { answer: before, count } = grown ? counted : NOTHING;
  counted = { begun, answer, count: count + (answer.slice(before.length).match(/[^\udc00-\udfff]/g)?.length ?? 0) };
  return counted.count;
}

/** How long, how much, how fast. @returns {string[]} */
export function figures(/** @type {Turn} */ turn) {
  const seconds = turn.seconds ?? (Date.now() - turn.begun) / 1000;
  const tokens = turn.usage?.completion_tokens;
  const length = turn.answer && figure("characters", charactersOf(turn));
  const speed = tokens && tokens > 1 && turn.first !== undefined ? tokens / Math.max(seconds - turn.first, 0.001) : 0;
  const all = [
    figure("seconds", seconds.toFixed(1)),
    tokens ? figure("tokens", tokens) : length,
    speed ? figure("speed", speed.toFixed(speed < 10 ? 1 : 0)) : "",
    turn.first === undefined ? "" : figure("first", turn.first.toFixed(2)),
  ];
  return all.filter((text) => text !== "");
}
