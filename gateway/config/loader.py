"""From a file to a `Config`, or to a list of everything that is wrong with it.

Invariant: a `ConfigError` names every problem that can be found, each once, at the line of its key. Only a text that is
no YAML at all hides other problems.

This file does not know what any single key means.
"""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.cautions import cautions
from gateway.config.checks import findings
from gateway.config.document import MAX_BYTES, Document
from gateway.config.expand import Expander
from gateway.config.keys import FOLDER
from gateway.config.mistakes import is_glued
from gateway.config.model import ROUTES, Config, Stream
from gateway.config.problems import ConfigError, KeyPath, Problem, dotted, suggestion


class Examined(NamedTuple):
    """A config that can be used, and the doubts about it.

    Attributes:
        config: the config.
        warnings: what in it cannot work or is dangerous, by line.
    """

    config: Config
    warnings: list[Problem]


def load(path: str | Path, environ: Mapping[str, str] | None = None) -> Config:
    """The config in the file at `path`; see `examine`."""
    return examine(path, environ).config


def load_text(
    text: str, name: str = "config.yaml", environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> Config:
    """The config that `text` says; see `examine_text`."""
    return examine_text(text, name, environ, folder).config


def examine(path: str | Path, environ: Mapping[str, str] | None = None) -> Examined:
    """The config in the file at `path`, with the warnings about it.

    Args:
        path: a YAML file of at most 1 MiB, in UTF-8.
        environ: the variables of `${VAR}`; the process's own by default.

    Raises:
        ConfigError: the file cannot be read or used; holds every problem.
    """
    try:
        with Path(path).open("rb") as file:
            # One byte more than is allowed, so that `examine_text` can tell; the cut may go through a character.
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig", "replace" if len(content) > MAX_BYTES else "strict")
    except OSError as error:
        raise ConfigError([Problem(str(path), 1, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(str(path), line, "", "is not text; allowed: UTF-8")]) from None
    return examine_text(text, str(path), environ, Path(path).parent)


def examine_text(
    text: str, name: str = "config.yaml", environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> Examined:
    """The config that `text` says, with the warnings about it.

    Args:
        text: YAML of at most 1 MiB.
        name: what problems call the file.
        environ: the variables of `${VAR}`; the process's own by default.
        folder: where relative paths of `${file:…}` and `key_file` start; the working directory by default.

    Raises:
        ConfigError: the text cannot be used; holds every problem.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError([Problem(name, 1, "", "is too large; allowed: 1 MiB")])
    document = Document(text, Expander(os.environ if environ is None else environ, folder or Path()))
    config, wrong = _validated(document, folder or Path())
    if config is None or wrong:
        raise ConfigError(Problem(name, line, dotted(path), message) for line, path, message in wrong)
    return Examined(config, _warnings(config, document, name))


def _warnings(config: Config, document: Document, name: str) -> list[Problem]:
    # Several routes may inherit one value, which is doubted once, where it is written.
    places = dict.fromkeys((_place(path, document), message) for path, message in cautions(config, time.time()))
    found = [Problem(name, document.line(path), dotted(path), message, True) for path, message in places]
    return sorted(found, key=lambda problem: problem.line)


Wrong = tuple[int, KeyPath, str]


def _validated(document: Document, folder: Path) -> tuple[Config | None, list[Wrong]]:
    if document.problems and document.data is None:
        return None, document.problems
    if not isinstance(document.data, dict):
        return None, [*document.problems, (1, (), "is not a mapping; allowed: key: value on each line")]
    # Model and checks see the same data, and may both complain of one place: a dict keeps one of two equal messages.
    config, complaints = _modelled(document, folder)
    wrong = {(path, message): line for line, path, message in document.problems}
    for path, message in (*complaints, *findings(document.data)):
        if path not in document.unread:  # the empty text there stands for a value whose problem is reported already
            wrong.setdefault((path, message), document.line(path))
    return config, [(line, path, message) for (path, message), line in wrong.items()]


def _modelled(document: Document, folder: Path) -> tuple[Config | None, list[tuple[KeyPath, str]]]:
    try:
        return Config.model_validate(document.data, context={FOLDER: folder}), []
    except ValidationError as error:
        return None, [_complaint(detail, document) for detail in error.errors() if not _is_aftermath(detail)]


def _is_aftermath(detail: ErrorDetails) -> bool:
    """Whether a list is reported as too short only because the items with problems of their own are not counted."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _complaint(detail: ErrorDetails, document: Document) -> tuple[KeyPath, str]:
    place = _written(detail["loc"], document)
    if detail["type"] == "extra_forbidden" and is_glued(str(place[-1])):
        # What stands behind the colon is a value, which is never printed.
        return (*place[:-1], str(place[-1]).partition(":")[0]), "has no space after its colon; allowed: key: value"
    if detail["type"] in _MAPPING_TYPES and isinstance(detail["input"], str) and is_glued(detail["input"]):
        return place, "is not a mapping, as a space is missing after a colon; allowed: key: value lines"
    if detail["type"].startswith("union_tag"):
        return (*place, "api"), f"is not a kind of route; allowed: {', '.join(ROUTES)}"
    return place, _message(detail)


def _message(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "extra_forbidden":
        return f"is not a known key; {suggestion(detail['loc'][-1], _known_keys(detail['loc']))}"
    if detail["type"] == "value_error":
        return str(context["error"])
    if detail["type"] == "literal_error":
        return f"is not known here; allowed: {str(context['expected']).replace(chr(39), '').replace(' or ', ', ')}"
    if detail.get("input") is None and detail["type"] != "missing":
        return "is empty; allowed: a value, or to leave the key out"
    return _MESSAGES.get(detail["type"], detail["msg"]).format(**context)


_MAPPING_TYPES: Final = frozenset({"dict_type", "model_type", "model_attributes_type"})
_MESSAGES: Final[dict[str, str]] = {
    "missing": "is missing; it is required",
    "bool_type": "is not a boolean (yes, no, on and off are text in YAML 1.2); allowed: true or false",
    "dict_type": "is not a mapping; allowed: key: value lines, or {{key: value}}",
    "model_type": "is not a mapping; allowed: key: value lines, or {{key: value}}",
    "model_attributes_type": "is not a mapping; allowed: key: value lines, or {{key: value}}",
    "tuple_type": "is not a list; allowed: - item lines, or [item, item]",
    "too_long": "has {actual_length} entries; allowed: at most {max_length}",
    "too_short": "has {actual_length} entries; allowed: at least {min_length}",
}


def _written(loc: tuple[str | int, ...], document: Document) -> KeyPath:
    """The place in the file of the value at `loc` in the model."""
    # pydantic's `loc` has "[key]" behind a mapping's key, and the kind of route behind a route's index. Neither stands
    # in the file. And a value of a route's `stream` may have been written in any of three places.
    if loc[-1:] == ("[key]",):
        loc = loc[:-1]
    if loc == ("store", "url"):
        return _place(loc, document)
    if loc[:1] != ("routes",) or len(loc) < 3:
        return loc
    return _place(loc[:2] + loc[3:], document)


def _place(path: KeyPath, document: Document) -> KeyPath:
    """Where the value at `path` is written; `path` itself where it is written nowhere."""
    return next((place for place in _sources(path) if place in document.lines), path)


def _sources(path: KeyPath) -> Iterator[KeyPath]:
    """The places where a part of a route may stand: under `stream`, directly on the route, or at the top level; and
    where the URL of the store does: in `store`, or as `store`."""
    yield path
    if path == ("store", "url"):
        yield path[:1]
    if path[2:3] == ("stream",) and path[3:]:
        yield path[:2] + path[3:]
    if path[2:3] in {("stream",), ("timeouts",)}:
        yield path[2:]


def _known_keys(loc: tuple[str | int, ...]) -> set[str]:
    # A mapping with free keys cannot have an unknown one, so there is always a model here.
    model = _inside(Config, loc[:-1])
    assert issubclass(model, BaseModel)
    direct = set(Stream.model_fields) if model in ROUTES.values() else set()
    return set(model.model_fields) | direct


def _inside(kind: Any, loc: tuple[str | int, ...]) -> Any:
    """The model at `loc` inside a value of the type `kind`."""
    if get_origin(kind) is Annotated:
        return _inside(get_args(kind)[0], loc)
    if not loc:
        return next((part for part in get_args(kind) if part is not type(None)), kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _inside(kind.model_fields[str(loc[0])].annotation, loc[1:])
    if get_origin(kind) is dict:
        return _inside(get_args(kind)[1], loc[1:])
    if get_origin(kind) is tuple:
        return _inside(get_args(kind)[0], loc[1:])
    if loc[0] in ROUTES:
        return _inside(ROUTES[str(loc[0])], loc[1:])
    return _inside(get_args(kind)[0], loc)
