"""A streaming gateway between browsers and LLM backends.

The idea: **every generation is an append-only log of events.** One writer fills it; any number of readers follow it,
each from its own position. Resuming after a drop, a second tab, a slow reader and the chat page are all "read after a
cursor"; a heartbeat is a read that came back with nothing.

    a request --> web/ --> admission: is the credential good, do the limits allow it? open the log, start the pump
                                                   |
    provider                                       v                                                        browser
       |    upstream/       dialects/       streams/attempt                streams/delivery                    ^
       +--> intake: bytes --> events --> transcript --append--> log --+--> frames: formats/ --> sink: bytes ---+
                                                                      |
                                               two ways into the log: |
                              read(after, limit)   the reader asks: a replay, a heartbeat, a slow client
                              follow(events)       the writer calls, in its append, a reader that has all before

Eight nouns:

Event       The one type that flows: `(type, data, id)`, the triple of the EventSource standard. `core/event.py`
Dialect     How a provider is asked, and how its bytes become events. `dialects/`
Log         The events of one generation: numbered, bounded, ended exactly once. `streams/log.py`
Generation  One paid answer: a log, the pump that fills it, and an end that comes exactly once. `streams/generation.py`
Stream      What a reader needs to know of it, as plain values: a reader may be on another machine. `streams/stream.py`
Format      How a route's clients are sent events. `formats/`
Route kind  What a path is: how a request is read, what it starts, how answers and errors look. `web/kinds/`
Principal   The kind and id that a request acts for. It owns streams and chats; limits count it. `core/principal.py`

A dialect knows no format and a format no dialect: between them are only events. So there are N + M of them and never
N x M.

To follow one request, read in this order:

    web/service.py            a request becomes an exchange
    web/pipeline.py           CORS, limits of addresses, credentials; the boundary of errors
    web/kinds/base.py         a cursor resumes a stream; any other request is read, admitted, answered
    web/admission.py          the plan's limits; the log and the generation are made
    streams/generation.py     start, stop, end
    streams/pump.py           which target is asked; question.py: what it is asked; rescue.py: a broken answer;
                              race.py: a second call beside a silent one
    upstream/intake.py        the provider's bytes, window by window; streams/attempt.py: one call, which takes them
    dialects/openai.py        bytes to events; web/kinds/chat_source.py: which answer reads them
    streams/transcript.py     events into the log; log.py: append; reader.py: read and follow
    web/streaming.py          the response: headers held and sent, a delivery begun and ended
    streams/delivery.py       the loop of one reader; frames.py: events to bytes; sink.py: bytes to the socket
    formats/mapping.py        an event to a block

Each room imports only rooms that stand before it in this line (`tests/test_architecture.py`):

    core  dialects  formats  config  clock  observe  upstream  identity  streams  store  web  admin  app  process  cli

`identity/` and `streams/` do not know each other. `demo/` is the stand-in for an LLM, and imports only `core/`.

`core/`, `dialects/` and `formats/` do no I/O and ask no clock: bytes and `now` come in, values go out. `app.py` puts
the process's parts together.

Where a new part goes; CONTRIBUTING.md has the steps, and `tests/seams/` a toy of each:

    a dialect       a file in dialects/                  a credential    a `Verifier`, core/credential.py
    a format        formats/presets.py, or a class       a limit         a `Limit`, core/limits.py
    a client API    a file in web/kinds/                 a store         a `Log`, streams/log.py, for logs elsewhere;
                                                                         a `Mirror` for a copy, as store/journal.py is;
                                                                         a `Decider`, core/limiter.py, for limits
"""
