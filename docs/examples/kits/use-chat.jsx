// useChat of the AI SDK, with a route of `format: ui`. An answer goes on after a reload and after a drop.
import {useChat} from "@ai-sdk/react";
import {DefaultChatTransport} from "ai";
import {useEffect, useRef, useState} from "react";
import {createRoot} from "react-dom/client";

const KEPT = "chat";
const kept = () => JSON.parse(sessionStorage.getItem(KEPT)) ?? {id: crypto.randomUUID(), messages: [], cut: ""};

function Chat({id, begun, cutBefore, onCut}) {
  const cut = useRef(cutBefore); // the id of an answer that is not whole, which is its stream's
  const transport = useRef(
    new DefaultChatTransport({
      api: "/api/chat",
      // By its own id an answer can also be read when it has ended meanwhile; by the chat's only while it runs.
      prepareReconnectToStreamRequest: () => ({api: cut.current ? `/streams/${cut.current}` : `/api/chat/${id}/stream`}),
    }),
  );
  const chat = useChat({id, messages: begun, resume: true, transport: transport.current});
  const {messages, sendMessage, status, stop, error} = chat;
  const [question, setQuestion] = useState("");

  // A stream is read again from its beginning, so what came of an answer is not kept until the answer is whole.
  useEffect(() => {
    const last = messages.at(-1);
    if (last?.role === "assistant") cut.current = status === "ready" ? "" : last.id;
    const whole = cut.current ? messages.filter((message) => message.id !== cut.current) : messages;
    sessionStorage.setItem(KEPT, JSON.stringify({id, messages: whole, cut: cut.current}));
    if (status === "error" && cut.current) onCut();
  }, [messages, status]);

  const send = (event) => {
    event.preventDefault();
    sendMessage({text: question});
  };
  const busy = status === "submitted" || status === "streaming";
  return (
    <form onSubmit={send}>
      {messages.map((message) => (
        <p key={message.id} className={message.role} style={{whiteSpace: "pre-wrap"}}>
          {message.parts.map((part, index) => part.type === "text" && <span key={index}>{part.text}</span>)}
        </p>
      ))}
      <input value={question} onChange={(event) => setQuestion(event.target.value)} aria-label="Question" autoComplete="off" />
      <button disabled={busy}>Send</button>
      <button type="button" id="stop" disabled={!busy} onClick={stop}>Stop</button>
      <p id="error" role="alert">{error?.message}</p>
    </form>
  );
}

/** A chat; after a drop, with a pause, a new one that reads the answer again, a few times only. */
function Page() {
  const [round, setRound] = useState(0);
  const {id, messages, cut} = kept();
  const again = () => round < 5 && setTimeout(() => setRound(round + 1), (round + 1) * 500);
  return <Chat key={round} id={id} begun={messages} cutBefore={cut} onCut={again} />;
}

createRoot(document.querySelector("#app")).render(<Page />);
