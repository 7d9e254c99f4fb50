/** The bundle that `make page` makes of markdown.mjs: what the chat page uses of markdown-it. */

export interface Token {
  type: string;
  tag: string;
  /** 1 opens an element, -1 closes it, 0 is whole. */
  nesting: -1 | 0 | 1;
  level: number;
  /** The lines of a block, the first and the one behind the last. */
  map: [number, number] | null;
  content: string;
  info: string;
  hidden: boolean;
  /** Of an `inline` token. */
  children: Token[] | null;
  attrGet(name: string): string | null;
}

export const parser: { parse(text: string, env: object): Token[] };
