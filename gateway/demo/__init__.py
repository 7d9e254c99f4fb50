"""The LLM stand-in behind the upstream URL `demo:`, so that a fresh checkout chats without any model.

It is an upstream like any other: an OpenAI-compatible server on a port of its own, reached over HTTP. It knows nothing
of the gateway and shares no object with it. Nothing is random: the same request always gets the same answer.

Words in a message that make something happen; several may be used together, also with a full-width `／`:

- `/long` `/slow` `/fast`: an answer that takes a minute; six, or three hundred, tokens a second instead of thirty
- `/think`: reasoning before the answer
- `/tool`: a tool call in place of the answer
- `/history`: the list of messages that the model was sent, the system prompt among them
- `/error` `/busy`: no answer, but status 500, or 429 with `Retry-After: 3`
- `/cut`: the connection is closed in the middle of the answer
- `/stall`: the answer falls silent in the middle, without end
"""

from gateway.demo.endpoint import Demo, make_demo_app, start_demo

__all__ = ["Demo", "make_demo_app", "start_demo"]
