"""Refusals: a line for each, and of a flood its first lines and one number."""

import asyncio
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.clock import Clock
from gateway.observe import refusals
from gateway.observe.refusals import LINES, Refusals


def made() -> Refusals:
    return Refusals(structlog.get_logger(), Clock(asyncio.get_running_loop()).wheel)


def events(lines: list[Any]) -> list[tuple[str, str]]:
    return [(line["event"], line["reason"]) for line in lines]


async def test_refusal_has_its_line() -> None:
    with capture_logs() as lines:
        made().note("missing", path="/chat", limit=None)
    assert lines == [{"event": "refused", "log_level": "info", "reason": "missing", "path": "/chat", "limit": None}]


async def test_flood_is_counted_and_hides_no_other_reason() -> None:
    with capture_logs() as lines:
        noted = made()
        for _ in range(LINES + 30):
            noted.note("missing")
        noted.note("scope")
        noted.flush()
    assert events(lines) == [
        *[("refused", "missing")] * LINES,
        ("refused", "scope"),
        ("refusals_suppressed", "missing"),
    ]
    assert lines[-1]["count"] == 30


async def test_window_ends_by_itself_and_the_next_one_logs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "WINDOW", 0.05)
    with capture_logs() as lines:
        noted = made()
        for _ in range(LINES + 1):
            noted.note("missing")
        async with asyncio.timeout(5):
            while lines[-1]["event"] != "refusals_suppressed":  # noqa: ASYNC110 - a timer has no event to wait for
                await asyncio.sleep(0.01)
        noted.note("missing")
        noted.flush()
    assert events(lines)[LINES:] == [("refusals_suppressed", "missing"), ("refused", "missing")]


async def test_quiet_window_says_nothing_of_itself() -> None:
    with capture_logs() as lines:
        noted = made()
        noted.note("missing")
        noted.flush()
    assert events(lines) == [("refused", "missing")]
