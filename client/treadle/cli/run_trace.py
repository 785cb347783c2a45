"""`treadle run trace`: the trace of one run as a file."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from treadle.cli.options import Connection

__all__ = ("trace",)


async def trace(
    run: str,
    /,
    *,
    output: Annotated[Literal["otlp-json"], Parameter(name=["--output", "-o"])] = "otlp-json",
    connection: Connection | None = None,
) -> int:
    """Print the spans of a run that its history tells of; Jaeger's UI opens the file. Sampling does not matter.

    Parameters
    ----------
    run
        Id of the run.
    output
        otlp-json: one OTLP JSON document. Ids are those of the exported trace.
    """
    from treadle.cli.plain import dumps
    from treadle.client.whole_history import present_history
    from treadle.controlplane.tracing.otlp_json import otlp_json
    from treadle.controlplane.tracing.span_data import HeadFacts
    from treadle.controlplane.tracing.spans import project
    from treadle.controlplane.tracing.state import ProjectionState

    connection = connection or Connection()
    async with connection.client() as client:
        info, events = await present_history(client.run(run))
    spans, _ = project(HeadFacts(connection.namespace, run, info.incarnation), events, ProjectionState())
    print(dumps(otlp_json(spans)))
    return 0
