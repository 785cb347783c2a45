"""What the `treadle` command says about itself, for tests of the files that call it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from treadle.controlplane.config import ServerConfig

__all__ = ("missing_flags", "server_variables", "treadle_help")


def treadle_help(*command: str) -> str:
    """Return what `treadle COMMAND... --help` prints, wide enough that no flag is wrapped."""
    run = subprocess.run(
        [sys.executable, "-m", "treadle.cli", *command, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


class _Recorder(dict[str, str]):
    """An empty environment that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return default


def server_variables() -> set[str]:
    """Return the names of the environment variables that a server reads."""
    environment = _Recorder()
    ServerConfig.from_env(environment)
    return environment.asked


def missing_flags(help_text: str, arguments: list[str]) -> list[str]:
    """Return the flags among the arguments that the help does not list."""
    flags = [argument.split("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)]
    return [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", help_text)]
