"""What the machine is given besides state and requests: the time, chance, credits and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from treadle.v1.common_pb2 import FailureHandler
from treadle.v1.job_pb2 import JobKind

__all__ = ("Credit", "Env", "Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times and limits of the protocols. Milliseconds; the defaults are those of PROTOCOL.md.

    Attributes:
        right_ms: From a request's send time to the end of the right to start.
        silence_ms: A holder that was not heard of for so long is lost.
        grace_ms: From the end of a session to the take-over of what it held.
        lease_ms, lease_cap_ms: First and longest step between two checks of a holder.
        watch_ms, watch_cap_ms: First and longest step between two looks at a queued try or wake.
        look_ms: A run that is parked, or needs attention, is looked at after so long, although nothing is due.
        waiting_ms, waiting_cap_ms: First and longest step while no worker has a name.
        unseen_ms: News that an owner has not confirmed is sent again after so long.
        round_ms: A round of a shard's duties older than this decides nothing about silence.
        max_lost: A step that lost so many workers is quarantined; a run needs attention.
        alone_from: From this loss on it executes alone.
        retention_ms: Closed runs are deleted after so long.
        tombstone_ms: What is left of them stays for so long.
        history_limit: A run with so many events needs attention.
        commit_limit: Commands and checkpoints that one request may carry.
        cleanup_ms: A run whose timeout is over and whose code has not ended is closed after so long.
    """

    right_ms: int = 4_000
    silence_ms: int = 5_000
    grace_ms: int = 500
    lease_ms: int = 2_000
    lease_cap_ms: int = 15_000
    watch_ms: int = 60_000
    watch_cap_ms: int = 3_600_000
    look_ms: int = 3_600_000
    waiting_ms: int = 200
    waiting_cap_ms: int = 30_000
    unseen_ms: int = 2_000
    round_ms: int = 3_000
    max_lost: int = 5
    alone_from: int = 2
    retention_ms: int = 7 * 86_400_000
    tombstone_ms: int = 7 * 86_400_000
    history_limit: int = 50_000
    commit_limit: int = 200
    cleanup_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Credit:
    """A claim in advance: this worker takes one job of the kind, over a session of this replica.

    Attributes:
        worker_id: The worker.
        credit_id: Random id of its statement; the GO carries it as claim id.
        sent_ms: Send time of the statement, by the worker's clock.
        wakes: It is for a parked run whose coroutine the worker keeps.
        handler: For a run: what handles its failure, as the worker said when its session began; None: nothing does.
    """

    worker_id: str
    credit_id: int
    sent_ms: int
    wakes: bool = False
    handler: FailureHandler | None = field(default=None, compare=False)


def _nothing_known(namespace: str, name: str, keys: tuple[str, ...]) -> bool:
    return False


@dataclass(slots=True)
class Env:
    """The world, as one decision sees it.

    Attributes:
        now_ms: Time by the clock of Redis.
        replica_id: This replica.
        bits64: Draws 64 random bits, never 0.
        token: Draws 16 random bytes.
        share: Draws a number in [0, 1).
        offer: Takes a credit of this replica's sessions for (namespace, pool, kind, name), of the preferred worker if it
            has one ("": of any); None: there is none. A credit that was taken and not used is given back by the caller.
            Steps prefer the worker that has just ended the one before.
        settings: Times and limits.
        keys_known: Whether all routers of (namespace, name of events) were told of this set of keys not long ago. False does
            no harm but a few letters.
        taken: Credits that `offer` gave, with the kind of their job, since the caller last cleared it.
    """

    now_ms: int
    replica_id: str
    bits64: Callable[[], int]
    token: Callable[[], bytes]
    share: Callable[[], float]
    offer: Callable[[str, str, JobKind.ValueType, str, str], Credit | None]
    settings: Settings
    keys_known: Callable[[str, str, tuple[str, ...]], bool] = _nothing_known
    taken: list[tuple[Credit, JobKind.ValueType]] = field(default_factory=list)
