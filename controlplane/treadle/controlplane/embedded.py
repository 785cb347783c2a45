"""A whole control plane inside another process: an embedded Valkey, the in-memory broker, gRPC on loopback.

What `treadle dev` and tests run on. The outbox in the store is the broker's disk, so a kill of the whole process group
loses nothing: runs go on at the next start on the same folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from treadle.controlplane.config import ServerConfig
from treadle.controlplane.serve import run_plane
from treadle.controlplane.store.embedded import EmbeddedRedis
from treadle.protocol.errors import Unavailable

__all__ = ("embedded",)


@asynccontextmanager
async def embedded(data_dir: Path, port: int = 7430, **settings: Any) -> AsyncIterator[str]:
    """Serve on 127.0.0.1 while inside; yields the address.

    Args:
        data_dir: Where runs are kept; made when missing; one process at a time.
        port: Of the gRPC server; 0 takes a free one.
        settings: Further fields of ServerConfig.

    Raises:
        ConfigError: The port is taken, or another process uses the folder.
        ExceptionGroup: On leaving: a duty of the control plane had failed.
    """
    redis = EmbeddedRedis(data_dir)
    url = await redis.start()
    try:
        given: dict[str, Any] = {
            "redis_url": url,
            "amqp_url": "",
            "listen": f"127.0.0.1:{port}",
            "shutdown_grace_s": 1.0,
            "blobs": (data_dir / "blobs").absolute().as_uri(),
        }
        config = ServerConfig(**(given | settings))
        stop = asyncio.Event()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving: asyncio.Future[None] = asyncio.create_task(
            run_plane(config, stop, address.set_result), name="control plane"
        )
        try:
            waited: list[asyncio.Future[Any]] = [serving, address]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not address.done():
                address.cancel()
                await serving  # raises why
                raise Unavailable("the embedded control plane ended before it served")
            yield address.result()
        finally:
            stop.set()
            await serving
    finally:
        await redis.stop()
