"""Retry rules: which rule an error falls under, how long the wait is, and when it is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.protocol.errors import ConfigError
from treadle.protocol.failures import failure_of
from treadle.protocol.retry import Retry, next_delay_ms, rule_of
from treadle.v1.common_pb2 import Failure, RetryPolicy
from treadle.worker.bodies import timed_out


class Busy(Exception):
    pass


class VeryBusy(Busy):
    pass


RULES = (
    Retry(attempts=5, initial="1s", factor=2, cap="1m", jitter=0)
    .on(Busy, attempts=20, initial="30s")
    .on(ConnectionError, "Throttled", attempts=0, initial="2s", factor=3, cap="9s")
    .never_on(ValueError, ConnectionRefusedError)
    .to_message()
)


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (RuntimeError(), 0),
        (Busy(), 1),
        (VeryBusy(), 1),
        (ConnectionError(), 2),
        (ConnectionResetError(), 2),
        (type("Throttled", (Exception,), {})(), 2),
        (OSError(), 0),
    ],
)
def test_the_first_rule_that_fits_counts_and_subclasses_fit(error: Exception, rule: int) -> None:
    assert rule_of(RULES, failure_of(error)) == rule


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (RuntimeError(), [1000, 2000, 4000, 8000, None]),
        (Busy(), [30_000, 60_000, 60_000]),
        (ConnectionResetError(), [2000, 6000, 9000, 9000]),
        (ConnectionRefusedError(), [None]),
        (UnicodeError(), [None]),
    ],
)
def test_waits_and_ends(error: Exception, waits: list[int | None]) -> None:
    failure = failure_of(error)
    rule = rule_of(RULES, failure)
    found = [
        next_delay_ms(RULES, try_number=n, failure=failure, share=0.5, rule=rule) for n in range(1, len(waits) + 1)
    ]
    assert found == waits


def test_a_rule_ends_by_its_own_number() -> None:
    failure = failure_of(Busy())
    assert next_delay_ms(RULES, try_number=19, failure=failure, share=0, rule=1) == 60_000
    assert next_delay_ms(RULES, try_number=20, failure=failure, share=0, rule=1) is None


def test_what_is_final_is_never_tried_again() -> None:
    failure = Failure(type="Busy", final=True)
    assert next_delay_ms(RULES, try_number=1, failure=failure, share=0, rule=1) is None


def test_a_timeout_of_an_attempt_can_be_named_as_python_names_it() -> None:
    policy = Retry().on(TimeoutError, attempts=2).to_message()
    failure = timed_out("s", 1000).failure
    assert failure is not None and rule_of(policy, failure) == 1


def test_what_is_not_given_is_as_for_all_others() -> None:
    policy = Retry(attempts=7, initial="2s", factor=3, cap="20s", jitter=0.25).on(Busy, initial="1m").to_message()
    (rule,) = policy.rules
    assert (rule.attempts, rule.factor, rule.jitter) == (7, 3, 0.25)
    assert (rule.initial_ms, rule.cap_ms) == (60_000, 60_000), "the cap is at least the first wait"


def test_a_policy_without_rules_goes_over_the_wire_as_before() -> None:
    assert not Retry().to_message().rules
    assert Retry().on(Busy).to_message() != Retry().to_message()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry().on(attempts=3),
        lambda: Retry().never_on(),
        lambda: Retry.never.on(Busy),
        lambda: Retry().on(Busy, jitter=2),
        lambda: Retry().on(Busy, initial="1h", cap="1m"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


ERRORS: list[Exception] = [RuntimeError(), Busy(), VeryBusy(), ConnectionError(), ValueError(), TimeoutError()]


@given(
    order=st.lists(st.sampled_from(ERRORS), max_size=60),
    attempts=st.integers(1, 6),
    of_rule=st.integers(1, 6),
    share=st.floats(0, 1, exclude_max=True),
)
def test_failures_of_one_kind_never_use_up_the_tries_of_another(
    order: list[Exception], attempts: int, of_rule: int, share: float
) -> None:
    policy = Retry(attempts=attempts).on(Busy, attempts=of_rule).on(OSError, attempts=0).to_message()
    counts = [0, 0, 0]
    for error in order:
        failure = failure_of(error)
        rule = rule_of(policy, failure)
        counts[rule] += 1
        delay = next_delay_ms(policy, try_number=counts[rule], failure=failure, share=share, rule=rule)
        limit = (attempts, of_rule, 0)[rule]
        assert (delay is None) == (0 < limit <= counts[rule])
        if delay is None:
            return
        bound = policy.rules[rule - 1].cap_ms if rule else policy.cap_ms
        assert 0 <= delay <= bound


@given(
    st.integers(1, 10_000),
    st.floats(1, 50),
    st.integers(1, 10**9),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_waits_grow_and_stay_within_their_bounds(n: int, factor: float, cap: int, jitter: float, share: float) -> None:
    policy = RetryPolicy(initial_ms=1, factor=factor, cap_ms=cap, jitter=jitter)
    failure = Failure(type="Boom")
    delays = [next_delay_ms(policy, try_number=k, failure=failure, share=share) for k in (n, n + 1)]
    assert None not in delays
    first, second = (delay or 0 for delay in delays)
    assert 0 <= first <= second + 1 and second <= cap
