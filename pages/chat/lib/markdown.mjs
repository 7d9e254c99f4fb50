/** The parser of the chat page: CommonMark with tables, no HTML, and emphasis beside Chinese punctuation. */
import MarkdownIt from "markdown-it";
import cjkFriendly from "markdown-it-cjk-friendly";

export const parser = new MarkdownIt("default", { html: false, linkify: true, maxNesting: 40 }).use(cjkFriendly);
