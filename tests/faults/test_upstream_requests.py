"""What upstreams are sent: the client's request with what the configuration adds, less what a target refused (U27); and
what is left of it for a rescuer (U32).

Each test names a model of its own, because a target is remembered by the model that was asked for.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from tests.faults.providers import refuses
from tests.faults.stage import EVENTS, FAST, PATIENCE, PROMPT, Heard, Stage, listen, once, stage_fixture, ways
from tests.kit.sse_client import request
from tests.kit.upstream import (
    LAST_CHUNK,
    OPENAI_DONE,
    OPENAI_STOP,
    Cut,
    Exchange,
    Step,
    chunk,
    openai_answer,
    openai_chunk,
    openai_delta,
    response,
    sse_head,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TUNED = ("openai", "anthropic", "ollama", "sse")


def _tuned(url: str, dialect: str) -> dict[str, Any]:
    targets = [{"url": f"{url}/{dialect}", "query": {"api-version": "2024-10-21", "tries": 2}}]
    params = {"max_tokens": 77, "temperature": 0.5, "options": {"num_ctx": 4096}}
    return {"dialect": dialect, "targets": targets, "params": params, "omit": ["top_p", "stop"]} | once()


def upstreams(url: str) -> dict[str, Any]:
    """Upstreams with parameters and a query of their own, and one whose answers two others finish."""
    tuned = {f"tuned-{dialect}": _tuned(url, dialect) for dialect in TUNED}
    first = {"dialect": "openai", "targets": [{"url": f"{url}/first"}], "fallback": ["second", "third"]}
    second = {"dialect": "openai", "targets": [{"url": f"{url}/second"}]}
    third = {"dialect": "anthropic", "targets": [{"url": f"{url}/third"}]}
    spare = {"dialect": "openai", "targets": [{"url": f"{url}/spare"}], "omit": ["stream_options"]}
    return tuned | {
        "first": first | once(),
        "second": second | once(),
        "third": third | once(),
        "spare": spare | once(),
    }


stage = stage_fixture(
    FAST | {"first_event": "5s"},
    upstreams=upstreams,
    routes=[
        *({"path": f"/{name}", "api": "openai", "upstream": name} for name in ("first", "second", "spare")),
        *({"path": f"/tuned/{name}", "api": "openai", "upstream": f"tuned-{name}"} for name in TUNED),
        {"path": "/tuned/proxy/{path}", "api": "proxy", "upstream": "tuned-openai"},
    ],
)


async def ask(stage: Stage, path: str, model: str, **more: Any) -> Heard:
    """A streamed answer, unless told otherwise."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": PROMPT}], **more}
    async with asyncio.timeout(PATIENCE):
        async with await request(f"{stage.gateway.url}{path}", method="POST", headers=EVENTS, body=body) as answer:
            return await listen(answer)


def asked(stage: Stage) -> list[dict[str, Any]]:
    """The bodies of all requests so far."""
    return [exchange.json() for exchange in stage.upstream.exchanges]


def refuses_if(seen: Callable[[dict[str, Any]], bool], refusal: bytes) -> Callable[[Exchange], Sequence[Step]]:
    """Refuses requests of which `seen` is true, and answers others."""
    return lambda exchange: [refusal] if seen(exchange.json()) else openai_answer("ok")


# -- what was added is withheld from who refused it (U27) ------------------------------------------------------------

