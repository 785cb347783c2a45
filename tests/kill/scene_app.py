"""The app of the scenes: each has pools of its own, so that they play side by side in one deployment.

In each pool there are two steps: `hold-POOL`, which waits for a gate, and `quick-POOL`. With KILL_WITHOUT=1 the app is an
older one that has no `hold-…` yet.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

from tests.kill.app import note, opened
from treadle.worker import Retry, step, step_info, workflow
from treadle.worker.steps import Step

LANES = ("amqp", "session")
POOLS = (
    "gil",
    "small",
    "prefetch",
    *(f"{scene}-{lane}" for scene in ("freeze", "drain", "block", "garbage", "late", "cut") for lane in LANES),
)
_RETRY = Retry(initial="0.1s", cap="1s")


async def hold(gate: str, seconds: float, blocking: float) -> int:
    """Block the loop; then wait for the gate, or for so many seconds at most (0: for ever). Returns the process id."""
    note("start", local=False)
    try:
        if blocking:
            time.sleep(blocking)
        async with asyncio.timeout(seconds or None):
            if gate:
                await opened(gate)
    except TimeoutError:
        pass
    except asyncio.CancelledError:
        note(f"cancelled: {step_info().cancel_reason}", local=False)
        raise
    note("end", local=False)
    return os.getpid()


async def quick() -> int:
    """Returns the process id."""
    note("start", local=False)
    note("end", local=False)
    return os.getpid()


HOLDS: dict[str, Step[[str, float, float], int]] = {}
QUICKS: dict[str, Step[[], int]] = {}
for _pool in POOLS:
    QUICKS[_pool] = globals()[f"quick_{_pool}"] = step(pool=_pool, name=f"quick-{_pool}", retry=_RETRY)(quick)
    if not os.environ.get("KILL_WITHOUT"):
        HOLDS[_pool] = globals()[f"hold_{_pool}"] = step(pool=_pool, name=f"hold-{_pool}", retry=_RETRY)(hold)


@step(pool="gil", retry=_RETRY)
async def hog(seconds: int) -> int:
    """Keep the interpreter's lock in the first attempt, as careless C code does. Returns the process id."""
    note("start", local=False)
    if step_info().attempt == 1:
        ctypes.PyDLL(None).sleep(seconds)  # PyDLL does not let go of the lock
    note("end", local=False)
    return os.getpid()


@step(pool="small")
async def thumbnail(width: int, height: int) -> str:
    """What the small worker runs under this name; a worker of this app would, too."""
    return f"{width // 4}x{height // 4}"


@step(pool="small")
async def slow_thumbnail(gate: str) -> int:
    return await hold(gate, 0.0, 0.0)


@workflow(pool="flows")
async def call(pool: str, gate: str = "", seconds: float = 0.0, blocking: float = 0.0) -> int:
    """One step that holds. Returns the id of the process whose result was recorded."""
    return await HOLDS[pool](gate, seconds, blocking)


@workflow(pool="flows")
async def call_quick(pool: str) -> int:
    """One step that does nothing. Returns the id of the process whose result was recorded."""
    return await QUICKS[pool]()


@workflow(pool="flows")
async def call_hog(seconds: int) -> int:
    """One step that stops its whole process. Returns the id of the process whose result was recorded."""
    return await hog(seconds)


@workflow(pool="flows")
async def picture(width: int, height: int, gate: str) -> str:
    """Two steps of the small worker. Returns the size, or the process id when there is a gate."""
    if gate:
        return str(await slow_thumbnail(gate))
    return await thumbnail(width, height)
