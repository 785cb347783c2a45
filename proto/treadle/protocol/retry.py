"""When a failed try is followed by another one.

A pure function of (policy, number of failures, failure, random number): no clock, no sleep. The control plane turns the
answer into a timer; tests call it directly.

Source: "full jitter" in M. Brooker, Exponential Backoff and Jitter (AWS Architecture Blog, 2015), softened by a share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError
from treadle.v1.common_pb2 import Failure, RetryPolicy, RetryRule

__all__ = ("DEFAULT_POLICY", "Retry", "RetryOn", "next_delay_ms", "rule_of")


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
        give_up_on: Errors (classes, or class names; subclasses, too) after which no further try is made. Default none.
        at_most_once: True: an attempt that may have started is never followed by another, not even after a crash.
        rules: What is different for some errors; see `on`.

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
    rules: tuple[RetryOn, ...] = ()

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

    def on(
        self,
        *errors: type[BaseException] | str,
        attempts: int | None = None,
        initial: Duration | None = None,
        factor: float | None = None,
        cap: Duration | None = None,
        jitter: float | None = None,
    ) -> Retry:
        """Return the policy with other rules for some errors; what is not given is as for all others.

            Retry(attempts=5).on(RateLimited, initial="30s", attempts=20).never_on(ValueError)

        Each rule counts its own failures: twenty rate limits leave the five tries of other errors untouched.

        Args:
            errors: Classes, or class names; subclasses are meant, too. The first rule that fits an error counts.
            attempts, initial, factor, cap, jitter: As for the policy. `cap` is at least `initial`.

        Raises:
            ConfigError: No error is named, a field is outside its range, or the policy is one for at most once.
        """
        if not errors:
            raise ConfigError("Retry.on(): name at least one error")
        if self.at_most_once:
            raise ConfigError("Retry.on(): a step that may start at most once is never tried again")
        first = self.initial if initial is None else initial
        longest = max((self.cap, first), key=to_ms) if cap is None else cap
        like = Retry(
            attempts=self.attempts if attempts is None else attempts,
            initial=first,
            factor=self.factor if factor is None else factor,
            cap=longest,
            jitter=self.jitter if jitter is None else jitter,
        )
        return replace(self, rules=(*self.rules, RetryOn(tuple(map(_name_of, errors)), like)))

    def never_on(self, *errors: type[BaseException] | str) -> Retry:
        """Return the policy with errors after which no further try is made, whatever `on` says of them.

        Raises:
            ConfigError: No error is named.
        """
        if not errors:
            raise ConfigError("Retry.never_on(): name at least one error")
        return replace(self, give_up_on=(*self.give_up_on, *errors))

    def to_message(self) -> RetryPolicy:
        """Return the policy as it goes over the wire."""
        return RetryPolicy(
            attempts=self.attempts,
            initial_ms=to_ms(self.initial),
            factor=self.factor,
            cap_ms=to_ms(self.cap),
            jitter=self.jitter,
            give_up_on=list(map(_name_of, self.give_up_on)),
            rules=[rule.to_message() for rule in self.rules],
        )


@dataclass(frozen=True, slots=True)
class RetryOn:
    """What is different for some errors.

    Attributes:
        errors: Their class names.
        policy: What counts for them: its attempts, initial, factor, cap and jitter.
    """

    errors: tuple[str, ...]
    policy: Retry

    def to_message(self) -> RetryRule:
        """Return the rule as it goes over the wire."""
        policy = self.policy
        return RetryRule(
            types=self.errors,
            attempts=policy.attempts,
            initial_ms=to_ms(policy.initial),
            factor=policy.factor,
            cap_ms=to_ms(policy.cap),
            jitter=policy.jitter,
        )


def _name_of(error: type[BaseException] | str) -> str:
    return error if isinstance(error, str) else error.__name__


Retry.never = Retry(attempts=1, at_most_once=True)

DEFAULT_POLICY: Final = Retry().to_message()


def rule_of(policy: RetryPolicy, failure: Failure) -> int:
    """Return which rule an error falls under: 0 for the policy itself, else the number of the rule, from 1."""
    if policy.rules:
        for number, rule in enumerate(policy.rules, start=1):
            if _names(rule.types, failure):
                return number
    return 0


def next_delay_ms(policy: RetryPolicy, *, try_number: int, failure: Failure, share: float, rule: int = 0) -> int | None:
    """Return the wait in milliseconds before the next try, or None when the step has failed for good.

    Args:
        policy: The step's policy.
        try_number: How many tries have failed under the rule, this one included: without rules, the number of the try.
        failure: What it raised. One that is `final`, or of a type in `give_up_on`, is never retried.
        share: A random number in [0, 1), passed in so that a simulation can replay it.
        rule: Which rule the failure falls under; see `rule_of`.
    """
    counts = policy.rules[rule - 1] if rule else policy
    used_up = 0 < counts.attempts <= try_number  # <=: the policy may have been lowered meanwhile
    if used_up or failure.final or _names(policy.give_up_on, failure):
        return None
    try:
        bound = min(counts.initial_ms * counts.factor ** (try_number - 1), counts.cap_ms)
    except OverflowError:
        bound = counts.cap_ms
    return int(bound * (1 - counts.jitter * share))


def _names(types: Sequence[str], failure: Failure) -> bool:
    return bool(types) and (failure.type in types or any(base in types for base in failure.bases))
