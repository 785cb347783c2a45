"""`treadle run trace` as a process: the document has the ids of the run's trace."""

from __future__ import annotations

import asyncio

from tests.integration.api_host import api_host
from tests.integration.test_cli_commands import treadle
from treadle.protocol.ids import span_id, trace_id


def test_a_trace_is_printed_as_otlp_json() -> None:
    async def main() -> None:
        async with api_host() as host:
            await treadle(host, "run", "start", "imports", "--id", "r1", "--pool", "crm")
            await host.finish("r1", b'"secret"')
            printed = await treadle(host, "run", "trace", "r1", "-o", "otlp-json")
            assert printed.code == 0, printed.err
            (resource,) = printed.json["resourceSpans"]
            anchor, run = resource["scopeSpans"][0]["spans"]
            incarnation = host.head("r1").incarnation
            assert anchor["traceId"] == run["traceId"] == trace_id("default", "r1", incarnation)
            assert anchor["spanId"] == run["parentSpanId"] == span_id("default", "r1", incarnation, "anchor")
            assert (anchor["name"], run["name"]) == ("run imports", "execute imports")
            assert "secret" not in printed.out
            assert (await treadle(host, "run", "trace", "nope")).code == 3

    asyncio.run(main())
