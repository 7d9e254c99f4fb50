"""What a node queues for Redis about one principal, and what it decides alone: no Redis is needed to see it."""

from itertools import count

import pytest

from gateway.core.limiter import Lease, Refusal
from gateway.core.limits import Plan, make_limits
from gateway.core.rate import Rate
from gateway.store.shares import GATHERING, LEISURE, OwnPart, Shares

PLAN = Plan("p", make_limits(Rate(90, 60.0), 6, Rate(900, 60.0)))
START = {"requests": 1.0, "streams": 1.0, "tokens": 100.0}


class Desk:
    """A writer that sends nothing by itself."""

    def __init__(self, *, up: bool = True, nodes: int = 1) -> None:
        self.up = up
        self.nodes = nodes
        self.number = count(1).__next__
        self.patience: list[float] = []

    def send(self, shares: Shares) -> None:
        """The test takes the batches."""

    def tell(self, shares: Shares, within: float) -> None:
        """The same, within so many seconds."""
        self.patience.append(within)


def test_batch_that_was_not_answered_is_repeated_before_anything_else() -> None:
    """A question for more comes behind what is queued about its lease: else a share would count twice."""
    shares = Shares(Desk(), "key", PLAN, 0.0)
    shares.take("n:1", START, 0.0)
    first = shares.batch()
    assert first.operations == [("force", "n:1", [1.0, 1.0, 100.0])]
    late = shares.take("n:2", START, 0.0)
    shares.hear([0, 0, 0], 0.0)
    assert late.spend({"tokens": 101}, 0.0)
    shares.failed(first)
    second = shares.batch()
    assert second[1:] == first[1:]
    shares.sent(second, [], [1, 1, 100], 0.0)
    third = shares.batch()
    assert third.number == 2
    assert [operation[:3] for operation in third.operations] == [
        ("force", "n:2", [1.0, 1.0, 100.0]),
        ("more", "tokens", "n:2"),
    ]
    shares.sent(third, [(True, 5)], [2, 2, 205], 0.0)
    assert late.reserved("tokens") == 105
    assert not shares.waiting


def test_start_that_was_asked_before_a_reload_added_a_limit_is_decided_by_those_that_were_asked() -> None:
    desk = Desk()
    shares = Shares(desk, "key", Plan("p", make_limits(Rate(90, 60.0))), 0.0)
    asked = shares.batch()
    shares.adopt(PLAN, 0.0)
    shares.sent(asked, [], [1], 0.0)
    decision = shares.decide("n:1", START, [], ())
    assert isinstance(decision.outcome, Lease)
    assert [(quota.name, quota.remaining) for quota in decision.quotas] == [
        ("requests", 89),
        ("streams", 6),
        ("tokens", 900),
    ]


@pytest.mark.parametrize(
    ("slots", "stands", "within"),
    [
        (32, [22, 8, 225], LEISURE),
        (None, [22, 999, 225], LEISURE),
        (32, [23, 8, 225], GATHERING),
        (32, [22, 9, 225], GATHERING),
        (32, [22, 8, 226], GATHERING),
        (31, [0, 0, 0], GATHERING),
        (32, [], GATHERING),
    ],
)
def test_what_is_given_back_waits_longer_where_all_limits_are_far_from_full(
    slots: int | None, stands: list[float], within: float
) -> None:
    desk = Desk()
    shares = Shares(desk, "key", Plan("p", make_limits(Rate(90, 60.0), slots, Rate(900, 60.0))), 0.0)
    lease = shares.take("n:1", START, 0.0)
    shares.sent(shares.batch(), [], stands, 0.0)
    desk.patience.clear()
    lease.settle({"tokens": 5}, 0.0)
    lease.close(0.0)
    assert desk.patience == [within, within]


def test_node_alone_has_its_part_and_begins_with_its_part_of_what_was_used() -> None:
    """R7: three nodes that each do so are together what the plan allows."""
    desk = Desk(nodes=3)
    shares = Shares(desk, "key", PLAN, 0.0)
    shares.hear([60, 0, 0], 0.0)
    desk.up = False
    outcomes = [shares.decide_alone(f"n:{number}", {"requests": 1}, 0.0, ()).outcome for number in range(11)]
    assert [isinstance(outcome, Lease) for outcome in outcomes] == [True] * 10 + [False]
    refusal = outcomes[-1]
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after == pytest.approx(2.0)
    assert refusal.quota[:4] == ("requests", 30, 60.0, 0)
    desk.up = True
    shares.rejoin(10.0)
    # 20 + 10 stood in its part; half a request a second has drained, and what was known drains first.
    assert shares.batch().operations == [("add", "requests", pytest.approx(10.0), "", 0)]


def test_what_drained_while_a_node_was_alone_is_not_added() -> None:
    desk = Desk(up=False, nodes=3)
    shares = Shares(desk, "key", PLAN, 0.0)
    outcome = shares.decide_alone("n:1", START, 0.0, ()).outcome
    assert isinstance(outcome, Lease)
    desk.up = True
    shares.rejoin(10.0)
    assert shares.batch().operations == [
        ("open", "streams", "n:1"),
        ("add", "tokens", pytest.approx(50.0), "n:1", pytest.approx(50.0)),
    ]


def test_part_lets_in_what_fits_the_whole_when_nothing_else_is_used() -> None:
    part = OwnPart(Rate(9, 60.0), 3, 0.0, 0.0)
    assert part.wait(9, 0.0) == 0
    assert part.wait(10, 0.0) is None
    part.take(9)
    assert part.wait(3, 0.0) == pytest.approx(180.0)
    assert OwnPart(Rate(1, 60.0), 3, 0.0, 0.0).rate.amount == 1
