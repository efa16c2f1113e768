"""Mounts for casctl: always unmounted, their log and their store checked."""

from __future__ import annotations

from mount.conftest import _shared_mount, make_mount, mount, pytest_collection_modifyitems, shared_mount

__all__ = ["_shared_mount", "make_mount", "mount", "pytest_collection_modifyitems", "shared_mount"]
