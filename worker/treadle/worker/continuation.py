"""Going on as new: a workflow that runs for years must not have a history of years."""

from __future__ import annotations

from typing import Any, NoReturn

from treadle.protocol.errors import ConfigError
from treadle.worker.current import current_execution

__all__ = ("continue_as_new",)


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End the workflow here and let its run go on under the same id, with a new history, called with these arguments.

    What was open is left as at any end: steps are cancelled, children stopped or left as they were started. Signals and
    questions that were not received are there for the next part, in order; the published state stays. Whoever waits for
    the result of the run gets that of the last part. `finally` blocks run before, and may await steps.

    Raises:
        TypeError: Wrong arguments, as in an ordinary call of the workflow.
        PayloadError: The arguments cannot be encoded.
        ConfigError: It was called outside of a workflow.
    """
    execution = current_execution()
    if execution is None:
        raise ConfigError("continue_as_new() belongs into the code of a workflow that runs durably")
    raise execution.continue_as_new(args, kwargs)
