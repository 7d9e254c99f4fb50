"""`/page/answer`: the caller of a stream is told its model, and nobody else."""

from typing import Any

from tests.kit.sse_client import request
from tests.kit.upstream import LAST_CHUNK, OPENAI_DONE, OPENAI_STOP, ScriptedUpstream, Step, chunk, sse_head
from tests.seams.serving import serving
from tests.web.stage import EVENTS, setting

KEYS = {name: {"Authorization": f"Bearer {name}-key"} for name in ("anna", "bert")}
NAMED = 'data: {"model":"qwen3-8b","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'


async def test_caller_is_told_the_model_and_nobody_else() -> None:
    keys = [{"id": name, "key": f"{name}-key"} for name in KEYS]
    script: list[Step] = [sse_head(), chunk(NAMED), OPENAI_STOP, OPENAI_DONE, LAST_CHUNK]
    async with (
        ScriptedUpstream(script) as upstream,
        serving(setting(upstream.url, [{"path": "/chat"}], auth={"keys": keys})) as gateway,
    ):

        async def ask(stream: str, headers: Any) -> tuple[int, Any]:
            async with await request(f"{gateway.url}/page/answer?stream={stream}", headers=headers) as answer:
                return answer.status, await answer.json()

        async with await request(f"{gateway.url}/chat?message=hi", headers=KEYS["anna"] | EVENTS) as answer:
            await answer.body()
            stream_id = answer.headers["x-stream-id"]
        assert await ask(stream_id, KEYS["anna"]) == (200, {"model": "qwen3-8b"})
        assert (await ask(stream_id, KEYS["bert"]))[0] == 404
        assert (await ask("x" * 22, KEYS["anna"]))[0] == 404
        assert (await ask("", KEYS["anna"]))[0] == 404
        assert (await ask(stream_id, {}))[0] == 401
