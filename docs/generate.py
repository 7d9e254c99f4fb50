"""Writes `configuration.md`: every key of the config, made from the model that reads it.

    python docs/generate.py

Nothing is said twice: types, bounds, defaults and reasons come from `gateway.config.model`, presets and placeholders
from `gateway.formats`. This file knows Markdown and no key, except for the order in which routes are explained.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from annotated_types import MaxLen, MinLen
from pydantic.fields import FieldInfo

from gateway.config.model import ROUTES, BaseRoute, Config, Section
from gateway.config.rules import Rule
from gateway.core.errors import ERROR_KINDS
from gateway.formats import PLACEHOLDERS, PRESETS

FILE: Final = Path(__file__).with_name("configuration.md")

INTRODUCTION: Final = """\
# Configuration

Every key, its default, the allowed values, and the reason for the default. `make docs` makes this page from the
program's own model; `gateway schema` prints the same as a JSON Schema for editors, and the shipped `config.yaml` shows
every key in its place.

- `gateway check -c config.yaml` names every mistake with its line.
- A duration is written `250ms`, `15s`, `5m` or `1h`; a size `512B`, `64KiB`, `4MiB` or `1GiB`; a rate `10/s`,
  `60/min`, `1000/h` or `100000/day`.
- Any value can contain `${VAR}`, `${VAR:-default}`, `${VAR:?message}` or `${file:/run/secrets/key}`; `$$` is a dollar
  sign. They are replaced after the YAML was read, so a value can never add a key. An undefined variable is an error.
- Unknown keys, keys written twice, anchors and aliases are errors. `yes`, `no`, `on` and `off` are text, not booleans.
- A change takes effect with `kill -HUP`. Running streams keep the settings that they started with. If a changed key
  needs a restart (as `server.listen`), the log says so.
