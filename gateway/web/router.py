"""From a path to an endpoint.

A path is matched as it was sent, percent-encoding included, because that is what a `proxy` route hands on. Dot
segments are refused rather than resolved: behind them, a route's prefix would no longer protect anything.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple, NoReturn

from gateway.core.errors import GatewayError
from gateway.web.exchange import Endpoint, Exchange

_VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
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
                self._exact[path] = endpoint

    def match(self, raw_path: str) -> Match:
        """Where the path leads."""
        if endpoint := self._exact.get(raw_path):
            return Match(endpoint, {})
        if _DOTS.search(raw_path):
            return Match(replace(self._nowhere, handle=_refuse_dots), {})
        for pattern, endpoint in self._patterns:
            if found := pattern.fullmatch(raw_path):
                return Match(endpoint, found.groupdict())
        return Match(self._nowhere, {})


async def _refuse_dots(exchange: Exchange) -> NoReturn:
    raise GatewayError("bad_request", "The path must not have '.' or '..' segments.")


def _compile(path: str) -> re.Pattern[str]:
    def variable(match: re.Match[str]) -> str:
        last = match.end() == len(path) and match[1] == "path"
        return f"(?P<{match[1]}>{'.*' if last else '[^/]+'})"

    parts: list[str] = []
    at = 0
    for match in _VARIABLE.finditer(path):
        parts += [re.escape(path[at : match.start()]), variable(match)]
        at = match.end()
    return re.compile("".join(parts) + re.escape(path[at:]))
