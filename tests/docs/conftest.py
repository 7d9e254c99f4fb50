"""Gateways with the configurations of the documents, and stand-ins behind them that make nobody wait."""

import asyncio
import math
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from gateway.demo import start_demo
from tests.docs.config import completed, variables
from tests.docs.markdown import Block, Document
from tests.kit.program import ROOT, Gateway
from tests.kit.upstream import Exchange, ScriptedUpstream, Step, http_head

Serve = Callable[[Block], Awaitable[Gateway]]

ANSWERS = {
    "anthropic": (
        "text/event-stream",
        'event: message_start\ndata: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":3}}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Hello"}}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        '"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
    ),
    "ollama": (
        "application/x-ndjson",
        '{"model":"m","message":{"role":"assistant","content":"Hello"},"done":false}\n'
        '{"model":"m","message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":2}\n',
    ),
    "sse": ("text/event-stream", 'event: token\ndata: {"text": "Hello"}\n\nevent: done\ndata: {}\n\n'),
    "text": ("text/plain", "Hello"),
}


def stand_in(exchange: Exchange) -> list[Step]:
    """A good answer in the dialect that the path begins with."""
    media_type, body = ANSWERS[exchange.target.split("/")[1]]
    raw = body.encode()
    return [http_head(200, media_type, Content_Length=str(len(raw))) + raw]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand_ins() -> AsyncIterator[dict[str, str]]:
    """The base URL of a stand-in for each dialect."""
    demo = await start_demo(speed=math.inf)
    async with ScriptedUpstream(stand_in) as scripted:
        yield {"openai": demo.url} | {name: f"{scripted.url}/{name}" for name in ANSWERS}
    await demo.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serve(stand_ins: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serve]:
    """`await serve(block)` is a gateway with the configuration that the block speaks of."""
    serving: dict[str, Gateway] = {}

    async def start(block: Block) -> Gateway:
        text = config_before(block)
        if text not in serving:
            config = with_stand_ins(yaml.safe_load(text), stand_ins)
            gateway = Gateway(config, tmp_path_factory.mktemp("gateway"), env=variables(text))
            await gateway.start()
            serving[text] = gateway
        return serving[text]

    yield start
    await asyncio.gather(*(gateway.stop() for gateway in serving.values()))


def config_before(block: Block) -> str:
    """The last configuration before the block in its document, whole; the shipped one where there is none."""
    configs = [other for other in Document(block.document).blocks if other.language == "yaml"]
    earlier = [config for config in configs if config.line < block.line]
    return completed(earlier[-1]) if earlier else (ROOT / "config.yaml").read_text("utf-8")


def with_stand_ins(config: dict[str, Any], stand_ins: dict[str, str]) -> dict[str, Any]:
    """The configuration with other targets and addresses, and one worker; whatever else it says stays."""
    upstreams = {
        name: upstream | {"targets": [{"url": stand_ins[upstream["dialect"]]}]}
        for name, upstream in config["upstreams"].items()
    }
    given = config.get("server", {})
    server = {key: given[key] for key in given if key not in ("listen", "admin_listen", "workers")}
    return config | {"upstreams": upstreams, "server": server, "log": {"format": "json"}}


def here(text: str, gateway: Gateway) -> str:
    """The text with this gateway's addresses in it, and the programs of the Python that runs the tests."""
    text = text.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    text = re.sub(r"https?://(127\.0\.0\.1:8080|localhost:8080|chat\.example\.com)", gateway.url, text)
    return re.sub(r"http://(127\.0\.0\.1|localhost):9090", gateway.admin, text)
