"""The smallest app, in a lab: its pause takes no time."""

from __future__ import annotations

from datetime import timedelta

from examples.hello import app

from treadle.testing import Lab


def test_the_greeting_comes_after_its_pause() -> None:
    with Lab() as lab:
        run = lab.start(app.greet, "Ada")
        began = lab.now
        assert run.result() == "Hello, Ada!"
        assert lab.now - began == timedelta(seconds=2)
        assert run.steps == ["greeting"]
