"""Which version of a workflow an event starts: the newest that lives, as a schedule does, and by its own trigger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.unit.machine_rig import Rig

from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.events.registration import set_triggers
from treadle.controlplane.events.triggers import Triggers
from treadle.controlplane.machine import Request, decide
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.event_requests import SetTriggers
from treadle.controlplane.machine.events import TRIGGERS
from treadle.controlplane.machine.requests import Reply
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import EventTrigger, NamedEvent
from treadle.v1.state_pb2 import RegisteredTrigger, RunHead, WorkerRecord
from treadle.v1.worker_service_pb2 import RegisterRequest, WorkflowSpec

RECORD = RunKey("ns", TRIGGERS)
MINUTE_MS = 60_000


class House(Rig):
    """A store, the registration of workers, and what is looked up when an event comes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_700_000_000_000
        self.triggers = Triggers(self.store, lambda: self.now)
        self.triggers.versions = Admission(self.store, 100, Fleet(self.store, keep_s=0.0))

    async def enroll(self, code: str, **trigger: Any) -> None:
        """A worker with this code comes, a minute after whatever was before; `trigger`: by which events it is started."""
        self.wait(MINUTE_MS)
        self.store.register_now("ns", "p", [code], [], self.now)
        specs = [WorkflowSpec(name=code, on=EventTrigger(**trigger))] if trigger else []
        await set_triggers(self, "ns", "p", RegisterRequest(workflows=[code], specs=specs))
        self.live(code)

    async def ask(self, run: RunKey, request: Request) -> Reply:  # type: ignore[override]  # of an engine
        loaded = self.store.load_now([want(run, [request])])[0]
        decision = decide(run, loaded, [request], self.env())
        if decision.change is not None:
            self.store.commit_now([decision.change])
        return decision.replies[0]

    def live(self, *codes: str) -> None:
        """These have a worker that beats; what had one before has none."""
        for worker in self.store.snapshot().workers:
            self.store.close_session_now(worker, "s", drained=True)
        for code in codes:
            record = WorkerRecord(worker_id=f"{code}/{self.now}", namespace="ns", pool="p", session_id="s")
            record.workflows.append(code)
            assert self.store.open_session_now(record)

    async def starts(self, name: str = "paid") -> list[tuple[str, str]]:
        """Return which code an event starts, and which parameter of it gets the event."""
        (found,) = await self.triggers.starts("ns", [NamedEvent(event_id="e", name=name)])
        return [(start.workflow, start.parameter) for start in found]

    async def in_force(self) -> list[str]:
        return [trigger.code for trigger in await self.triggers.in_force("ns")]


def test_an_older_version_that_registers_again_starts_nothing() -> None:
    async def main() -> None:
        house = House()
        await house.enroll("bill@1", names=["paid"], parameter="old")
        await house.enroll("bill@2", names=["paid"], parameter="new")
        house.live("bill@1", "bill@2")
        assert await house.starts() == [("bill@2", "new")]
        await house.enroll("bill@1", names=["paid"], parameter="old")  # its worker was restarted
        house.live("bill@1", "bill@2")
        assert await house.starts() == [("bill@2", "new")] and await house.in_force() == ["bill@2"]

    asyncio.run(main())


def test_an_older_version_without_a_trigger_takes_none_away() -> None:
    async def main() -> None:
        house = House()
        await house.enroll("bill@1")
        await house.enroll("bill@2", names=["paid"], parameter="new")
        await house.enroll("bill@1")  # its worker was restarted
        house.live("bill@1", "bill@2")
        assert await house.starts() == [("bill@2", "new")]

    asyncio.run(main())


def test_while_the_newest_has_no_live_worker_the_newest_that_has_one_is_started_as_it_says() -> None:
    async def main() -> None:
        house = House()
        await house.enroll("bill@1", names=["paid", "sold"], parameter="old")
        await house.enroll("bill@2", names=["paid"], parameter="new")
        house.wait(MINUTE_MS)
        house.live("bill@1")
        assert await house.starts() == [("bill@1", "old")] and await house.starts("sold") == [("bill@1", "old")]
        house.live("bill@1", "bill@2")
        assert await house.starts() == [("bill@2", "new")]
        assert await house.starts("sold") == [], "the newest is not started by that any more"
        house.wait(MINUTE_MS)
        house.live()
        assert await house.starts() == [("bill@2", "new")], "its runs wait for a worker"

    asyncio.run(main())


def test_a_newest_version_without_a_trigger_ends_those_of_the_others() -> None:
    async def main() -> None:
        house = House()
        await house.enroll("bill@1", names=["paid"])
        await house.enroll("bill@2")
        house.live("bill@1", "bill@2")
        assert await house.starts() == [] and await house.in_force() == []
        house.wait(MINUTE_MS)
        house.live("bill@1")
        assert await house.starts() == [("bill@1", "")]

    asyncio.run(main())


def test_code_without_a_version_counts_while_no_version_lives() -> None:
    async def main() -> None:
        house = House()
        await house.enroll("bill", names=["paid"])
        assert await house.starts() == [("bill", "")]
        await house.enroll("bill@1", names=["paid"])
        house.live("bill", "bill@1")
        assert await house.starts() == [("bill@1", "")]
        house.wait(MINUTE_MS)
        house.live("bill")
        assert await house.starts() == [("bill", "")]

    asyncio.run(main())


def test_a_version_that_drops_its_trigger_has_none() -> None:
    async def main() -> None:
        house = House()
        await house.enroll("bill@1", names=["paid"])
        await house.enroll("bill@1")
        assert await house.starts() == []

    asyncio.run(main())


def test_versions_are_remembered_in_bounds() -> None:
    async def main() -> None:
        house = House()

        def known() -> Sequence[str]:
            head = RunHead.FromString(house.store.load_now([want(RECORD, [SetTriggers([], [])])])[0].head)
            return [trigger.code for trigger in head.event_triggers.triggers]

        for number in range(25):
            code = f"bill@{number}"
            trigger = RegisteredTrigger(workflow="bill", pool="p", trigger=EventTrigger(names=["paid"]), code=code)
            await house.ask(RECORD, SetTriggers([code], [trigger]))
        assert known() == [f"bill@{number}" for number in range(5, 25)]
        for number in range(3):  # many workflows, with a version for each deploy: no worker is refused for that
            codes = [f"w{n}@{number}" for n in range(400)]
            many = [
                RegisteredTrigger(
                    workflow=code[: code.index("@")], pool="p", trigger=EventTrigger(names=["x"]), code=code
                )
                for code in codes
            ]
            assert await house.ask(RECORD, SetTriggers(codes, many)) is None
        assert len(known()) <= 1_000
        assert {"w0@1", "w0@2", "w399@2", "bill@24", "bill@23"} <= set(known()) and "w0@0" not in known()

    asyncio.run(main())
