"""Client libraries from their registries, unchanged, over a network that fails: what each makes of an answer.

`MATRIX` is what this file is about; docs/browser.md tells the same. All libraries ask one gateway, those of a language
from one process; the network between spoils an answer by the question that it belongs to.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.program import node
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Exchange,
    Hang,
    Pause,
    Step,
    openai_delta,
    response,
    sse_head,
)
from tests.real.clients.network import OTHER, Fault, How, Network
from tests.web.stage import Stage, staged

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

MATRIX = """
library                  | stream fin    rst    end    token  done   before within 204     401     429   503    abort
eventsource 2            | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     event event  aborted
eventsource 3            | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     event event  aborted
eventsource 4            | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     event event  aborted
eventsource 5            | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     event event  aborted
undici                   | whole  whole  whole  whole  whole  whole  whole  whole  closed  closed  event event  aborted
event-source-polyfill    | whole  whole  whole  whole  whole  whole  whole  whole  goes-on 401     event event  aborted
reconnecting-eventsource | whole  whole  whole  whole  whole  whole  whole  whole  goes-on goes-on event event  aborted
fetch-event-source       | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     429   503    aborted
sse.js                   | whole  whole  whole  whole  whole  whole  whole  whole  goes-on 401     429   503    aborted
eventsource-parser       | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     429   503    aborted
openai (Node)            | whole  raises raises ends   raises raises whole  whole  -       401     waits 503x3  aborted
@langchain/openai        | whole  raises raises ends   raises raises whole  whole  -       401     429   503x2  aborted
ai                       | whole  raises raises raises raises raises whole  whole  -       401     429   503x3  aborted
httpx-sse                | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     429   503    aborted
sseclient-py             | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     429   503    aborted
requests-sse             | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     429   503    aborted
aiohttp-sse-client2      | whole  whole  whole  whole  whole  whole  whole  whole  closed  401     429   503    aborted
openai (Python)          | whole  raises raises ends   raises raises whole  whole  -       401     429   503x3  aborted
langchain-openai         | whole  raises raises ends   raises raises whole  whole  -       401     429   503x3  aborted
instructor               | whole  raises raises torn   raises raises whole  whole  -       401     429   503x3  aborted
litellm                  | whole  raises raises raises raises whole  whole  whole  -       401     429   503x3  aborted
"""
"""What comes of an answer, by library and by what befalls it.

    fin rst end   in mid-answer the connection is closed, is broken, or the body ends as if it were whole
    token done    the same as fin, at every byte of one event with text and of the last event
    before within the provider is silent before the answer, and in it
    204           the library is not closed at the end of the answer, and asks again
    401 429 503   a bad key, a plan's limit, a provider that fails
    abort         the application leaves in mid-answer, and the call to the provider ends

    whole         every character, once, and the end was seen
    raises        an error in the application
    ends          the library stopped, but the application sees that no finish_reason came
    torn          the library stopped, and nothing says that something is missing
    closed        the library stopped asking
    goes-on       the library asks again for as long as the page is open; nothing is paid for it
    event         the gateway's error event
    waits         the library sleeps for as long as Retry-After says
    xN            the provider was asked N times; without, once, and never after 401 and 429
"""

PIECES = ('{"answer": "', "你好，", "断线", " 1 < 2 😀", '"}')
TEXT = "".join(PIECES)
SILENCE = 0.5
"""Seconds; heartbeats come five times as often."""
AT_ONCE = 50
"""Spoilt answers that one library reads at a time."""
KEY = "key-of-the-application"
KEYS = {"401": "no-key-at-all", "429": "key-of-the-limited"}
"""Credentials, where not the right one."""
HERE = Path(__file__).parent

HEADS, *LINES = MATRIX.strip().splitlines()
SCENES = HEADS.partition("|")[2].split()
EXPECTED = {name.strip(): row.split() for name, _, row in (line.partition("|") for line in LINES)}
LIBRARIES = list(EXPECTED)
PYTHON = LIBRARIES[LIBRARIES.index("httpx-sse") :]
KITS = {"openai (Node)", "@langchain/openai", "ai", "openai (Python)", "langchain-openai", "instructor", "litellm"}
"""Libraries of OpenAI's API; the others read a chat route."""
STEPS = dict.fromkeys(KITS - {"openai (Node)", "openai (Python)"}, 16)
"""How many bytes lie between two cuts, where that is not one: what is built around an SDK takes long for an answer."""
STEPS |= dict.fromkeys(["eventsource 3", "eventsource 4", "reconnecting-eventsource"], 8)
"""They have the parser of `eventsource` 5."""


def answer(*between: Step) -> list[Step]:
    """A whole answer, with these steps behind its second piece."""
    deltas = [openai_delta(piece) for piece in PIECES]
    return [sse_head(), *deltas[:2], *between, *deltas[2:], OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]


ANSWERS: dict[str, list[Step]] = {
    "end": answer(Pause(0.5)),  # longer than a busy gateway gathers
    "before": [*answer()[:1], Pause(SILENCE), *answer()[1:]],
    "within": answer(Pause(SILENCE)),
    "503": [response(503, '{"error": {"message": "Busy."}}')],
    "abort": answer(Hang()),
}
"""What the provider says; where a scene is not here, a whole answer at once."""


def mark(scene: str, kit: bool) -> bytes:
    """What only the block has in it that is spoilt."""
    match scene:
        case "end":
            return PIECES[1].encode()
        case "done":
            return b"data: [DONE]" if kit else b"event: done"
    return f'"{"content" if kit else "text"}":"{PIECES[2]}'.encode()


