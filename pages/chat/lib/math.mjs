/**
 * Formulas in Markdown, `$…$`, `$$…$$`, `\(…\)` and `\[…\]`, and the tree of MathML that stands for one.
 *
 * - A dollar is far more often a price or a variable of a shell than a formula, so `$` is read narrowly.
 * - Reading is linear: what closes a formula is looked for once in a text, and a formula has at most MAX_LENGTH characters.
 * - While a text grows (`env.growing`), a formula that is begun is a token with the info `half`.
 */
import temml from "temml";

const MAX_LENGTH = 2_000; // characters of a formula
const MAX_DEPTH = 24; // of braces: the reader of formulas calls itself for each
const MAX_CHEMISTRY = 5; // of braces where there is chemistry: some of its arrows write what stands over them twice
const MAX_EXPANSIONS = 300; // of macros, in a formula
const MAX_EM = 20; // of a length that a formula asks for
const CLOSING = { "$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]" };
/** Commands that define others, or that write their argument more than once, so that nesting them doubles the work. */
const GROWING = /\\([egx]?def|(re|provide|declare|x)?newcommand|let|futurelet|global|long|math(choice|palette)|(math)?[lrc]lap|cancelto|equilibrium(Left|Right))(?![a-z])/i;
/** Commands that only formulas of a page's own author may have. */
const FOREIGN = /\\(href|url|includegraphics|class|id|style|data|html\w*|tag|label|(eq)?ref)(?![a-z])/i;

/** Where what opens at a place is closed: for each state of the parser, the next closing and from where it was looked for. */
const found = new WeakMap();

/** The next closing behind a place that no backslash escapes, or -1. @param {object} state @param {string} closing @param {number} from */
function closingOf(state, closing, from) {
  if (!found.has(state)) found.set(state, {});
  const known = found.get(state)[closing];
  if (known && known.from <= from && (known.at === -1 || known.at >= from)) return known.at;
  const { src } = state;
  let at = src.indexOf(closing, from);
  while (at !== -1 && isEscaped(src, at)) at = src.indexOf(closing, at + 1);
  found.get(state)[closing] = { from, at };
  return at;
}

/** Whether an odd number of backslashes stands before a place. */
function isEscaped(text, at) {
  let before = at;
  while (text[before - 1] === "\\") before -= 1;
  return (at - before) % 2 === 1;
}

function openingAt(text, at) {
  if (text[at] === "$") return text[at + 1] !== "$" ? "$" : text[at + 2] !== "$" ? "$$" : "";
  const two = text.slice(at, at + 2);
  return two === "\\(" || two === "\\[" ? two : "";
}

/** Whether what stands between two double dollars is a formula, and no words between two marks for what is dear. */
function isDisplayed(content, after) {
  return Boolean(content.trim()) && after !== "$" && !(/[A-Za-z]{2}[,.]?\s|[^\x00-\u2fff]/.test(content) && !/[\\^_=+<>{}*\/\d]/.test(content));
}

/** Whether what stands between two single dollars is a formula, and no prices. */
function isFormula(content, before, after) {
  if (/[A-Za-z0-9$]/.test(before) || /[A-Za-z0-9$]/.test(after) || content !== content.trim() || content.includes("\n\n")) return false;
  const words = content.replace(/\\[A-Za-z]+|\{[^{}]*\}/g, " ");
  return !(/^[\d.,]+/.test(content) && /[A-Za-z]{2}|[^\x00-\u2fff]/.test(words));
}

/** A formula in a paragraph. */
function inline(state, silent) {
  const { src, pos, posMax, env } = state;
  const opening = openingAt(src, pos);
  if (!opening || (opening[0] === "$" && src[pos - 1] === "$")) return false;
  const from = pos + opening.length;
  const closing = CLOSING[opening];
  const at = closingOf(state, closing, from);
  const open = at === -1 || at + closing.length > posMax;
  const content = src.slice(from, open ? Math.min(posMax, from + MAX_LENGTH + 1) : Math.min(at, from + MAX_LENGTH + 1));
  const before = src[pos - 1] ?? "";
  const after = src[at + closing.length] ?? "";
  if (content.length > MAX_LENGTH) return false;
  if (open ? !(env?.growing && posMax === src.length && isHalf(opening, content)) : !isWhole(opening, content, before, after)) return false;
  if (!silent) add(state, "math_inline", content, opening, open);
  state.pos = open ? posMax : at + closing.length;
  return true;
}