REFUSALS = {
    "detail": (
        422,
        {"message": {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}},
    ),
    "param": (
        400,
        {"error": {"message": "Unknown parameter.", "param": "stream_options", "code": "unknown_parameter"}},
    ),
    "unknown field": (400, 'json: unknown field "stream_options"'),
    "no name": (422, {"detail": [{"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}]}),
    "no word": (400, {"error": "Bad Request"}),
    "server error": (500, {"error": {"message": "extraneous key [include_usage] is not permitted"}}),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_stream_options_are_withheld_from_who_refused_them(stage: Stage, what: str) -> None:
    status, body = REFUSALS[what]
    text = body if isinstance(body, str) else msgspec.json.encode(body)
    stage.plays(refuses_if(lambda sent: "stream_options" in sent, response(status, text)))
    before = [line for line in await stage.metrics() if line.startswith("gateway_upstream_errors_total")]
    for _ in range(2):
        heard = await ask(stage, "/second", f"m-{what}")
        assert (heard.status, heard.text, heard.ended, heard.errors) == (200, "ok", 1, [])
    assert ["stream_options" in sent for sent in asked(stage)] == [True, False, False]
    assert [line for line in await stage.metrics() if line.startswith("gateway_upstream_errors_total")] == before
    line = await stage.gateway.logged("parameters_withheld", parameters=["stream_options"])
    assert (line["upstream"], line["target"]) == ("second", stage.upstream.url.removeprefix("http://"))


async def test_error_inside_a_stream_is_a_refusal_too(stage: Stage) -> None:
    told = (
        b'data: {"error":{"code":400,"message":"stream_options is not supported","type":"invalid_request_error"}}\n\n'
    )
    refusal = sse_head() + chunk(told) + LAST_CHUNK
    stage.plays(refuses_if(lambda sent: "stream_options" in sent, refusal))
    heard = await ask(stage, "/second", "m-in-band")
    assert (heard.text, heard.ended, len(stage.upstream.exchanges)) == ("ok", 1, 2)


async def test_other_models_of_the_target_are_still_sent_them(stage: Stage) -> None:
    stage.plays(refuses_if(lambda sent: sent["model"] == "m-strict" and "stream_options" in sent, response(400, "{}")))
    for model in ("m-strict", "m-lenient", "m-strict"):
        assert (await ask(stage, "/second", model)).text == "ok"
    assert ["stream_options" in sent for sent in asked(stage)] == [True, False, True, False]


async def test_refusal_of_the_clients_own_stream_options_is_the_clients(stage: Stage) -> None:
    body = msgspec.json.encode({"error": {"message": "Unknown parameter.", "param": "stream_options"}})
    stage.plays(refuses_if(lambda sent: "stream_options" in sent, response(400, body)))
    heard = await ask(stage, "/second", "m-own", stream_options={"include_usage": True})
    assert (heard.status, heard.error["code"], len(stage.upstream.exchanges)) == (400, "upstream_refused", 1)


async def test_refusal_that_has_another_reason_is_asked_about_once(stage: Stage) -> None:
    stage.plays([refuses("openai", "bad request")])
    await stage.fail_all(ways("openai", "chat"), "upstream_refused", 400, whole=True)
    assert len(stage.upstream.exchanges) == 2


async def test_parameter_of_the_configuration_is_withheld_from_a_model_that_refused_it(stage: Stage) -> None:
    refusal = response(
        400, b'{"error":{"message":"Unsupported value: \'temperature\' does not support 0.5 with this model."}}'
    )
    stage.plays(refuses_if(lambda sent: "temperature" in sent, refusal))
    for _ in range(2):
        assert (await ask(stage, "/tuned/openai", "m-cold")).text == "ok"
    assert [(sent.get("temperature"), sent["max_tokens"]) for sent in asked(stage)] == [
        (0.5, 77),
        (None, 77),
        (None, 77),
    ]
    # The client's own is the client's.
    assert (await ask(stage, "/tuned/openai", "m-cold", temperature=1.5)).status == 400


@pytest.mark.parametrize(
    "words", ["messages[0].role: unknown variant `developer`, expected one of `system`", "Unexpected message role."]
)
async def test_target_that_does_not_know_developers_is_sent_a_system_message(stage: Stage, words: str) -> None:
    refusal = response(400, msgspec.json.encode({"error": {"message": words}}))
    stage.plays(refuses_if(lambda sent: sent["messages"][0]["role"] == "developer", refusal))
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    for _ in range(2):
        assert (await ask(stage, "/second", f"m-{words[:9]}", messages=messages)).text == "ok"
    assert [sent["messages"][0]["role"] for sent in asked(stage)] == ["developer", "system", "system"]
    assert all(sent["messages"][0]["content"] == "Be brief." for sent in asked(stage))


async def test_model_that_cannot_think_is_asked_without_it(stage: Stage) -> None:
    said = {"type": "error", "error": {"type": "invalid_request_error", "message": "thinking is not supported here"}}

    def play(exchange: Exchange) -> Sequence[Step]:
        return [
            response(400, msgspec.json.encode(said))
            if "thinking" in exchange.json()
            else refuses("anthropic", "broken")
        ]

    stage.plays(play)
    heard = await ask(
        stage, "/tuned/anthropic", "claude-3-5-haiku", reasoning_effort="low", max_tokens=5000, temperature=0.3
    )
    assert heard.error["code"] == "upstream_error"
    assert [("thinking" in sent, sent.get("temperature")) for sent in asked(stage)] == [(True, None), (False, 0.3)]


async def test_what_is_omitted_is_sent_by_nobody_and_usage_is_estimated(stage: Stage) -> None:
    stage.plays([sse_head(), openai_delta("word " * 4), OPENAI_STOP, OPENAI_DONE, LAST_CHUNK])
    heard = await ask(stage, "/spare", "m", stream_options={"include_usage": True})
    assert "stream_options" not in asked(stage)[0]
    line = await stage.told(heard, "completed")
    assert (line["output_tokens"] > 0, line["usage_source"]) == (True, "estimate")


# -- what the configuration adds and takes away ----------------------------------------------------------------------


async def test_parameters_of_the_configuration_are_sent_where_the_client_names_none(stage: Stage) -> None:
    stage.plays(openai_answer("ok"))
    await ask(stage, "/tuned/openai", "m-params", top_p=0.1, stop=["x"])
    await ask(stage, "/tuned/openai", "m-params", temperature=0, max_completion_tokens=5)
    first, second = asked(stage)
    assert (first["temperature"], first["max_tokens"], first["options"]) == (0.5, 77, {"num_ctx": 4096})
    assert not {"top_p", "stop"} & first.keys()
    assert (second["temperature"], second["max_completion_tokens"]) == (0, 5)
    assert "max_tokens" not in second  # the same under another name; providers refuse both


async def test_parameters_of_the_configuration_are_translated_like_a_clients(stage: Stage) -> None:
    stage.plays([refuses("anthropic", "broken")])
    await ask(stage, "/tuned/anthropic", "claude-x", stop=["x"])
    await ask(stage, "/tuned/ollama", "qwen3")
    await ask(stage, "/tuned/sse", "m")
    anthropic, ollama, sse = asked(stage)
    # What the dialect has no translation for goes out as it stands.
    assert (anthropic["max_tokens"], anthropic["temperature"], anthropic["options"]) == (77, 0.5, {"num_ctx": 4096})
    assert "stop_sequences" not in anthropic
    assert ollama["options"] == {"num_predict": 77, "temperature": 0.5, "num_ctx": 4096}
    assert (sse["message"], sse["max_tokens"], sse["options"]) == (PROMPT, 77, {"num_ctx": 4096})


async def test_query_of_the_target_is_sent_with_every_request(stage: Stage) -> None:
    stage.plays(openai_answer("ok"))
    await ask(stage, "/tuned/openai", "m-query")
    url = f"{stage.gateway.url}/tuned/proxy/deep/er"
    for query in ("", "?a=1&api%2Dversion=evil&b=%20"):
        async with await request(url + query, headers=EVENTS) as answer:
            await listen(answer)
    own = "api-version=2024-10-21&tries=2"
    assert [exchange.target for exchange in stage.upstream.exchanges] == [
        f"/openai/chat/completions?{own}",
        f"/openai/deep/er?{own}",
        f"/openai/deep/er?a=1&b=%20&{own}",
    ]


async def test_what_a_dialect_cannot_express_is_refused_by_name_and_asked_of_nobody(stage: Stage) -> None:
    stage.plays(openai_answer("ok"))
    heard = await ask(stage, "/tuned/anthropic", "claude-x", n=2)
    assert (heard.status, heard.error["code"], stage.upstream.exchanges) == (400, "bad_request", [])
    assert "'n'" in heard.error["message"]


async def test_what_only_tunes_is_left_out_and_logged_once(stage: Stage) -> None:
    stage.plays([refuses("anthropic", "broken")])
    for _ in range(2):
        await ask(stage, "/tuned/anthropic", "claude-x", seed=7, logit_bias={"1": 2}, **{"odd\nname" * 40: 1})
    assert not {"seed", "logit_bias"} & asked(stage)[0].keys()
    left_out = ["_other", "logit_bias", "seed"]
    line = await stage.gateway.logged("parameters_left_out", parameters=left_out)
    assert line["upstream"] == "tuned-anthropic"
    told = [line for line in stage.gateway.log_lines("parameters_left_out") if set(left_out) & set(line["parameters"])]
    assert len(told) == 1


# -- a rescue (U32) --------------------------------------------------------------------------------------------------


def cut_after(count: int, text: str = "word ") -> list[Step]:
    """An answer that breaks off after so many tokens."""
    return [sse_head(), *[openai_delta(text)] * count, Cut()]


def goes_on(count: int, prompt: int) -> list[Step]:
    """The rest of an answer, whose provider has counted what it was given and what it made of it."""
    usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
    counted = chunk(openai_chunk({}, choices=[], usage=usage))
    return [sse_head(), *[openai_delta("more ")] * count, OPENAI_STOP, counted, OPENAI_DONE, LAST_CHUNK]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_rescuer_is_asked_for_what_is_left_and_usage_adds_up(stage: Stage, limit: str) -> None:
    stage.plays(lambda exchange: cut_after(40) if "first" in exchange.target else goes_on(20, prompt=11 + 40))
    heard = await ask(stage, "/first", "m-rescue", **{limit: 60}, stream_options={"include_usage": True})
    assert heard.text == "word " * 40 + "more " * 20
    assert [sent[limit] for sent in asked(stage)] == [60, 20]
    usage = [message.json()["usage"] for message in heard.messages[:-1] if message.json().get("usage")]
    assert usage == [{"prompt_tokens": 11, "completion_tokens": 60, "total_tokens": 71}]
    line = await stage.told(heard, "completed")
    assert (line["input_tokens"], line["output_tokens"], line["usage_source"]) == (11, 60, "usage")


async def test_ollamas_own_limit_is_lowered_too(stage: Stage) -> None:
    """U32: in `options` and beside them. A number below 1 is no limit there."""
    stage.plays(lambda exchange: cut_after(40) if "first" in exchange.target else goes_on(20, prompt=11 + 40))
    await ask(stage, "/first", "m-options", options={"num_predict": 60, "num_ctx": 99})
    await ask(stage, "/first", "m-beside", num_predict=60, options={"num_predict": -1})
    sent = [(exchange.get("num_predict"), exchange["options"]) for exchange in asked(stage)]
    assert sent[1] == (None, {"num_predict": 20, "num_ctx": 99})
    assert sent[3] == (20, {"num_predict": -1})


async def test_rescuer_that_did_not_count_the_prefix_has_counted_the_prompt(stage: Stage) -> None:
    stage.plays(lambda exchange: cut_after(40) if "first" in exchange.target else goes_on(20, prompt=11))
    heard = await ask(stage, "/first", "m-rescue", max_tokens=60)
    line = await stage.told(heard, "completed")
    assert (line["input_tokens"], line["output_tokens"]) == (11, 60)


async def test_rescuer_is_asked_for_one_token_at_least(stage: Stage) -> None:
    stage.plays(lambda exchange: cut_after(9) if "first" in exchange.target else goes_on(1, prompt=20))
    await ask(stage, "/first", "m-rescue", max_tokens=4)
    assert [sent["max_tokens"] for sent in asked(stage)] == [4, 1]


async def test_tokens_that_the_first_provider_counted_are_believed(stage: Stage) -> None:
    running = {"prompt_tokens": 11, "completion_tokens": 40, "total_tokens": 51}
    first: list[Step] = [
        sse_head(),
        chunk(openai_chunk({"content": "a longer text of many words, all in one " * 4}, usage=running)),
        Cut(),
    ]
    stage.plays(lambda exchange: [*first] if "first" in exchange.target else goes_on(20, prompt=51))
    heard = await ask(stage, "/first", "m-rescue", max_tokens=60)
    assert [sent["max_tokens"] for sent in asked(stage)] == [60, 20]
    line = await stage.told(heard, "completed")
    assert (line["input_tokens"], line["output_tokens"]) == (11, 60)


async def test_target_that_is_asked_anew_has_the_whole_limit(stage: Stage) -> None:
    def play(exchange: Exchange) -> Sequence[Step]:
        if "first" in exchange.target:
            return cut_after(4)
        if exchange.json()["messages"][-1]["role"] == "assistant":
            return [refuses("openai", "no prefill")]
        return openai_answer(*["word "] * 6)

    stage.plays(play)
    heard = await ask(stage, "/first", "m-anew", max_tokens=60)
    assert heard.text == "word " * 6
    assert [sent["max_tokens"] for sent in asked(stage)] == [60, 56, 60]