BASES = {"abort": "/left", "503": "/patient"}
"""What stands before the routes' paths: where a generation ends with its reader, and where headers wait for a status
however busy the machine is."""
HOWS: dict[str, How] = {"fin": "fin", "rst": "rst", "end": "end", "token": "fin", "done": "fin"}
"""What the network does; in other scenes, nothing."""


class Process:
    """All libraries of one language; they are asked by lines of JSON."""

    def __init__(self, *command: str | Path) -> None:
        self._command = [str(part) for part in command]
        self._results: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = count()

    async def __aenter__(self) -> "Process":
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 60)
        except TimeoutError:
            self._process.kill()
            raise
        await self._listening

    async def _listen(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            result = json.loads(line)
            self._results.pop(result["n"]).set_result(result)
        for waiting in self._results.values():
            waiting.set_exception(EOFError(f"{self._command} has ended"))

    async def ask(self, **question: str | int) -> dict[str, Any]:
        """What came of it: `text`, `end`, `told`. Raises TimeoutError after a minute."""
        assert self._process.stdin
        n = next(self._numbers)
        self._results[n] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"n": n} | question).encode() + b"\n")
        return await asyncio.wait_for(self._results[n], 60)


class Trial:
    """One gateway, the network before it, and both processes."""

    def __init__(self, stage: Stage, network: Network, node: Process, python: Process) -> None:
        self.stage, self.network, self.node, self.python = stage, network, node, python

    async def row(self, library: str) -> dict[str, str]:
        """What comes of each scene."""
        return dict(zip(SCENES, await asyncio.gather(*(self.scene(library, scene) for scene in SCENES)), strict=True))

    async def scene(self, library: str, scene: str) -> str:
        """A cell of the matrix."""
        if scene == "204" and library in KITS:
            return "-"
        if scene not in {"token", "done"}:
            return await self.once(library, scene)
        found = {await self.once(library, scene)}
        size = self.network.sizes[mark(scene, library in KITS)]
        places = asyncio.Semaphore(AT_ONCE)

        async def cut(lacking: int) -> str:
            async with places:
                return await self.once(library, scene, lacking)

        found |= set(await asyncio.gather(*map(cut, range(1, size, STEPS.get(library, 1)))))
        return "|".join(sorted(found))

    async def once(self, library: str, scene: str, lacking: int | None = None) -> str:
        """What comes of one answer."""
        exchanges: list[Exchange] = []

        def script(exchange: Exchange) -> Sequence[Step]:
            exchanges.append(exchange)
            return ANSWERS.get(scene) or answer()

        question = self.stage.plays(script, "Q")
        if how := HOWS.get(scene):
            self.network.spoils(question, Fault(how, mark(scene, library in KITS), lacking))
        # A kit keeps connections by host. One on which another answer broke off may be dead, and would cost a retry.
        host = OTHER if scene == "503" else "127.0.0.1"
        base = f"http://{host}:{self.network.port}{BASES.get(scene, '')}"
        result = await (self.python if library in PYTHON else self.node).ask(
            library=library,
            chat=f"{base}/chat",
            openai=base,
            question=question,
            key=KEYS.get(scene, KEY),
            patience=10 if scene == "429" else 40,
            mode={"204": "forget", "abort": "abort"}.get(scene, "read"),
        )
        if scene == "abort":
            await asyncio.wait_for(exchanges[0].closed.wait(), 10)
        cell = judged(result, len(exchanges), 0 if scene in KEYS else 1)
        assert cell == "goes-on" or self.network.requests(question) <= 3, f"{cell}, and asked over and over: {result}"
        return cell


def judged(result: dict[str, Any], calls: int, promised: int) -> str:
    """A cell of the matrix: the end, and how often the provider was asked where that is not as promised."""
    names = {"done": "whole", "goes on": "goes-on", "rate_limited": "event", "upstream_unavailable": "event"}
    how, text = names.get(result["end"], result["end"]), result["text"]
    if not (text == TEXT if how == "whole" else TEXT.startswith(text)):
        how = "torn"
    return how if calls == promised else f"{how}x{calls}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trial(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trial]:
    python = Path(sys.prefix + "-clients") / "bin" / "python"
    if not python.exists():
        pytest.fail(f"the libraries are missing; run: make {python.parents[1].name}/.installed")
    kinds = [{"api": "openai"}, {"api": "chat"}]
    settings: dict[str, dict[str, Any]] = {
        "": {},
        "/left": {"on_disconnect": {"after": "0s"}},
        "/patient": {"commit_after": "20s"},
    }
    routes = [
        kind | {"path": base + ("/chat" if kind["api"] == "chat" else "/chat/completions")} | extra
        for kind in kinds
        for base, extra in settings.items()
    ]
    async with AsyncExitStack() as stack:
        started = await asyncio.gather(
            stack.enter_async_context(Process(Path(node()), HERE / "libraries.mjs")),
            stack.enter_async_context(Process(python, HERE / "libraries.py")),
        )
        stage = await stack.enter_async_context(
            staged(
                tmp_path_factory.mktemp("gateway"),
                routes,
                auth={"keys": [{"id": "app", "key": KEY}, {"id": "limited", "key": KEYS["429"], "plan": "one"}]},
                plans={"default": {}, "one": {"requests": "1/h"}},
                stream={"heartbeat": "100ms", "retry": "100ms", "commit_after": "200ms", "merge": False},
            ),
        )
        first = await stage.get("/chat", stage.plays(answer()), token=KEYS["429"])
        await first.close()
        network = await stack.enter_async_context(Network(int(stage.gateway.url.rpartition(":")[2])))
        yield Trial(stage, network, *started)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_library(trial: Trial, library: str) -> None:
    found = await trial.row(library)
    assert found == dict(zip(SCENES, EXPECTED[library], strict=True))
