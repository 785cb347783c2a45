"""The values of attempts: arguments opened before user code, results stored before they are reported."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from treadle.client.blobs import home_of
from treadle.client.vault import Vault
from treadle.protocol.errors import BlobStoreUnavailable, CodecFailed, PayloadUnreadable
from treadle.protocol.sealing import FROM_STEP, TO_STEP, Place
from treadle.v1.common_pb2 import Failure, Payload
from treadle.worker.bodies import failed
from treadle.worker.core.port import Report
from treadle.worker.current import StepInfo

__all__ = ("StepValues",)

_log = structlog.stdlib.get_logger(__name__)


class StepValues:
    """Opens and seals for steps. The arguments of local steps never left this process: they are not sealed."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def open(self, payload: Payload, info: StepInfo, *, local: bool) -> Payload:
        """Return the arguments. Blocks.

        Raises:
            PayloadError: They cannot be opened here.
            BlobStoreUnavailable, CodecFailed: Another attempt may.
        """
        return payload if local else self._vault.open(payload, _place(info, TO_STEP))

    async def opened(self, payload: Payload, info: StepInfo, *, local: bool) -> Payload:
        """`open` on an event loop."""
        return payload if local else await self._vault.opened(payload, _place(info, TO_STEP))

    def seal(self, report: Report, info: StepInfo) -> Report:
        """Return the report as it may leave this process. Blocks. A result that cannot be sealed fails the attempt."""
        if report.result is None:
            return self.seal_error(report, info)
        try:
            sealed = self._vault.seal(report.result, _place(info, FROM_STEP), _homes(info))
        except (BlobStoreUnavailable, CodecFailed) as error:
            return self.seal_error(failed(error, info, report.duration_ms), info)
        return replace(report, sealed=sealed)

    async def sealed(self, report: Report, info: StepInfo) -> Report:
        """`seal` on an event loop."""
        if report.result is None:
            return self.seal_error(report, info)
        try:
            here = self._vault.seal_here(report.result, _place(info, FROM_STEP), _homes(info))
            if here is not None:
                return replace(report, sealed=here)
            return await self._vault.in_thread(lambda: self.seal(report, info))
        except (CodecFailed, asyncio.CancelledError) as error:
            return self.seal_error(failed(error, info, report.duration_ms), info)

    def seal_progress(self, data: bytes, info: StepInfo) -> Payload | None:
        """Return what is sent of what a step says of its progress; it is small, and stays in its message. None: it is not
        said, because the codec failed; the step has a later word.
        """
        try:
            return self._vault.seal(Payload(data=data), _place(info, FROM_STEP), [])
        except CodecFailed as error:
            _log.warning("progress_not_sealed", step=info.step, run=info.run_id, error=str(error))
            return None

    def open_progress(self, payload: Payload, info: StepInfo) -> Payload:
        """Return it as it was said; what cannot be opened is refused when the code asks for it."""
        try:
            return self._vault.open(payload, _place(info, FROM_STEP))
        except (PayloadUnreadable, CodecFailed):
            return payload

    def seal_error(self, report: Report, info: StepInfo) -> Report:
        """Return the report with its error sealed, if it has one; one that cannot be sealed must not leave: why, does."""
        if report.failure is None:
            return report
        try:
            sealed = self._vault.seal_failure(report.failure, _place(info, FROM_STEP))
        except CodecFailed as error:
            failure = report.failure
            sealed = Failure(kind=failure.kind, type=failure.type, final=failure.final, bases=failure.bases)
            sealed.message = f"(not told: {error})"
        return replace(report, failure=sealed)


def _place(info: StepInfo, direction: str) -> Place:
    return Place(info.namespace, info.run_id, direction, info.command_id)


def _homes(info: StepInfo) -> list[str]:
    return [home_of(info.namespace, info.run_id, info.incarnation)]
