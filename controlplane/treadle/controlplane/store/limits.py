"""Numbers that every store keeps to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

__all__ = ("ASIDE_BYTES", "ASIDE_TTL_MS", "NOTES", "PAGE_BYTES", "PAGE_EVENTS", "ROUND_GAP_MS", "first_fields", "page")

NOTES = ("s:", "a:", "d:")
"""How names of fields begin that stay as long as their run: ids of signals, answers, calls that finished steps
(scripts/load.lua has it too)."""

PAGE_EVENTS = 200
"""Events in a page of history at most (scripts/load.lua has it too)."""
PAGE_BYTES = 1 << 20
"""Bytes in a page of history at most, but for a page of one event (scripts/load.lua has it too)."""
ROUND_GAP_MS = 3_000
"""A gap between two duty rounds beyond which silence is counted anew."""
ASIDE_BYTES = 1 << 20
"""What one shard keeps aside at most, of one kind."""
ASIDE_TTL_MS = 7 * 86_400_000
"""How long it is kept."""


def page(events: Sequence[bytes], after: int) -> list[bytes]:
    """Return the events behind position `after`: at most 200 or 1 MiB, but at least one if there is one."""
    chosen: list[bytes] = []
    size = 0
    for event in events[after : after + PAGE_EVENTS]:
        size += len(event)
        if chosen and size > PAGE_BYTES:
            break
        chosen.append(event)
    return chosen


def first_fields(fields: Mapping[str, bytes], limit: int) -> dict[str, bytes]:
    """Return at most `limit` fields, notes last: a run may have thousands of them, and what must be swept stands between."""
    found = dict(islice(((name, data) for name, data in fields.items() if not name.startswith(NOTES)), limit))
    notes = ((name, data) for name, data in fields.items() if name.startswith(NOTES))
    found.update(islice(notes, limit - len(found)))
    return found
