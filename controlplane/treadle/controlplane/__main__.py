"""`python -m treadle.controlplane`: a control plane with the settings of the `TREADLE_*` variables."""

from __future__ import annotations

import asyncio
import os
import sys

from treadle.protocol.grpc_polling import poll_directly


def main() -> int:
    """Run the server; returns its exit code."""
    poll_directly()
    from treadle.controlplane.config import ServerConfig
    from treadle.controlplane.serve import EXIT_REFUSED, serve
    from treadle.protocol.errors import ConfigError

    try:
        config = ServerConfig.from_env(os.environ)
    except ConfigError as error:
        sys.stderr.write(f"treadle server: {error}\n")
        return EXIT_REFUSED
    return asyncio.run(serve(config, ready=_say))


def _say(address: str) -> None:
    sys.stderr.write(f"treadle server: listening on {address}\n")


if __name__ == "__main__":
    sys.exit(main())
