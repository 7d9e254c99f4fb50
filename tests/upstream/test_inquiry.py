"""`gateway check --ask`: what each target says, and what to change."""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.config import Config
from gateway.upstream import inquiry
from gateway.upstream.inquiry import Report, inquire
from tests.kit.own_models import OwnModels
from tests.kit.program import free_port
from tests.kit.upstream import Exchange, Hang, Script, ScriptedUpstream, Step, response

KEY = "sk-0123456789abcdef-secret"
SAYS_NO = response(401, f'{{"error":{{"message":"Incorrect API key provided: {KEY}","code":"invalid_api_key"}}}}')


def config(*targets: dict[str, Any], route: dict[str, Any] | None = None, **upstream: Any) -> Config:
    """One upstream with these targets, and one route to it."""
    route = {"path": "/a", "api": "chat", "upstream": "main"} | (route or {})
    main = {"dialect": "openai", "api_key": KEY, "targets": list(targets)} | upstream
    return Config.model_validate({"auth": {"anonymous": True}, "upstreams": {"main": main}, "routes": [route]})


async def reported(script: Script, path: str = "/openai", **settings: Any) -> Report:
    """What is reported of one target that plays this script."""
    async with ScriptedUpstream(script) as upstream:
        [report] = await asyncio.wait_for(inquire(config({"url": upstream.url + path}, **settings)), 10)
    assert KEY not in str(report)
    assert upstream.url in report.place
    return report


OWN = OwnModels("own-1", "own-2")


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama"])
@pytest.mark.parametrize(
    ("settings", "serves", "says"),
    [
        ({}, True, "status 200, has 2 models: own-1, own-2; where a request names none, own-1 is asked for"),
        ({"model": "own-2"}, True, "status 200, has 2 models: own-1, own-2; what the configuration names is among "
         "them: own-2"),
        ({"route": {"model": "own-1"}}, True, "status 200, .* among them: own-1"),
        ({"model": "other"}, False, "status 404, .* other is not among its models .2 models: own-1, own-2.: .*"),
    ],
)  # fmt: skip
async def test_target_with_a_list_says_whether_its_models_are_there(
    dialect: str, settings: dict[str, Any], serves: bool, says: str
) -> None:
    report = await reported(OWN, f"/{dialect}", dialect=dialect, **settings)
    assert report.serves == serves
    assert re.fullmatch(says, report.says), report.says


