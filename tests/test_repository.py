"""The files around the code: verbs, pins, sizes, addresses and links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import server_variables

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
LONGEST_FILE = 500
PROMISED_VERBS = {
    "help", "demo", "demo-services", "test", "check", "lint", "types", "unit", "simulate", "proto", "verify",
    "constraints", "clean",
}  # fmt: skip


def repository_files() -> Iterator[Path]:
    """Yield the files of the checkout: no caches, no virtualenvs, no state of programs."""
    for folder, subfolders, names in os.walk(ROOT):
        here = Path(folder)
        hidden = {s for s in subfolders if s.startswith(".") and s != ".ci"}
        environments = {s for s in subfolders if (here / s / "pyvenv.cfg").exists()}
        subfolders[:] = sorted(set(subfolders) - hidden - environments - {"__pycache__", "dist", "build"})
        yield from (here / name for name in names)


def texts(*suffixes: str) -> Iterator[tuple[str, str]]:
    """Yield (path from the root, text) of the text files with one of these suffixes; of all for none."""
    for path in repository_files():
        if suffixes and path.suffix not in suffixes:
            continue
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))


def test_help_lists_each_verb() -> None:
    run = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", run.stdout, re.M))
    assert listed == targets()
    assert listed >= PROMISED_VERBS


def test_verbs_are_phony() -> None:
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.M)
    assert phony is not None
    assert set(phony[1].replace("\\\n", " ").split()) == targets()


def test_verbs_name_files_that_exist() -> None:
    files = re.findall(r"(?:scripts|examples|tests)/[\w./-]+", MAKEFILE)
    modules = re.findall(r"-m (tests\.[\w.]+)", MAKEFILE)
    assert [file for file in files if not (ROOT / file).exists()] == []
    mains = [ROOT / module.replace(".", "/") / "__main__.py" for module in modules]
    assert [main for main in mains if not main.exists()] == []


@pytest.mark.parametrize("code", [0, 2])
def test_continuous_integration_ends_with_the_summary_of_pytest(tmp_path: Path, code: int) -> None:
    """With a stand-in for make: the verb that is called, the last line, and the exit status."""
    summary = "===== 3 passed, 1 failed in 61.20s (0:01:01) ====="
    make = tmp_path / "make"
    make.write_text(f"#!/bin/sh\necho \"verb: $*\"\necho '{summary}'\necho later\nexit {code}\n")
    make.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([str(ROOT / ".ci" / "run")], env=environment, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert (lines[0], lines[-1], run.returncode) == ("verb: test", summary, code)


@pytest.mark.parametrize("script", ["apt-install", "bootstrap", "install-servers", "protos"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / "scripts" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_no_source_file_is_too_long() -> None:
    lengths = {name: text.count("\n") for name, text in texts(".py", ".lua", ".sh") if "_pb2" not in name}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_absolute_machine_path() -> None:
    """Paths of one machine or one person: nothing works elsewhere that needs them."""
    personal = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt|private)/\w")
    assert [name for name, text in texts() if personal.search(text)] == []


def test_no_download_address() -> None:
    """Where packages come from is the business of the machine that installs them."""
    index = re.compile(
        "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "--index" + "-url", "--find" + "-links"])
    )
    assert [name for name, text in texts() if index.search(text)] == []


def test_no_unfinished_work() -> None:
    marks = re.compile("|".join([r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", "raise Not" + "ImplementedError"]))
    ours = [(name, text) for name, text in texts(".py", ".proto", ".lua", ".md", ".yaml", ".yml", ".toml")]
    assert [name for name, text in ours if "_pb2" not in name and marks.search(text)] == []


def pins() -> dict[str, str]:
    """Return the version of each distribution in constraints.txt, by canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    found = [Requirement(line) for line in [*project["dependencies"], *extras]]
    return [requirement for requirement in found if requirement.name != "treadle"]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_constraints_pin_every_requirement(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, "run `make constraints`"
    assert requirement.specifier.contains(version), f"{version} is pinned: run `make constraints`"


def test_dev_brings_every_other_extra() -> None:
    """`make test` installs `[dev]` alone, and a virtualenv with it needs nothing more for `make demo`."""
    extras = PROJECT["project"]["optional-dependencies"]
    (ours,) = [line for line in extras["dev"] if line.startswith("treadle[")]
    assert Requirement(ours).extras == set(extras) - {"dev"}


def test_every_folder_with_python_is_type_checked() -> None:
    folders = {name.split("/")[0] for name, _text in texts(".py") if "/" in name}
    assert folders <= set(PROJECT["tool"]["mypy"]["files"])


def links() -> list[tuple[str, str]]:
    """Return (document, target) for each relative link of the Markdown files."""
    found = []
    for name, text in texts(".md"):
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        found += [(name, target) for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    return sorted(found)


def anchors(document: Path) -> set[str]:
    """Return the anchors that a Markdown viewer makes from the headings."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("document", "target"), links())
def test_documents_link_to_what_exists(document: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    linked = (ROOT / document).parent / path if path else ROOT / document
    assert linked.exists()
    assert not anchor or anchor in anchors(linked)


def test_documents_are_linked_from_the_readme() -> None:
    readme = {target for name, target in links() if name == "README.md"}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= readme


def test_documented_variables_are_read_somewhere() -> None:
    documents = "".join(text for _name, text in texts(".md"))
    code = "".join(text for name, text in texts(".py", "") if "test_repository" not in name)
    named = set(re.findall(r"\bTREADLE_[A-Z_]+\b", documents)) - server_variables()
    assert [variable for variable in sorted(named) if variable not in code] == []


def test_every_setting_of_the_server_is_documented() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert sorted(variable for variable in server_variables() if f"`{variable}`" not in operations) == []


def test_license_is_the_one_declared() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_changelog_tells_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{PROJECT['project']['version']}]" in changelog


def test_generated_code_is_current() -> None:
    """What `make verify` checks."""
    run = subprocess.run(
        [str(ROOT / "scripts" / "protos"), str(Path(sys.executable).parent), "verify"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
