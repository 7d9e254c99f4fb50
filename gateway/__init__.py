"""A streaming gateway between browsers and LLM backends.

The idea: **every generation is an append-only log of events.** One writer fills it, any number of readers follow it,
each from its own place. Resuming after a drop, a second tab, a slow reader, a heartbeat, the chat page: all of them
are "read after a cursor".

                        admission                                     delivery
          who, may they, open the log, start the pump       who, is it theirs, read, write
                              |                                          ^
    browser --- web/ ---------+                                          |
                              v                                          |
    provider -> upstream/ -> dialects/ ---> pump.py ------> eventlog/ -> delivery.py -> formats/ -> browser
      bytes      intake       bytes to    the one writer     the log     the reader     events to
                              events                                        loop         frames

The nouns, and where each of them lives:

Event       The one type that flows: `(type, data, id)`, the triple of the EventSource standard. `core/event.py`
Dialect     How a provider is asked and its bytes become events: openai, anthropic, ollama, sse, text. On the writer's
            edge only. `dialects/`, one file each
Log         The events of one generation, numbered from 1, bounded, ended exactly once by a terminal event.
            A read has four outcomes: events, nothing yet, the end, trimmed. `eventlog/memory.py`
Pump        The one writer of a log: asks upstreams until one has answered, relays what it says, and finishes elsewhere
            what broke off. `pump.py`
Generation  One paid answer: its log, its pump, its limits and its readers; ends the log whatever happens.
            `generation.py`
Delivery    The one reader loop: pulls from the log, frames, writes, sends heartbeats, and gives up a client that
            takes nothing. `delivery.py`
Format      What a route's clients expect of an event on the wire: a mapping, compiled once. On the reader's edge only,
            so there are N dialects + M formats and never N x M of anything. `formats/`
Cursor      A reader's place, as the opaque `id:` that a browser hands back in `Last-Event-ID`. `core/cursor.py`
Principal   Who asks: the holder of a key, or an address. Owns streams and sessions, has a plan. `core/credential.py`
Plan        What a principal may use: requests, streams, tokens, in one decision. `core/quota.py`
Route       A path with its kind (proxy, openai, chat), its upstream and its settings. `config/model.py`, `web/*.py`
Target      One server of an upstream, with its breaker. `upstream/pool.py`
Course      Whom to ask next, after what has failed; a plain function of it. `upstream/course.py`, `core/retry.py`
Exchange    One request and all that is known about it on its way through the middleware. `web/exchange.py`
Account     What a generation took and how it went: told to metrics, log and span, once. `account.py`
Span        A generation as OpenTelemetry sees it, where a receiver is named. `tracing/`
Worker      One of several such processes on a port. A stream's id names its own, and whoever asks another is handed
            over with the socket. `supervisor.py`, `web/siblings.py`
Snapshot    One configuration, made ready to serve; a reload makes the next one. `web/state.py`

To follow one request, read `web/middleware.py` (the pipeline), `web/chat.py` (what is asked), `web/admission.py` (what
it may cost), `generation.py`, `pump.py`, `eventlog/memory.py`, `web/streaming.py` and `delivery.py`, in this order.

Where something new goes: a provider's dialect is a file in `dialects/`; a format is an entry in `formats/presets.py`
or a mapping in the user's YAML; a limit is a field of `quota.Plan`; a store is a neighbour of `eventlog/memory.py`.
Each room imports only rooms below it (`tests/test_architecture.py`), and `core/` and `dialects/` do no I/O and know no
clock: bytes and `now` come in, values go out. `app.py` alone names concrete classes and puts them together.
"""