- In the headings below, `<name>` is a name of your own and `[]` an item of a list.
"""

ROUTES_INTRODUCTION: Final = """\
Each route has a `path` and an `api`; the `api` decides which other keys there are. Any key of [stream](#stream) can be
written directly on a route, as in `heartbeat: 5s`, and is then valid for that route only.
"""

FORMATS: Final = """\
## Formats

A format says what a chat route sends for each kind of event: `null` (nothing), or `json` (any value, sent as JSON) or
`data` (text, sent unchanged), with an `event` name or without one (an unnamed message). Placeholders are replaced in
both. A string that is exactly one placeholder becomes its value with its type; in a longer string a placeholder becomes
text. `$$` is a dollar sign.

A route names a preset, or has a mapping of its own. A kind that the mapping leaves out is sent as in its `preset` (if
it names none: `events`); a kind that it contains replaces that of the preset as a whole. There are
[examples](examples/README.md) for pages that exist already.

| kind | when | placeholders |
|---|---|---|
"""

WHEN: Final = {
    "start": "the stream exists",
    "thinking": "a piece of the model's reasoning",
    "token": "a piece of the answer",
    "tool": "a piece of a tool call, as in OpenAI's `delta.tool_calls`",
    "restart": "the text so far is invalid, the answer begins again",
    "done": "the answer is complete",
    "error": "the answer failed",
}

AFTER_KINDS: Final = """
`$index` counts token events from 0. `$usage` and `$retry_after` can be `null`. A `start` that contains `$resumed` is
sent again, with `true`, to a reader that reconnects.

There are two more presets, of which a mapping cannot change parts: `openai` (`chat.completion.chunk` objects, then
`[DONE]`) and `ui` (the AI SDK's UI message stream, for `useChat`). These are the other three presets in full:
"""

ERRORS: Final = """\
## Error codes

The values of `code`, in an error event or in the answer to a refused request. The status is used when a request is
refused or fails before its answer has begun. An error that a provider sent inside a stream can have the provider's own
code.

| code | status | worth another try | message, unless a more exact one is known |
|---|---|---|---|
"""


def reference() -> str:
    """The whole page."""
    sections = [INTRODUCTION, *_parts(), *_routes(), _formats(), _errors()]
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def _parts() -> Iterator[str]:
    scalars = {name: field for name, field in Config.model_fields.items() if _section(field.annotation) is None}
    yield f"## The file\n\n{_table(scalars.items(), '')}"
    for name, field in Config.model_fields.items():
        if name not in scalars and name != "routes":
            yield from _walk(name, field, 2)


def _walk(path: str, field: FieldInfo, level: int) -> Iterator[str]:
    section = _section(field.annotation)
    assert section is not None
    path += _suffix(field.annotation)
    yield f"{'#' * level} {_heading(path)}\n\n{_prose(section.__doc__)}\n\n{_table(section.model_fields.items(), path)}"
    for name, inner in section.model_fields.items():
        if _section(inner.annotation) is not None:
            yield from _walk(f"{path}.{name}", inner, min(level + 1, 4))


def _routes() -> Iterator[str]:
    common = BaseRoute.model_fields
    yield f"## {_heading('routes[]')}\n\n{ROUTES_INTRODUCTION}\n{_table(common.items(), '')}"
    for name in sorted(ROUTES, key=list(ROUTES).index):
        model = ROUTES[name]
        own = {key: field for key, field in model.model_fields.items() if key not in common}
        yield f"### api: {name}\n\n{_prose(model.__doc__)}\n\n{_table(own.items(), 'routes[]')}"
        for key, field in own.items():
            if _section(field.annotation) is not None:
                yield from _walk(f"routes[].{key}", field, 4)


def _formats() -> str:
    rows = [
        f"| `{kind}` | {WHEN[kind]} | {' '.join(f'`${name}`' for name in names)} |"
        for kind, names in PLACEHOLDERS.items()
    ]
    return FORMATS + "\n".join(rows) + "\n" + AFTER_KINDS + "".join(map(_preset, PRESETS))


def _errors() -> str:
    rows = [
        f"| `{code}` | {kind.status} | {'yes' if kind.retryable else 'no'} | {kind.message} |"
        for code, kind in ERROR_KINDS.items()
    ]
    return ERRORS + "\n".join(rows) + "\n"


def _preset(name: str) -> str:
    lines = [f"      {kind}: {_flow(entry)}" for kind, entry in PRESETS[name].items()]
    head = f"routes:\n  - path: /api/chat\n    api: chat\n    upstream: main\n    format:    # {name}"
    return "\n```yaml\n" + "\n".join([head, *lines]) + "\n```\n"


def _flow(entry: object) -> str:
    text = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _table(fields: Any, path: str) -> str:
    rows = [f"| `{name}` | {_default(field)} | {_kind(name, field, path)} | {_why(field)} |" for name, field in fields]
    return "\n".join(["| key | default | allowed | |", "|---|---|---|---|", *rows]) + "\n"


def _why(field: FieldInfo) -> str:
    return _prose(field.description).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "" if _section(field.annotation) else "`{}`"
    rule = _rule(field.metadata)
    return f"`{_shown(rule.show(field.default) if rule else field.default)}`"


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _kind(name: str, field: FieldInfo, path: str) -> str:
    section = _section(field.annotation)
    if name in ("stream", "timeouts") and section:
        return f"as [{name}](#{name})"
    if section:
        target = f"{path}.{name}".lstrip(".") + _suffix(field.annotation)
        null = " or `null`" if NoneType in get_args(field.annotation) else ""
        return f"[{target.rpartition('.')[2]}](#{_anchor(_heading(target))}){null}"
    return _spelled(field.annotation, field.metadata).replace("|", "\\|")


def _spelled(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What may be written for a value of this type."""
    if rule := _rule(metadata):
        return rule.allowed + (" or `null`" if rule.optional else "")
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _spelled(inner[0], inner[1:])
    if origin is Literal:
        return " ".join(f"`{word}`" for word in inner)
    if origin is tuple:
        return f"a list{_bound(metadata)}: {_spelled(inner[0])}"
    if origin is dict:
        return f"a mapping{_bound(metadata)}: {_spelled(inner[0])}; {_spelled(inner[1])}"
    return "`true` `false`" if annotation is bool else "text"


def _bound(metadata: Sequence[Any]) -> str:
    least = next((item.min_length for item in metadata if isinstance(item, MinLen)), None)
    most = next((item.max_length for item in metadata if isinstance(item, MaxLen)), None)
    return f" of {least or 0} to {most}" if most else ""


def _rule(metadata: Sequence[Any]) -> Rule | None:
    return next((item for item in metadata if isinstance(item, Rule)), None)


def _section(annotation: Any) -> type[Section] | None:
    """The model somewhere in this type, None for a scalar or where there are several."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) is Annotated or get_origin(annotation) in (tuple, dict, Union, UnionType):
        found = [section for inner in get_args(annotation) if (section := _section(inner)) is not None]
        return found[0] if found else None
    return None


def _suffix(annotation: Any) -> str:
    origin = get_origin(annotation)
    return {dict: ".<name>", tuple: "[]"}.get(origin, "") if origin else ""


def _heading(path: str) -> str:
    return f"`{path}`" if set("<[.") & set(path) else path


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _prose(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
