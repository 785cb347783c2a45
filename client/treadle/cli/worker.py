"""`treadle worker`: one worker process of one pool."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

__all__ = ("worker",)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of `treadle worker`; each has a variable TREADLE_….

    Parameters
    ----------
    pool
        Pool it serves. (default: default)
    server
        "host:port" of the control plane, or several with commas between them.
    namespace
        Tenant or environment.
    amqp_url
        amqp:// or amqps:// of RabbitMQ; without it, what the server tells.
    lane
        Where step jobs come from: RabbitMQ, the session, or what fits.
    token
        Access token.
    tls
        Encrypt, trusting the usual certificate authorities.
    tls_ca
        Encrypt, trusting the certificates in this PEM file.
    tls_cert
        The worker's own certificate (PEM file).
    tls_key
        Its private key (PEM file).
    insecure
        Allow plaintext to another machine.
    slots
        Attempts of steps at the same time (200, or 50 where a step needs a process).
    run_slots
        Open runs at the same time.
    grace
        How long steps may run on after SIGTERM ("25s").
    keys_file
        Encrypt and decrypt values with the keys in this file.
    codec
        "package.module:name" of a codec of your own.
    blobs
        Where large values are kept, if not where the server says.
    log_level
        debug, info, warning or error.
    """

    pool: str | None = None
    server: str | None = None
    namespace: str | None = None
    amqp_url: Annotated[str | None, Parameter(name="--amqp")] = None
    lane: Literal["auto", "amqp", "session"] | None = None
    token: str | None = None
    tls: Annotated[bool | None, Parameter(negative="")] = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure: Annotated[bool | None, Parameter(negative="")] = None
    slots: int | None = None
    run_slots: int | None = None
    grace: str | None = None
    keys_file: str | None = None
    codec: str | None = None
    blobs: str | None = None
    log_level: str | None = None


def worker(
    app: str,
    /,
    *,
    options: WorkerOptions | None = None,
    reload: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run one worker until SIGTERM, which drains it. Each option has a variable TREADLE_….

    Parameters
    ----------
    app
        "path/to/app.py", "package.module" or "package.module:name".
    reload
        Start again when a Python file in the app's folder changes.
    """
    from treadle.cli.reload import tie_to_parent
    from treadle.worker.config import WorkerConfig

    tie_to_parent()
    config = WorkerConfig.from_env(os.environ, app=app, **asdict(options or WorkerOptions()))
    if reload:
        return asyncio.run(_reloading(config.app, config.pool))
    from treadle.worker.logs import configure_logging
    from treadle.worker.runtime import run_worker

    configure_logging(level=config.log_level)
    return run_worker(config)


async def _reloading(app: str, pool: str) -> int:
    """Run the same command again without --reload, in a child process that follows the code."""
    import sys

    from treadle.cli.dev_workers import Workers
    from treadle.cli.output import note
    from treadle.cli.reload import python_changes, watched_folder
    from treadle.cli.stopping import stop_on_signals

    words = [word for word in sys.argv[1:] if word != "--reload"]
    workers = Workers(app, lambda _: words, say=note, only=pool)
    with stop_on_signals() as stop:
        await workers.run(python_changes(watched_folder(app), stop), stop)
    return 0
