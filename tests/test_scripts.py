"""The scripts behind `make` say in one line what is wrong on a machine that lacks something."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str, *arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with `path` as the only folder of programs."""
    command = ["/bin/sh", str(SCRIPTS / name), *arguments]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder with the few programs that the scripts need themselves."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "dirname", "cat", "id", "cksum"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_virtualenv_of_an_old_python_is_refused(programs: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    old = 'case "$*" in *version_info*) exit 1;; -V) echo Python 3.9.1;; esac'
    executable(venv / "bin" / "python", old)
    run = script("bootstrap", str(venv), "dev", path=programs)
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        f"treadle: {venv} holds Python 3.9.1; deactivate it, or activate one with Python 3.11+"
    ]


def test_machine_without_python_is_told_so(programs: Path, tmp_path: Path) -> None:
    run = script("bootstrap", str(tmp_path / "venv"), "dev", path=programs)
    assert run.returncode == 1
    assert run.stderr.startswith("treadle: no Python 3.11 or newer found")


def test_missing_ensurepip_is_named_with_its_package(programs: Path, tmp_path: Path) -> None:
    python = 'case "$*" in *"import ensurepip"*) exit 1;; *-venv*) echo python3.12-venv;; esac'
    executable(programs / "python3", python)
    run = script("bootstrap", str(tmp_path / "venv"), "dev", path=programs)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "apt-get install python3.12-venv" in line


def test_packages_are_not_installed_where_there_is_no_apt(programs: Path) -> None:
    assert script("apt-install", "redis-server", path=programs).returncode == 1


def test_no_server_is_needed_when_both_addresses_are_given(programs: Path) -> None:
    given = {"TREADLE_TEST_REDIS_URL": "redis://elsewhere/0", "TREADLE_TEST_AMQP_URL": "amqp://elsewhere/"}
    run = subprocess.run(
        ["/bin/sh", str(SCRIPTS / "install-servers")],
        env={"PATH": str(programs), **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
