/**
 * Formulas as MathML, which the browsers draw by themselves.
 *
 * - The library's tree becomes elements of a fixed set with attributes of a fixed set: no link, image, style or script.
 * - What it makes is bounded in number and in depth. What is more, what cannot be read, and what is half written is shown as
 *   it is written.
 */

/** @import { MathNode, Token } from "./lib/markdown.js" */

const MATHML = "http://www.w3.org/1998/Math/MathML";
const TAGS = new Set(
  "math mrow mi mn mo mtext mspace ms msub msup msubsup munder mover munderover mmultiscripts mprescripts mfrac msqrt mroot mtable mtr mtd mpadded mphantom mstyle".split(" "),
);
const WORDS = new Set(
  "displaystyle scriptlevel mathvariant fence form stretchy symmetric largeop movablelimits accent accentunder columnspan rowspan".split(" "),
);
const LENGTHS = new Set("lspace rspace minsize maxsize linethickness width height depth voffset".split(" "));
/** A length that moves nothing over what stands beside the formula. */
const LENGTH = /^(-?0?\.\d{1,6}|-?[01](\.\d{1,6})?|\d{1,2}(\.\d{1,6})?)(em|ex|pt|px|%)?$/;
const CLASSES = new Set("tml-left tml-right tml-jot tml-overline tml-underline".split(" "));
const MAX = { nodes: 5_000, depth: 60, kept: 300 };

/** Formulas that were built, the last ones: a block that grows is built anew with every piece. @type {Map<string, Element | null>} */
const kept = new Map();

/** @param {Token} token @param {((content: string, display: boolean) => MathNode | null) | null} read @returns {HTMLElement} */
export function formula({ type, content, markup, info }, read) {
  const display = markup !== "$" && markup !== "\\(";
  const node = document.createElement(type === "math_block" ? "div" : "span");
  node.className = display ? "math display" : "math";
  const drawn = info || !read ? null : drawing(content, display, read);
  if (display) node.tabIndex = 0; // so that keys can scroll a wide one
  if (!drawn) node.classList.add("source");
  node.append(drawn ?? content);
  return node;
}

/** @param {string} content @param {boolean} display @param {(content: string, display: boolean) => MathNode | null} read */
function drawing(content, display, read) {
  const key = `${display} ${content}`;
  if (!kept.has(key)) {
    const tree = read(content, display);
    const math = tree && built(tree, { nodes: MAX.nodes }, MAX.depth);
    if (math instanceof Element) math.setAttribute("alttext", content);
    if (math instanceof Element && display) math.setAttribute("display", "block");
    if (kept.size >= MAX.kept) kept.delete(kept.keys().next().value ?? "");
    kept.set(key, math instanceof Element ? math : null);
  }
  return kept.get(key)?.cloneNode(true) ?? null;
}

/** null where it would be too much. @param {MathNode} tree @param {{nodes: number}} room @param {number} depth @returns {Node | null} */
function built(tree, room, depth) {
  if ((room.nodes -= 1) < 0 || depth < 0) return null;
  if (tree.text !== undefined) return document.createTextNode(tree.text);
  const node = tree.type ? document.createElementNS(MATHML, TAGS.has(tree.type) ? tree.type : "mrow") : document.createDocumentFragment();
  if (node instanceof Element) dress(node, tree);
  for (const child of tree.children ?? []) {
    const inner = built(child, room, depth - 1);
    if (!inner) return null;
    node.appendChild(inner);
  }
  return node;
}

/** @param {Element} node @param {MathNode} tree */
function dress(node, { attributes = {}, classes = [], style = {} }) {
  for (const [name, value] of Object.entries(attributes)) {
    if (WORDS.has(name) ? /^[\w-]{1,20}$/.test(value) : LENGTHS.has(name) && LENGTH.test(value)) node.setAttribute(name, value);
  }
  const known = classes.filter((name) => CLASSES.has(name));
  if (style.border) known.push("boxed");
  if (attributes.notation?.includes("diagonal")) known.push("struck");
  if (known.length) node.setAttribute("class", known.join(" "));
}
