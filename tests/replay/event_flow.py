"""A workflow that waits for events, and sends some."""

from __future__ import annotations

import asyncio
from typing import Any

from treadle.worker import send_event, wait_for_event, workflow


@workflow
async def eventful(n: int) -> list[Any]:
    """Waits for events: one that came before, one in time, one too late, one that is wanted no longer, and two at once."""
    found: list[Any] = [len(send_event("fact", {"n": n}))]
    fact = await wait_for_event("fact", dict[str, int], match={"n": n})
    found += [fact.data["n"], await wait_for_event("never", timeout=0.2)]
    try:
        async with asyncio.timeout(0.1):
            await wait_for_event("never", match={"n": n})
    except TimeoutError:
        found.append("unwanted")
    send_event("other", {"n": n}, id="mine")
    waits = (wait_for_event("other", match={"n": n}), wait_for_event("other"), asyncio.sleep(0.01, 2 * n))
    found += [getattr(one, "name", one) for one in await asyncio.gather(*waits)]
    return found
