"""`python -m treadle.worker APP --pool P`: one worker process of one pool."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from treadle.protocol.grpc_polling import poll_directly

__all__ = ("main",)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="treadle worker", description="Run a worker of one pool.")
    parser.add_argument("app", nargs="?", help="path/to/app.py, package.module or package.module:name")
    parser.add_argument("--pool", help="pool to serve (TREADLE_POOL, default 'default')")
    parser.add_argument("--server", help="host:port, or several with commas between (TREADLE_SERVER)")
    parser.add_argument("--namespace", help="tenant or environment (TREADLE_NAMESPACE)")
    parser.add_argument("--amqp-url", help="RabbitMQ (TREADLE_AMQP_URL)")
    parser.add_argument("--lane", choices=("auto", "amqp", "session"), help="how step jobs come (TREADLE_LANE)")
    parser.add_argument("--slots", type=int, help="steps at the same time (TREADLE_SLOTS)")
    parser.add_argument("--run-slots", type=int, help="open runs at the same time (TREADLE_RUN_SLOTS)")
    parser.add_argument("--grace", help="how long steps may run on after SIGTERM, like 25s (TREADLE_GRACE)")
    parser.add_argument("--tls-ca", help="PEM file with the authorities to trust (TREADLE_TLS_CA)")
    parser.add_argument("--tls-cert", help="PEM file with the worker's certificate (TREADLE_TLS_CERT)")
    parser.add_argument("--tls-key", help="PEM file with its key (TREADLE_TLS_KEY)")
    parser.add_argument("--insecure", action="store_true", default=None, help="plaintext to other machines too")
    parser.add_argument("--always-replay", action="store_true", default=None, help="replay at every event (for tests)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker until it has drained; returns the exit code of `run_worker`."""
    poll_directly()
    from treadle.protocol.errors import TreadleError
    from treadle.worker.config import WorkerConfig
    from treadle.worker.logs import configure_logging
    from treadle.worker.runtime import run_worker

    given = vars(_parser().parse_args(argv))
    try:
        config = WorkerConfig.from_env(os.environ, **given)
    except TreadleError as error:
        print(f"treadle worker: {error}", file=sys.stderr)  # noqa: T201 - before there is anything to log about
        return 2
    configure_logging(level=config.log_level)
    return run_worker(config)


if __name__ == "__main__":
    sys.exit(main())
