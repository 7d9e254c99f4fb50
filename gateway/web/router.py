"""From a path to an endpoint.

A path is matched as it was sent, percent-encoding included, because that is what a `proxy` route hands on; letters of
a configured path that URLs have to encode are looked for as clients encode them, in upper or lower case. Dot segments
are refused rather than resolved: behind them, a route's prefix would no longer protect anything.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple, NoReturn
from urllib.parse import quote

from gateway.core.errors import GatewayError
from gateway.web.exchange import Endpoint, Exchange, Kind

_VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FOREIGN: Final = re.compile(r"[^\x00-\x7f]+")
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_DOTS: Final = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|%2f|%5c|\\|$)", re.IGNORECASE)


class Match(NamedTuple):
    """An endpoint, and what its path's variables stand for."""

    endpoint: Endpoint
    params: dict[str, str]


class Router:
    """All endpoints of a configuration. Exact paths win over patterns, patterns are tried in the order given.

    Args:
        endpoints: pairs of a path and what it leads to. `{name}` in a path stands for one segment, `{path}` at its end
            for all that follows.
        nowhere: what every other path leads to.
    """

    def __init__(self, endpoints: Iterable[tuple[str, Endpoint]], nowhere: Endpoint) -> None:
        self._exact: dict[str, Endpoint] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        self._nowhere = nowhere
        for path, endpoint in endpoints:
            if "{" in path:
                self._patterns.append((_compile(path), endpoint))
            else:
                self._exact[_encoded(path)] = endpoint

    @property
    def endpoints(self) -> Iterator[Endpoint]:
        """All of them."""
        yield from self._exact.values()
        yield from (endpoint for _, endpoint in self._patterns)

    def match(self, raw_path: str) -> Match:
        """Where the path leads."""
        if endpoint := self._exact.get(_upper(raw_path)):
            return Match(endpoint, {})
        if _DOTS.search(raw_path):
            return Match(replace(self._nowhere, kind=Dotted()), {})
        for pattern, endpoint in self._patterns:
            if found := pattern.fullmatch(raw_path):
                return Match(endpoint, found.groupdict())
        return Match(self._nowhere, {})


class Nowhere(Kind):
    """A path that leads to nothing."""

    methods = None

    async def answer(self, exchange: Exchange) -> NoReturn:
        raise GatewayError("not_found")


class Dotted(Nowhere):
    """A path with dot segments."""

    async def answer(self, exchange: Exchange) -> NoReturn:
        raise GatewayError("bad_request", "The path must not have '.' or '..' segments.")


def _encoded(path: str) -> str:
    """Source: RFC 3986 2.1, which also asks for upper case."""
    return _upper(_FOREIGN.sub(lambda letters: quote(letters[0]), path))


def _upper(path: str) -> str:
    """The path with its percent-encodings in upper case; some clients send lower. Source: RFC 3986 6.2.2.1."""
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
    # The variables beside it are handed on as they were sent, so the pattern gives way and not the path.
    return _ENCODED.sub(lambda letter: f"(?i:{letter[0]})", re.escape(path))
