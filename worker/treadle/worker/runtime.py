"""Running a worker as a process: loading the app, signals, exit codes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from typing import Final

import structlog

from treadle.protocol.errors import ConfigError, RequestError, TreadleError
from treadle.worker.app import Registry, load_app
from treadle.worker.config import WorkerConfig
from treadle.worker.spans import set_up
from treadle.worker.worker import Worker, served

__all__ = ("Worker", "run_worker", "with_fixed_hashes")

GC_THRESHOLD: Final = 10_000
"""Objects that are made, and not freed, between two looks of the collector at the young ones."""

_log = structlog.stdlib.get_logger(__name__)


def with_fixed_hashes() -> None:
    """Start this very command again with PYTHONHASHSEED=0, unless the variable is set. The process id stays.

    Workflow code that goes through a set then asks for its steps in the same order in each replay, whoever replays it.
    """
    if "PYTHONHASHSEED" not in os.environ:
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _settle_garbage() -> None:
    """What was imported stays for ever: the collector need not look at it again and again; and steps leave few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


async def _run(config: WorkerConfig, registry: Registry) -> int:
    worker = Worker(config, registry)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.drain)
    try:
        return await task
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run_worker(config: WorkerConfig) -> int:
    """Load the app and work until SIGTERM or SIGINT; a second signal skips the grace. For the main thread of a process
    that does nothing else: it may start its command again (`with_fixed_hashes`).

    Returns:
        Exit code: 0 drained, 1 something went wrong, 2 the app or a setting is wrong, 4 a server refused the worker.
    """
    with_fixed_hashes()
    try:
        registry = load_app(config.app)
        served(registry, config.pool)
    except TreadleError as error:
        print(f"treadle worker: {error}", file=sys.stderr)  # noqa: T201 - before there is anything to log about
        return 2
    flush = set_up(os.environ, service=config.pool, worker_id=str(os.getpid()))
    _settle_garbage()
    try:
        return asyncio.run(_run(config, registry))
    except ConfigError as error:
        print(f"treadle worker: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except RequestError as error:
        _log.error("worker_refused", reason=error.reason, error=str(error), remedy=error.remedy)
        return 4
    except Exception:
        _log.exception("worker_failed")
        return 1
    finally:
        if flush is not None:
            flush()
