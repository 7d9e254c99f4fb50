// A page with @microsoft/fetch-event-source: a POST with whatever headers the page needs, resumed after every drop.
import {fetchEventSource} from "@microsoft/fetch-event-source";

class Refused extends Error {}

/** Asks, and calls `show` with the text so far; resolves with the whole text. */
export async function ask(url, message, show) {
  const control = new AbortController();
  let text = "";
  let failure = null;
  let tries = 0; // in a row, without anything new

  await fetchEventSource(url, {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({message}),
    openWhenHidden: true, // otherwise it breaks off and asks again whenever the tab is hidden and shown
    signal: control.signal,
    async onopen(response) {
      if (response.status === 204) control.abort(); // nothing is left
      else if (!response.ok) throw new Refused((await response.json()).detail);
    },
    onmessage({event, data}) {
      if (!data) return; // a heartbeat
      const said = JSON.parse(data);
      tries = 0;
      if (event === "token") show((text += said.text));
      if (event === "restart") show((text = ""));
      if (event === "done") show((text = said.full_text));
      if (event === "error") failure = said.message;
      if (event === "done" || event === "error") control.abort();
    },
    onclose() {
      throw new Error("The connection was cut."); // asks again, with the cursor
    },
    onerror(error) {
      if (error instanceof Refused || ++tries > 5) throw error;
      return tries * 1000; // the pause before it asks again
    },
  });
  if (failure) throw new Error(failure);
  return text;
}

document.querySelector("#app").innerHTML = `
  <form>
    <input aria-label="Question" autocomplete="off">
    <button>Send</button>
  </form>
  <p id="answer" style="white-space: pre-wrap"></p>
  <p id="error" role="alert"></p>`;

const [input, button] = document.querySelector("form");
const answer = document.querySelector("#answer");
const error = document.querySelector("#error");

document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  error.textContent = "";
  button.disabled = true;
  try {
    await ask("/api/chat", input.value, (text) => (answer.textContent = text));
  } catch (reason) {
    error.textContent = reason.message;
  }
  button.disabled = false;
});
