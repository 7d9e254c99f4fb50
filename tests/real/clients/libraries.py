"""Every Python library of the matrix, used as its own documents show, in one process of the libraries' own venv.

The protocol is that of `libraries.mjs`: a line of stdin asks one library, a line of stdout tells what came of it.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache, partial
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the internet for prices, and wait
os.environ["LANGSMITH_TRACING"] = "false"

import aiohttp
import aiohttp_sse_client2.client
import httpx
import httpx_sse
import instructor
import litellm
import openai
import requests
import requests_sse
import sseclient
from instructor.core.exceptions import InstructorRetryException
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

LONGEST = 30.0
RETRY = 0.1
THREADS = 60
JSON = {"Content-Type": "application/json"}
Ask = dict[str, Any]


class Over(Exception):  # noqa: N818 - an end, not always an error
    """The answer is over, and how."""


class Answer:
    """What one library made of one answer."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.text = ""

    def take(self, kind: str | None, data: str) -> None:
        """An event of the gateway's format `events`. Raises Over at the end."""
        match kind:
            case "token":
                self.add(json.loads(data)["text"])
            case "restart":
                self.text = ""
            case "error":
                raise Over(json.loads(data)["code"])
            case "done" if self.mode != "forget":
                raise Over("done")

    def add(self, text: str) -> None:
        """More text. Raises Over when it is to be left here."""
        self.text += text
        if self.mode == "abort" and self.text:
            raise Over("aborted")


def headers(ask: Ask, cursor: str = "") -> dict[str, str]:
    resume = {"Last-Event-ID": cursor} if cursor else {}
    return JSON | {"Authorization": f"Bearer {ask['key']}"} | resume


def refused(status: int) -> None:
    """Raises Over for every status but 200. 204: the answer was read to its end before."""
    if status != 200:
        raise Over("closed" if status == 204 else str(status))


# Parsers: the loop that asks again with the cursor is the caller's.


async def httpx_sse_(ask: Ask, answer: Answer, client: httpx.AsyncClient) -> None:
    cursor = ""
    while True:
        request = {"headers": headers(ask, cursor), "json": {"message": ask["question"]}}
        try:
            async with httpx_sse.aconnect_sse(client, "POST", ask["chat"], **request) as source:
                refused(source.response.status_code)
                async for event in source.aiter_sse():
                    cursor = event.id or cursor
                    if event.data:
                        answer.take(event.event, event.data)
        except httpx.TransportError:
            if not cursor:
                raise
        await asyncio.sleep(RETRY)


def sseclient_py(ask: Ask, answer: Answer) -> None:
    cursor = ""
    while True:
        request: Any = {"headers": headers(ask, cursor), "json": {"message": ask["question"]}}
        try:
            with requests.post(ask["chat"], stream=True, timeout=LONGEST, **request) as response:
                refused(response.status_code)
                for event in sseclient.SSEClient(response).events():
                    answer.take(event.event, event.data)
                    cursor = event.id or cursor
        except requests.exceptions.RequestException:
            if not cursor:
                raise


# Libraries that ask again by themselves.


def requests_sse_(ask: Ask, answer: Answer) -> None:
    soon = timedelta(seconds=RETRY)
    request = {"headers": headers(ask), "json": {"message": ask["question"]}, "timeout": LONGEST}
    try:
        with requests_sse.EventSource(ask["chat"], "POST", reconnection_time=soon, **request) as source:
            for event in source:
                answer.take(event.type, event.data or "null")
    except requests_sse.InvalidStatusCodeError as error:
        refused(error.status_code)


async def aiohttp_sse_client2_(ask: Ask, answer: Answer, session: aiohttp.ClientSession) -> None:
    """It asks again after a clean end only; a broken connection it raises, and a new one gets the cursor."""
    cursor = ""
    while True:
        source = aiohttp_sse_client2.client.EventSource(
            ask["chat"],
            option={"method": "POST"},
            reconnection_time=timedelta(seconds=RETRY),
            session=session,
            headers=headers(ask, cursor),
            json={"message": ask["question"]},
        )
        try:
            async with source:
                async for event in source:
                    cursor = event.last_event_id or cursor
                    answer.take(event.type, event.data)
                raise Over("closed")
        except ConnectionError as error:
            if not (status := re.search(r"^fetch .*: (\d{3}): ", str(error.args[0]))):
                raise
            refused(int(status[1]))
        except aiohttp.ClientPayloadError:
            if not cursor:
                raise
        await asyncio.sleep(RETRY)


