/**
 * Markdown as elements, while it grows.
 *
 * - No text of an answer is ever read as HTML: the parser's tokens become elements of a fixed set, one by one.
 * - Nothing is loaded for an answer: an image is a link.
 * - While a text grows, only its last block is parsed again, and a long block only when it has grown by a part of itself;
 *   until then what came stands below it as it is written. So the work grows with the text's length, not with its square.
 * - Nodes are changed in place, so a selection survives. At its end the text is parsed once as a whole.
 * - Elements are bounded in number and in depth: what is too much is shown as it is written.
 * - Without the parser (see lib/) the text is shown as it is written.
 */

/** @import { Piece, Token } from "./lib/markdown.js" */
import { formula } from "./formula.js";
import { speak, words } from "./words.js";

const TAGS = new Set("p h1 h2 h3 h4 h5 h6 blockquote ul ol li hr table thead tbody tr th td em strong s code".split(" "));
const SPOKEN = new Set("p h3 h4 h5 h6 li th td blockquote".split(" "));
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const MAX_LENGTH = 400_000; // of a block that grows: a longer one is shown as it is written
const MAX_NODES = 60_000; // of an answer: the rest of it is shown as it is written
const MAX_DEPTH = 40; // of emphasis and links in each other: what is deeper looks like what it stands in
const MAX_MARKER = 40; // characters, with the white space before it
const MAX_HEAD = 2_000; // of the first row of a table
const MAX_COLOURED = 10_000; // characters of code
const FORMULA = 16;
const MAX_NAME = 40; // of a language that a code block names
/** Characters up to which a block is parsed with every piece; a longer one when it has grown by this part of itself. */
const EAGER = { length: 8_000, part: 1 / 2 };

/** @type {typeof import("./lib/markdown.js").parser | null} */ let parser = null;
/** @type {typeof import("./lib/markdown.js").colours | null} */ let colours = null;
/** @type {typeof import("./lib/markdown.js").formula | null} */ let reader = null;
/** Resolves when it is known whether there is a parser. */
export const ready = import("./lib/markdown.js").then(
  (library) => ({ parser, colours, formula: reader } = library),
  () => null,
);

export class Prose {
  #root;
  #settle;
  #source = "";
  #settled = 0; // characters in blocks that are whole
  #nodes = 0; // in those blocks
  /** @type {ChildNode | null} */ #edge = null; // the last of those blocks
  #said = 0; // blocks that `settle` was given
  #due = 0; // the length at which the growing block is parsed again
  /** @type {{growing?: boolean}} */ #env = {};

  /** @param {HTMLElement} root @param {(block: Element) => void} settle is given every block when it is whole */
  constructor(root, settle = () => {}) {
    this.#root = root;
    this.#settle = settle;
  }

