// The answer of a chat route in Vue: one composable over client.js, which reconnects, resumes and stops.
import {computed, createApp, onMounted, onUnmounted, ref} from "vue";
import {resume, stored, stream} from "sse-gateway-client";

const storage = () => sessionStorage; // what an answer needs to go on after a reload

export function useAnswer(url) {
  const text = ref("");
  const state = ref("done");
  const error = ref("");
  let answer = null;

  function follow(begin) {
    answer?.close();
    error.value = "";
    answer = begin({
      storage,
      onText: (whole) => (text.value = whole),
      onState: (now) => (state.value = now),
      onError: (failure) => (error.value = failure.message),
    });
  }

  onMounted(() => {
    text.value = stored(storage)?.text ?? "";
    follow(resume); // null, unless this tab was reloaded in mid-answer
  });
  onUnmounted(() => answer?.close()); // only this reader leaves

  return {
    text,
    error,
    busy: computed(() => !["done", "stopped", "error", "closed"].includes(state.value)),
    ask: (message) => follow((options) => stream({url, message, ...options})),
    stop: () => answer?.stop(),
  };
}

createApp({
  setup: () => ({question: ref(""), ...useAnswer("/api/chat")}),
  template: `
    <form @submit.prevent="ask(question)">
      <input v-model="question" aria-label="Question" autocomplete="off">
      <button :disabled="busy">Send</button>
      <button type="button" id="stop" :disabled="!busy" @click="stop">Stop</button>
      <p id="answer" style="white-space: pre-wrap">{{ text }}</p>
      <p id="error" role="alert">{{ error }}</p>
    </form>`,
}).mount("#app");