# Kits for OpenAI's API.


def messages(ask: Ask) -> list[Any]:
    return [{"role": "user", "content": ask["question"]}]


@cache
def client_of(base: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=base, api_key=key)


def end(reason: str | None) -> Over:
    return Over("done" if reason else "ends")


async def openai_(ask: Ask, answer: Answer) -> None:
    reason = None
    client = client_of(ask["openai"], ask["key"])
    async with await client.chat.completions.create(model="m", messages=messages(ask), stream=True) as stream:
        async for chunk in stream:
            for choice in chunk.choices:
                answer.add(choice.delta.content or "")
                reason = choice.finish_reason or reason
    raise end(reason)


async def langchain(ask: Ask, answer: Answer) -> None:
    reason = None
    model = ChatOpenAI(model="m", base_url=ask["openai"], api_key=ask["key"])
    stream = model.astream(ask["question"])
    try:
        async for chunk in stream:
            answer.add(str(chunk.content))
            reason = chunk.response_metadata.get("finish_reason") or reason
    finally:
        await stream.aclose()
    raise end(reason)


class Parsed(BaseModel):
    """What instructor reads out of the text, which is JSON."""

    answer: str


async def instructor_(ask: Ask, answer: Answer) -> None:
    """Partial objects as they grow. Nothing says why the last one is the last.

    Who leaves early has to close the client: closing the parts leaves the connection open.
    """
    async with openai.AsyncOpenAI(base_url=ask["openai"], api_key=ask["key"]) as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode.JSON)
        async for part in client.create_partial(response_model=Parsed, model="m", messages=messages(ask)):
            answer.text = '{"answer": "' + (part.answer or "")
            answer.add("")
    answer.add('"}')
    raise Over("done")


async def litellm_(ask: Ask, answer: Answer) -> None:
    reason = None
    options = {"model": "openai/m", "api_base": ask["openai"], "api_key": ask["key"]}
    stream = await litellm.acompletion(messages=messages(ask), stream=True, **options)
    try:
        async for chunk in stream:
            answer.add(chunk.choices[0].delta.content or "")
            reason = chunk.choices[0].finish_reason or reason
    finally:
        await stream.aclose()
    raise end(reason)


async def outcome(ask: Ask, use: Callable[[Ask, Answer], Awaitable[None]]) -> dict[str, Any]:
    answer, told = Answer(ask["mode"]), ""
    try:
        async with asyncio.timeout(ask["patience"]):
            await use(ask, answer)
        how = "ends"
    except Over as over:
        how = str(over)
    except TimeoutError:
        how = "waits"
    except Exception as error:  # noqa: BLE001 - which one is what is asked
        if isinstance(error, InstructorRetryException):
            error = error.__cause__ or error
        status = getattr(error, "status_code", 500)  # 500 is litellm's own word for what broke off
        how, told = "raises" if status == 500 else str(status), f"{type(error).__name__}: {error}"
    return {"n": ask["n"], "text": answer.text, "end": how, "told": told[:300]}


def threaded(use: Callable[[Ask, Answer], None]) -> Callable[[Ask, Answer], Awaitable[None]]:
    return lambda ask, answer: asyncio.to_thread(use, ask, answer)


async def main() -> None:
    litellm.suppress_debug_info = True
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no reply
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with httpx.AsyncClient(timeout=LONGEST) as client, aiohttp.ClientSession() as session:
        libraries: dict[str, Callable[[Ask, Answer], Awaitable[None]]] = {
            "httpx-sse": partial(httpx_sse_, client=client),
            "sseclient-py": threaded(sseclient_py),
            "requests-sse": threaded(requests_sse_),
            "aiohttp-sse-client2": partial(aiohttp_sse_client2_, session=session),
            "openai (Python)": openai_,
            "langchain-openai": langchain,
            "instructor": instructor_,
            "litellm": litellm_,
        }

        async def reply(ask: Ask) -> None:
            print(json.dumps(await outcome(ask, libraries[ask["library"]])), file=replies, flush=True)

        asking: set[asyncio.Task[None]] = set()
        while line := await lines.readline():
            task = asyncio.create_task(reply(json.loads(line)))
            asking.add(task)
            task.add_done_callback(asking.discard)


if __name__ == "__main__":
    asyncio.run(main())
