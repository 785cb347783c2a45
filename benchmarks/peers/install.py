"""Install the peers into virtualenvs under PEERS_HOME; what is there already stays.

    python -m benchmarks.peers.install [restate,celery,...]

PostgreSQL 15 for DBOS comes from the system: `apt-get install postgresql-15`. Restate's server needs npm.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import PEERS, Peer, home

__all__ = ("install", "main")


def install(peer: Peer) -> None:
    """Make the virtualenv and install the pinned packages."""
    folder = home() / f"venv-{peer.name}"
    if not (folder / "bin" / "python").exists():
        _run([sys.executable, "-m", "venv", str(folder)], home())
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.packages], home())
    if peer.node:
        npm = home() / "npm"
        npm.mkdir(exist_ok=True)
        if not (npm / "package.json").exists():
            _run(["npm", "init", "-y"], npm)
        _run(["npm", "install", *peer.node], npm)
    print(f"{peer.name}: installed in {folder}")


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str]) -> None:
    """Install the peers that are named, or all of them."""
    home().mkdir(parents=True, exist_ok=True)
    for name in argv[0].split(",") if argv else PEERS:
        if name not in PEERS:
            sys.exit(f"{name}: use {', '.join(PEERS)}")
        install(PEERS[name])


if __name__ == "__main__":
    main(sys.argv[1:])
