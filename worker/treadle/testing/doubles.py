"""What stands in for a step or a child workflow, and the record of every attempt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from treadle.protocol.errors import ConfigError

__all__ = ("NOT_GIVEN", "Call", "Double", "make_double")


class _NotGiven:
    def __repr__(self) -> str:
        return "(not given)"


NOT_GIVEN: Final[Any] = _NotGiven()


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a step, real or replaced.

    Attributes:
        step: Name of the step.
        args, kwargs: What it was called with, as the step sees it: decoded, with defaults.
        attempt: Number of the attempt over the step's life, from 1.
        at: When it began, in virtual time.
        run_id: The run that called it.
        command_id: Which call of the run it is ("0/charge#1"): equal in all attempts of one call.
        idempotency_key: Equal in all attempts of one call, as in production.
    """

    step: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attempt: int
    at: datetime
    run_id: str
    command_id: str
    idempotency_key: str


class Double:
    """What happens instead. `outcome` is asked once for each attempt of a step, or each run of a workflow.

    Attributes:
        takes_ms: How long it takes, in virtual time; None: it never ends by itself.
    """

    def __init__(
        self,
        what: str,
        *,
        function: Callable[..., Any] | None,
        outcomes: Sequence[Any],
        once: bool,
        takes_ms: int | None,
    ) -> None:
        self._what = what
        self._function = function
        self._outcomes = list(outcomes)
        self._once = once
        self._used = 0
        self.takes_ms = takes_ms

    def outcome(self) -> Callable[..., Any]:
        """Return what is called in place of the function.

        Raises:
            ConfigError: It is called more often than there are outcomes.
        """
        if self._function is not None:
            return self._function
        index = self._used if self._once else 0
        if index >= len(self._outcomes):
            raise ConfigError(
                f"{self._what} was called {self._used + 1} times, and `outcomes` has {len(self._outcomes)}: give one for "
                "each attempt, or `calls=` a function"
            )
        self._used += 1
        outcome = self._outcomes[index]

        def play(*_args: Any, **_kwargs: Any) -> Any:
            if _raises(outcome):
                raise outcome
            return outcome

        return play


def _raises(outcome: Any) -> bool:
    return isinstance(outcome, BaseException) or (isinstance(outcome, type) and issubclass(outcome, BaseException))


def make_double(
    what: str,
    *,
    returns: Any,
    raises: Any,
    calls: Callable[..., Any] | None,
    outcomes: Sequence[Any] | None,
    hangs: bool,
    takes_ms: int,
) -> Double:
    """Return the double that the arguments of `Lab.replace` ask for.

    Raises:
        ConfigError: Not exactly one way to end is given, or `raises` is no error.
    """
    ways = [returns is not NOT_GIVEN, raises is not None, calls is not None, outcomes is not None, hangs]
    if sum(ways) != 1:
        raise ConfigError(f"replace({what}): give exactly one of returns=, raises=, calls=, outcomes=, hangs=True")
    if raises is not None and not _raises(raises):
        raise ConfigError(f"replace({what}, raises={raises!r}): give an error, or a class of errors")
    given = list(outcomes) if outcomes is not None else [raises if raises is not None else returns]
    return Double(
        what,
        function=calls,
        outcomes=given,
        once=outcomes is not None,
        takes_ms=None if hangs else takes_ms,
    )
