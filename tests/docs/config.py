"""Configurations in documents: whole files, and fragments that a rule completes.

- A block that has `upstreams` and `routes` is a whole file.
- A fragment with `routes` gets an upstream for every name that they mention; any other fragment gets the routes
  `/api/chat` and `/v1/chat/completions` to its first upstream, and an upstream `main` where it has none.
- A fragment without `auth` lets everybody in.
- A block that is a list is the value of `routes`.

What is added stands behind the block's own lines, which the real loader reads as they are.
This file does not know what the documents say about a configuration.
"""

import re
from typing import Any

import yaml

from tests.docs.markdown import Block

ENDPOINT = "http://127.0.0.1:3000"


def variables(text: str) -> dict[str, str]:
    """Every variable that `text` mentions as `${NAME…}`, and a value for it."""
    return {name: f"value-of-{name}" for name in re.findall(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)", text)}


def completed(block: Block) -> str:
    """The block as a whole file."""
    data = yaml.safe_load(block.text)
    if isinstance(data, list):
        return completed(block._replace(text="routes:\n" + _indented(block.text)))
    assert isinstance(data, dict), f"{block}: neither a mapping nor a list"
    rest = {} if {"upstreams", "routes"} <= data.keys() else {"auth": {"anonymous": True}} | _rest(data)
    return block.text + "\n" + "".join(yaml.safe_dump({key: rest[key]}) for key in rest if key not in data)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _rest(data: dict[str, Any]) -> dict[str, Any]:
    if "routes" in data:
        names = {route["upstream"]: _dialect(route) for route in data["routes"]}
        return {"upstreams": {name: _upstream(dialect) for name, dialect in names.items()}}
    upstreams = data.get("upstreams") or {"main": _upstream("openai")}
    return {"upstreams": upstreams, "routes": _routes(next(iter(upstreams)))}


def _dialect(route: dict[str, Any]) -> str:
    return "sse" if route["api"] == "proxy" else "openai"


def _upstream(dialect: str) -> dict[str, Any]:
    return {"dialect": dialect, "targets": [{"url": ENDPOINT if dialect == "sse" else "demo:"}]}


def _routes(upstream: str) -> list[dict[str, Any]]:
    chat = {"path": "/api/chat", "api": "chat", "upstream": upstream, "model": "m"}
    return [chat, {"path": "/v1/chat/completions", "api": "openai", "upstream": upstream, "model": "m"}]
