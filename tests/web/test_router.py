"""Where a path leads, as it was sent."""

from typing import Any

import pytest

from gateway.web.router import Router


def leads_to(path: str, *routes: str) -> tuple[Any, dict[str, str]]:
    return Router([(route, route) for route in routes], "nowhere").match(path)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("path", "route", "params"),
    [
        ("/api/chat", "/api/chat", {}),
        ("/legacy/a/b", "/legacy/{path}", {"path": "a/b"}),
        ("/streams/x/stop", "/streams/{id}/stop", {"id": "x"}),
        ("/%E5%AF%B9%E8%AF%9D", "/对话", {}),
        ("/%E6%97%A7/%E4%B8%80", "/旧/{path}", {"path": "%E4%B8%80"}),
        ("/%e5%af%b9%E8%AF%9d", "/对话", {}),
        ("/%e6%97%a7/%e4%b8%80", "/旧/{path}", {"path": "%e4%b8%80"}),
        ("/a/%e6%97%a7", "/{name}/旧", {"name": "a"}),
    ],
)
def test_path_leads_to_its_route(path: str, route: str, params: dict[str, str]) -> None:
    assert leads_to(path, route) == (route, params)


def test_exact_path_wins_over_a_pattern() -> None:
    assert leads_to("/a/b", "/a/{path}", "/a/b") == ("/a/b", {})


@pytest.mark.parametrize("path", ["/api/chat/", "/API/chat", "/api", "/%61pi/chat"])
def test_other_path_leads_nowhere(path: str) -> None:
    assert leads_to(path, "/api/chat") == ("nowhere", {})
