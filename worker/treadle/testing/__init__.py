"""Testing workflows: in this process, with virtual time, with steps that are real or replaced. No server is needed."""

from __future__ import annotations

from .doubles import Call
from .errors import NeedsAttention, Stuck
from .lab import Lab
from .run import Run

__all__ = ("Lab", "Run", "Call", "Stuck", "NeedsAttention")
