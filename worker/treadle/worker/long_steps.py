"""What a long step says while it runs: how far it is, that it goes on, and that somebody outside will finish it."""

from __future__ import annotations

from typing import Any, Final, TypeVar, overload

from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError
from treadle.protocol.payloads import decode, encode_bytes
from treadle.protocol.topology import MAX_PROGRESS_BYTES
from treadle.worker.current import STEP_INFO, current_execution
from treadle.worker.pulse import Saying

__all__ = ("defer", "heartbeat", "last_progress", "progress")

T = TypeVar("T")

_WHAT: Final = "progress"


def progress(value: Any) -> None:
    """Say how far the step is. The next attempt gets the last value (`last_progress`), and clients see it at once.

    Cheap: it may be said ten thousand times a second. The newest value is sent at most once a second, so a worker that is
    killed may lose what was said in its last second. It counts as a heartbeat. In a plain call of the step it does nothing.

    Args:
        value: Any JSON-like value, dataclass or model, at most 16 KiB: a place to go on from, not what was done.

    Raises:
        PayloadError: It cannot be encoded, or is too large.
        ConfigError: It is called in workflow code.
    """
    data = encode_bytes(value, what=_WHAT, limit=MAX_PROGRESS_BYTES)
    saying = _saying("progress")
    if saying is not None:
        saying.say(data)


def heartbeat() -> None:
    """Say that the step goes on, where it has a `heartbeat=` and there is no progress to tell. Otherwise as `progress`."""
    saying = _saying("heartbeat")
    if saying is not None:
        saying.beat()


@overload
def last_progress(type: type[T], /) -> T | None: ...
@overload
def last_progress() -> Any: ...
def last_progress(type: Any = Any, /) -> Any:
    """Return what the step said last of its progress: in this attempt, or in the one before it that said something.

    Args:
        type: What it is decoded as; default: plain JSON values.

    Returns:
        The value; None when nothing was said, and in a plain call of the step.

    Raises:
        PayloadError: The value does not fit the type: code that said something else was deployed before.
        ConfigError: It is called in workflow code.
    """
    saying = _saying("last_progress")
    if saying is None or saying.last is None:
        return None
    return decode(saying.last, type, what=_WHAT)


def defer(*, timeout: Duration | None = None) -> str:
    """Return a token by which somebody outside finishes the step; hand it on, then `raise Deferred`.

    The attempt ends then and holds no worker. `Client.complete_step(token, value)` gives the step its result, and
    `Client.fail_step` an error, once. All attempts of a try make the same token, and it may be used before the attempt has
    ended. A step that returns, or raises something else, ends as if it had not been called.

    Args:
        timeout: How long to wait for it, from the end of the attempt ("7d"); then the try has failed with a timeout.
            Default: the step's `timeout=` counts on, if it has one.

    Returns:
        A secret that begins with "tds_": who has it, and may call the control plane, can finish the step.

    Raises:
        ConfigError: It is called outside a step, or in one without `pool=`; or the timeout is none.
    """
    wait_ms = 0 if timeout is None else to_ms(timeout, name="defer: timeout")
    if timeout is not None and not wait_ms:
        raise ConfigError(f"defer: timeout {timeout!r}: give more than 0, or leave it out")
    saying = _saying("defer")
    if saying is None:
        raise ConfigError("defer(): call it inside a @step that a worker runs; there is no attempt here")
    token = saying.deferral
    if not token:
        raise ConfigError('defer(): give the step a pool, as in @step(pool="default"): local steps are not deferred')
    saying.deferred_ms = wait_ms
    return token


def _saying(what: str) -> Saying | None:
    info = STEP_INFO.get()
    if info is not None:
        return info.saying()
    if current_execution() is not None:
        raise ConfigError(f"{what}(): call it inside a @step; a workflow shows how far it is with publish_state()")
    return None
