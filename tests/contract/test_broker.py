"""The contract of `Broker`: one suite, on the in-memory broker and on a real RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.contract.brokers import Ear, Taker, fresh_queue, job, jobs, until
from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.broker.port import Broker, Delivery
from treadle.controlplane.broker.rabbitmq import RabbitBroker
from treadle.protocol.errors import ConfigError, Unavailable
from treadle.protocol.topology import Queue

Scenario = Callable[[Broker, Ear], Awaitable[None]]
Run = Callable[[Scenario], None]


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario on a started broker, and stop it."""
    url = request.getfixturevalue("rabbit_url") if request.param == "rabbitmq" else ""

    async def on_a_broker(scenario: Scenario) -> None:
        broker: Broker = RabbitBroker(url, look_every=0.5) if url else MemoryBroker()
        ear = Ear()
        await broker.start(ear)
        try:
            await scenario(broker, ear)
        finally:
            await broker.stop()

    return lambda scenario: asyncio.run(on_a_broker(scenario))


async def ready(broker: Broker, queue: Queue, count: int) -> None:
    """Wait until so many messages wait in the queue (RabbitMQ counts behind what it does)."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 15
    while (seen := await broker.depth(queue)).ready != count:
        assert loop.time() < deadline, f"{seen}, expected {count} ready"


def test_every_dispatch_is_delivered_and_confirmed_once(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, taker = fresh_queue(), Taker(ack=True)
        ids = [f"d{n}" for n in range(50)]
        await broker.declare(queue)
        await broker.consume(queue, 10, taker)
        for start in range(0, 50, 7):
            broker.publish(jobs(queue, ids[start : start + 7]))
        await until(lambda: len(ear.confirmed_ids) >= 50)
        await taker.wait(50)
        assert taker.ids == ids
        assert sorted(ear.confirmed_ids) == sorted(ids)
        assert taker.deliveries[0].job == job(queue, "d0")
        assert taker.deliveries[0].body == job(queue, "d0").SerializeToString()
        await ready(broker, queue, 0)

    run(scenario)


def test_a_returned_job_is_not_confirmed_and_its_queue_is_declared(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, other, taker = fresh_queue(), fresh_queue(), Taker(ack=True)
        await broker.declare(other)
        await broker.consume(other, 5, taker)
        broker.publish([job(queue, "lost"), job(other, "kept")])
        await until(lambda: bool(ear.returned_ids) and bool(ear.confirmed_ids))
        assert ear.returned_ids == ["lost"]
        assert ear.confirmed_ids == ["kept"]
        await broker.consume(queue, 5, taker)

        def brought_again() -> bool:
            """Publish it again, as the outbox duty does, until it is confirmed."""
            broker.publish([job(queue, "lost")])
            return "lost" in ear.confirmed_ids

        await until(brought_again)
        await taker.wait(2)
        assert set(taker.ids) == {"kept", "lost"}

    run(scenario)


def test_what_is_given_back_comes_again_before_the_rest(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, taker = fresh_queue(), Taker()
        await broker.declare(queue)
        broker.publish(jobs(queue, ["a", "b", "c"]))
        await ready(broker, queue, 3)
        await broker.consume(queue, 1, taker)
        await taker.wait(1)
        taker.deliveries[0].give_back()
        await taker.wait(2)
        taker.deliveries[0].ack()  # has its verdict: changes nothing
        taker.deliveries[1].ack()
        await taker.wait(3)
        taker.deliveries[2].ack()
        await taker.wait(4)
        assert taker.ids == ["a", "a", "b", "c"]

    run(scenario)


def test_thirty_requeues_do_not_lose_a_job(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, seen, done = fresh_queue(), 0, asyncio.Event()

        def deliver(delivery: Delivery) -> None:
            nonlocal seen
            seen += 1
            if seen <= 30:
                delivery.give_back()
            else:
                delivery.ack()
                done.set()

        await broker.declare(queue)
        await broker.consume(queue, 1, deliver)
        broker.publish([job(queue, "poor")])
        async with asyncio.timeout(15):
            await done.wait()
        await until(lambda: ear.confirmed_ids == ["poor"])

    run(scenario)


def test_prefetch_bounds_what_is_out(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, taker = fresh_queue(), Taker()
        await broker.declare(queue)
        await broker.consume(queue, 2, taker)
        broker.publish(jobs(queue, ["a", "b", "c", "d", "e"]))
        await taker.wait(2)
        await ready(broker, queue, 3)
        assert taker.ids == ["a", "b"]
        taker.deliveries[1].ack()  # the second before the first
        await taker.wait(3)
        await ready(broker, queue, 2)
        assert taker.ids == ["a", "b", "c"]

    run(scenario)


def test_an_ack_never_covers_a_delivery_without_verdict(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, first, second = fresh_queue(), Taker(), Taker()
        await broker.declare(queue)
        consumer = await broker.consume(queue, 4, first)
        broker.publish(jobs(queue, ["a", "b", "c", "d"]))
        await first.wait(4)
        await consumer.cancel()
        for delivery in (first.deliveries[3], first.deliveries[0], first.deliveries[2]):
            delivery.ack()
        first.deliveries[1].give_back()
        await broker.consume(queue, 4, second)
        await second.wait(1)
        second.deliveries[0].ack()
        await ready(broker, queue, 0)
        assert second.ids == ["b"]

    run(scenario)


def test_two_consumers_share_a_queue(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, one, two = fresh_queue(), Taker(), Taker()
        await broker.declare(queue)
        await broker.consume(queue, 1, one)
        await broker.consume(queue, 1, two)
        broker.publish(jobs(queue, ["a", "b", "c"]))
        await one.wait(1)
        await two.wait(1)
        await ready(broker, queue, 1)
        assert sorted(one.ids + two.ids) == ["a", "b"]
        assert (await broker.depth(queue)).consumers == 2

    run(scenario)


def test_a_cancelled_consumer_takes_nothing_more_and_keeps_what_is_out(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, taker, other = fresh_queue(), Taker(), Taker(ack=True)
        await broker.declare(queue)
        consumer = await broker.consume(queue, 2, taker)
        broker.publish(jobs(queue, ["a", "b"]))
        await taker.wait(2)
        await consumer.cancel()
        await consumer.cancel()  # idempotent
        broker.publish([job(queue, "c")])
        await ready(broker, queue, 1)
        taker.deliveries[0].ack()
        taker.deliveries[1].give_back()
        await ready(broker, queue, 2)
        await broker.consume(queue, 5, other)
        await other.wait(2)
        assert sorted(other.ids) == ["b", "c"]
        assert taker.ids == ["a", "b"]
        await until(lambda: sorted(ear.confirmed_ids) == ["a", "b", "c"])

    run(scenario)


def test_an_async_taker_is_awaited(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, gate, done = fresh_queue(), asyncio.Event(), asyncio.Event()

        async def deliver(delivery: Delivery) -> None:
            await gate.wait()
            delivery.ack()
            done.set()

        await broker.declare(queue)
        await broker.consume(queue, 1, deliver)
        broker.publish([job(queue, "a")])
        gate.set()
        async with asyncio.timeout(15):
            await done.wait()
        await until(lambda: ear.confirmed_ids == ["a"])

    run(scenario)


def test_a_taker_that_raises_does_not_end_the_consumer(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue, seen = fresh_queue(), []

        def deliver(delivery: Delivery) -> None:
            assert delivery.job is not None
            seen.append(delivery.job.dispatch_id)
            if len(seen) == 1:
                raise ValueError("a bug in the taker")
            delivery.ack()

        await broker.declare(queue)
        await broker.consume(queue, 2, deliver)
        broker.publish(jobs(queue, ["a", "b", "c"]))
        await until(lambda: seen == ["a", "b", "c"])

    run(scenario)


def test_declare_is_idempotent_and_depth_names_a_missing_queue(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue = fresh_queue()
        with pytest.raises(Unavailable, match=queue.name):
            await broker.depth(queue)
        await broker.declare(queue)
        await broker.declare(queue)
        depth = await broker.depth(queue)
        assert (depth.ready, depth.consumers) == (0, 0)

    run(scenario)


def test_no_prefetch_is_refused(run: Run) -> None:
    async def scenario(broker: Broker, ear: Ear) -> None:
        queue = fresh_queue()
        await broker.declare(queue)
        with pytest.raises(ConfigError, match="prefetch 0"):
            await broker.consume(queue, 0, Taker())

    run(scenario)


def test_memory_confirms_at_the_ack_and_makes_no_copies() -> None:
    async def scenario() -> None:
        broker, ear, queue, taker = MemoryBroker(), Ear(), fresh_queue(), Taker()
        await broker.start(ear)
        await broker.declare(queue)
        broker.publish(jobs(queue, ["a", "b"]))
        broker.publish(jobs(queue, ["a"]))  # queued: a no-op
        await broker.consume(queue, 5, taker)
        broker.publish(jobs(queue, ["a"]))  # unacked: a no-op
        assert taker.ids == ["a", "b"]
        assert broker.has("a") and not broker.has("x")
        assert ear.confirmed_ids == []
        taker.deliveries[0].ack()
        assert ear.confirmed_ids == ["a"]
        assert not broker.has("a")
        broker.publish(jobs(queue, ["a"]))  # gone: a new message
        assert taker.ids == ["a", "b", "a"]
        await broker.stop()
        taker.deliveries[1].ack()  # inert
        assert ear.confirmed_ids == ["a"]
        assert not broker.has("b")

    asyncio.run(scenario())


def test_memory_redelivers_in_the_order_of_giving_back_and_takes_turns() -> None:
    async def scenario() -> None:
        broker, queue = MemoryBroker(), fresh_queue()
        one, two = Taker(), Taker()
        await broker.start(Ear())
        await broker.declare(queue)
        first = await broker.consume(queue, 2, one)
        second = await broker.consume(queue, 2, two)
        broker.publish(jobs(queue, ["a", "b", "c", "d", "e"]))
        assert (one.ids, two.ids) == (["a", "c"], ["b", "d"])
        await first.cancel()
        await second.cancel()
        for delivery in (two.deliveries[0], one.deliveries[0], two.deliveries[1], one.deliveries[1]):
            delivery.give_back()
        last = Taker()
        await broker.consume(queue, 9, last)
        assert last.ids == ["b", "a", "d", "c", "e"]
        await broker.stop()

    asyncio.run(scenario())


def test_memory_callbacks_never_nest() -> None:
    async def scenario() -> None:
        broker, queue, depth, deepest = MemoryBroker(), fresh_queue(), 0, 0

        def deliver(delivery: Delivery) -> None:
            nonlocal depth, deepest
            depth += 1
            deepest = max(deepest, depth)
            assert delivery.job is not None
            number = int(delivery.job.dispatch_id)
            delivery.ack()
            if number < 2000:
                broker.publish([job(queue, str(number + 1))])
            depth -= 1

        ear = Ear()
        await broker.start(ear)
        await broker.declare(queue)
        await broker.consume(queue, 1, deliver)
        broker.publish([job(queue, "0")])
        assert deepest == 1
        assert len(ear.confirmed_ids) == 2001
        await broker.stop()

    asyncio.run(scenario())
