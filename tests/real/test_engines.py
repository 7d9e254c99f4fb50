"""The chat page, the monitor page and client.js in three engines: Chromium, Firefox, and WebKitGTK, Safari's relative.

Each engine is started once. What is asked for is the same in all: the answer is whole, and the model was asked once.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from html import escape

import pytest
import pytest_asyncio

from tests.kit.program import ROOT
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Pause,
    ScriptedUpstream,
    Step,
    WaitFor,
    openai_delta,
    response,
    sse_head,
)
from tests.real.browsing import Cable
from tests.real.engines import ENGINES, Engine, Tab, until
from tests.web.stage import Stage, staged

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

TEXT = "".join(chr(0x4E00 + number) for number in range(60))
RETRY = 0.1
"""Seconds after which browsers try again, as the gateway tells them."""
OUTAGE = 0.7
"""Seconds of an outage: several attempts find nobody."""
MODES = ("fetch", "eventsource")
DOCUMENTS = ("README.md", "README.zh-CN.md", "docs/browser.md")
WELCOMED = "document.querySelector('#message')?.style.height"
ANSWER = "document.querySelector('.answer:last-of-type .text')?.textContent.trim()"
STATE = "document.querySelector('#status')?.dataset.state"

FRAME = """
<!doctype html><meta charset="utf-8"><title>a frame that is denied almost everything</title>
<iframe sandbox="allow-scripts" srcdoc='<script type="module">
  import {stream} from "GATEWAY/client.js";
  let denied = "";
  try { localStorage.length } catch (error) { denied = error.name }
  const onToken = (_, text) => parent.postMessage({length: text.length}, "*");
  const options = {url: "GATEWAY/api/chat", message: "QUESTION", storage: () => sessionStorage, onToken};
  const {outcome, text} = await stream(options).done;
  parent.postMessage({outcome, text, denied}, "*");
</script>'></iframe>
<script>
  onmessage = ({data}) => {
    if (data.length) window.length_ = data.length;
    else window.told = data;
  };
</script>
"""
SNIPPET = """
<!doctype html><meta charset="utf-8"><title>the code of a document</title>
<script>
  var text = "", ended = "", opened = 0;
  window.EventSource = class extends EventSource {
    constructor(url) { super(url); opened += 1; }
  };
  const show = (piece) => (text += piece);
  const clear = () => (text = "");
  const finish = () => (ended = "finished");
  const fail = (reason) => (ended = reason);
  CODE
