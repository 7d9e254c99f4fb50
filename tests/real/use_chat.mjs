// The AI SDK's own chat, without a page: each line on stdin is one thing to do, each line on stdout what came of it.
// `useChat` is this class with React's state in place of the arrays here.
import { createInterface } from "node:readline";
import { AbstractChat, DefaultChatTransport } from "ai";

class State {
  status = "ready";
  error = undefined;
  #changed = () => {};
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = (message) => this.#set([...this.messages, message]);
  popMessage = () => this.#set(this.messages.slice(0, -1));
  replaceMessage = (index, message) => this.#set(this.messages.with(index, structuredClone(message)));
  snapshot = (value) => structuredClone(value);
  #set(messages) {
    this.messages = messages;
    this.#changed();
  }
  until(text) {
    return new Promise((resolve) => {
      this.#changed = () => JSON.stringify(this.messages.at(-1) ?? "").includes(text) && resolve();
      this.#changed();
    });
  }
}

class Chat extends AbstractChat {
  constructor({ id, messages = [], api }) {
    const state = new State(messages);
    super({ id, state, transport: new DefaultChatTransport({ api }), onFinish: (end) => (this.end = end) });
    this.memory = state;
  }
}

let chat;
const steps = {
  open: async (options) => void (chat = new Chat(options)),
  send: async ({ text }) => await chat.sendMessage({ text }),
  begin: async ({ text }) => void chat.sendMessage({ text }),
  until: async ({ text }) => await chat.memory.until(text),
  stop: async () => await chat.stop(),
  resume: async () => await chat.resumeStream(),
  regenerate: async () => await chat.regenerate(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { step, ...options } = JSON.parse(line);
  await steps[step](options);
  const { messages, status, error, end } = chat;
  console.log(JSON.stringify({ messages, status, error: error?.message ?? "", reason: end?.finishReason ?? null }));
}
