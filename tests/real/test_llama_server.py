"""The first steps of a new user: the shipped configuration, with its URL changed to a real llama-server."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import yaml

from tests.kit.llama import MODEL, LlamaServer
from tests.kit.program import ROOT, Gateway
from tests.kit.sse_client import Message, request

if TYPE_CHECKING:  # it takes seconds, and each process of the tests collects all files
    pass

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHIPPED = (ROOT / "config.yaml").read_text("utf-8")
GATEWAY = Path(sys.executable).with_name("gateway")
ASKED: Any = [{"role": "user", "content": "hello"}]


def pointed_at(url: str) -> str:
    """The shipped configuration with one line changed."""
    assert SHIPPED.count('"demo:"') == 1
    return SHIPPED.replace('"demo:"', f'"{url}"')


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llama(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaServer]:
    async with LlamaServer(tmp_path_factory.mktemp("llama")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    config: dict[str, Any] = yaml.safe_load(pointed_at(llama.url))
    del config["server"]["listen"], config["server"]["admin_listen"]  # the test's own ports
    config["log"]["format"] = "json"
    async with Gateway(config, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway
    assert gateway.log_lines("config_warning") == []


async def chat(gateway: Gateway, message: str) -> list[Message]:
    """The events of an answer on the chat page's route."""
    body = {"message": message, "session_id": "1"}
    async with await request(f"{gateway.url}/api/chat", method="POST", body=body) as answer:
        return [event async for event in answer.messages()]


async def test_user_who_changes_the_url_chats(gateway: Gateway) -> None:
    events = await chat(gateway, "hello")
    tokens = [event.json()["text"] for event in events if event.type == "token"]
    done = events[-1].json()
    assert [event.type for event in events if event.type != "token"] == ["connected", "done"]
    assert "".join(tokens) == done["full_text"]
    assert done["full_text"].isalpha()
    # The server's own count, and its own word for why it stopped.
    assert (done["finish_reason"], done["usage"]["completion_tokens"]) == ("length", 40)
    end = await gateway.logged("stream_end")
    assert (end["outcome"], end["model"]) == ("completed", MODEL)


@pytest.mark.parametrize("model", ["", MODEL, "gpt-4o-mini"])
async def test_sdk_gets_an_answer_whatever_model_it_names(gateway: Gateway, model: str) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        whole = await client.chat.completions.create(model=model, messages=ASKED, max_tokens=5)
        assert whole.usage is not None
        assert (whole.model, whole.usage.completion_tokens) == (MODEL, 5)
        pieces: Any = await client.chat.completions.create(model=model, messages=ASKED, max_tokens=5, stream=True)
        text = "".join([piece.choices[0].delta.content or "" async for piece in pieces if piece.choices])
        assert text == whole.choices[0].message.content


async def check(url: str, folder: Path) -> tuple[int, str]:
    """Status and output of `gateway check --ask`."""
    (folder / "config.yaml").write_text(pointed_at(url))
    program = await asyncio.create_subprocess_exec(GATEWAY, "check", "--ask", cwd=folder, stdout=subprocess.PIPE)
    said, _ = await asyncio.wait_for(program.communicate(), 30)
    assert program.returncode is not None
    return program.returncode, said.decode()


async def test_check_asks_the_server_what_it_has(llama: LlamaServer, tmp_path: Path) -> None:
    status, said = await check(llama.url, tmp_path)
    assert (status, said) == (
        0,
        f"upstreams.main.targets[0]: {llama.url}: ok: status 200, has 1 model: {MODEL}; where a request names none, "
        f"{MODEL} is asked for\n",
    )
    status, said = await check(llama.url.replace("/v1", "/v2"), tmp_path)
    assert status == 1
    assert "cannot serve: status 404" in said