@pytest.mark.parametrize(
    ("wanted", "listed"),
    [("qwen3", "qwen3:latest"), ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"), ("gemini-x", "models/gemini-x")],
)
async def test_model_is_found_under_the_longer_name_that_a_list_has(wanted: str, listed: str) -> None:
    report = await reported(OwnModels(listed), model=wanted)
    assert report.serves
    assert "among them" in report.says


async def test_model_that_is_in_no_list_but_answers_is_good() -> None:
    def any_name(exchange: Exchange) -> Sequence[Step]:
        return OWN(exchange) if exchange.method == "GET" else OwnModels("deployed")(exchange)

    report = await reported(any_name, model="deployed")
    assert report.serves
    assert report.says.endswith("; answers as deployed too")


async def test_ollama_without_a_model_cannot_serve() -> None:
    report = await reported(OwnModels(), "/ollama", dialect="ollama")
    assert not report.serves
    assert "`ollama pull NAME` gets one" in report.says


async def test_target_without_a_list_is_asked_hi() -> None:
    def no_list(exchange: Exchange) -> Sequence[Step]:
        return [response(404, "{}")] if exchange.method == "GET" else OwnModels("m")(exchange)

    report = await reported(no_list, model="m")
    assert (report.serves, report.says) == (True, "status 200, answers")


@pytest.mark.parametrize(
    ("script", "path", "settings", "says"),
    [
        ([SAYS_NO], "/v1", {}, r"status 401, upstream_auth: .*api_key"),
        ([response(404, "Not Found", "text/plain")], "", {}, r"status 404, .*/v1"),
        ([response(404, "{}")], "/v1", {"dialect": "ollama"}, r"status 404, .*/v1"),
        ([response(302, "", Location="/x")], "/v1", {}, r"status 302, upstream_protocol: .*[Rr]edirect"),
        ([response(503, "{}")], "/v1", {}, r"status 503, upstream_unavailable: .*"),
        ([response(200, "<html>", "text/html")], "/v1", {}, r".*upstream_protocol: .*"),
        ([b"\x15\x03\x01\x00\x02\x02\x16"], "/v1", {}, r"no answer, upstream_(protocol|reset): .*https://.*"),
    ],
    ids=["key", "no /v1", "ollama below /v1", "redirect", "503", "page", "TLS"],
)
async def test_target_that_cannot_serve_says_what_to_change(
    script: Script, path: str, settings: dict[str, Any], says: str
) -> None:
    report = await reported(script, path, **settings)
    assert not report.serves
    assert re.match(says, report.says), report.says


@pytest.mark.parametrize("dialect", ["sse", "text"])
async def test_endpoint_of_your_own_is_asked_hi(dialect: str) -> None:
    good = await reported(OwnModels(needs=False), f"/{dialect}", dialect=dialect)
    assert (good.serves, good.says) == (True, "status 200, answers")
    bad = await reported([response(404, "{}")], "/x", dialect=dialect)
    assert not bad.serves


async def test_hi_has_the_parameters_of_the_configuration() -> None:
    def answers(exchange: Exchange) -> list[Step]:
        return [response(404 if exchange.method == "GET" else 200, "{}")]

    async with ScriptedUpstream(answers) as upstream:
        settings: dict[str, Any] = {
            "params": {"max_tokens": 7, "top_k": 3, "seed": 1},
            "omit": ["seed", "stream_options"],
        }
        [report] = await asyncio.wait_for(inquire(config({"url": upstream.url + "/v1"}, **settings)), 10)
        asked = json.loads(upstream.exchanges[-1].body)
    assert report.serves
    assert (asked["max_tokens"], asked["top_k"]) == (7, 3)
    assert not {"seed", "stream_options"} & asked.keys()


@pytest.mark.parametrize("name", ["stream_options", "top_k"])
async def test_hi_is_asked_again_without_what_the_target_refuses_of_the_gateways_own(name: str) -> None:
    """As the gateway would do: so the target serves."""

    def refuses(exchange: Exchange) -> list[Step]:
        if exchange.method == "GET":
            return [response(404, "{}")]
        known = name not in json.loads(exchange.body)
        return [response(200, "{}") if known else response(400, f'{{"error": "Unknown parameter: {name}"}}')]

    assert (await reported(refuses, params={"top_k": 3})).serves


@pytest.mark.parametrize("api", ["chat", "proxy"])
async def test_every_question_has_the_query_of_the_target(api: str) -> None:
    route = {"api": api, "path": "/a/{path}" if api == "proxy" else "/a"}

    def without_a_list(exchange: Exchange) -> list[Step]:
        return [response(404 if exchange.method == "GET" else 200, "")]

    async with ScriptedUpstream(without_a_list) as upstream:
        target = {"url": upstream.url, "query": {"api-version": "2024-10-21"}}
        await asyncio.wait_for(inquire(config(target, route=route)), 10)
        assert upstream.exchanges
        assert {exchange.target.partition("?")[2] for exchange in upstream.exchanges} == {"api-version=2024-10-21"}


async def test_target_of_proxy_routes_only_has_to_be_there() -> None:
    proxy = {"path": "/a/{path}", "api": "proxy"}
    async with ScriptedUpstream([response(404, "")]) as upstream:
        [report] = await inquire(config({"url": upstream.url}, route=proxy, dialect="sse"))
        assert (report.serves, report.says) == (True, "reached, status 404")
        assert upstream.exchanges[0].method == "HEAD"
    [report] = await inquire(config({"url": f"http://127.0.0.1:{free_port()}"}, route=proxy, dialect="sse"))
    assert not report.serves
    assert report.says.startswith("no answer, upstream_unreachable: ")


async def test_all_targets_are_asked_at_once_and_none_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "PATIENCE", 1.5)
    async with ScriptedUpstream([Hang()]) as upstream:
        targets = [{"url": f"{upstream.url}/{number}"} for number in range(inquiry.AT_ONCE)]
        reports = await asyncio.wait_for(inquire(config(*targets)), 10)
        assert len(upstream.exchanges) == inquiry.AT_ONCE
    assert [report.place.rpartition("/")[2] for report in reports] == [str(n) for n in range(inquiry.AT_ONCE)]
    assert {report.says.partition(":")[0] for report in reports} == {"no answer, upstream_timeout"}
