"""From a path to an endpoint.

A path is matched as it was sent, with its percent-encoding, because a `proxy` route sends it on like that. A configured
path may have letters that URLs must encode; it matches their encoded form, in upper or lower case. Dot segments are
refused and not resolved: an upstream that resolves them would answer for paths outside the route's prefix. For what
else an upstream could take for one, see `core/paths.py`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple, NoReturn
from urllib.parse import quote

from gateway.core.errors import GatewayError
from gateway.core.paths import DOTTED, wrong_with
from gateway.web.exchange import Endpoint, Exchange, Kind

_VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FOREIGN: Final = re.compile(r"[^\x00-\x7f]+")
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_DOTS: Final = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|%2f|%5c|\\|$)", re.IGNORECASE)


class Match(NamedTuple):
    """An endpoint, and the values of its path's variables."""

    endpoint: Endpoint
    params: dict[str, str]


class Router:
    """All endpoints of a configuration. Exact paths are tried first, then patterns in the order given, then `behind`.

    Args:
        endpoints: pairs of a path and its endpoint. `{name}` in a path stands for one segment, `{path}` at its end for
            all that follows.
        nowhere: the endpoint of every other path.
        behind: further pairs, for paths that none of the `endpoints` takes.
    """

    def __init__(
        self,
        endpoints: Iterable[tuple[str, Endpoint]],
        nowhere: Endpoint,
        behind: Iterable[tuple[str, Endpoint]] = (),
    ) -> None:
        self._exact: dict[str, Endpoint] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        self._nowhere = nowhere
        for path, endpoint in endpoints:
            if "{" in path:
                self._patterns.append((_compile(path), endpoint))
            else:
                self._exact[_encoded(path)] = endpoint
        self._patterns += [(_compile(path), endpoint) for path, endpoint in behind]

    @property
    def endpoints(self) -> Iterator[Endpoint]:
        """All endpoints that have a path."""
        yield from self._exact.values()
        yield from (endpoint for _, endpoint in self._patterns)

    def match(self, raw_path: str) -> Match:
        """The endpoint for a path, which is given as it was sent."""
        if endpoint := self._exact.get(_upper(raw_path)):
            return Match(endpoint, {})
        if _DOTS.search(raw_path):
            return self._refused(DOTTED)
        for pattern, endpoint in self._patterns:
            if found := pattern.fullmatch(raw_path):
                params = found.groupdict()
                wrong = wrong_with(raw_path[1:]) or wrong_with(params.get("path", ""))
                return self._refused(wrong) if wrong else Match(endpoint, params)
        return Match(self._nowhere, {})

    def _refused(self, wrong: str) -> Match:
        return Match(replace(self._nowhere, kind=BadPath(wrong)), {})


class Nowhere(Kind):
    """A path that leads to nothing."""

    methods = None

    async def answer(self, exchange: Exchange) -> NoReturn:
        raise GatewayError("not_found")


class BadPath(Nowhere):
    """A path that is refused.

    Args:
        wrong: what is wrong with it.
    """

    def __init__(self, wrong: str) -> None:
        self._wrong = wrong

    async def answer(self, exchange: Exchange) -> NoReturn:
        raise GatewayError("bad_request", self._wrong)


def _encoded(path: str) -> str:
    """The path as clients send it. Source: RFC 3986 2.1, which also asks for upper case."""
    return _upper(_FOREIGN.sub(lambda letters: quote(letters[0]), path))


def _upper(path: str) -> str:
    """The path with its percent-encodings in upper case; some clients send lower case. Source: RFC 3986 6.2.2.1."""
    return _ENCODED.sub(lambda letter: letter[0].upper(), path) if "%" in path else path


def _compile(path: str) -> re.Pattern[str]:
    path = _encoded(path)

    def variable(match: re.Match[str]) -> str:
        last = match.end() == len(path) and match[1] == "path"
        return f"(?P<{match[1]}>{'.*' if last else '[^/]+'})"

    parts: list[str] = []
    at = 0
    for match in _VARIABLE.finditer(path):
        parts += [_literal(path[at : match.start()]), variable(match)]
        at = match.end()
    return re.compile("".join(parts) + _literal(path[at:]))


def _literal(path: str) -> str:
    # The pattern ignores case. To change the path would change the variables in it, too, which must stay as sent.
    return _ENCODED.sub(lambda letter: f"(?i:{letter[0]})", re.escape(path))
