"""Transcripts of chat histories: turns in, messages out, and every bound."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.sessions import Sessions, valid_session_id


def said(sessions: Sessions, owner: str, session: str, now: float = 0.0) -> str:
    return " ".join(message["content"] for message in sessions.get(owner, session, now))


def test_model_is_told_the_turns_in_order() -> None:
    sessions = Sessions(turns=20, ttl=3600)
    sessions.add("ann", "s1", "你好！", "您好，请讲。", 0.0)
    sessions.add("ann", "s1", "1+1?", "2", 1.0)
    assert sessions.get("ann", "s1", 2.0) == [
        {"role": "user", "content": "你好！"},
        {"role": "assistant", "content": "您好，请讲。"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
    ]


def test_owner_never_sees_the_session_of_another() -> None:
    sessions = Sessions(turns=20, ttl=3600)
    sessions.add("ann", "s1", "secret", "yes", 0.0)
    assert sessions.get("bob", "s1", 0.0) == []
    sessions.add("bob", "s1", "hi", "ho", 0.0)
    assert (said(sessions, "ann", "s1"), said(sessions, "bob", "s1")) == ("secret yes", "hi ho")


def test_reader_may_change_the_list_it_got_and_makes_no_session() -> None:
    sessions = Sessions(turns=20, ttl=3600)
    sessions.add("ann", "s1", "a", "b", 0.0)
    sessions.get("ann", "s1", 0.0).clear()
    assert said(sessions, "ann", "s1") == "a b"
    assert said(sessions, "ann", "s2") == ""
    assert len(sessions) == 1


def test_session_keeps_its_last_turns() -> None:
    sessions = Sessions(turns=2, ttl=3600)
    for n in range(5):
        sessions.add("ann", "s1", f"u{n}", f"a{n}", 0.0)
    assert said(sessions, "ann", "s1") == "u3 a3 u4 a4"


def test_session_of_no_turns_is_not_kept() -> None:
    sessions = Sessions(turns=0, ttl=3600)
    sessions.add("ann", "s1", "u", "a", 0.0)
    assert (len(sessions), sessions.size) == (0, 0)


def test_session_is_forgotten_a_ttl_after_its_last_use() -> None:
    sessions = Sessions(turns=2, ttl=60)
    sessions.add("ann", "old", "u", "a", 0.0)
    sessions.add("ann", "read", "u", "a", 0.0)
    assert said(sessions, "ann", "read", 59.0) == "u a"
    assert said(sessions, "ann", "old", 60.0) == ""
    assert said(sessions, "ann", "read", 118.0) == "u a"
    assert said(sessions, "ann", "read", 178.0) == ""
    assert (len(sessions), sessions.size) == (0, 0)


def test_session_longest_unused_makes_room_for_another() -> None:
    sessions = Sessions(turns=2, ttl=60, max_sessions=2)
    for session in ("one", "two"):
        sessions.add("ann", session, "u", "a", 0.0)
    sessions.get("ann", "one", 1.0)
    sessions.add("ann", "three", "u", "a", 2.0)
    assert [said(sessions, "ann", session, 3.0) for session in ("one", "two", "three")] == ["u a", "", "u a"]


def test_sessions_stay_within_their_memory() -> None:
    sessions = Sessions(turns=20, ttl=60, max_bytes=10_000)
    for session in ("one", "two", "three"):
        sessions.add("ann", session, "u" * 4000, "a", 0.0)
    assert [len(sessions.get("ann", session, 0.0)) for session in ("one", "two", "three")] == [0, 2, 2]
    assert sessions.size <= 10_000


def test_session_larger_than_the_memory_loses_its_oldest_turns() -> None:
    sessions = Sessions(turns=20, ttl=60, max_bytes=10_000)
    for n in range(5):
        sessions.add("ann", "s1", f"{n}" + "u" * 3000, "a", 0.0)
    assert [m["content"][0] for m in sessions.get("ann", "s1", 0.0)] == ["2", "a", "3", "a", "4", "a"]
    sessions.add("ann", "s1", "u" * 20_000, "a", 0.0)
    assert (len(sessions), sessions.size) == (0, 0)


def test_sessions_of_one_principal_make_room_for_its_own() -> None:
    """H9: nobody drives out the sessions of others."""
    sessions = Sessions(turns=2, ttl=60, max_sessions=4)
    sessions.add("ann", "s", "u", "a", 0.0)
    for number in range(20):
        sessions.add("eve", f"s{number}", "u", "a", 1.0)
    assert said(sessions, "ann", "s", 2.0) == "u a"
    assert said(sessions, "eve", "s19", 2.0) == "u a"
    sessions.add("bob", "s", "u", "a", 3.0)  # who has none yet gets room from who has the most
    assert [said(sessions, who, "s", 4.0) for who in ("ann", "bob")] == ["u a", "u a"]
    assert len(sessions) == 4


def test_sessions_of_one_principal_share_its_memory() -> None:
    sessions = Sessions(turns=20, ttl=60, max_bytes=20_000)
    sessions.add("ann", "s", "u" * 4000, "a", 0.0)
    for number in range(20):
        sessions.add("eve", f"s{number}", "u" * 4000, "a", 1.0)
    assert len(sessions.get("ann", "s", 2.0)) == 2
    assert sessions.size <= 20_000


def test_session_is_told_again_up_to_its_own_bound() -> None:
    """H9: 38 MB of history are not told again to a model."""
    sessions = Sessions(turns=20, ttl=60, session_bytes=10_000)
    for number in range(20):
        sessions.add("ann", "s", f"{number}" + "u" * 3000, "a", 0.0)
    assert [m["content"][:2] for m in sessions.get("ann", "s", 0.0)[::2]] == ["17", "18", "19"]
    assert sessions.size <= 10_000
    sessions.configure(20, 60, 1000)
    sessions.add("ann", "s", "u", "a", 0.0)
    assert len(sessions.get("ann", "s", 0.0)) == 2


OPERATION = st.tuples(st.floats(0, 30), st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 3000))


@given(st.lists(OPERATION, max_size=60))
@settings(deadline=None)
def test_sessions_never_leave_their_bounds(script: list[tuple[float, str, str, int]]) -> None:
    sessions, now = Sessions(turns=3, ttl=60, max_sessions=4, max_bytes=12_000), 0.0
    for step, owner, session, length in script:
        now += step
        sessions.add(owner, session, owner * length, "ok", now)
        messages = sessions.get(owner, session, now)
        assert messages[-2]["content"] == owner * length
        assert {m["content"].strip(owner) for m in messages[::2]} == {""}
        assert len(messages) <= 6
        assert len(sessions) <= 4
        assert 0 < sessions.size <= 12_000
    sessions.get("nobody", "x", now + 60)
    assert (len(sessions), sessions.size) == (0, 0)


@pytest.mark.parametrize("text", ["a", "0198c0de-7f2a_x.y~z:1", "A" * 128])
def test_client_may_name_a_session(text: str) -> None:
    assert valid_session_id(text)


@pytest.mark.parametrize("text", ["", "A" * 129, "a b", "a\n", "../a/b", "会话", "a%20", "a\x00"])
def test_client_may_not_name_a_session(text: str) -> None:
    assert not valid_session_id(text)
