"""StepService: steps that are finished from outside. Tokens are secrets: they stand in no log, no error and no history."""

from __future__ import annotations

from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.errors import Context
from treadle.controlplane.api.starts import Engine, run_reply
from treadle.controlplane.machine.requests import SettleStep
from treadle.protocol.deferral import read_token
from treadle.v1 import step_service_pb2 as pb
from treadle.v1.common_pb2 import FAILURE_KIND_APPLICATION, Failure
from treadle.v1.step_service_pb2_grpc import StepServiceServicer

__all__ = ("StepService",)

_TYPE_CHARS: Final = 200
_MESSAGE_CHARS: Final = 8_000
_BASES: Final = 32
_SEALED_BYTES: Final = 512 << 10


class StepService(StepServiceServicer):
    """See the module.

    Args:
        engine: Decides and commits.
        max_payload_bytes: Largest result.
    """

    def __init__(self, engine: Engine, *, max_payload_bytes: int) -> None:
        self._engine, self._max_payload_bytes = engine, max_payload_bytes

    async def CompleteStep(self, request: pb.CompleteStepRequest, context: Context) -> pb.CompleteStepResponse:
        """See step_service.proto."""
        checks.check_payload("result", request.result, self._max_payload_bytes)
        asked = self._asked(request)
        asked.result = request.result
        await self._settle(request, asked)
        return pb.CompleteStepResponse(run_id=asked.token.run_id, command_id=asked.token.command_id)

    async def FailStep(self, request: pb.FailStepRequest, context: Context) -> pb.FailStepResponse:
        """See step_service.proto."""
        told = request.failure
        checks.check_payload("failure", told.sealed, _SEALED_BYTES)
        asked = self._asked(request)
        asked.failure = Failure(
            kind=FAILURE_KIND_APPLICATION,
            type=told.type[:_TYPE_CHARS] or "StepError",
            message=told.message[:_MESSAGE_CHARS],
            final=told.final,
            bases=[name[:_TYPE_CHARS] for name in told.bases[:_BASES]],
            sealed=told.sealed if told.HasField("sealed") else None,
        )
        await self._settle(request, asked)
        return pb.FailStepResponse(run_id=asked.token.run_id, command_id=asked.token.command_id)

    @staticmethod
    def _asked(request: pb.CompleteStepRequest | pb.FailStepRequest) -> SettleStep:
        return SettleStep(read_token(request.token), checks.request_id_of(request.request_id))

    async def _settle(self, request: pb.CompleteStepRequest | pb.FailStepRequest, asked: SettleStep) -> None:
        run = checks.run_of(request.namespace, asked.token.run_id)
        run_reply(asked, await self._engine.ask(run, asked))
