"""Trace context: what is well-formed is read and kept to the letter, everything else is as if it were not there."""

import time

import pytest

from gateway.observe.tracing.context import read_context

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_caller_is_read() -> None:
    found = read_context([PARENT], ["congo=t61rcWkgMzE", "tenant1@rojo=00f067aa0ba902b7,@"])
    assert found is not None
    assert (found.trace_id, found.parent_id, found.flags) == (0x4BF92F3577B34DA6A3CE929D0E0E4736, 0xF067AA0BA902B7, 1)
    assert found.headers == {"traceparent": PARENT}  # "@" is no member of a list, so there is no list


def test_callers_lists_are_one() -> None:
    found = read_context([PARENT], ["congo=t61rcWkgMzE", "tenant1@rojo=00 f0,, a*/_-0= x"])
    assert found is not None
    assert found.headers["tracestate"] == "congo=t61rcWkgMzE,tenant1@rojo=00 f0,, a*/_-0= x"


def test_caller_of_a_later_version_is_read() -> None:
    later = f"cc{PARENT[2:]}-what-the-future-brings"
    found = read_context([later])
    assert found is not None
    assert (found.flags, found.headers) == (1, {"traceparent": later})


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        [PARENT, PARENT],
        [f"{PARENT},{PARENT}"],
        [f"{PARENT}-more"],
        [f"ff{PARENT[2:]}"],
        [f"cc{PARENT[2:]}.more"],
        [PARENT.upper()],
        [f"{PARENT}\n"],
        [f" {PARENT}"],
        [PARENT[:-1]],
        [PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)],
        [PARENT.replace("00f067aa0ba902b7", "0" * 16)],
        [PARENT.replace("01", "0１")],
        [PARENT.replace("-", "_")],
        ["cc" + PARENT[2:] + "-" + "x" * 9000],
    ],
)
def test_malformed_caller_is_none(values: list[str]) -> None:
    assert read_context(values) is None


@pytest.mark.parametrize("state", ["a=1,{blanks}!", "a=1,{blanks}a=,b=1", "{blanks}é"])
@pytest.mark.parametrize("blank", " \t")
def test_time_for_a_list_full_of_white_space_is_linear(state: str, blank: str) -> None:
    """Eight times as much takes about eight times as long. With a pattern tried at every blank it would be 64 times."""

    def seconds(blanks: int) -> float:
        states = [state.format(blanks=blank * blanks)]
        began = time.process_time()
        for _ in range(20):
            assert read_context([PARENT], states)
        return time.process_time() - began

    short, long = (min(seconds(blanks) for _ in range(3)) for blanks in (4000, 32_000))
    assert long < 24 * short


@pytest.mark.parametrize(
    "state", ["=", "A=1", "a=1,b", "a=é", "a=" + "x" * 257, "a=1\r\nx-evil: 1", ",".join(f"a{n}=1" for n in range(33))]
)
def test_malformed_list_is_dropped_alone(state: str) -> None:
    found = read_context([PARENT], [state])
    assert found is not None
    assert found.headers == {"traceparent": PARENT}
