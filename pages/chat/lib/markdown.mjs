/** What the chat page shows an answer with: CommonMark with tables, no HTML, emphasis beside Chinese punctuation; colours of code. */
import { common, createLowlight } from "lowlight";
import MarkdownIt from "markdown-it";
import cjkFriendly from "markdown-it-cjk-friendly";

export const parser = new MarkdownIt("default", { html: false, linkify: true, maxNesting: 40 }).use(cjkFriendly);
export const colours = createLowlight(common);
