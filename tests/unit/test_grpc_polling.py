"""How gRPC polls is chosen before gRPC is loaded, and never against the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from treadle.protocol.grpc_polling import poll_directly

VARIABLE = "GRPC_EXPERIMENTS"


def test_the_users_own_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    poll_directly()
    ours = os.environ[VARIABLE]
    assert {name[0] for name in ours.split(",")} == {"-"}, "experiments are only switched off"
    monkeypatch.setenv(VARIABLE, "event_engine_client")
    poll_directly()
    assert os.environ[VARIABLE] == "event_engine_client"


@pytest.mark.parametrize(
    "program", ["treadle.controlplane.__main__", "treadle.worker.__main__", "treadle.cli.__main__"]
)
def test_each_program_chooses_before_grpc_is_loaded(program: str) -> None:
    """gRPC reads the choice when it is imported; later it would change nothing, and nobody would notice."""
    code = (
        "import os, sys\n"
        f"import {program} as program\n"
        "class Chosen(BaseException): pass\n"
        "def chosen(): raise Chosen\n"
        "program.poll_directly = chosen\n"
        "sys.argv = ['treadle', 'app.py']\n"
        "try:\n    program.main()\nexcept Chosen:\n    print(*(name for name in sys.modules if name.startswith('grpc')))\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert run.stdout == "\n", run.stdout + run.stderr