</script>
"""


@pytest.fixture(scope="module", params=list(ENGINES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(kind: str) -> AsyncIterator[Engine]:
    async with ENGINES[kind]() as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    stream = {"retry": f"{int(RETRY * 1000)}ms", "merge": False}
    directory = tmp_path_factory.mktemp("gateway")
    async with staged(directory, [{"path": "/api/chat"}], stream=stream, cors={"origins": ["*"]}) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cable(stage: Stage) -> AsyncIterator[Cable]:
    async with Cable(int(stage.gateway.url.rsplit(":", 1)[1])) as cable:
        yield cable


@pytest_asyncio.fixture(loop_scope="module")
async def tabs(engine: Engine) -> AsyncIterator[list[Tab]]:
    """Tabs of a test, which are closed at its end."""
    opened: list[Tab] = []
    yield opened
    for tab in opened:
        await tab.close()


@pytest_asyncio.fixture(loop_scope="module")
async def tab(engine: Engine, tabs: list[Tab]) -> Tab:
    tabs.append(await engine.tab())
    return tabs[0]


class Held:
    """An answer of a few characters more at each `go`: nothing depends on how fast an engine is.

    Args:
        stops: how often it waits.
    """

    def __init__(self, stops: int = 1) -> None:
        self._gates = [asyncio.Event() for _ in range(stops)]
        self._size = len(TEXT) // (stops + 1)
        self.script: list[Step] = [sse_head()]
        for number in range(stops + 1):
            part = TEXT[number * self._size :][: self._size]
            wait = [WaitFor(self._gates[number - 1])] if number else []
            self.script += [*wait, *(step for one in part for step in (openai_delta(one), Pause(0.004)))]
        self.script += [OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]
        self.length = self._size

    def go(self) -> None:
        """It goes on, up to its next stop; `length` is how long it is there."""
        next(gate for gate in self._gates if not gate.is_set()).set()
        self.length += self._size


async def chat(tab: Tab, cable: Cable) -> None:
    await tab.goto(f"{cable.url}/")
    await until(tab, WELCOMED)


async def ask(tab: Tab, question: str) -> None:
    script = """
    ((text) => {
      const message = document.querySelector("#message");
      message.value = text;
      message.dispatchEvent(new Event("input"));
      document.querySelector("#composer").requestSubmit();
    })"""
    await tab.evaluate(f"{script}({json.dumps(question)})")


async def has(tab: Tab, characters: int) -> None:
    """Return when the last answer is so long."""
    await until(tab, f"({ANSWER} ?? '').length >= {characters}")


async def ends(tab: Tab, state: str = "done") -> str:
    """The last answer, when the page says that it is over."""
    await until(tab, f"{STATE} === {state!r}")
    return str(await tab.evaluate(ANSWER))


# ---- the chat page ----


async def half(tab: Tab, stage: Stage, cable: Cable) -> tuple[Held, str]:
    """The chat page with half of an answer: what holds the rest back, and the question."""
    held = Held()
    question = stage.plays(held.script)
    await chat(tab, cable)
    await ask(tab, question)
    await has(tab, held.length)
    return held, question


async def test_chat_goes_on_after_each_reload(tab: Tab, stage: Stage, cable: Cable) -> None:
    held = Held(stops=3)
    question = stage.plays(held.script)
    await chat(tab, cable)
    await ask(tab, question)
    for _ in range(3):
        await has(tab, held.length)
        await tab.reload()
        await has(tab, held.length)
        held.go()
    assert await ends(tab) == TEXT
    assert len(stage.asked(question)) == 1


async def test_chat_outlives_an_outage(tab: Tab, stage: Stage, cable: Cable) -> None:
    held, question = await half(tab, stage, cable)
    await cable.pull()
    await until(tab, f"{STATE} === 'reconnecting'")
    held.go()
    await asyncio.sleep(OUTAGE)
    await cable.plug()
    assert await ends(tab) == TEXT
    assert len(stage.asked(question)) == 1


async def test_chat_in_two_tabs_is_stopped_in_the_second(
    engine: Engine, tab: Tab, tabs: list[Tab], stage: Stage, cable: Cable
) -> None:
    held, question = await half(tab, stage, cable)
    tabs.append(await engine.tab())
    await chat(tabs[1], cable)
    await tabs[1].evaluate("document.querySelector('#list .open').click()")
    await has(tabs[1], held.length)
    await tabs[1].evaluate("document.querySelector('#stop').click()")
    assert [await ends(one, "stopped") for one in tabs] == [TEXT[: held.length]] * 2
    await asyncio.wait_for((await stage.exchange(question)).closed.wait(), 5)
    assert len(stage.asked(question)) == 1


async def test_chat_goes_on_when_somebody_comes_back(tab: Tab, stage: Stage, cable: Cable) -> None:
    held, question = await half(tab, stage, cable)
    await tab.goto(f"{cable.url}/page/icon.svg")
    await tab.back()
    held.go()
    assert await ends(tab) == TEXT
    assert len(stage.asked(question)) == 1


async def test_chat_works_where_site_data_is_blocked(engine: Engine, stage: Stage, cable: Cable) -> None:
    question = stage.plays(Held(stops=0).script)
    tab = await engine.tab(blocked=True)
    await chat(tab, cable)
    said = "['#kept', '#promise'].map((name) => document.querySelector(name).textContent)"
    assert all(re.search("not kept|不会保留", text) for text in await tab.evaluate(said))
    await ask(tab, question)
    assert await ends(tab) == TEXT
    await tab.close()


# ---- client.js ----


async def begin(tab: Tab, url: str, question: str, **options: object) -> None:
    """client.js asks, in whatever page the tab shows; its answers are `answers`, the last one `answer`."""
    asked = json.dumps({"url": f"{url}/api/chat", "message": question, "smooth": False, **options})
    note = "window.answer = client.stream(asked); (window.answers ??= []).push(answer);"
    await tab.evaluate(f"import('{url}/client.js').then((client) => {{ const asked = {asked}; {note} }})")


@pytest.mark.parametrize("origin", ["own", "other"])
async def test_client_outlives_an_outage_in_each_mode(tab: Tab, stage: Stage, cable: Cable, origin: str) -> None:
    held = [Held() for _ in MODES]
    questions = [stage.plays(one.script) for one in held]
    async with ScriptedUpstream([response(200, "<!doctype html><title>page</title>", "text/html")]) as pages:
        await tab.goto(f"{cable.url}/page/icon.svg" if origin == "own" else pages.url)
        for question, mode in zip(questions, MODES, strict=True):
            await begin(tab, cable.url, question, mode=mode)
        await until(tab, f"answers.every(({{text}}) => text.length === {held[0].length})")
        await cable.pull()
        for one in held:
            one.go()
        await asyncio.sleep(OUTAGE)
        await cable.plug()
        ended = await tab.evaluate("Promise.all(answers.map(({done}) => done))")
    assert [(one["outcome"], one["text"]) for one in ended] == [("done", TEXT)] * len(MODES)
    assert [len(stage.asked(question)) for question in questions] == [1] * len(MODES)


async def test_clients_of_two_tabs_share_a_connection(
    engine: Engine, tab: Tab, tabs: list[Tab], stage: Stage, cable: Cable
) -> None:
    """Where the engine has locks; without them each tab has a connection of its own, and the text is the same."""
    held = Held()
    question = stage.plays(held.script)
    tabs.append(await engine.tab())
    for one in tabs:
        await one.goto(f"{cable.url}/page/icon.svg")
    await begin(tab, cable.url, question)
    await until(tab, f"answer.text.length === {held.length}")
    url = f"{cable.url}/streams/{await tab.evaluate('answer.streamId')}"
    client = f"import('{cable.url}/client.js')"
    await tabs[1].evaluate(f"{client}.then((client) => {{ window.answer = client.resume({{url: '{url}'}}); }})")
    await until(tabs[1], f"answer.text.length === {held.length}")
    readers = [row["readers"] for row in await stage.admin("/streams")]
    shares = await tab.evaluate("Boolean(navigator.locks)")
    await tab.evaluate("answer.close()")
    held.go()
    assert await tabs[1].evaluate("answer.done.then(({text}) => text)") == TEXT
    assert readers == [1 if shares else 2]
    assert len(stage.asked(question)) == 1


async def test_client_in_a_sandboxed_frame_is_denied_much_and_reads_on(tab: Tab, stage: Stage, cable: Cable) -> None:
    held = Held()
    question = stage.plays(held.script)
    html = FRAME.replace("GATEWAY", cable.url).replace("QUESTION", question)
    async with ScriptedUpstream([response(200, html, "text/html")]) as pages:
        await tab.goto(pages.url)
        await until(tab, f"window.length_ === {held.length}")
        cable.cut()
        held.go()
        await until(tab, "window.told")
        told = await tab.evaluate("told")
    assert told == {"outcome": "done", "text": TEXT, "denied": "SecurityError"}
    assert len(stage.asked(question)) == 1


# ---- EventSource on another origin, and the documents' code for it ----


def code_of(document: str) -> str:
    """The first JavaScript of a document that makes an EventSource."""
    blocks = re.findall(r"```js\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)
    return str(next(block for block in blocks if "new EventSource" in block))


async def test_code_of_the_documents_outlives_an_outage(tab: Tab, stage: Stage, cable: Cable) -> None:
    """Each in a frame of its own, all in one outage."""
    held = [Held() for _ in DOCUMENTS]
    questions = [stage.plays(one.script) for one in held]
    frames = [frame(document, cable.url, question) for document, question in zip(DOCUMENTS, questions, strict=True)]
    async with ScriptedUpstream([response(200, "".join(frames), "text/html")]) as pages:
        await tab.goto(pages.url)
        every = f"[...Array({len(frames)}).keys()].map((index) => frames[index])"
        await until(tab, f"{every}.every(({{text}}) => text?.length === {held[0].length})")
        await cable.pull()
        for one in held:
            one.go()
        await asyncio.sleep(OUTAGE)
        await cable.plug()
        await until(tab, f"{every}.every(({{ended}}) => ended)")
        ends = await tab.evaluate(f"{every}.map(({{text, ended, opened}}) => [text, ended, opened <= 6])")
    assert ends == [[TEXT, "finished", True]] * len(DOCUMENTS)
    assert [len(stage.asked(question)) for question in questions] == [1] * len(DOCUMENTS)


def frame(document: str, url: str, question: str) -> str:
    """A frame that runs a document's code, with only the URL and the question changed."""
    code = code_of(document).replace("/api/chat?", f"{url}/api/chat?")
    code, changed = re.subn(r'message: "[^"]*"', f"message: {json.dumps(question)}", code)
    assert changed == 1
    return f'<iframe srcdoc="{escape(SNIPPET.replace("CODE", code))}"></iframe>'


# ---- the monitor page ----


async def test_monitor_shows_a_stream_and_comes_back(tab: Tab, stage: Stage) -> None:
    held = Held()
    async with (
        Cable(int(stage.gateway.admin.rsplit(":", 1)[1])) as network,
        await stage.get("/api/chat", stage.plays(held.script)),
    ):
        await tab.goto(f"{network.url}/")
        await until(tab, "document.body.dataset.link === 'live'")
        await until(tab, "document.querySelector('#streams tbody tr')")
        await network.pull()
        await until(tab, "document.body.dataset.link === 'lost'")
        await network.plug()
        await until(tab, "document.body.dataset.link === 'live'")
        held.go()
