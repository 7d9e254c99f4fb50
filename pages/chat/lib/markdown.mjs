/** What the chat page shows an answer with: CommonMark with tables, no HTML, emphasis beside Chinese punctuation, formulas; colours of code. */
import { common, createLowlight } from "lowlight";
import MarkdownIt from "markdown-it";
import cjkFriendly from "markdown-it-cjk-friendly";
import { math } from "./math.mjs";

export { formula } from "./math.mjs";
export const parser = new MarkdownIt("default", { html: false, linkify: true, maxNesting: 40 }).use(cjkFriendly).use(math);
export const colours = createLowlight(common);