  /** Shows this text; `growing`: more is to come. */
  write(/** @type {string} */ text, growing = false) {
    const source = text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
    const replaced = !source.startsWith(this.#source);
    const shown = replaced ? 0 : this.#source.length;
    if (replaced) this.#said = 0;
    if (replaced || (!growing && source.length <= MAX_LENGTH)) this.#begin();
    this.#source = source;
    if (growing && source.length < this.#due) return this.#append(source.slice(shown));
    this.#parse(growing);
  }

  #begin() {
    this.#settled = this.#nodes = this.#due = 0;
    this.#edge = null;
    this.#env = {};
  }

  #parse(/** @type {boolean} */ growing) {
    const rest = this.#source.slice(this.#settled);
    const blocks = blocksOf(rest, growing, this.#env, MAX_NODES - this.#nodes);
    graft(this.#root, blocks.map(({ tokens }) => built(tokens)), this.#edge ? this.#edge.nextSibling : this.#root.firstChild);
    if (growing) this.#keep(blocks, rest);
    else for (const block of [...this.#root.children].slice(this.#said)) this.#say(block);
  }

  /** All blocks but the last are whole: they are not read again. @param {Block[]} blocks @param {string} rest */
  #keep(blocks, rest) {
    const last = blocks.pop();
    const old = this.#edge;
    for (const { nodes } of blocks) {
      this.#edge = /** @type {ChildNode} */ (this.#edge ? this.#edge.nextSibling : this.#root.firstChild);
      this.#nodes += nodes;
      if (this.#edge instanceof Element) this.#say(this.#edge);
    }
    if (this.#edge !== old && last) this.#settled += offsetOf(rest, last.line);
    const length = this.#source.length - this.#settled;
    if (last?.plain) this.#due = Infinity;
    else this.#due = length > EAGER.length ? this.#source.length + length * EAGER.part : 0;
  }

  /** Shows what came since the growing block was parsed: in it, where it is code or as written, or else below it. */
  #append(/** @type {string} */ text) {
    let last = this.#root.lastElementChild;
    if (!last?.matches(".plain, .code")) this.#root.append((last = elementOf(plain(""))));
    const place = last.querySelector("code") ?? last;
    if (place.lastChild instanceof Text) place.lastChild.appendData(text);
    else place.append(text);
  }

  #say(/** @type {Element} */ block) {
    this.#said += 1;
    this.#settle(block);
  }
}

/**
 * An outermost block of a text: the line that it begins in, about how many nodes it makes, and whether it is shown as it is
 * written.
 * @typedef {{tokens: Token[], line: number, nodes: number, plain?: boolean}} Block
 */

/** The text's blocks; from the one on that makes too many nodes, as it is written. @param {string} text @param {boolean} growing @param {{growing?: boolean}} env @param {number} room @returns {Block[]} */
function blocksOf(text, growing, env, room) {
  if (!parser || text.length > MAX_LENGTH) return [asWritten(text, 0)];
  /** @type {Block[]} */ const blocks = [];
  let left = room;
  env.growing = growing;
  for (const token of parser.parse(growing ? mended(text) : text, env)) {
    if (token.level === 0 && token.nesting >= 0) blocks.push({ tokens: [], line: token.map?.[0] ?? 0, nodes: 0 });
    const block = blocks[blocks.length - 1];
    const nodes = [token, ...(token.children ?? [])].reduce((sum, one) => sum + nodesOf(one), 0);
    block.tokens.push(token);
    block.nodes += nodes;
    if ((left -= nodes) < 0) return [...blocks.slice(0, -1), asWritten(text.slice(offsetOf(text, block.line)), block.line)];
  }
  return blocks;
}

/** About how many nodes a token makes. A formula has a few for each character, and costs as much as FORMULA others. */
function nodesOf(/** @type {Token} */ { type, nesting, hidden, content }) {
  if (nesting < 0 || hidden) return 0;
  return type.startsWith("math") ? FORMULA + content.length : 1;
}

/** @returns {Block} */
function asWritten(/** @type {string} */ text, /** @type {number} */ line) {
  return { tokens: [plain(text)], line, nodes: 1, plain: true };
}

/** @returns {Token} */
function plain(/** @type {string} */ content) {
  const none = { tag: "", level: 0, map: null, info: "", markup: "", hidden: false, children: null, attrGet: () => null };
  return { ...none, type: "plain", nesting: 0, content };
}

/** Where a line begins. @param {string} text @param {number} line */
function offsetOf(text, line) {
  let offset = 0;
  for (let passed = 0; passed < line; passed += 1) offset = text.indexOf("\n", offset) + 1;
  return offset;
}

/**
 * The text as it will be read when a little more has come: half an emphasis does not show its stars, the beginning of a
 * table no pipes, and the marker of an item, a heading or a quote nothing until there is something behind it.
 */
function mended(/** @type {string} */ whole) {
  if ((whole.match(/^ {0,3}(```|~~~)/gm) ?? []).length % 2) return whole;
  const marker = /(^|\n)[ \t]*((\d{1,9}[.)]?|[-*+])([ \t]+\[[ xX]?\]?)?|#{1,6}|>)[ \t]*$/.exec(whole.slice(-MAX_MARKER));
  const text = withTable(marker ? whole.slice(0, whole.length - marker[0].length + marker[1].length) : whole);
  const tail = withoutCode(text.slice(text.lastIndexOf("\n\n") + 1));
  if (tail.includes("`")) return text.endsWith("`") ? trimmedEnd(text, "`") : `${text}\``;
  const open = ["**", "~~"].filter((mark) => (tail.split(mark).length - 1) % 2);
  const trimmed = trimmedEnd(text, "*~_");
  return open.reduce((whole, mark) => (trimmed === text ? whole + mark : whole), open.length ? trimmed : text);
}

/** The text with the second row of the table that it has just begun, as only that row makes it one. */
function withTable(/** @type {string} */ text) {
  const begun = /(?:^|\n\n)( {0,3}\|[^\n]*)(\n[ |:-]*)?$/.exec(text.slice(-MAX_HEAD));
  if (!begun) return text;
  const [, head, second = ""] = begun;
  if (!/[^ |]/.test(head)) return text.slice(0, text.length - head.length - second.length);
  const columns = Math.max(1, head.trim().replace(/^\||\|$/g, "").split("|").length);
  return `${text.slice(0, text.length - second.length)}\n|${"---|".repeat(columns)}`;
}

/** The text without what stands between two runs of as many backticks. */
function withoutCode(/** @type {string} */ text) {
  const parts = text.split(/(`+)/); // every second one is a run
  let left = parts[0];
  for (let at = 1; at < parts.length; at += 2) {
    const closed = parts[at + 1] && parts[at + 2] === parts[at];
    if (closed) at += 2;
    else left += parts[at];
    left += parts[at + 1];
  }
  return left;
}

/** The text without these characters at its end. A regular expression would begin anew at each of them. */
function trimmedEnd(/** @type {string} */ text, /** @type {string} */ characters) {
  let end = text.length;
  while (end && characters.includes(text[end - 1])) end -= 1;
  return text.slice(0, end);
}

/** The element of a block. */
function built(/** @type {Token[]} */ tokens) {
  const root = document.createElement("div");
  /** @type {Element[]} */ const open = [root];
  for (const token of tokens) {
    if (token.hidden) continue; // the paragraphs of a tight list
    if (token.nesting < 0) open.pop();
    else open.push(...grown(open[open.length - 1], token));
  }
  return root.firstElementChild ?? root;
}

/** Adds a token to its parent; gives the element that the next ones go into, if it is another. @param {Element} parent @param {Token} token */
function grown(parent, token) {
  if (token.type === "inline") {
    inline(parent, token.children ?? []);
    return [];
  }
  const node = elementOf(token);
  parent.append(node);
  return token.nesting > 0 ? [node.querySelector("table") ?? node] : [];
}

/** Text and what is in it: emphasis, links, code. @param {Element} parent @param {Token[]} tokens */
function inline(parent, tokens) {
  const open = [parent];
  for (const token of withoutBox(parent, tokens)) {
    const into = open[open.length - 1];
    if (token.nesting < 0) {
      open.pop();
      continue;
    }
    if (token.nesting > 0 && open.length > MAX_DEPTH) {
      open.push(into);
      continue;
    }
    const node = token.type === "text" ? token.content : elementOf(token);
    into.append(node);
    if (token.nesting > 0 && node instanceof Element) open.push(node);
  }
}

/** What is left where an item of a list begins with a box, `[ ]` or `[x]`, which becomes one. @param {Element} parent @param {Token[]} tokens */
function withoutBox(parent, tokens) {
  const [first, ...others] = tokens;
  const box = first?.type === "text" ? /^\[([ xX])\] /.exec(first.content) : null;
  const item = parent.nodeName === "LI" ? parent : parent.previousSibling ? null : parent.parentElement;
  if (!box || item?.nodeName !== "LI" || parent.firstChild) return tokens;
  item.className = "task";
  const done = box[1] !== " ";
  const ariaLabel = done ? words.taskDone : words.taskOpen;
  parent.append(Object.assign(document.createElement("input"), { type: "checkbox", disabled: true, checked: done, ariaLabel }));
  return [{ ...first, content: first.content.slice(box[0].length) }, ...others];
}

/** @returns {HTMLElement} */
function elementOf(/** @type {Token} */ token) {
  const special = SPECIAL[token.type];
  if (special) return special(token);
  const heading = /^h([1-6])$/.exec(token.tag); // the page has one h1, and the answer is below it
  const tag = heading ? `h${Math.min(6, Number(heading[1]) + 2)}` : token.tag;
  const node = document.createElement(TAGS.has(token.tag) ? tag : "span");
  if (SPOKEN.has(tag)) node.dir = "auto";
  if (!token.nesting) node.textContent = token.content;
  return node;
}

/** Tokens whose element is more than their tag. @type {Record<string, (token: Token) => HTMLElement>} */
const SPECIAL = {
  plain: ({ content }) => Object.assign(document.createElement("p"), { dir: "auto", className: "plain", textContent: content }),
  softbreak: () => document.createElement("br"),
  hardbreak: () => document.createElement("br"),
  hr: () => document.createElement("hr"),
  fence: ({ content, info }) => codeBlock(content, info.trim().split(/\s/, 1)[0].slice(0, MAX_NAME)),
  code_block: ({ content }) => codeBlock(content, ""),
  link_open: (token) => link(token.attrGet("href")),
  image: (token) => image(token),
  ordered_list_open: (token) => Object.assign(document.createElement("ol"), { start: Number(token.attrGet("start") ?? 1) }),
  table_open: () => table(),
  th_open: (token) => cell("th", token),
  td_open: (token) => cell("td", token),
  math_inline: (token) => formula(token, reader),
  math_block: (token) => formula(token, reader),
};

/** @param {string} content @param {string} language */
function codeBlock(content, language) {
  const node = copyOf("code");
  find(node, ".language").textContent = language;
  find(node, "code").append(...coloured(content, language.toLowerCase()));
  return node;
}

/** Code in its language's colours, which are classes. A long one, and one in an unknown language, has none. @param {string} code @param {string} language @returns {(Node | string)[]} */
function coloured(code, language) {
  if (!colours || code.length > MAX_COLOURED || !colours.registered(language)) return [code];
  /** @type {(piece: Piece) => Node} */
  const shown = ({ value, properties, children = [] }) => {
    if (value !== undefined) return document.createTextNode(value);
    const node = document.createElement("span");
    node.className = (properties?.className ?? []).join(" ");
    node.append(...children.map(shown));
    return node;
  };
  return colours.highlight(language, code).children.map(shown);
}

function link(/** @type {string | null} */ href) {
  const node = document.createElement("a");
  const scheme = href && URL.canParse(href) ? new URL(href).protocol : "";
  if (SCHEMES.has(scheme)) Object.assign(node, { href, target: "_blank", rel: "noopener noreferrer nofollow" });
  return node;
}

/** A link: nothing is loaded for an answer. */
function image(/** @type {Token} */ token) {
  const node = link(token.attrGet("src"));
  node.className = "image";
  node.textContent = token.content || words.image;
  return node;
}

function table() {
  const node = document.createElement("div");
  node.className = "table";
  node.tabIndex = 0;
  node.append(document.createElement("table"));
  return node;
}

/** @param {"th" | "td"} tag @param {Token} token */
function cell(tag, token) {
  const node = document.createElement(tag);
  node.dir = "auto";
  node.className = /right|center/.exec(token.attrGet("style") ?? "")?.[0] ?? "";
  return node;
}

/** The element of a template, with its words. */
export function copyOf(/** @type {string} */ id) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById(id));
  const node = /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true));
  speak(node);
  return node;
}

/** An element that a template has. @param {ParentNode} parent @param {string} selector */
export const find = (parent, selector) => /** @type {HTMLElement} */ (parent.querySelector(selector));

/** Makes the children of a node, from one of them on, like these; what is alike stays. @param {Node} parent @param {Node[]} fresh @param {ChildNode | null} from null: behind all */
function graft(parent, fresh, from = parent.firstChild) {
  let old = from;
  for (const node of fresh) {
    /** @type {ChildNode | null} */ const next = old?.nextSibling ?? null;
    if (!old) parent.appendChild(node);
    else if (!patched(old, node)) old.replaceWith(node);
    old = next;
  }
  while (old) {
    /** @type {ChildNode | null} */ const next = old.nextSibling;
    old.remove();
    old = next;
  }
}

/** Whether a node could be made like another. @param {Node} old @param {Node} node */
function patched(old, node) {
  if (old.nodeName === "math") return old.isEqualNode(node); // its attributes say as much as its children
  if (old.nodeName !== node.nodeName || old.nodeName === "A" || old.nodeName === "INPUT") return false;
  if (old instanceof Text && node instanceof Text) extend(old, node.data);
  else if (old.nodeName !== "BUTTON") graft(old, [...node.childNodes]);
  if (old instanceof HTMLOListElement && node instanceof HTMLOListElement) old.start = node.start;
  if (old instanceof Element && node instanceof Element && old.className !== node.className) {
    if (node.className) old.className = node.className;
    else old.removeAttribute("class");
  }
  return true;
}

/** @param {Text} text @param {string} data */
function extend(text, data) {
  if (data.startsWith(text.data)) data.length > text.data.length && text.appendData(data.slice(text.data.length));
  else text.data = data;
}
