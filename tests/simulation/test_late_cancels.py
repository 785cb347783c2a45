"""Cancels that come while code ends to go on as new, or undoes what was done, whoever dies meanwhile: none is lost, and none
cuts off what undoes."""

from __future__ import annotations

import pytest

from treadle.controlplane.machine import Decision
from treadle.controlplane.machine.requests import CancelRun, Reply, RunReply
from treadle.protocol.ids import RunKey

from .world import World

_ENDED = ("run_cancelled", "run_terminated")


class _Canceller:
    """Cancels a run just after so many of its steps have completed."""

    def __init__(self, world: World, run: RunKey, steps: int, *, local: bool = False) -> None:
        self._world, self._run, self._steps, self._local = world, run, steps, local
        self.acknowledged = False
        world.on_commit = self._committed

    def _committed(self, run: RunKey, decision: Decision) -> None:
        done = [event.step_completed for event in decision.events if event.HasField("step_completed")]
        if run == self._run and any(step.local or not self._local for step in done):
            self._steps -= 1
            if self._steps == 0:
                self._world.schedule.later(self._world.schedule.rng.randint(0, 20), self._cancel)

    def _cancel(self) -> None:
        up = [replica for replica in self._world.replicas if replica.up]
        if up and not self.acknowledged:
            self._world.interrupted.add(self._run)
            up[0].ask(self._run, CancelRun("late", "enough"), self._settle)
        if not self.acknowledged:
            self._world.schedule.later(500, self._cancel)

    def _settle(self, reply: Reply | Exception) -> None:
        self.acknowledged = self.acknowledged or isinstance(reply, RunReply)


@pytest.mark.timeout(200)
def test_no_cancel_is_lost_between_two_parts() -> None:
    handed_on = 0
    for seed in range(40):
        world = World(seed)
        run = RunKey("sim", "chapters-50")
        world.start_run("chapters", 50)
        canceller = _Canceller(
            world, run, steps=2 * (1 + seed % 3), local=True
        )  # the second of each part ends its code
        world.run()
        record = world.ledger.record(run)
        if not canceller.acknowledged:
            continue
        too_late = record.events[-1].run_completed.cancel_too_late
        assert record.outcome in _ENDED or too_late, f"seed {seed}: {record.outcome}"
        parts = [[event.WhichOneof("kind") for event in events] for events in (*record.before, record.events)]
        assert all(kinds.count("cancel_requested") <= 1 for kinds in parts)
        handed_on += sum("cancel_requested" in kinds for kinds in parts) - 1 if record.outcome == "run_cancelled" else 0
    assert handed_on > 4


@pytest.mark.timeout(200)
def test_what_was_done_before_a_cancel_is_undone_whenever_it_comes() -> None:
    """Also if it comes while it is undone because the code raised."""
    late = 0
    for seed in range(60):
        world = World(seed)
        run = RunKey("sim", "undoes-50")
        world.start_run("undoes", 50)
        _Canceller(world, run, steps=1 + seed % 4)
        world.run()
        record = world.ledger.record(run)
        cancelled = next((event.position for event in record.events if event.HasField("cancel_requested")), None)
        if cancelled is None or record.outcome == "run_terminated":
            continue
        done = {
            event.step_completed.command_id: event.position
            for event in record.events
            if event.HasField("step_completed")
        }
        for name in ("add", "local_add"):
            if done.get(f"0/{name}#1", cancelled) < cancelled:
                assert f"0.1/{name}#1" in done, f"seed {seed}: {name} is not undone"
        late += any(command.startswith("0.1/") and position < cancelled for command, position in done.items())
    assert late > 5