function isWhole(opening, content, before, after) {
  if (opening === "$") return isFormula(content, before, after);
  return opening === "$$" ? isDisplayed(content, after) : Boolean(content.trim());
}

/** Whether a formula that is begun at the end of a growing text is shown as one. Behind dollars it has to look like TeX. */
function isHalf(opening, content) {
  return opening[0] === "\\" || /^\s*\\|^[^\d\n][^\n]*[\\^_{]/.test(opening === "$" ? content.replace(/^\s/, "0") : content);
}

function add(state, type, content, opening, half) {
  const token = state.push(type, "math", 0);
  token.content = content.trim();
  token.markup = opening;
  token.info = half ? "half" : "";
  return token;
}

/** A formula that has its lines for itself; with its marks alone on theirs, it may have empty ones between. */
function block(state, first, end, silent) {
  const start = state.bMarks[first] + state.tShift[first];
  const opening = openingAt(state.src, start);
  if ((opening !== "$$" && opening !== "\\[") || state.sCount[first] - state.blkIndent >= 4) return false;
  const closing = CLOSING[opening];
  const alone = state.src.slice(start + 2, state.eMarks[first]).trim() === "";
  let content = "";
  let line = first;
  let half = true;
  for (; half && line < end; line += 1) {
    const from = line === first ? start + 2 : state.bMarks[line] + state.tShift[line];
    const text = state.src.slice(from, state.eMarks[line]).trimEnd();
    if (line > first && state.sCount[line] < state.blkIndent && text) break;
    if (!text && !alone && line > first) break;
    const at = text.indexOf(closing);
    half = at === -1 || isEscaped(text, at);
    if (!half && !/^[.,;:。，；：]?$/.test(text.slice(at + 2))) return false;
    content += (half ? text : text.slice(0, at)) + "\n";
    if (content.length > MAX_LENGTH) return false;
  }
  if (half && !(state.env?.growing && line >= state.lineMax && ((alone && line > first + 1) || isHalf(opening, content)))) return false;
  if (!half && !isWhole(opening, content, "", "")) return false;
  if (silent) return true;
  state.line = line;
  add(state, "math_block", content, opening, half).map = [first, line];
  return true;
}

/** Lets a parser read formulas. */
export function math(parser) {
  parser.inline.ruler.before("escape", "math_inline", inline);
  parser.block.ruler.before("fence", "math_block", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
}

/** The MathML of a formula as a tree; null where it cannot be read, or is more than a page should bear. */
export function formula(content, displayMode) {
  const deepest = /\\(ce|pu)(?![A-Za-z])/.test(content) ? MAX_CHEMISTRY : MAX_DEPTH;
  if (content.length > MAX_LENGTH || depthOf(content) > deepest || GROWING.test(content) || FOREIGN.test(content)) return null;
  try {
    const options = { displayMode, throwOnError: true, trust: false, maxExpand: MAX_EXPANSIONS, maxSize: [MAX_EM, MAX_EM * 12] };
    return temml.__renderToMathMLTree(content, options);
  } catch {
    return null; // what is no formula is shown as it is written
  }
}

/** How deep its groups stand in each other: braces, environments, and brackets that grow. */
function depthOf(content) {
  let depth = 0;
  let deepest = 0;
  for (const [mark] of content.matchAll(/\\[{}]|\\(?:left|begin|right|end)(?![A-Za-z])|[{}]/g)) {
    if (mark === "{" || mark === "\\left" || mark === "\\begin") deepest = Math.max(deepest, ++depth);
    else if (mark === "}" || mark === "\\right" || mark === "\\end") depth -= 1;
  }
  return deepest;
}
