"""`/models` beside an openai route: what the targets list, in OpenAI's shape."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.own_models import OwnModels, lists
from tests.kit.program import Gateway
from tests.kit.sse_client import request
from tests.kit.upstream import ScriptedUpstream, response

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "a-key-for-the-list-of-models-0123"
NAMES = ("tiny", "meta/llama-3", "qwen3:8b")


class Scene:
    """The gateway and its upstream; `/own` has a list, `/silent` has none, `/demo` is the stand-in."""

    gateway: Gateway
    upstream: ScriptedUpstream

    async def get(self, path: str, method: str = "GET", key: str = KEY) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            asyncio.timeout(10),
            await request(f"{self.gateway.url}{path}", method=method, headers=headers) as got,
        ):
            return got.status, await got.json()


def config(url: str) -> dict[str, Any]:
    def upstream(target: str, dialect: str = "openai", **more: Any) -> dict[str, Any]:
        return {"dialect": dialect, "targets": [{"url": target}], **more}

    return {
        "auth": {"keys": [{"id": "k", "key": KEY}]},
        "limits": {"per_address": {"requests": None, "connections": None}},
        "upstreams": {
            "own": {
                "dialect": "openai",
                "targets": [{"url": f"{url}/openai"}, {"url": f"{url}/openai", "query": {"second": "1"}}],
            },
            "ollama": upstream(f"{url}/ollama", "ollama"),
            "silent": upstream(f"{url}/silent", model="configured"),
            "text": upstream(f"{url}/text", "text"),
            "demo": upstream("demo:"),
            "legacy": upstream(f"{url}/legacy", "sse"),
        },
        "routes": [
            {"path": "/own/chat/completions", "api": "openai", "upstream": "own"},
            {"path": "/ollama/chat/completions", "api": "openai", "upstream": "ollama"},
            {"path": "/silent/chat/completions", "api": "openai", "upstream": "silent"},
            {"path": "/text/chat/completions", "api": "openai", "upstream": "text", "model": "of-the-route"},
            {"path": "/demo/v1/chat/completions", "api": "openai", "upstream": "demo"},
            {"path": "/taken/chat/completions", "api": "openai", "upstream": "own"},
            {"path": "/taken/{path}", "api": "proxy", "upstream": "legacy"},
        ],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    own, made = OwnModels(*NAMES), Scene()

    def play(exchange: Any) -> Any:
        first = exchange.target.split("?")[0].split("/")[1]
        if first in ("openai", "ollama"):
            return own(exchange)
        return [response(200 if first == "legacy" else 404, '{"theirs":true}')]

    made.upstream = ScriptedUpstream(play)
    async with made.upstream:
        made.gateway = Gateway(config(made.upstream.url), tmp_path_factory.mktemp("models"))
        async with made.gateway:
            yield made


def ids(body: Any) -> list[str]:
    return [model["id"] for model in body["data"]]


async def test_list_is_what_the_targets_list(scene: Scene) -> None:
    status, body = await scene.get("/own/models")
    assert (status, body["object"], ids(body)) == (200, "list", list(NAMES))
    assert body["data"][0] == {"id": "tiny", "object": "model", "created": 0, "owned_by": "upstream"}
    assert (await scene.get("/ollama/models"))[1] == body


async def test_each_target_is_asked_once_whatever_clients_do(scene: Scene) -> None:
    for answers in await asyncio.gather(*(scene.get("/own/models") for _ in range(10))):
        assert ids(answers[1]) == list(NAMES)
    asked = [exchange for exchange in scene.upstream.exchanges if exchange.target.startswith("/openai")]
    assert lists(asked) == 2


@pytest.mark.parametrize("path", ["tiny", "meta/llama-3", "meta%2Fllama-3", "qwen3:8b", "qwen3%3A8b"])
async def test_one_model_is_found_by_its_id(scene: Scene, path: str) -> None:
    status, body = await scene.get(f"/own/models/{path}")
    assert (status, body["id"] in NAMES, body["object"]) == (200, True, "model")


async def test_unknown_model_is_an_error_of_openais_shape(scene: Scene) -> None:
    status, body = await scene.get(f"/own/models/{'n' * 5000}")
    error = body["error"]
    assert (status, error["code"], error["param"], error["type"]) == (
        404,
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert len(error["message"]) < 200


async def test_names_of_the_configuration_stand_in_for_a_list(scene: Scene) -> None:
    assert ids((await scene.get("/silent/models"))[1]) == ["configured"]
    assert ids((await scene.get("/text/models"))[1]) == ["of-the-route"]


async def test_stand_in_has_a_model(scene: Scene) -> None:
    assert ids((await scene.get("/demo/v1/models"))[1]) == ["demo"]
    assert (await scene.get("/demo/v1/models/demo"))[0] == 200


async def test_list_wants_the_credential_of_its_route(scene: Scene) -> None:
    status, body = await scene.get("/own/models", key="")
    assert (status, body["error"]["code"]) == (401, "unauthorized")


async def test_list_is_only_read(scene: Scene) -> None:
    status, body = await scene.get("/own/models", method="POST")
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")


async def test_path_beside_it_is_nothing_in_openais_shape(scene: Scene) -> None:
    status, body = await scene.get("/own/embeddings")
    assert (status, body["error"]["code"]) == (404, "not_found")


async def test_route_of_the_configuration_comes_first(scene: Scene) -> None:
    assert await scene.get("/taken/models") == (200, {"theirs": True})
