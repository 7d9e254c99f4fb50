"""Three nodes behind the real nginx on one Redis, killed, paused and ended by chance, while readers are cut by chance.

    python -m tests.store.chaos [--streams 200] [--cuts 1000] [--words N] [--seed 1] [--rolling]

Each answer is a count, so that each reader can check that nothing is lost, doubled or reordered. A reader may be told
that its place is gone; anything else is a failure. The figures are printed, as JSON.
"""

import argparse
import asyncio
import random
import signal
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tests.kit.ledger import Ledger
from tests.kit.program import Gateway, Nginx
from tests.kit.sse_client import Message, Response, allow_connections, request
from tests.kit.upstream import Exchange, Pause, Step, sse_head
from tests.store.stage import END, EVENTS, Stage, prefix, stage, told, word
from tests.web.stage import eventually

SILENT = 3.0
"""Seconds without a byte after which a reader gives a connection up: six heartbeats."""
PAUSED = 4.5
"""Seconds that a node stands still: longer than its lease."""
KEPT = "10s"
KEPT_ROLLING = "30s"
"""Twice the time within which readers are asked back; where streams are kept for less, they come back faster."""


class Figures(msgspec.Struct):
    """What a run found.

    Attributes:
        streams: readers that asked.
        whole: read to a good end, every word once and in order.
        told: told that their place is gone, or that the answer broke off.
        wrong: what was lost, doubled, reordered, or not ended exactly once.
        cuts: connections that readers broke off.
        returns: connections with a cursor.
        calls: requests to the upstream.
        faults: what was done to nodes.
        longest: seconds without a word, for any reader.
        left: keys in Redis past their time.
        peak: returns in the second with most of them, behind each end of a node, against the flat rate.
    """

    streams: int = 0
    whole: int = 0
    told: list[str] = []
    wrong: list[str] = []
    cuts: int = 0
    returns: int = 0
    calls: int = 0
    faults: list[str] = []
    longest: float = 0.0
    left: list[str] = []
    peak: list[float] = []


class Reader:
    """What one reader has.

    Attributes:
        ends: how it ended: `done`, or the codes of what it was told.
        longest: seconds without a word.
    """

    def __init__(self, question: str) -> None:
        self.question = question
        self.id = self.cursor = self.text = ""
        self.ends: list[str] = []
        self.longest, self._heard = 0.0, 0.0

    @property
    def words(self) -> list[int]:
        """The numbers so far."""
        return [int(number) for number in self.text.split()]

    def take(self, message: Message) -> None:
        """One event."""
        self.cursor = message.last_event_id or self.cursor
        if message.type == "token":
            self.text += msgspec.json.decode(message.data)["text"]
            self.longest = max(self.longest, message.at - (self._heard or message.at))
            self._heard = message.at
        elif message.type == "restart":
            self.text = ""
        elif message.type == "done":
            self.ends.append("done")
        elif message.type == "error":
            code = msgspec.json.decode(message.data)["code"]
            if code != "overloaded":  # told in a stream, as an EventSource would give up at a status: it comes back
                self.ends.append(code)


