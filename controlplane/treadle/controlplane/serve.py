"""The composition root of `treadle server`: settings in, exit code out.

Redis or RabbitMQ may come later than the server: each is named with its address and tried again until it answers. What
would lose acknowledged work is refused at once, with what to do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

import structlog
from opentelemetry.sdk.metrics import MeterProvider

from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.broker.port import Broker
from treadle.controlplane.broker.rabbitmq import RabbitBroker
from treadle.controlplane.config import ServerConfig, masked
from treadle.controlplane.one_core import stay_on_one_core
from treadle.controlplane.plane import ControlPlane
from treadle.controlplane.steady import steady
from treadle.controlplane.store.port import CheckResult, Store
from treadle.controlplane.store.redis import RedisStore
from treadle.controlplane.telemetry import Metrics, configure_logging, otlp_provider
from treadle.controlplane.tracing.exporter import SpanSink, exporter_of
from treadle.protocol.errors import ConfigError, Unavailable

__all__ = ("EXIT_FAILED", "EXIT_REFUSED", "Refusal", "judge_checks", "run_plane", "serve", "settle_garbage")

_log = structlog.stdlib.get_logger(__name__)

EXIT_FAILED = 1
"""The server ended by an error of its own; it is in the log."""
EXIT_REFUSED = 2
"""A setting, the port or the store is not fit; what to do was printed."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_GC_THRESHOLD = 20_000
_VOLATILE = ("persistence", "maxmemory-policy")


class Refusal(ConfigError):
    """The store is not fit to keep acknowledged work."""


async def serve(
    config: ServerConfig, *, ready: Callable[[str], None] | None = None, stop: asyncio.Event | None = None
) -> int:
    """Run a control plane until SIGTERM or SIGINT, or until `stop` is set; returns the exit code.

    Args:
        config: Settings.
        ready: Called once, with the address that is listened on.
        stop: Ends the server; when it is not given, signals do.
    """
    configure_logging(level=config.log_level, human=sys.stderr.isatty())
    metrics = Metrics()
    provider = otlp_provider(os.environ, config.replica_id, metrics)
    threads = None
    if stop is None:  # the process is this server's alone
        settle_garbage()  # behind the SDK's imports, too
        if config.one_core:
            threads = asyncio.create_task(steady("one core", stay_on_one_core), name="one core")
    ended = stop or asyncio.Event()
    try:
        with _signals(ended, wanted=stop is None):
            await run_plane(config, ended, ready or (lambda address: None), metrics, measure=provider is not None)
    except ConfigError as error:
        sys.stderr.write(f"treadle server: {error}\n")
        return EXIT_REFUSED
    except Exception:
        _log.exception("server_failed")
        return EXIT_FAILED
    finally:
        if threads is not None:
            threads.cancel()
        await _shut_down(provider)
    return 0


async def run_plane(
    config: ServerConfig,
    stop: asyncio.Event,
    ready: Callable[[str], None],
    metrics: Metrics | None = None,
    *,
    measure: bool = False,
) -> None:
    """Connect store and broker, serve until `stop` is set, close both. Configures nothing of the process.

    Traces of runs are exported if the `OTEL_*` variables name a receiver.

    Raises:
        ConfigError: A setting is wrong, the port is taken, or (Refusal) the store would lose acknowledged work.
    """
    spans = exporter_of(os.environ)
    try:
        await _run_plane(config, stop, ready, metrics, measure, spans)
    finally:
        if spans is not None:
            await spans.close()


def settle_garbage() -> None:
    """What was imported stays for ever: the collector need not look at it again and again; and commits leave no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])


async def _run_plane(
    config: ServerConfig,
    stop: asyncio.Event,
    ready: Callable[[str], None],
    metrics: Metrics | None,
    measure: bool,
    spans: SpanSink | None,
) -> None:
    store: Store = RedisStore(config.redis_url, cluster=config.redis_cluster)
    broker: Broker = RabbitBroker(config.amqp_url) if config.amqp_url else MemoryBroker()
    plane = ControlPlane(config, store, broker, metrics, measure=measure, spans=spans)
    if not await _until_there("Redis", masked(config.redis_url), store.start, stop):
        return
    try:
        found: list[CheckResult] = []

        async def check() -> None:
            found[:] = await store.check()

        if not await _until_there("Redis", masked(config.redis_url), check, stop):
            return
        judge_checks(found, allow_volatile=config.allow_volatile)
        name = masked(config.amqp_url) if config.amqp_url else "in memory"
        if not await _until_there("RabbitMQ", name, lambda: broker.start(plane.engine), stop):
            return
        try:
            await plane.run(stop, ready)
        finally:
            await broker.stop()
    finally:
        await store.stop()


def judge_checks(found: Sequence[CheckResult], *, allow_volatile: bool) -> None:
    """Log what was found; refuse what is not fit.

    Raises:
        Refusal: A fatal check failed that `allow_volatile` does not cover; all of them are named with their remedies.
    """
    fatal = []
    for check in found:
        if check.ok:
            continue
        allowed = allow_volatile and check.name in _VOLATILE
        _log.warning("check_failed", check=check.name, detail=check.detail, remedy=check.remedy)
        if check.fatal and not allowed:
            fatal.append(check)
    if fatal:
        lines = "\n".join(f"  {check.name}: {check.detail}. {check.remedy}" for check in fatal)
        way_out = ""
        if all(check.name in _VOLATILE for check in fatal):
            way_out = "\n  Or start with --allow-volatile if losing runs is acceptable."
        raise Refusal(f"this Redis is not fit to keep runs:\n{lines}{way_out}")


async def _until_there(what: str, address: str, connect: Callable[[], Awaitable[None]], stop: asyncio.Event) -> bool:
    """Call `connect` until it does not raise Unavailable; False when `stop` was set before."""
    jitter = Random()
    pause = _FIRST_PAUSE_S
    while not stop.is_set():
        try:
            await connect()
            return True
        except Unavailable as error:
            wait = round(pause * (0.5 + jitter.random() / 2), 2)
            _log.warning("dependency_down", what=what, address=address, error=str(error), next_try_s=wait)
        try:
            async with asyncio.timeout(wait):
                await stop.wait()
        except TimeoutError:
            pause = min(pause * 2, _LONGEST_PAUSE_S)
    return False


@contextmanager
def _signals(stop: asyncio.Event, *, wanted: bool) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `stop` while inside."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT) if wanted else ()
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _shut_down(provider: MeterProvider | None) -> None:
    if provider is not None:  # flushes over the network, so not on the loop
        await asyncio.to_thread(provider.shutdown, 5_000)
