"""`treadle dev`: a control plane, its state and the workers of an app, in one process group."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treadle.cli.dev_workers import Workers

__all__ = ("dev",)


async def dev(
    app: str,
    /,
    *,
    port: int = 7430,
    data: Path = Path(".treadle"),
    slots: int | None = None,
    namespace: str = "default",
) -> int:
    """Run an app with nothing else installed, and show what its runs do. Ctrl-C ends it; nothing is lost.

    Parameters
    ----------
    app
        "path/to/app.py", "package.module" or "package.module:name".
    port
        Of the gRPC server on 127.0.0.1; 0 takes a free one.
    data
        Folder where runs are kept.
    slots
        Attempts of steps at the same time, for each pool.
    namespace
        Namespace of the workers and of what is shown.
    """
    from treadle.cli.dev_workers import Workers, pools_of
    from treadle.cli.output import note
    from treadle.cli.reload import watched_folder
    from treadle.cli.stopping import stop_on_signals
    from treadle.controlplane.embedded import embedded
    from treadle.controlplane.serve import settle_garbage
    from treadle.controlplane.telemetry import configure_logging

    configure_logging(level="warning", human=True)
    settle_garbage()
    await pools_of(app)  # an app that cannot be loaded is told before anything is started
    with stop_on_signals() as stop:
        async with embedded(data, port) as address:
            workers = Workers(app, lambda pool: _words(app, pool, address, namespace, slots), say=note)
            note(_banner(app, address, data))
            await _work(workers, address, namespace, watched_folder(app), stop)
            note("stopped; runs that are open go on with the next `treadle dev`")
    return 0


def _words(app: str, pool: str, address: str, namespace: str, slots: int | None) -> Sequence[str]:
    words = ["worker", app, "--pool", pool, "--server", address, "--namespace", namespace]
    words += ["--lane", "session", "--grace", "2s", "--log-level", "warning"]
    return words if slots is None else [*words, "--slots", str(slots)]


def _banner(app: str, address: str, data: Path) -> str:
    return (
        "treadle dev: loopback only, not for production\n"
        f"  gRPC     {address}\n"
        f"  state    embedded Valkey ({data}/) · broker in memory, jobs over the session\n"
        f"  app      {app} · one worker a pool · reload on\n"
        "  try      treadle run start WORKFLOW -i '{…}' --watch\n"
    )


async def _work(workers: Workers, address: str, namespace: str, folder: Path, stop: asyncio.Event) -> None:
    from treadle.cli.live import LiveRuns
    from treadle.cli.output import note
    from treadle.cli.reload import python_changes
    from treadle.client import Client

    async with Client(address, namespace=namespace) as client:
        showing = asyncio.create_task(LiveRuns(client, note).run())
        showing.add_done_callback(_tell_if_failed)
        try:
            await workers.run(python_changes(folder, stop), stop)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)


def _tell_if_failed(task: asyncio.Task[None]) -> None:
    from treadle.cli.output import note

    if not task.cancelled() and (error := task.exception()) is not None:
        note(f"✗ runs are no longer shown: {error}")