class Chaos:
    """One run.

    Args:
        on: the programs.
        nginx: in front of them.
        chance: decides everything.
        words: of each answer.
        cut: chance of a cut at each event of a reader.
        pace: seconds from word to word.
        say: is told what happens.
    """

    def __init__(
        self,
        on: Stage,
        nginx: Nginx,
        chance: random.Random,
        words: int,
        cut: float,
        pace: float = 0.1,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.stage = on
        self.say = say
        self.figures = Figures()
        self.returned_at: list[float] = []
        self.over = False
        self._nginx = nginx
        self._chance = chance
        self._words = words
        self._cut = cut
        self._pace = pace
        self._tls = ssl.create_default_context(cafile=str(nginx.certificate))

    def play(self, exchange: Exchange) -> list[Step]:
        """Counts on from what was delivered."""
        steps: list[Step] = [sse_head()]
        for number in range(prefix(exchange) + 1, self._words + 1):
            steps += [word(number), Pause(self._pace)]
        return [*steps, *END]

    async def read(self, number: int) -> None:
        """One reader, from its question to the end of its answer."""
        figures, reader = self.figures, Reader(f"question {number}")
        self.stage.plays[reader.question] = self.play
        figures.streams += 1
        while not reader.ends:
            try:
                async with asyncio.timeout(SILENT):
                    answer = await self._ask(reader)
            except (OSError, RuntimeError):  # asyncio says the latter of a number that a cancelled connect gave back
                await asyncio.sleep(0.2)
                continue
            async with answer:
                if answer.status == 404:
                    reader.ends.append((await answer.json())["code"])
                reader.id = reader.id or answer.headers.get("x-stream-id", "")
                await self._read(reader, answer)
            if not reader.ends:
                retry = answer.parser.retry
                await asyncio.sleep(0.2 if retry is None else retry / 1000)
        figures.longest = max(figures.longest, reader.longest)
        if reader.ends != ["done"]:
            figures.told.append(f"{reader.question} {reader.id}: {reader.ends}")
        elif reader.words == list(range(1, self._words + 1)):
            figures.whole += 1
        else:
            figures.wrong.append(f"{reader.question} {reader.id}: {reader.text}")

    async def _read(self, reader: "Reader", answer: Response) -> None:
        while answer.status == 200 and (message := await self._next(answer)) is not None:
            reader.take(message)
            if not reader.ends and self._chance.random() < self._cut:
                self.figures.cuts += 1
                await answer.reset()
                return

    async def _ask(self, reader: "Reader") -> Response:
        if not reader.id:
            url, body = f"{self._nginx.url}/plain", {"message": reader.question}
            return await request(url, method="POST", headers=EVENTS, body=body, tls=self._tls)
        self.figures.returns += 1
        self.returned_at.append(asyncio.get_running_loop().time())
        url = f"{self._nginx.url}/streams/{reader.id}"
        return await request(url, headers=EVENTS, tls=self._tls, last_event_id=reader.cursor)

    async def _next(self, answer: Response) -> Any:
        try:
            async with asyncio.timeout(SILENT):
                return await answer.next()
        except TimeoutError:
            return None

    async def trouble(self) -> None:
        """Does something to a node, again and again; at most one is down at a time."""
        while not self.over:
            await asyncio.sleep(self._chance.uniform(0.5, 2.0))
            node = self._chance.choice(self.stage.nodes)
            fault = self._chance.choice([self.kill, self.pause, self.end])
            self.figures.faults.append(fault.__name__)
            await fault(node)

    async def kill(self, node: Gateway) -> None:
        """As a crash would."""
        await node.kill()
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        await node.start()

    async def pause(self, node: Gateway) -> None:
        """It stands still for longer than its lease."""
        node.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(PAUSED)
        finally:
            node.send_signal(signal.SIGCONT)

    async def end(self, node: Gateway) -> None:
        """TERM, and a new start."""
        await node.stop()
        await node.start()

    async def roll(self, streams: int) -> None:
        """Once so many streams have begun, each node ends and starts once; measures how its readers come back."""
        async with asyncio.timeout(60):  # until all have begun
            while len(self.stage.upstream.exchanges) < streams:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        for node in self.stage.nodes:
            self.figures.faults.append("end")
            began = asyncio.get_running_loop().time()
            await node.stop()
            await node.start()
            await asyncio.sleep(16)
            seconds = [int(at - began) for at in self.returned_at if at >= began]
            counts = [seconds.count(second) for second in range(max(seconds, default=0) + 1)]
            busy = [count for count in counts if count]
            self.say(f"returns a second after the end of a node: {counts}")
            self.figures.peak.append(round(max(counts) * len(busy) / max(1, sum(counts)), 2))

    async def _join(self, node: Gateway) -> None:
        """Returns when a node has its connections to Redis: one that came later would count as left behind."""
        ledger, counts = Ledger(node), list[int]()
        up = "gateway_store_up"
        await eventually(lambda: ledger.scrape(up), lambda seen: seen.total(up) == 1, timeout=20)
        async with asyncio.timeout(45):
            while len(counts) < 5 or len(set(counts[-5:])) > 1:
                counts.append((await ledger.books()).descriptors)
                await asyncio.sleep(0.2)

    async def rest(self) -> None:
        """Returns when all nodes are at rest; notes the keys that are left behind."""
        for node in self.stage.nodes:
            await self._join(node)
            async with Ledger(node, patience=45):
                pass
        self.figures.calls = len(self.stage.upstream.exchanges)
        for _ in range(200):
            self.figures.left = await self.stage.keys()
            if not self.figures.left:
                return
            await asyncio.sleep(0.2)


async def run(
    directory: Path,
    *,
    streams: int,
    cuts: int,
    words: int,
    seed: int,
    rolling: bool = False,
    pace: float = 0.1,
    say: Callable[[str], object] = lambda _: None,
) -> Figures:
    """The figures of one run. Raises AssertionError where something is left behind."""
    changes = {
        "stream": {"resume": {"ttl": KEPT_ROLLING if rolling else KEPT}},
        "server": {"drain": "0s", "trusted_proxies": ["127.0.0.1/32"]},
        "plans": {"default": {"requests": None, "streams": None, "tokens": None}},
        "limits": {"per_address": {"requests": None, "connections": None}},
    }
    async with stage(directory, 3, direct=True, changes=dict.fromkeys(range(3), changes)) as on:
        folder = directory / "nginx"
        folder.mkdir()
        addresses = [node.url.removeprefix("http://") for node in on.nodes]
        async with Nginx(" max_fails=0;\n    server ".join(addresses), folder) as nginx:
            chance = random.Random(seed)
            chaos = Chaos(on, nginx, chance, words, cuts / (streams * words), pace, say)
            trouble: Callable[[], Awaitable[None]] = partial(chaos.roll, streams) if rolling else chaos.trouble
            troubling = asyncio.ensure_future(trouble())
            readers = [asyncio.ensure_future(chaos.read(number)) for number in range(streams)]
            try:
                await asyncio.wait_for(asyncio.gather(*readers), 60 + 6 * words * pace)
            except TimeoutError:
                stuck = [number for number, reader in enumerate(readers) if not reader.done() or reader.cancelled()]
                raise AssertionError(f"readers without an end: {stuck}\n{told(on)}") from None
            finally:
                chaos.over = True
                await asyncio.wait([troubling])
                if not troubling.cancelled() and (failed := troubling.exception()):
                    say(repr(failed))
            await chaos.rest()
            return chaos.figures


def main() -> None:
    """Runs it, and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.store.chaos", description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--words", type=int, help="of an answer (default: 100; 300 for --rolling, which takes longer)")
    parser.add_argument("--pace", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rolling", action="store_true", help="end and start each node once instead")
    options = parser.parse_args()
    allow_connections(4 * options.streams)
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(
            run(
                Path(directory),
                streams=options.streams,
                cuts=options.cuts,
                words=options.words or (300 if options.rolling else 100),
                seed=options.seed,
                rolling=options.rolling,
                pace=options.pace,
                say=print,
            )
        )
    print(msgspec.json.format(msgspec.json.encode(figures)).decode())


if __name__ == "__main__":
    main()
