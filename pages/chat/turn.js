/**
 * A question and its answer on the page.
 *
 * A turn is what is kept of them: question, answer, thinking, tools, outcome, error, usage, begun (ms), and the seconds to the
 * first word, of thought and in all. This file does not know where they come from.
 */

import { Prose } from "./markdown.js";
import { advice, figure, languageOf, speak, words } from "./words.js";

/** The two articles of a turn. @param {any} turn @param {(block: Element) => void} say is told of every block that is whole */
export function view(turn, say) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById("turn"));
  const part = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
  speak(part);
  const [question, answer] = /** @type {any} */ (part.children);
  const [thinking, text, tools, note, actions] = answer.children;
  question.ariaLabel = words.question;
  question.lastElementChild.textContent = turn.question;
  question.lang = languageOf(turn.question);
  answer.ariaLabel = words.answer;
  let chosen = false;
  thinking.firstElementChild.addEventListener("click", () => (chosen = true));
  const prose = new Prose(text, say);
  let written = "";

  function update(/** @type {boolean} */ last) {
    const growing = turn.outcome === "pending";
    answer.ariaBusy = String(growing);
    answer.lang = languageOf(turn.answer || turn.thinking);
    showThinking(thinking, turn, chosen);
    const state = `${growing} ${turn.answer.length}`;
    if (state !== written) prose.write(turn.answer, growing);
    written = state;
    tools.replaceChildren(...turn.tools.filter(Boolean).map(tool));
    showNote(note, turn, last);
    showActions(actions, turn, last);
  }

  return { nodes: [question, answer], turn, update };
}

function showThinking(details, turn, chosen) {
  const [summary, body] = details.children;
  details.hidden = !turn.thinking;
  if (!chosen) details.open = turn.outcome === "pending" && !turn.answer && !turn.tools.length;
  summary.lastElementChild.textContent = turn.thought ? figure("seconds", turn.thought.toFixed(1)) : "";
  const old = body.textContent;
  if (old && turn.thinking.startsWith(old)) body.firstChild.appendData(turn.thinking.slice(old.length));
  else if (old !== turn.thinking) body.textContent = turn.thinking;
}

function tool({ name, arguments: text }) {
  const node = document.createElement("li");
  node.textContent = `${name}(${text})`;
  return node;
}

function showNote(note, turn, last) {
  const failed = turn.outcome === "error";
  note.hidden = !failed && turn.outcome !== "stopped";
  note.dataset.outcome = turn.outcome;
  note.firstElementChild.textContent = failed ? advice(turn.error) : words.stopped;
  note.lastElementChild.hidden = !last;
}

function showActions(actions, turn, last) {
  const [, regenerate, text] = actions.children;
  actions.hidden = turn.outcome === "pending" || !turn.answer;
  regenerate.hidden = !last || turn.outcome !== "done";
  text.textContent = figures(turn).join(" · ");
}

/** How long, how much, how fast. */
export function figures(turn) {
  const seconds = turn.seconds ?? (Date.now() - turn.begun) / 1000;
  const tokens = turn.usage?.completion_tokens;
  const length = turn.answer && figure("characters", [...turn.answer].length);
  const speed = tokens && turn.first !== undefined && tokens / Math.max(seconds - turn.first, 0.001);
  return [
    figure("seconds", seconds.toFixed(1)),
    tokens ? figure("tokens", tokens) : length,
    speed && tokens > 1 && figure("speed", speed.toFixed(speed < 10 ? 1 : 0)),
    turn.first !== undefined && figure("first", turn.first.toFixed(2)),
  ].filter(Boolean);
}
