/** The bundle that `make page` makes of markdown.mjs: what the chat page uses of markdown-it, lowlight and temml. */

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
  /** What a formula begins with. */
  markup: string;
  hidden: boolean;
  /** Of an `inline` token. */
  children: Token[] | null;
  attrGet(name: string): string | null;
}

export const parser: { parse(text: string, env: object): Token[] };

/** A piece of code: a text, or what stands in a colour. */
export interface Piece {
  type: string;
  value?: string;
  properties?: { className?: string[] };
  children?: Piece[];
}

export const colours: {
  registered(language: string): boolean;
  highlight(language: string, code: string): { children: Piece[] };
};

/** A node of a formula: a text, or what it is made of. Without a type it is only its children. */
export interface MathNode {
  type?: string;
  text?: string;
  attributes?: Record<string, string>;
  classes?: string[];
  style?: Record<string, string>;
  children?: MathNode[];
}

/** null where it cannot be read, or is more than a page should bear. */
export function formula(content: string, display: boolean): MathNode | null;
