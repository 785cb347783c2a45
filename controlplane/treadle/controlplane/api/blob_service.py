"""BlobService: where clients and workers keep large values. No value passes through here."""

from __future__ import annotations

from treadle.controlplane.api import checks
from treadle.controlplane.api.errors import Context
from treadle.controlplane.config import ServerConfig
from treadle.v1 import blob_service_pb2 as pb
from treadle.v1.blob_service_pb2_grpc import BlobServiceServicer

__all__ = ("BlobService", "told")


def told(config: ServerConfig) -> pb.BlobStore:
    """Return what clients and workers are told."""
    return pb.BlobStore(url=config.blobs, above_bytes=config.blob_above_bytes, max_bytes=config.max_blob_bytes)


class BlobService(BlobServiceServicer):
    """See the module."""

    def __init__(self, config: ServerConfig) -> None:
        self._answer = pb.GetBlobStoreResponse(blobs=told(config), max_payload_bytes=config.max_payload_bytes)

    async def GetBlobStore(self, request: pb.GetBlobStoreRequest, context: Context) -> pb.GetBlobStoreResponse:
        """See blob_service.proto."""
        checks.namespace_of(request.namespace)
        return self._answer
