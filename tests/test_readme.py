"""The README's Python is a program: it is executed, in order, as one module."""

from __future__ import annotations

import asyncio
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.commands import missing_flags, treadle_help

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks() -> list[tuple[int, str]]:
    """Return (line of the first statement, code) of each fenced Python block."""
    text = README.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    """Yield the blocks as one imported module; a failure names the README's line."""
    module = ModuleType("readme_program")
    sys.modules[module.__name__] = module  # dataclasses and type hints look their module up
    try:
        for line, code in blocks():
            compiled = compile("\n" * line + code, str(README), "exec", dont_inherit=True)
            exec(compiled, module.__dict__)
        yield module
    finally:
        del sys.modules[module.__name__]


def test_readme_shows_a_workflow_and_a_client(program: ModuleType) -> None:
    assert {"import_contacts", "validate", "add_zip_codes", "create_contacts", "notify", "main"} <= set(dir(program))
    assert inspect.iscoroutinefunction(program.main)


def test_steps_are_plain_functions_outside_a_workflow(program: ModuleType) -> None:
    upload = program.Upload("ada@example.com", ["Anchorage,AK", ""])
    report = asyncio.run(program.validate(upload))
    assert report == program.Report(ok=False, errors=["row 2 is empty"])
    assert program.create_contacts(upload) == 2


def test_client_calls_of_the_readme_have_the_right_shape(program: ModuleType) -> None:
    from treadle.client import Client

    start = inspect.signature(Client.start)
    start.bind(None, program.import_contacts, program.Upload("ada@example.com", []), id="upload-42")


def command_lines() -> list[list[str]]:
    """Return the words of each `treadle` command in the README, without the command itself and its comment."""
    lines = re.findall(r"^\$ treadle (.+)$", README.read_text(encoding="utf-8"), re.M)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_commands_of_the_readme_exist(words: list[str]) -> None:
    path = words[:2] if words[0] == "run" else words[:1]
    assert missing_flags(treadle_help(*path), words) == []


def test_options_named_in_comments_exist() -> None:
    """`treadle server  # ...: --redis, --amqp` and `# also show, watch` are promises too."""
    text = README.read_text(encoding="utf-8")
    for command, comment in re.findall(r"^\$ treadle (\w+).*#(.*)$", text, re.M):
        assert missing_flags(treadle_help(command), re.findall(r"--[a-z]+", comment)) == []
    also = re.search(r"# also (.+)$", text, re.M)
    assert also is not None
    run_help = treadle_help("run")
    assert [name for name in also[1].split(", ") if not re.search(rf"\b{name}\b", run_help)] == []
