"""The shipped configuration in front of servers that know only their own models, one or two lines changed."""

from pathlib import Path

import pytest

from gateway.config import load_text
from tests.kit.own_models import OwnModels, asked
from tests.kit.sse_client import request
from tests.kit.upstream import ScriptedUpstream
from tests.seams.serving import serving

SHIPPED = (Path(__file__).parents[1] / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
async def test_user_who_changes_the_url_and_the_dialect_chats(dialect: str) -> None:
    async with ScriptedUpstream(OwnModels("own-1", "own-2")) as upstream:
        text = SHIPPED.replace('"demo:"', f'"{upstream.url}/{dialect}"')
        text = text.replace("    dialect: openai  ", f"    dialect: {dialect}  ")
        assert sum(old != new for old, new in zip(SHIPPED.split("\n"), text.split("\n"), strict=True)) <= 2
        async with serving(load_text(text, environ={})) as gateway:
            async with await request(f"{gateway.url}/api/chat?message=hello") as answer:
                events = [(event.type, event.json().get("text")) async for event in answer.messages()]
            assert events[1:] == [("token", "Hi"), ("done", None)]
            body = {"messages": [{"role": "user", "content": "hello"}]}
            async with await request(f"{gateway.url}/v1/chat/completions", method="POST", body=body) as whole:
                assert (await whole.json())["choices"][0]["message"]["content"] == "Hi"
        assert asked(upstream.exchanges)[-2:] == ["own-1", "own-1"]
