"""All commands: one module for each family of them."""

from __future__ import annotations

from mountstore.control import accounts, basics, collecting, history, resizing, snapshotting, state, trees, upkeep
from mountstore.control.command import Registry

__all__ = ["REGISTRY"]

REGISTRY = Registry(
    (
        *basics.COMMANDS,
        *state.COMMANDS,
        *collecting.COMMANDS,
        *history.COMMANDS,
        *snapshotting.COMMANDS,
        *trees.COMMANDS,
        *upkeep.COMMANDS,
        *accounts.COMMANDS,
        *resizing.COMMANDS,
    )
)
