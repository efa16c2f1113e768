"""All commands: one module for each family of them."""

from __future__ import annotations

from mountstore.control import accounts, basics, resizing, state
from mountstore.control.command import Registry

__all__ = ["REGISTRY"]

REGISTRY = Registry(
    (
        *basics.COMMANDS,
        *state.COMMANDS,
        *accounts.COMMANDS,
        *resizing.COMMANDS,
    )
)
