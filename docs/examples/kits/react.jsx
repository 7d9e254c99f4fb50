// The answer of a chat route in React: one hook over client.js, which reconnects, resumes and stops.
import {useEffect, useRef, useState} from "react";
import {createRoot} from "react-dom/client";
import {resume, stored, stream} from "sse-gateway-client";

const storage = () => sessionStorage; // what an answer needs to go on after a reload

export function useAnswer(url) {
  const [text, setText] = useState("");
  const [state, setState] = useState("done");
  const [error, setError] = useState("");
  const answer = useRef(null);

  function follow(begin) {
    answer.current?.close();
    setError("");
    answer.current = begin({
      storage,
      onText: setText,
      onState: setState,
      onError: (failure) => setError(failure.message),
    });
  }

  useEffect(() => {
    setText(stored(storage)?.text ?? "");
    follow(resume); // null, unless this tab was reloaded in mid-answer
    return () => answer.current?.close(); // only this reader leaves
  }, []);

  return {
    text,
    error,
    busy: !["done", "stopped", "error", "closed"].includes(state),
    ask: (message) => follow((options) => stream({url, message, ...options})),
    stop: () => answer.current?.stop(),
  };
}

function Chat() {
  const {text, error, busy, ask, stop} = useAnswer("/api/chat");
  const send = (event) => {
    event.preventDefault();
    ask(event.target.elements.question.value);
  };
  return (
    <form onSubmit={send}>
      <input name="question" aria-label="Question" autoComplete="off" />
      <button disabled={busy}>Send</button>
      <button type="button" id="stop" disabled={!busy} onClick={stop}>Stop</button>
      <p id="answer" style={{whiteSpace: "pre-wrap"}}>{text}</p>
      <p id="error" role="alert">{error}</p>
    </form>
  );
}

createRoot(document.querySelector("#app")).render(<Chat />);
