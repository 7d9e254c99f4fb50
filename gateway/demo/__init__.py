"""The LLM stand-in behind the upstream url `demo:`, so that a fresh checkout chats without any model.

It is an upstream like any other: an OpenAI-compatible server on a port of its own, reached over HTTP. It knows nothing
of the gateway before it and shares no object with it. Nothing here is random: one request, one answer.

Write one of these into a message to try something out; they combine, and a full-width `／` does as well:

- `/long` `/slow` `/fast`: an answer of a minute; six, or three hundred, tokens a second instead of thirty
- `/think`: reasoning before the answer
- `/tool`: a tool call in place of the answer
- `/history`: the list of messages the model was sent, the system prompt among them
- `/error` `/busy`: no answer, but status 500, or 429 with `Retry-After: 3`
- `/cut`: the connection drops in the middle of the answer
- `/stall`: the answer falls silent in the middle, for ever
"""

from gateway.demo.endpoint import Demo, make_demo_app, start_demo

__all__ = ["Demo", "make_demo_app", "start_demo"]
