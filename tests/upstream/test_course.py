"""One generation's way through upstreams: whom it asks after what."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Upstream as Config
from gateway.core.errors import GatewayError
from gateway.upstream.course import Course
from gateway.upstream.pool import Upstream

NOW = 100.0


def upstream(name: str, targets: int = 1, retries: int = 2, failures: int = 5) -> Upstream:
    config = {
        "dialect": "openai",
        "targets": [{"url": f"http://{name}{number}"} for number in range(targets)],
        "retries": retries,
        "breaker": {"failures": failures, "open": "30s"},
    }
    return Upstream(name, Config.model_validate(config), "")


def course(*chain: Upstream, again: bool = True) -> Course:
    return Course(chain, lambda: 0.0, again=again)


def told(course: Course) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        course.next(NOW)
    return caught.value


def asked(course: Course, *codes: str) -> list[str]:
    """Who is asked, one attempt after the other, while they fail with these codes; the last one is not answered yet."""
    labels = []
    for code in codes:
        choice = course.next(NOW)
        course.failed(choice, GatewayError(code), patience=60)
        labels.append(choice.target.label)
    return [*labels, course.next(NOW).target.label]


def test_failing_upstream_is_retried_and_then_its_fallback_is_asked() -> None:
    ways = asked(course(upstream("a"), upstream("b")), *["upstream_error"] * 4)
    assert ways == ["a0", "a0", "a0", "b0", "b0"]


def test_retry_goes_to_another_target_where_there_is_one() -> None:
    assert asked(course(upstream("a", 2)), "upstream_reset", "upstream_reset") == ["a0", "a1", "a0"]


@pytest.mark.parametrize("code", ["upstream_timeout", "upstream_unreachable"])
def test_silent_target_is_not_asked_twice(code: str) -> None:
    assert asked(course(upstream("a", 2), upstream("b")), code, code) == ["a0", "a1", "b0"]


def test_too_long_a_conversation_goes_to_the_fallback() -> None:
    assert asked(course(upstream("a", 2), upstream("b")), "context_length_exceeded") == ["a0", "b0"]


@pytest.mark.parametrize("code", ["content_filter", "upstream_refused"])
def test_refusal_ends_the_course(code: str) -> None:
    way = course(upstream("a", 2), upstream("b"))
    choice = way.next(NOW)
    with pytest.raises(GatewayError, match=code):
        way.failed(choice, GatewayError(code), patience=60)


def test_first_upstreams_error_is_told() -> None:
    way = course(upstream("a", retries=0), upstream("b", retries=0))
    asked(way, "upstream_rate_limited")
    way.failed(way.next(NOW), GatewayError("upstream_error"), patience=60)
    assert told(way).code == "upstream_rate_limited"


def test_refusal_of_a_fallback_does_not_hide_what_the_first_upstream_said() -> None:
    way = course(upstream("a", retries=0), upstream("b"))
    asked(way, "upstream_rate_limited")
    with pytest.raises(GatewayError, match="upstream_rate_limited"):
        way.failed(way.next(NOW), GatewayError("content_filter"), patience=60)


def test_refusal_of_a_fallback_is_told_where_the_first_upstream_was_never_asked() -> None:
    first = upstream("a", failures=1)
    first.targets[0].breaker.fail(NOW)
    way = course(first, upstream("b"))
    choice = way.next(NOW)
    with pytest.raises(GatewayError, match="content_filter"):
        way.failed(choice, GatewayError("content_filter"), patience=60)


def test_delay_is_said_once_and_does_not_pass_to_the_fallback() -> None:
    way = course(upstream("a", failures=1), upstream("b"))
    way.failed(way.next(NOW), GatewayError("upstream_rate_limited", retry_after=3), patience=60)
    choice = way.next(NOW)
    assert (choice.target.label, choice.delay) == ("a0", 3)
    choice.target.breaker.fail(NOW)  # somebody else's call, while this one waits
    later = way.next(NOW + 3)
    assert (later.target.label, later.delay) == ("b0", 0)


def test_choice_after_a_delay_is_the_same_where_nothing_changed() -> None:
    way = course(upstream("a", 2))
    way.failed(way.next(NOW), GatewayError("upstream_rate_limited", retry_after=3), patience=60)
    assert way.next(NOW).target is way.next(NOW + 3).target


def test_course_passes_over_upstreams_that_are_out_of_service() -> None:
    first = upstream("a", failures=1)
    first.targets[0].breaker.fail(NOW)
    assert asked(course(first, upstream("b"))) == ["b0"]


def test_unavailable_is_told_with_when_to_come_back_when_all_are_out_of_service() -> None:
    first, second = upstream("a", 2, failures=1), upstream("b", failures=1)
    for number, target in enumerate([*first.targets, *second.targets]):
        target.breaker.fail(NOW - 10 * number)
    error = told(course(first, second))
    assert (error.code, error.retry_after) == ("upstream_unavailable", 20)


def test_unavailable_never_tells_to_come_back_at_once() -> None:
    first = upstream("a", 2, failures=1)
    for target in first.targets:
        target.breaker.fail(NOW - 60)
    with first.use(first.targets[0]), first.use(first.targets[1]):  # probes are under way
        assert told(course(first)).retry_after == 1


def test_lone_target_is_asked_though_it_failed() -> None:
    first = upstream("a", failures=1)
    first.targets[0].breaker.fail(NOW)
    assert asked(course(first)) == ["a0"]


def test_unavailable_is_told_though_the_fallback_failed_otherwise() -> None:
    first = upstream("a", failures=1)
    first.targets[0].breaker.fail(NOW)
    way = course(first, upstream("b", retries=0))
    way.failed(way.next(NOW), GatewayError("upstream_error"), patience=60)
    assert told(way).code == "upstream_unavailable"


@pytest.mark.parametrize("code", ["upstream_reset", "upstream_timeout", "upstream_error", "upstream_rate_limited"])
def test_request_that_may_have_changed_something_is_sent_to_nobody_else(code: str) -> None:
    way = course(upstream("a", 2), upstream("b"), again=False)
    choice = way.next(NOW)
    with pytest.raises(GatewayError, match=code):
        way.failed(choice, GatewayError(code), patience=60)


def test_request_that_was_never_sent_goes_elsewhere_whatever_it_is() -> None:
    way = course(upstream("a", 2), upstream("b"), again=False)
    assert asked(way, "upstream_unreachable", "upstream_tls") == ["a0", "a1", "b0"]


def test_rescue_asks_other_targets_and_then_the_fallback() -> None:
    way = course(upstream("a", 2), upstream("b"))
    labels = []
    for _ in range(3):
        choice = way.next(NOW)
        labels.append(choice.target.label)
        way.rescue(choice, GatewayError("upstream_cut"))
    assert labels == ["a0", "a1", "b0"]


def test_target_beside_a_silent_one_is_another_of_its_upstream_and_then_a_fallbacks() -> None:
    way = course(upstream("a", 2), upstream("b"))
    silent = way.next(NOW)
    second = way.beside(silent, NOW)
    assert second is not None
    way.drop(second, GatewayError("upstream_reset"))
    third = way.beside(silent, NOW)
    assert third is not None
    assert [silent.target.label, second.target.label, third.target.label] == ["a0", "a1", "b0"]
    assert way.beside(third, NOW) is None
    way.failed(silent, GatewayError("upstream_timeout"), patience=60)
    way.failed(third, GatewayError("upstream_timeout"), patience=60)
    assert told(way).code == "upstream_timeout"


CODES = ["upstream_error", "upstream_timeout", "upstream_rate_limited", "upstream_unreachable", "upstream_auth"]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.sampled_from(CODES), min_size=30, max_size=30),
)
def test_course_is_bounded_and_goes_only_forward(shape: Sequence[tuple[int, int]], codes: Sequence[str]) -> None:
    chain = [upstream(f"u{n}t", targets, retries) for n, (targets, retries) in enumerate(shape)]
    way, ways, silent = course(*chain), [], set()
    for code in codes:
        try:
            choice = way.next(NOW)
        except GatewayError:
            break
        assert choice.target not in silent
        ways.append(choice.upstream)
        silent |= {choice.target} if code in ("upstream_timeout", "upstream_unreachable") else set()
        way.failed(choice, GatewayError(code), patience=60)
    else:
        raise AssertionError("it never ended")
    places = [chain.index(one) for one in ways]
    assert places == sorted(places)
    assert all(ways.count(one) <= 1 + one.config.retries for one in chain)
