/**
 * Markdown as elements, while it grows.
 *
 * - No text of an answer is ever read as HTML: the parser's tokens become elements of a fixed set, one by one.
 * - Nothing is loaded for an answer: an image is a link.
 * - While a text grows, only its last block is parsed again, so a long answer costs no more than a short one. Nodes are
 *   changed in place, so a selection survives. At its end the text is parsed once as a whole.
 * - Without the parser (see lib/) the text is shown as it is written.
 */

/** @import { Token } from "./lib/markdown.js" */
import { speak, words } from "./words.js";

const TAGS = new Set("p h1 h2 h3 h4 h5 h6 blockquote ul ol li hr table thead tbody tr th td em strong s code".split(" "));
const SPOKEN = new Set("p h3 h4 h5 h6 li th td blockquote".split(" "));
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const MAX_LENGTH = 400_000; // of a block that grows: a longer one is shown as it is written

/** @type {typeof import("./lib/markdown.js").parser | null} */ let parser = null;
/** Resolves when it is known whether there is a parser. */
export const ready = import("./lib/markdown.js").then(
  (library) => (parser = library.parser),
  () => null,
);

export class Prose {
  #root;
  #settle;
  #source = "";
  #settled = 0;
  #blocks = 0;
  #said = 0;
  #env = {};

  /** @param {HTMLElement} root @param {(block: Element) => void} settle is given every block when it is whole */
  constructor(root, settle = () => {}) {
    this.#root = root;
    this.#settle = settle;
  }

  /** Shows this text; `growing`: more is to come. */
  write(/** @type {string} */ text, growing = false) {
    const source = text.replace(/\r\n?/g, "\n");
    const replaced = !source.startsWith(this.#source);
    if (replaced) this.#said = 0;
    if (replaced || !growing) this.#begin();
    this.#source = source;
    const rest = source.slice(this.#settled);
    const blocks = blocksOf(rest, growing, this.#env);
    graft(this.#root, blocks.map(({ tokens }) => built(tokens)), this.#blocks);
    if (growing) this.#keep(blocks, rest);
    this.#say(growing ? this.#blocks : this.#root.children.length);
  }

  #begin() {
    this.#settled = this.#blocks = 0;
    this.#env = {};
  }

  /** All blocks but the last are whole: they are not read again. @param {Block[]} blocks @param {string} rest */
  #keep(blocks, rest) {
    if (blocks.length < 2) return;
    this.#blocks += blocks.length - 1;
    this.#settled += offsetOf(rest, blocks[blocks.length - 1].line);
  }

  #say(/** @type {number} */ count) {
    for (; this.#said < count; this.#said += 1) this.#settle(this.#root.children[this.#said]);
  }
}

/** @typedef {{tokens: Token[], line: number}} Block an outermost block of a text, and the line that it begins in */

/** The text's blocks. @param {string} text @param {boolean} growing @param {object} env @returns {Block[]} */
function blocksOf(text, growing, env) {
  if (!parser || text.length > MAX_LENGTH) return [{ tokens: [plain(text)], line: 0 }];
  /** @type {Block[]} */ const blocks = [];
  for (const token of parser.parse(growing ? mended(text) : text, env)) {
    if (token.level === 0 && token.nesting >= 0) blocks.push({ tokens: [], line: token.map?.[0] ?? 0 });
    blocks.at(-1)?.tokens.push(token);
  }
  return blocks;
}

/** @returns {Token} */
function plain(/** @type {string} */ content) {
  const none = { tag: "", level: 0, map: null, info: "", hidden: false, children: null, attrGet: () => null };
  return { ...none, type: "plain", nesting: 0, content };
}

/** Where a line begins. @param {string} text @param {number} line */
function offsetOf(text, line) {
  let offset = 0;
  for (let passed = 0; passed < line; passed += 1) offset = text.indexOf("\n", offset) + 1;
  return offset;
}

/** Closes the marks that the last paragraph has opened, so that half an emphasis does not show its stars. */
function mended(/** @type {string} */ text) {
  if ((text.match(/^ {0,3}(```|~~~)/gm) ?? []).length % 2) return text;
  const tail = text.slice(text.lastIndexOf("\n\n") + 1).replace(/(`+)[^`]+\1/g, "");
  if (tail.includes("`")) return /`$/.test(text) ? text.replace(/`+$/, "") : `${text}\``;
  const open = ["**", "~~"].filter((mark) => (tail.split(mark).length - 1) % 2);
  const trimmed = text.replace(/[*~_]+$/, "");
  return open.reduce((whole, mark) => (trimmed === text ? whole + mark : whole), open.length ? trimmed : text);
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
  for (const token of tokens) {
    const into = open[open.length - 1];
    if (token.nesting < 0) {
      open.pop();
      continue;
    }
    const node = token.type === "text" ? token.content : elementOf(token);
    into.append(node);
    if (token.nesting > 0 && node instanceof Element) open.push(node);
  }
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
  plain: ({ content }) => Object.assign(document.createElement("p"), { className: "plain", dir: "auto", textContent: content }),
  softbreak: () => document.createElement("br"),
  hardbreak: () => document.createElement("br"),
  hr: () => document.createElement("hr"),
  fence: ({ content, info }) => codeBlock(content, info.trim().split(/\s/)[0]),
  code_block: ({ content }) => codeBlock(content, ""),
  link_open: (token) => link(token.attrGet("href")),
  image: (token) => image(token),
  ordered_list_open: (token) => Object.assign(document.createElement("ol"), { start: Number(token.attrGet("start") ?? 1) }),
  table_open: () => table(),
  th_open: (token) => cell("th", token),
  td_open: (token) => cell("td", token),
};

/** @param {string} content @param {string} language */
function codeBlock(content, language) {
  const node = copyOf("code");
  find(node, ".language").textContent = language;
  find(node, "code").textContent = content;
  return node;
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

/** Makes the children of a node, from an index on, like these; what is alike stays. @param {Node} parent @param {Node[]} fresh */
function graft(parent, fresh, from = 0) {
  /** @type {ChildNode | null} */ let old = parent.childNodes[from] ?? null;
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
  if (old.nodeName !== node.nodeName || old.nodeName === "A") return false;
  if (old instanceof Text && node instanceof Text) extend(old, node.data);
  else if (old.nodeName !== "BUTTON") graft(old, [...node.childNodes]);
  if (old instanceof HTMLOListElement && node instanceof HTMLOListElement) old.start = node.start;
  if (old instanceof Element && node instanceof Element && old.className !== node.className) old.className = node.className;
  return true;
}

/** @param {Text} text @param {string} data */
function extend(text, data) {
  if (data.startsWith(text.data)) data.length > text.data.length && text.appendData(data.slice(text.data.length));
  else text.data = data;
}
