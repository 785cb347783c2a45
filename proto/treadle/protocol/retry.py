"""When a failed try is followed by another one.

A pure function of (policy, try, failure, random number): no clock, no sleep. The control plane turns the answer into a
timer; tests call it directly.

Source: "full jitter" in M. Brooker, Exponential Backoff and Jitter (AWS Architecture Blog, 2015), softened by a share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError
from treadle.v1.common_pb2 import Failure, RetryPolicy

__all__ = ("DEFAULT_POLICY", "Retry", "next_delay_ms")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how patiently, a step is retried.

    The bound of the wait before try n + 1 is `min(cap, initial * factor ** (n - 1))`. The wait is drawn between
    `(1 - jitter) * bound` and `bound`. Lost attempts (their worker died) do not use up tries.

    Attributes:
        attempts: Tries in total, the first included; 0 means no limit. Default 5.
        initial: Bound of the wait before the second try. Default 1 s.
        factor: Growth of the bound; >= 1. Default 2.
        cap: Largest bound; >= initial. Default 5 minutes.
        jitter: Share of the bound that is drawn, 0 to 1. Default 0.5.
        give_up_on: Errors (classes, or class names) after which no further try is made. Default none.
        at_most_once: True: an attempt that may have started is never followed by another, not even after a crash.

    Raises:
        ConfigError: A field is outside its range.
    """

    attempts: int = 5
    initial: Duration = "1s"
    factor: float = 2.0
    cap: Duration = "5m"
    jitter: float = 0.5
    give_up_on: Sequence[type[BaseException] | str] = ()
    at_most_once: bool = False

    never: ClassVar[Retry]
    """At most once: no try after a failure, and a lost attempt fails the step with StepLost."""

    def __post_init__(self) -> None:
        if self.attempts < 0:
            raise ConfigError(f"Retry(attempts={self.attempts}): give 1 or more, or 0 for no limit")
        if not self.factor >= 1:  # written so that NaN fails too
            raise ConfigError(f"Retry(factor={self.factor}): give a number >= 1")
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"Retry(jitter={self.jitter}): give a number from 0 to 1")
        if to_ms(self.cap, name="Retry(cap=)") < to_ms(self.initial, name="Retry(initial=)"):
            raise ConfigError(f"Retry(cap={self.cap!r}) is smaller than initial={self.initial!r}")

    def to_message(self) -> RetryPolicy:
        """Return the policy as it goes over the wire."""
        return RetryPolicy(
            attempts=self.attempts,
            initial_ms=to_ms(self.initial),
            factor=self.factor,
            cap_ms=to_ms(self.cap),
            jitter=self.jitter,
            give_up_on=[e if isinstance(e, str) else e.__name__ for e in self.give_up_on],
        )


Retry.never = Retry(attempts=1, at_most_once=True)

DEFAULT_POLICY: Final = Retry().to_message()


def next_delay_ms(policy: RetryPolicy, *, try_number: int, failure: Failure, share: float) -> int | None:
    """Return the wait in milliseconds before the next try, or None when the step has failed for good.

    Args:
        policy: The step's policy.
        try_number: Number of the try that just failed; the first is 1.
        failure: What it raised. One that is `final`, or whose type is in `give_up_on`, is never retried.
        share: A random number in [0, 1), passed in so that a simulation can replay it.
    """
    used_up = 0 < policy.attempts <= try_number  # <=: the policy may have been lowered meanwhile
    if used_up or failure.final or failure.type in policy.give_up_on:
        return None
    try:
        bound = min(policy.initial_ms * policy.factor ** (try_number - 1), policy.cap_ms)
    except OverflowError:
        bound = policy.cap_ms
    return int(bound * (1 - policy.jitter * share))
