"""Names of the indexes in which runs and steps are found by what they wait for, and of their members."""

from __future__ import annotations

__all__ = ("attention_index", "quarantine_index", "schedule_index", "waiting_index", "waiting_member")


def waiting_index(namespace: str, pool: str, name: str) -> str:
    """Return the index of what waits for a worker of `pool` with `name`."""
    return f"n:{namespace}:{pool}:{name}"


def waiting_member(run_id: str, command_id: str) -> str:
    """Return the member of that index: a run ("" as command id) or a step."""
    return f"{run_id}\x1f{command_id}"


def quarantine_index(namespace: str) -> str:
    """Return the index of steps that killed too many workers; its members are those of the waiting index."""
    return f"q:{namespace}"


def attention_index(namespace: str, workflow: str) -> str:
    """Return the index of runs that need attention, so that fitting code wakes them."""
    return f"a:{namespace}:{workflow}"


def schedule_index(namespace: str) -> str:
    """Return the index of schedules, by when they were created."""
    return f"o:{namespace}"
