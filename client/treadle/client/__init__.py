"""Start, watch and steer runs.

    async with Client("localhost:7430") as client:
        run = await client.start(import_contacts, upload, id="upload-42")
        print(await run.result(timeout="5m"))

The errors that calls raise are drawn in `treadle.protocol.errors`.
"""

from treadle.client.aio import Client
from treadle.client.calls import OnConflict, Tags, WorkflowLike
from treadle.client.config import Tls
from treadle.client.events import NewEvent, SentEvent
from treadle.client.runs import RunHandle
from treadle.client.schedules import OccurrenceInfo, ScheduleInfo, Schedules, ScheduleStatus
from treadle.client.search import RunFilters
from treadle.client.sync import SyncClient, SyncRunHandle
from treadle.client.sync_schedules import SyncSchedules
from treadle.client.views import RunCount, RunInfo, RunPage, RunStatus, RunTrouble, StepProgress
from treadle.protocol.errors import (
    BlobMissing,
    BlobStoreUnavailable,
    CodecFailed,
    ConfigError,
    FieldInvalid,
    NotFound,
    PayloadError,
    PayloadTooLarge,
    PayloadUnreadable,
    QuestionRefused,
    Refused,
    RequestError,
    ResultTimeout,
    RunCancelled,
    RunClosed,
    RunError,
    RunFailed,
    RunIdConflict,
    RunTerminated,
    RunTimedOut,
    StepSettled,
    TreadleError,
    Unavailable,
    WrongState,
)

__all__ = (
    "Client",
    "SyncClient",
    "RunHandle",
    "SyncRunHandle",
    "RunInfo",
    "RunPage",
    "RunCount",
    "RunFilters",
    "RunStatus",
    "StepProgress",
    "Schedules",
    "SyncSchedules",
    "ScheduleInfo",
    "ScheduleStatus",
    "OccurrenceInfo",
    "RunTrouble",
    "NewEvent",
    "SentEvent",
    "OnConflict",
    "Tags",
    "Tls",
    "WorkflowLike",
    "BlobMissing",
    "BlobStoreUnavailable",
    "CodecFailed",
    "ConfigError",
    "FieldInvalid",
    "NotFound",
    "PayloadError",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "QuestionRefused",
    "Refused",
    "RequestError",
    "ResultTimeout",
    "RunCancelled",
    "RunClosed",
    "RunError",
    "RunFailed",
    "RunIdConflict",
    "RunTerminated",
    "RunTimedOut",
    "StepSettled",
    "TreadleError",
    "Unavailable",
    "WrongState",
)
