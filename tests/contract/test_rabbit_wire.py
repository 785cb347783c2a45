"""The hot path on a real RabbitMQ: TLS, back-pressure, returns, refusals, unconfirmed batches, heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aio_pika
import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from tests.contract.brokers import Ear, Taker, fresh_queue, job, jobs, until
from tests.servers.rabbit_server import RabbitServer, free_port
from treadle.controlplane.broker import link as server_link
from treadle.controlplane.broker.rabbitmq import RabbitBroker
from treadle.protocol.amqp_frames import ack_frame
from treadle.protocol.topology import EXCHANGE, Queue
from treadle.v1.job_pb2 import Job
from treadle.worker.amqp import Delivered, QueueConsumer
from treadle.worker.amqp_link import AmqpLink

pytestmark = pytest.mark.rabbitmq


@contextlib.asynccontextmanager
async def started(broker: RabbitBroker, ear: Ear) -> AsyncIterator[RabbitBroker]:
    await broker.start(ear)
    try:
        yield broker
    finally:
        await broker.stop()


@contextlib.asynccontextmanager
async def worker_of(url: str, queue: Queue, prefetch: int) -> AsyncIterator[tuple[QueueConsumer, list[Delivered]]]:
    """A worker's consumer, and what it was given."""
    link, taken = AmqpLink(url), list[Delivered]()
    consumer = QueueConsumer(link, queue.name, prefetch, taken.extend, lambda _: None)
    consumer.start()
    try:
        yield consumer, taken
    finally:
        await consumer.stop()
        await link.close()


async def ack_each(consumer: QueueConsumer, taken: list[Delivered], count: int) -> None:
    """Ack in the order of delivery, as they come, until there were `count`."""
    done = 0

    def all_came() -> bool:
        nonlocal done
        for tag, _, _ in taken[done:]:
            consumer.ack(tag)
        done = len(taken)
        return done >= count

    await until(all_came)


