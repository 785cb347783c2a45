"""Which starts are taken, when many come in one frame: the store is asked little, and remembers stay bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from treadle.controlplane.api import admission, checks
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Store
from treadle.protocol.errors import FieldInvalid, NotFound, Refused, Unavailable
from treadle.v1.common_pb2 import TraceContext


class Watched:
    """A store of which the questions are written down; while it is `away` none is answered."""

    def __init__(self, *, size: int = 0) -> None:
        self.store, self.size = MemoryStore(), size
        self.asked: list[str] = []
        self.away = False

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if self.away:
            raise Unavailable("the store is away")

    async def outbox_size(self) -> int:
        self._ask("outbox_size")
        return self.size

    async def registry(self, namespace: str) -> Mapping[str, str]:
        self._ask("registry")
        return await self.store.registry(namespace)

    async def versions(self, namespace: str) -> Mapping[str, int]:
        return await self.store.versions(namespace)

    async def register(self, namespace: str, pool: str, workflows: Sequence[str], steps: Sequence[str]) -> None:
        self._ask("register")
        await self.store.register(namespace, pool, workflows, steps)


def admitting(watched: Watched, outbox_max: int = 10) -> Admission:
    return Admission(cast(Store, watched), outbox_max)


def test_each_target_of_a_frame_gets_its_pool_or_its_own_refusal() -> None:
    async def main() -> None:
        watched = Watched()
        await watched.store.register("default", "crm", ("hello",), ())
        targets = [("hello", ""), ("hello", "other"), ("nobody", ""), ("hello", "No Pool"), ("", "crm")]
        found = await admitting(watched).targets_of("default", targets)
        assert (found["hello", ""], found["hello", "other"]) == (("hello", "crm"), ("hello", "other"))
        assert isinstance(found["nobody", ""], NotFound)
        assert isinstance(found["hello", "No Pool"], FieldInvalid)
        assert isinstance(found["", "crm"], FieldInvalid)
        assert watched.asked.count("outbox_size") == 1
        assert watched.asked.count("registry") == 2, "an unknown name is looked up once more, as it may be new"

    asyncio.run(main())


def test_a_store_that_is_away_is_asked_once_for_all_of_them() -> None:
    async def main() -> None:
        watched = Watched()
        watched.away = True
        found = await admitting(watched).targets_of("default", [(f"w{n}", "") for n in range(50)])
        assert len(found) == 50
        assert all(isinstance(pool, Unavailable) for pool in found.values())
        assert watched.asked == ["outbox_size"]

    asyncio.run(main())


def test_a_full_outbox_refuses() -> None:
    async def main() -> None:
        found = await admitting(Watched(size=10)).targets_of("default", [("hello", "crm")])
        refused = found["hello", "crm"]
        assert isinstance(refused, Refused)
        assert refused.reason == "OUTBOX_FULL"

    asyncio.run(main())


def test_pools_that_callers_name_are_remembered_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(admission, "_POOLS", 3)
        watched = Watched()
        admitted = admitting(watched)
        for pool in ("a", "a", "b", "c"):
            assert await admitted.target_of("default", "hello", pool) == ("hello", pool)
        assert watched.asked.count("register") == 3
        for pool in ("d", "d", "a"):
            await admitted.target_of("default", "hello", pool)
        assert watched.asked.count("register") == 5, "what was forgotten is noted again"

    asyncio.run(main())


PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("", ""), ("", "")),
        ((PARENT, "k=v"), (PARENT, "k=v")),
        ((PARENT, "k=" + "v" * 510), (PARENT, "k=" + "v" * 510)),
        ((PARENT, "k=" + "v" * 511), (PARENT, "")),
        ((PARENT + "-" * 1000, "k=v"), ("", "k=v")),
    ],
)
def test_a_callers_trace_context_goes_into_the_history_in_bounds(given: tuple[str, str], kept: tuple[str, str]) -> None:
    found = checks.caller_of(TraceContext(traceparent=given[0], tracestate=given[1]))
    assert (found.traceparent, found.tracestate) == kept
