"""Logs of a worker process: structured, to stderr.

A line that is written in a step names its run, step, attempt and trace; one that is written in workflow code names its run,
workflow and trace, and is not written again when the code is executed over its history.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from treadle.protocol.ids import trace_id
from treadle.worker.current import STEP_INFO, current_execution

__all__ = ("NotReplayed", "configure_logging", "of_step")

_NOISY: Final = ("aio_pika", "aiormq", "asyncio", "grpc")


def configure_logging(*, level: str = "info", human: bool | None = None) -> None:
    """Send structured logs to stderr: one JSON document a line, or coloured lines for people. `logging` goes there too.

    Args:
        level: "debug", "info", "warning" or "error".
        human: True: for people. Default: when stderr is a terminal.
    """
    human = sys.stderr.isatty() if human is None else human
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        of_step,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(NotReplayed())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))


def of_step(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor for structlog: a line that is written in a step names its run, step, attempt, trace and span; in workflow
    code its run, workflow and trace.

    Put it into the chain of an app that configures structlog by itself.
    """
    execution = current_execution()
    if execution is not None:
        run = execution.context
        line.setdefault("run", run.run_id)
        line.setdefault("workflow", run.workflow)
        line.setdefault("trace_id", trace_id(run.namespace, run.run_id, run.incarnation))
        return line
    info = STEP_INFO.get()
    if info is not None:
        _, trace, span, _ = info.traceparent.split("-") if info.traceparent.count("-") == 3 else ("", "", "", "")
        for key, value in (
            ("run", info.run_id),
            ("step", info.step),
            ("attempt", info.attempt),
            ("trace_id", trace),
            ("span_id", span),
        ):
            line.setdefault(key, value)
    return line


class NotReplayed(logging.Filter):
    """Drops what workflow code says again, because it is executed over its history: an owner before has said it.

    Put it on the handlers of an app that configures logging by itself. It drops no line that was not said; one is said twice
    where a worker died before it could confirm how far the code had come.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        execution = current_execution()
        return execution is None or execution.at > execution.marks.until
