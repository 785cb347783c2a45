"""Traces of committed runs at a real OTLP receiver: what comes, in which order, and what a crash does to it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.integration.trace_world import ALL, CALLER, Killed, World, world
from tests.servers.redis_server import RedisServer, external_url
from treadle.controlplane.machine.requests import FireTimer
from treadle.controlplane.store.cursors import RIPE_MS
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Change, Store, Want
from treadle.controlplane.store.redis import RedisStore
from treadle.controlplane.tracing.exporter import exporter_of
from treadle.protocol.errors import ConfigError
from treadle.protocol.ids import RunKey, span_id, trace_id

Body = Callable[[World], Awaitable[None]]


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    given = external_url()
    if given is not None:
        yield given
        return
    with RedisServer() as server:
        yield server.url


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def play(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Runs a body in a world over each kind of store."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None

    def run(body: Body, *, duties: bool = False) -> None:
        async def main() -> None:
            store: Store = MemoryStore() if url is None else RedisStore(url, prefix=f"test-{secrets.token_hex(6)}")
            await store.start()
            try:
                async with world(store, duties=duties) as here:
                    await body(here)
            finally:
                await store.stop()

        asyncio.run(main())

    return run


Play = Callable[..., None]


def test_a_run_is_one_trace(play: Play) -> None:
    async def body(here: World) -> None:
        await here.start("order-1")
        owner = await here.open("order-1")
        grant = await here.step(owner, "charge")
        async with here.projector() as projector:
            await here.settle(projector)
            assert here.receiver.names() == ["run orders", "step charge"], "an open run has its root"
            await here.complete(owner)
            await here.settle(projector)
        anchor, step, run = here.receiver.spans
        assert run.name == "execute orders"
        inc = owner.incarnation
        assert {span.trace_id.hex() for span in here.receiver.spans} == {trace_id("default", "order-1", inc)}
        assert anchor.span_id.hex() == span_id("default", "order-1", inc, "anchor")
        assert f"00-{step.trace_id.hex()}-{step.span_id.hex()}-01" == grant.trace.traceparent
        assert (anchor.parent_span_id, step.parent_span_id, run.parent_span_id) == (
            b"",
            anchor.span_id,
            anchor.span_id,
        )
        (link,) = anchor.links
        assert f"00-{link.trace_id.hex()}-{link.span_id.hex()}-01" == CALLER
        assert b"secret" not in b"".join(request.SerializeToString() for request in here.receiver.requests)
        (resource,) = {str(r.resource) for request in here.receiver.requests for r in request.resource_spans}
        assert "treadle-history" in resource
        assert await here.store.unprojected(ALL, 10, RIPE_MS) == []

    play(body)


def test_a_crash_between_export_and_cursor_repeats_the_same_bytes(play: Play) -> None:
    async def body(here: World) -> None:
        await here.whole("order-1")
        async with here.projector(dies=True) as projector:
            with pytest.raises(Killed):
                await projector.turn(ALL, RIPE_MS)
        async with here.projector() as projector:
            await here.settle(projector)
        first, second = here.receiver.requests
        assert len(here.receiver.spans) == 6
        assert first.SerializeToString() == second.SerializeToString()

    play(body)


def test_a_replica_that_remembers_nothing_goes_on_at_the_cursor(play: Play) -> None:
    async def body(here: World) -> None:
        await here.start("order-1")
        owner = await here.open("order-1")
        for name in ("one", "two"):
            await here.step(owner, name)
            async with here.projector() as projector:
                await here.settle(projector)
        await here.complete(owner)
        async with here.projector() as projector:
            await here.settle(projector)
        assert here.receiver.names() == ["run orders", "step one", "step two", "execute orders"]

    play(body)


def test_a_commit_during_the_export_is_not_lost(play: Play) -> None:
    async def body(here: World) -> None:
        await here.start("order-1")
        here.receiver.hold.clear()
        async with here.projector() as projector:
            turn = asyncio.create_task(projector.turn(ALL, RIPE_MS))
            await here.receiver.until(lambda: len(here.receiver.requests) == 1)
            await here.terminate("order-1")
            here.receiver.hold.set()
            await turn
            assert len(await here.store.unprojected(ALL, 10, RIPE_MS)) == 1
            await here.settle(projector)
        assert here.receiver.names() == ["run orders", "execute orders"]

    play(body)


def test_a_receiver_that_was_down_gets_everything_in_order(play: Play) -> None:
    async def body(here: World) -> None:
        await here.receiver.stop()
        async with here.projector(timeout_s=0.3) as projector:
            working = asyncio.create_task(projector.run())
            await here.whole("order-1")
            await projector.turn(ALL, RIPE_MS)
            assert here.receiver.spans == []
            await here.whole("order-2")
            await here.receiver.start()
            await here.receiver.until(lambda: here.receiver.names().count("execute orders") == 2)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        for run_id in ("order-1", "order-2"):
            assert _names_of(here, run_id) == ["run orders", "step charge", "execute orders"]

    play(body, duties=True)


def test_the_duty_exports_by_itself(play: Play) -> None:
    async def body(here: World) -> None:
        async with here.projector() as projector:
            working = asyncio.create_task(projector.run())
            await asyncio.gather(*(here.whole(f"order-{n}") for n in range(20)))
            await here.receiver.until(lambda: len(here.receiver.spans) >= 60)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        spans = here.receiver.spans
        assert len({span.span_id for span in spans}) == len({span.SerializeToString() for span in spans}) == 60

    play(body, duties=True)


def test_a_run_whose_spans_are_refused_holds_up_no_other(play: Play) -> None:
    async def body(here: World) -> None:
        await here.start("poison")
        poisoned = trace_id("default", "poison", (await here.head("poison")).incarnation)

        def refuse(span: Span) -> bool:
            return span.trace_id.hex() == poisoned

        here.receiver.refuse = refuse
        for n in range(5):
            await here.start(f"order-{n}")
        async with here.projector() as projector:
            for _ in range(200):
                await projector.turn(ALL, RIPE_MS)
                if len({span.trace_id for span in here.receiver.spans}) == 5:
                    break
            assert [item.run.run_id for item in await here.store.unprojected(ALL, 10, RIPE_MS)] == ["poison"]
            here.receiver.refuse = None
            await here.settle(projector)
        assert _names_of(here, "poison") == ["run orders"]

    play(body)


def test_an_unsampled_run_exports_nothing(play: Play) -> None:
    async def body(here: World) -> None:
        await here.start("order-1", sampled=False)
        assert await here.store.unprojected(ALL, 10, RIPE_MS) == [], "its commits cost nothing"
        await here.start("order-2")
        async with here.projector() as projector:
            await here.settle(projector)
        assert len(here.receiver.spans) == 1

    play(body)


def test_an_id_that_is_used_again_keeps_the_trace_of_its_last_run(play: Play) -> None:
    async def body(here: World) -> None:
        await here.whole("order-1")
        await here.start("order-1")
        await here.terminate("order-1")
        await here.start("order-1")
        async with here.projector() as projector:
            await here.settle(projector)
        by_trace: dict[bytes, list[str]] = {}
        for span in here.receiver.spans:
            by_trace.setdefault(span.trace_id, []).append(span.name)
        assert sorted(by_trace.values()) == [
            ["run orders"],
            ["run orders", "execute orders"],
            ["run orders", "step charge", "execute orders"],
        ]

    play(body)


def test_each_part_of_a_run_that_continues_as_new_is_a_trace_linked_to_the_one_before(play: Play) -> None:
    async def body(here: World) -> None:
        await here.start("order-1")
        owner = await here.open("order-1")
        await here.step(owner, "charge")
        owner.continue_run.input.data = b'["secret"]'
        await here.say(owner)
        await here.ask("order-1", FireTimer(""))
        second = await here.open("order-1")
        await here.complete(second)
        async with here.projector() as projector:
            await here.settle(projector)
        by_trace: dict[str, list[Span]] = {}
        for span in here.receiver.spans:
            by_trace.setdefault(span.trace_id.hex(), []).append(span)
        first = by_trace[trace_id("default", "order-1", owner.incarnation)]
        assert sorted(span.name for span in first) == ["execute orders", "run orders", "step charge"]
        then = by_trace[trace_id("default", "order-1", second.incarnation)]
        assert sorted(span.name for span in then) == ["execute orders", "run orders"]
        (link,) = next(span for span in then if span.name == "run orders").links
        assert link.trace_id.hex() == trace_id("default", "order-1", owner.incarnation)
        assert link.span_id.hex() == span_id("default", "order-1", owner.incarnation, "anchor")

    play(body)


def test_a_run_that_is_deleted_before_its_export_keeps_its_trace(play: Play) -> None:
    async def body(here: World) -> None:
        await here.start("order-1")
        async with here.projector() as projector:
            await here.settle(projector)
            await here.terminate("order-1")
            run = RunKey("default", "order-1")
            (loaded,) = await here.store.load([Want(run)])
            gone = Change(run, loaded.revision, 5, b"", delete=True, tombstone=b"", tombstone_ms=1000)
            await here.store.commit([gone])
            await here.settle(projector)
        assert here.receiver.names() == ["run orders", "execute orders"], "the cursor was kept too"

    play(body)


def test_a_history_that_cannot_be_read_holds_up_no_other(play: Play) -> None:
    async def body(here: World) -> None:
        for run_id in ("order-1", "order-2"):
            await here.start(run_id)
        run = RunKey("default", "order-1")
        (loaded,) = await here.store.load([Want(run)])
        broken = Change(run, loaded.revision, 5, loaded.head, events=[b"\xff\xff"], traced=True)
        await here.store.commit([broken])
        async with here.projector() as projector:
            await here.settle(projector)
        assert (len(_names_of(here, "order-2")), _names_of(here, "order-1")) == (1, [])

    play(body)


def test_a_store_that_went_back_is_not_trusted_to_have_what_is_remembered() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with world(store) as here:
            await here.start("order-1")
            before = store.snapshot()
            async with here.projector() as projector:
                await here.terminate("order-1")
                store.restore(before)
                await here.settle(projector)
                owner = await here.open("order-1")
                await here.settle(projector)
                lost = store.snapshot()
                await here.step(owner, "charge")
                await projector.turn(ALL, RIPE_MS)
                store.restore(lost)
                await here.terminate("order-1")
                await here.settle(projector)
            assert here.receiver.names() == ["run orders", "step charge", "execute orders"]

    asyncio.run(main())


def test_there_is_an_exporter_only_where_one_is_wanted() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}
    assert exporter_of({}) is None
    assert exporter_of(endpoint | {"OTEL_SDK_DISABLED": "true"}) is None
    assert exporter_of(endpoint | {"OTEL_TRACES_EXPORTER": "none"}) is None
    with pytest.raises(ConfigError, match="set it to 'grpc'"):
        exporter_of(endpoint | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
    exporter = exporter_of(endpoint | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert exporter is not None
    asyncio.run(exporter.close())


def _names_of(here: World, run_id: str) -> list[str]:
    return [
        span.name
        for span in here.receiver.spans
        if any(kv.key == "treadle.run.id" and kv.value.string_value == run_id for kv in span.attributes)
    ]
