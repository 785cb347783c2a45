"""Which attempts that a worker lists are its no more."""

from __future__ import annotations

import pytest

from treadle.controlplane.duties.leftovers import _unwanted
from treadle.controlplane.store.port import Loaded
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_HELD,
    RUN_STATE_CLOSED,
    RUN_STATE_CONTINUING,
    RUN_STATE_OPEN,
    CommandRow,
    HeldToken,
    Holder,
    RunHead,
)

MINE, OTHER = b"m" * 16, b"o" * 16
LISTED = HeldToken(run_id="r", command_id="0/s#1", token=MINE, namespace="ns", incarnation=7)
OPEN, CLOSED = RunHead(state=RUN_STATE_OPEN, incarnation=7), RunHead(state=RUN_STATE_CLOSED, incarnation=7)


def row(token: bytes = MINE, *, cancel_requested: bool = False) -> CommandRow:
    held = CommandRow(command_id="0/s#1", state=COMMAND_STATE_HELD, holder=Holder(token=token))
    held.cancel_requested = cancel_requested
    return held


@pytest.mark.parametrize(
    ("head", "held", "reason"),
    [
        (OPEN, row(), ""),
        (OPEN, row(cancel_requested=True), "cancelled"),
        (OPEN, row(OTHER), "lease lost"),
        (OPEN, CommandRow(command_id="0/s#1", state=COMMAND_STATE_BACKOFF), "lease lost"),
        (OPEN, None, "lease lost"),
        (CLOSED, None, "run closed"),
        (CLOSED, row(), ""),  # not swept yet: the sweep tells it
        (None, None, "run closed"),
        (RunHead(state=RUN_STATE_CONTINUING, incarnation=7), None, "run closed"),
        (RunHead(state=RUN_STATE_OPEN, incarnation=8), None, "run closed"),  # the next part, or another start
        (RunHead(state=RUN_STATE_OPEN, incarnation=8), row(OTHER), "run closed"),
        (RunHead(state=RUN_STATE_OPEN, incarnation=7, retries=1), None, "run closed"),
        (RunHead(state=RUN_STATE_OPEN, incarnation=7, retries=1), row(OTHER), "lease lost"),
    ],
)
def test_what_nobody_wants_is_told_why(head: RunHead | None, held: CommandRow | None, reason: str) -> None:
    fields = {} if held is None else {"c:0/s#1": held.SerializeToString()}
    found = Loaded(head=b"" if head is None else head.SerializeToString(), fields=fields)
    assert _unwanted(found, LISTED) == reason


def test_what_is_damaged_is_left_alone() -> None:
    assert _unwanted(Loaded(head=b"\xff\xff", fields={}), LISTED) == ""
