"""Replay equals live: every workflow of the catalogue, at every position of its history."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.replay.catalogue import CATALOGUE, LETTERS, REGISTRY
from tests.replay.harness import Server, check_every_prefix, drive

ENTRIES = [pytest.param(*entry, id=entry[0].name) for entry in CATALOGUE]


def started(workflow: Any, args: tuple[Any, ...], **settings: Any) -> Server:
    server = Server(REGISTRY, workflow, letters=LETTERS.get(workflow.name, ()), **settings)
    server.start(*args)
    return server


@pytest.mark.parametrize(("workflow", "args", "expected"), ENTRIES)
def test_it_ends_as_asyncio_says(workflow: Any, args: tuple[Any, ...], expected: Any) -> None:
    outcome = drive(started(workflow, args))
    if outcome.failure is not None:
        assert outcome.failure.type == expected
    elif expected is not None:
        assert outcome.result is not None
        assert json.loads(outcome.result.data) == expected


@pytest.mark.parametrize("cancel_at_ms", [None, 0, 90, 250])
@pytest.mark.parametrize(("workflow", "args", "_expected"), ENTRIES)
def test_every_prefix_asks_for_the_same(
    workflow: Any, args: tuple[Any, ...], _expected: Any, cancel_at_ms: int | None
) -> None:
    for seed in range(3):
        server = started(workflow, args, seed=seed, cancel_at_ms=cancel_at_ms, by_timeout=seed == 2)
        check_every_prefix(server, drive(server))


@pytest.mark.parametrize("lose", [False, True])
@pytest.mark.parametrize(("workflow", "args", "_expected"), ENTRIES)
def test_killed_at_every_position(workflow: Any, args: tuple[Any, ...], _expected: Any, lose: bool) -> None:
    for cancel_at_ms in (None, 120):
        server = started(workflow, args, seed=5, late=lose, cancel_at_ms=cancel_at_ms)
        kinds = [_kind_of(drive(server))]
        for position in range(1, len(server.history) + 1):
            killed = started(workflow, args, seed=5, late=lose, cancel_at_ms=cancel_at_ms)
            kinds.append(_kind_of(drive(killed, kill_at=position, lose=lose)))
            last = killed.fresh()
            for event in killed.history:
                last.feed(event)
            assert last.divergence is None
            last.close()
        if cancel_at_ms is None:
            assert len(set(kinds)) == 1


@pytest.mark.parametrize(("workflow", "args", "_expected"), ENTRIES)
def test_commands_recorded_late(workflow: Any, args: tuple[Any, ...], _expected: Any) -> None:
    for seed in range(4):
        server = started(workflow, args, seed=seed, late=True, cancel_at_ms=None if seed % 2 else 100)
        outcome = drive(server)
        again = server.fresh()
        for event in server.history:
            again.feed(event)
        assert again.divergence is None
        assert again.outcome == outcome
        again.close()


def _kind_of(outcome: Any) -> str:
    return "cancelled" if outcome.cancelled else "failed" if outcome.failure is not None else "returned"
