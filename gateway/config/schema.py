"""The JSON Schema (draft 2020-12) of a config as users write it, for editors: durations, sizes and references are text.

It is made from the model, so every key, bound, default and reason is written once.

Invariant: a file that `load` accepts is valid under this schema, except for what a reference is replaced by, which no
schema can see. The converse does not hold: only `load` compares keys with one another.
"""

import copy
from collections.abc import Iterator
from typing import Any, Final

from gateway.config.model import ROUTES, Config, Section
from gateway.config.rules import Rule

Node = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REFERENCE: Final[Node] = {
    "type": "string",
    "pattern": r"\$\{[^{}]+\}|\$\$",
    "description": "Replaced on reading: ${VAR}, ${VAR:-default}, ${VAR:?message}, ${file:/path}; $$ is a dollar sign.",
}
_OVERRIDES: Final = ("Stream", "Batch", "Resume", "OnDisconnect", "Timeouts")


def schema() -> Node:
    """The JSON Schema of a config file."""
    whole = Config.model_json_schema()
    definitions = whole["$defs"]
    for model in _models(Section):
        _describe(model, whole if model is Config else definitions.get(model.__name__, {}))
    # A route may override `stream` and `timeouts` in part. Its copies of their models have no defaults, or an editor
    # would show the program's default where the top level's value applies.
    definitions |= {f"Route{name}": _override(definitions[name]) for name in _OVERRIDES}
    for model in ROUTES.values():
        _add_overrides(definitions[model.__name__]["properties"], definitions["RouteStream"]["properties"])
    tidy: Node = _tidy(whole)
    tidy["$defs"]["Reference"] = REFERENCE
    return {"$schema": DIALECT, "title": "The config of the gateway"} | tidy


def _models(base: type[Section]) -> Iterator[type[Section]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _describe(model: type[Section], node: Node) -> None:
    """Adds what its rule knows to each key of `node`: the bounds, and the default as a user would write it."""
    for name, field in model.model_fields.items() if node else ():
        rule = next((entry for entry in field.metadata if isinstance(entry, Rule)), None)
        key = node["properties"][name]
        if rule and rule.allowed:
            key["description"] = f"{key['description']} Allowed: {rule.allowed}{' or null' if rule.optional else ''}."
        if rule and "default" in key:
            key["default"] = rule.show(field.default)


def _override(node: Node) -> Node:
    """`node` as part of a route: without defaults, as the top level gives the values that a route leaves out."""
    own = copy.deepcopy(node)
    for key in own["properties"].values():
        key.pop("default", None)
        if "$ref" in key:
            key["$ref"] = key["$ref"].replace("#/$defs/", "#/$defs/Route")
    return own


def _add_overrides(route: Node, stream: Node) -> None:
    route["stream"]["$ref"] = "#/$defs/RouteStream"
    route["timeouts"]["$ref"] = "#/$defs/RouteTimeouts"
    route |= copy.deepcopy(stream)


def _tidy(node: Any) -> Any:
    """`node` with a reference allowed in place of every scalar, and without what no editor needs."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidy_part(key, value) for key, value in node.items() if key not in {"title", "discriminator"}}
    if "patternProperties" in tidy:  # a mapping with free but well-formed names
        tidy["additionalProperties"] = False
    return _with_reference(tidy) if _is_narrow(tidy) else tidy


def _tidy_part(key: str, value: Any) -> Any:
    if key in {"properties", "$defs", "patternProperties"}:
        return {name: _tidy(part) for name, part in value.items()}
    if key == "description":
        return " ".join(value.split())
    return value if key in {"default", "enum", "required", "propertyNames"} else _tidy(value)


def _is_narrow(node: Node) -> bool:
    """Whether `node` is a scalar that a reference would not match."""
    return "enum" in node or "pattern" in node or node.get("type") in ("integer", "boolean")


def _with_reference(node: Node) -> Node:
    said = {key: value for key, value in node.items() if key in {"description", "default"}}
    narrow = {key: value for key, value in node.items() if key not in said}
    return said | {"anyOf": [narrow, {"$ref": "#/$defs/Reference"}]}
