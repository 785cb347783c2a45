"""Filters of lists and counts of runs, and how they go over the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from treadle.client.views import RunPage, RunStatus, RunTrouble, to_ms
from treadle.protocol.tags import tags_of
from treadle.v1.run_service_pb2 import ListRunsRequest

if TYPE_CHECKING:
    from treadle.client.aio import Client

__all__ = ("RunFilters", "filter_fields", "page_of")


class RunFilters(TypedDict, total=False):
    """Which runs are meant; what is left out does not matter.

    Attributes:
        workflow: Only this workflow; "name@version" for one version of it.
        status: Only these.
        since: Only runs started at or after; a timedelta counts back from now.
        until: Only runs started before.
        tags: Only runs with all of these.
        error: Only runs that failed with an error of this class ("ValueError"), or retry a step that did.
        trouble: Only open runs with one of these: "retrying", "waiting" (for a worker), "attention".
    """

    workflow: str | None
    status: RunStatus | str | Iterable[RunStatus | str]
    since: datetime | timedelta | None
    until: datetime | timedelta | None
    tags: Mapping[str, str | int] | None
    error: str | None
    trouble: RunTrouble | str | Iterable[RunTrouble | str]


def filter_fields(filters: RunFilters) -> dict[str, Any]:
    """Return the fields of ListRunsRequest and CountRunsRequest that say it. Times that count back from now are fixed here.

    Raises:
        FieldInvalid: There is no such status or trouble, or a tag is not allowed.
    """
    status, trouble = filters.get("status", ()), filters.get("trouble", ())
    statuses = (status,) if isinstance(status, RunStatus | str) else status
    troubles = (trouble,) if isinstance(trouble, RunTrouble | str) else trouble
    now = datetime.now(UTC)
    return {
        "workflow": filters.get("workflow") or "",
        "statuses": [RunStatus.of(one).to_wire() for one in statuses],
        "since_ms": to_ms(filters.get("since"), now=now),
        "until_ms": to_ms(filters.get("until"), now=now),
        "tags": tags_of(filters.get("tags") or {}),
        "error_type": filters.get("error") or "",
        "troubles": [RunTrouble.of(one).to_wire() for one in troubles],
    }


async def page_of(client: Client, fields: Mapping[str, Any], size: int, token: str) -> RunPage:
    """Return a page of the runs that these fields mean. Raises FieldInvalid: the token is not of this list."""
    request = ListRunsRequest(namespace=client.namespace, page_size=size, page_token=token, **fields)
    page = await client.call(client.stub.ListRuns, request)
    return RunPage(tuple(map(client.values.read, page.runs)), page.next_page_token)
