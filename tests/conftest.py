"""Fixtures that every folder of tests may use, and settings for all of them."""

from __future__ import annotations

from hypothesis import settings

from tests.servers.rabbit_server import rabbit, rabbit_node, rabbit_url

__all__ = ("rabbit", "rabbit_node", "rabbit_url")

# An example that takes 200 ms says something about the machine.
settings.register_profile("busy", settings(), deadline=None)
settings.load_profile("busy")
