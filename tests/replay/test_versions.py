"""Runs that were recorded on Python 3.13 go on under the Python that runs these tests, at every position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.replay.harness import Server, replay
from tests.replay.primitives import REGISTRY, names, primitives
from treadle.v1.history_pb2 import HistoryEvent

RECORDED = (Path(__file__).parent / "recorded_on_3_13.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", RECORDED, ids=range(len(RECORDED)))
def test_what_is_asked_for_is_the_same(line: str) -> None:
    record = json.loads(line)
    server = Server(REGISTRY, primitives)
    server.history = [HistoryEvent.FromString(bytes.fromhex(event)) for event in record["history"]]
    for upto, asked in enumerate(record["asked"]):
        commands, execution = replay(server, upto)
        execution.close()
        assert names(commands) == asked, (server.history[0], upto)
