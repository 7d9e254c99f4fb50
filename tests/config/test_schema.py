import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from gateway.config import load, schema

SHIPPED = Path(__file__).parents[2] / "config.yaml"
VALIDATOR = Draft202012Validator(schema())


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())
    assert json.loads(json.dumps(schema())) == schema()


def test_schema_accepts_the_shipped_config() -> None:
    VALIDATOR.validate(yaml.safe_load(SHIPPED.read_text("utf-8")))


def test_schema_accepts_a_store_as_text_and_as_mapping() -> None:
    config = yaml.safe_load(SHIPPED.read_text("utf-8"))
    for store in (
        "memory",
        "redis://:p@h/0",
        "${REDIS_URL:-memory}",
        {"url": "unix:///s"},
        {"url": "${R}", "secret": "s"},
    ):
        VALIDATOR.validate(config | {"store": store})
    bad: tuple[object, ...] = ("http://h", 5, ["memory"], {"url": "http://h"}, {"uri": "memory"})
    for wrong in bad:
        assert not VALIDATOR.is_valid(config | {"store": wrong})


def test_shipped_config_needs_no_environment_and_shows_every_default() -> None:
    shipped = load(SHIPPED, environ={}).model_dump(exclude={"upstreams", "routes", "plans"})
    defaults = type(load(SHIPPED, environ={})).model_fields
    plain = {name: field.get_default(call_default_factory=True) for name, field in defaults.items() if name in shipped}
    plain = {name: value.model_dump() if hasattr(value, "model_dump") else value for name, value in plain.items()}
    plain["auth"]["anonymous"], plain["log"]["format"] = True, "console"
    assert shipped == plain


def test_shipped_config_names_every_key() -> None:
    text = SHIPPED.read_text("utf-8")
    names = {name for model in schema()["$defs"].values() for name in model.get("properties", {})}
    assert [name for name in sorted(names) if f"{name}:" not in text] == []


def test_shipped_config_is_pointed_at_a_server_by_one_line() -> None:
    text = SHIPPED.read_text("utf-8")
    assert text.count('- url: "demo:"') == 1
    assert load(SHIPPED, environ={}).upstreams["main"].targets[0].demo


def test_schema_shows_defaults_as_users_write_them() -> None:
    definitions = schema()["$defs"]
    assert definitions["Stream"]["properties"]["heartbeat"]["default"] == "15s"
    assert definitions["Resume"]["properties"]["max_bytes"]["default"] == "8MiB"
    assert definitions["Server"]["properties"]["listen"]["default"] == "127.0.0.1:8080"
    assert definitions["OnDisconnect"]["properties"]["after"]["description"].endswith("Allowed: 0s to 24h, or never.")
    assert "default" not in definitions["RouteStream"]["properties"]["heartbeat"]


def test_schema_defaults_are_valid() -> None:
    whole = schema()
    definitions = whole["$defs"]
    for model in (*definitions.values(), whole):
        for key in model.get("properties", {}).values():
            if "default" in key:
                Draft202012Validator({"$defs": definitions, **key}).validate(key["default"])


ROUTE = {"path": "/a", "api": "chat", "upstream": "main"}
UPSTREAM = {"dialect": "openai", "targets": [{"url": "demo:"}]}
MAIN = {"main": UPSTREAM}


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"server": {"max_connections": "${MAX:-5}"}}, True),
        ({"stream": {"batch": {"interval": 0}}}, True),
        ({"stream": {"on_disconnect": {"after": "never"}}}, True),
        ({"routes": [ROUTE | {"heartbeat": "1s", "batch": {"interval": "1s"}}]}, True),
        ({"routes": [ROUTE | {"format": {"preset": "events", "token": {"json": "$text"}, "start": None}}]}, True),
        ({"plans": {"专业版": {"requests": "60/min", "streams": None}}}, True),
        ({"upstreams": {"main": UPSTREAM | {"params": {"max_tokens": 5, "stop": ["a"], "x": {"y": None}}}}}, True),
        ({"upstreams": {"main": UPSTREAM | {"omit": ["top_p"], "whole": "stream"}}}, True),
        ({"upstreams": {"main": UPSTREAM | {"targets": [{"url": "demo:", "query": {"v": 1.5}}]}}}, True),
        ({"upstreams": {"main": UPSTREAM | {"targets": [{"url": "demo:", "query": {"v": True}}]}}}, False),
        ({"upstreams": {"main": UPSTREAM | {"omit": ["a b"]}}}, False),
        ({"stream": {"batch": {"interval": 1}}}, False),
        ({"stream": {"heartbeat": "15"}}, False),
        ({"server": {"listn": "a:1"}}, False),
        ({"server": {"max_connections": 0}}, False),
        ({"routes": [ROUTE | {"api": "grpc"}]}, False),
        ({"routes": [ROUTE | {"format": {"tokn": None}}]}, False),
        ({"plans": {"a b": {}}}, False),
        ({"upstreams": {"main": {"dialect": "openai", "targets": []}}}, False),
    ],
    ids=str,
)
def test_schema_says_what_may_be_written(change: dict[str, Any], valid: bool) -> None:
    assert VALIDATOR.is_valid({"upstreams": MAIN, "routes": [ROUTE]} | change) is valid
