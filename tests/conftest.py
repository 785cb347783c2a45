"""Fixtures that every folder of tests may use."""

from __future__ import annotations

from tests.servers.rabbit_server import rabbit, rabbit_node, rabbit_url

__all__ = ("rabbit", "rabbit_node", "rabbit_url")