def large(queue: Queue, dispatch_id: str, size: int) -> Job:
    made = job(queue, dispatch_id)
    made.input.data = bytes(range(256)) * (size // 256)
    return made


def test_large_jobs_come_whole_to_a_worker(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        sent = [large(queue, f"d{n}", n * 100_000) for n in range(8)]  # up to 700 KB: six frames
        async with started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(queue)
            broker.publish(sent)
            async with worker_of(rabbit_url, queue, 3) as (consumer, taken):
                await ack_each(consumer, taken, len(sent))
                assert [found for _, found, _ in taken] == sent
            await until(lambda: len(ear.confirmed_ids) == len(sent))

    asyncio.run(scenario())


def test_returns_are_told_from_confirms_in_one_batch(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, missing, there, taker = Ear(), fresh_queue(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(there)
            await broker.consume(there, 10, taker)
            lost = [large(missing, f"lost{n}", 200_000) for n in range(5)]
            kept = jobs(there, [f"kept{n}" for n in range(5)])
            broker.publish([found for pair in zip(lost, kept, strict=True) for found in pair])
            await until(lambda: len(ear.returned_ids) >= 5 and len(ear.confirmed_ids) >= 5)
            assert sorted(ear.returned_ids) == [f"lost{n}" for n in range(5)]
            assert sorted(ear.confirmed_ids) == [f"kept{n}" for n in range(5)]
            await taker.wait(5)

    asyncio.run(scenario())


def test_a_job_that_cannot_be_encoded_does_not_shift_what_confirms_are_about(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, missing, there, taker = Ear(), fresh_queue(), fresh_queue(), Taker(ack=True)
        async with started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(there)
            await broker.consume(there, 10, taker)
            broker.publish([job(there, "a"), job(there, "x" * 256), job(missing, "lost"), job(there, "b")])
            await until(lambda: len(ear.returned_ids) >= 1 and len(ear.confirmed_ids) >= 2)
            assert ear.returned_ids == ["lost"]
            assert sorted(ear.confirmed_ids) == ["a", "b"]
            await taker.wait(2)

    asyncio.run(scenario())


def test_a_broker_that_does_not_read_is_not_written_to(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        sent = [large(queue, f"d{n}", 256_000) for n in range(120)]  # 30 MB
        async with started(RabbitBroker(rabbit.url), ear) as broker:
            await broker.declare(queue)
            broker.publish([job(queue, "first")])
            await until(lambda: ear.confirmed_ids == ["first"])
            between = broker._publishing.filter_of(await broker._publishing.wait())
            rabbit.pause()
            try:
                broker.publish(sent)
                await until(lambda: between.paused)
                transport = between._transport
                assert transport is not None and transport.get_write_buffer_size() < 2 << 20
                assert not between.writable
            finally:
                rabbit.resume()
            await until(lambda: len(ear.confirmed_ids) == 121, seconds=30)
            assert sorted(ear.confirmed_ids) == sorted(["first", *(made.dispatch_id for made in sent)])

    asyncio.run(scenario())


@pytest.mark.kill
def test_a_batch_that_was_unconfirmed_when_the_broker_died_is_published_again(rabbit: RabbitServer) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        ids = [f"d{n}" for n in range(1500)]  # more than the window
        async with started(RabbitBroker(rabbit.url), ear) as broker:
            await broker.declare(queue)
            broker.publish([job(queue, "first")])
            await until(lambda: ear.confirmed_ids == ["first"])
            rabbit.wait_until_registered()
            rabbit.pause()
            broker.publish(jobs(queue, ids))
            await until(lambda: broker._publisher._unconfirmed.count == 1000)
            await asyncio.to_thread(rabbit.restart)
            await until(lambda: len(ear.confirmed_ids) == 1501, seconds=40)
            assert set(ear.confirmed_ids) == {"first", *ids}
            await broker.consume(queue, 200, taker)
            await until(lambda: set(taker.ids) == {"first", *ids})
            assert ear.returned_ids == []

    asyncio.run(scenario())


def test_a_publisher_whose_exchange_is_gone_declares_it_again(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue, taker = Ear(), fresh_queue(), Taker(ack=True)
        connection = await aio_pika.connect(rabbit_url)
        async with connection, started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(queue)
            channel = await connection.channel()
            await channel.exchange_delete(EXCHANGE)
            broker.publish(jobs(queue, ["a", "b"]))  # 404: the broker closes the channel
            await until(lambda: sorted(ear.returned_ids) == ["a", "b"])  # the new exchange has no bindings yet
            await broker.declare(queue)
            broker.publish(jobs(queue, ["a", "b"]))
            await until(lambda: sorted(ear.confirmed_ids) == ["a", "b"])
            await broker.consume(queue, 5, taker)
            await taker.wait(2)

    asyncio.run(scenario())


def test_a_job_that_the_broker_refuses_is_not_confirmed_and_may_be_published_again(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        connection = await aio_pika.connect(rabbit_url)
        async with connection, started(RabbitBroker(rabbit_url), ear) as broker:
            channel = await connection.channel()
            full = await channel.declare_queue(
                queue.name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}, exclusive=True
            )
            await full.bind(EXCHANGE, queue.name)
            broker.publish(jobs(queue, ["a"]))
            await until(lambda: ear.confirmed_ids == ["a"])
            broker.publish(jobs(queue, ["b", "c"]))  # nack
            await until(lambda: not broker._publisher._known)
            assert ear.confirmed_ids == ["a"] and ear.returned_ids == []
            await full.purge()
            broker.publish(jobs(queue, ["b"]))
            await until(lambda: ear.confirmed_ids == ["a", "b"])

    asyncio.run(scenario())


def test_a_worker_whose_channel_the_broker_closes_comes_back(rabbit_url: str) -> None:
    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        async with started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(queue)
            broker.publish(jobs(queue, ["a"]))
            async with worker_of(rabbit_url, queue, 5) as (consumer, taken):
                await until(lambda: len(taken) == 1)
                deliveries = consumer._deliveries
                assert deliveries is not None
                deliveries._between.write(ack_frame(deliveries._channel.number, 77))  # 406: no such delivery
                await until(lambda: len(taken) == 2)
                assert not consumer.ack(taken[0][0])
                assert consumer.ack(taken[1][0])
                broker.publish(jobs(queue, ["b"]))
                await until(lambda: len(taken) == 3)

    asyncio.run(scenario())


def test_a_connection_that_carries_only_hot_traffic_is_not_taken_for_dead(
    rabbit_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that sends something all the time sends no heartbeats; the library gives up after three of them."""
    monkeypatch.setattr(server_link, "HEARTBEAT", 1)  # given up after 6 s

    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        async with started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(queue)
            first = await broker._publishing.wait()
            loop = asyncio.get_running_loop()
            end = loop.time() + 9
            while loop.time() < end:
                broker.publish([job(queue, f"d{len(ear.confirmed_ids)}")])
                await asyncio.sleep(0.02)  # the rate of the load, no synchronisation
            assert len(ear.confirmed_ids) > 100
            assert await broker._publishing.wait() is first

    asyncio.run(scenario())


def test_a_verdict_that_was_said_before_the_stop_is_written(rabbit_url: str) -> None:
    async def scenario() -> None:
        queue, taker, other = fresh_queue(), Taker(), Taker()
        async with started(RabbitBroker(rabbit_url), Ear()) as broker:
            await broker.declare(queue)
            await broker.consume(queue, 10, taker)
            broker.publish(jobs(queue, ["a", "b", "c"]))
            await taker.wait(3)
            taker.deliveries[0].ack()
            taker.deliveries[2].ack()
        async with started(RabbitBroker(rabbit_url), Ear()) as broker:
            await broker.consume(queue, 10, other)
            broker.publish(jobs(queue, ["d"]))
            await other.wait(2)
            assert sorted(other.ids) == ["b", "d"]

    asyncio.run(scenario())


# --- TLS ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[str]:
    """The address of a node with a certificate of its own."""
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    server = RabbitServer(
        f"listeners.ssl.1 = 127.0.0.1:{port}\n"
        f"ssl_options.cacertfile = {certificate}\n"
        f"ssl_options.certfile = {certificate}\n"
        f"ssl_options.keyfile = {key}\n"
    )
    try:
        server.start()
        yield f"amqps://guest:guest@localhost:{port}/?cafile={certificate}"
    finally:
        server.stop()


def test_jobs_travel_over_tls(encrypted: str) -> None:
    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        sent = [large(queue, f"d{n}", 300_000) for n in range(20)] + jobs(queue, [f"s{n}" for n in range(300)])
        async with started(RabbitBroker(encrypted), ear) as broker:
            await broker.declare(queue)
            broker.publish(sent)
            async with worker_of(encrypted, queue, 50) as (consumer, taken):
                await ack_each(consumer, taken, len(sent))
                assert [found for _, found, _ in taken] == sent
                await until(lambda: len(ear.confirmed_ids) == len(sent))
                consumer._link.hang_up()  # ends it for both sides at once; it comes back
                broker.publish(jobs(queue, ["after"]))
                await until(lambda: taken[-1][1] == job(queue, "after"))

    asyncio.run(scenario())


def test_a_precondition_is_still_the_library_s_to_raise(rabbit_url: str) -> None:
    """What is not about messages goes through the filter untouched, on a hot channel too."""

    async def scenario() -> None:
        ear, queue = Ear(), fresh_queue()
        async with started(RabbitBroker(rabbit_url), ear) as broker:
            await broker.declare(queue)
            connection = await broker._publishing.wait()
            channel = await connection.channel(publisher_confirms=False)
            with pytest.raises(ChannelPreconditionFailed):
                await channel.queue_declare(queue.name, durable=False, timeout=10)
            assert connection.is_opened

    asyncio.run(scenario())
