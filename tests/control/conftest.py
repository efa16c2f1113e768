"""A store at work with its commands, without a mount."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mountstore.control.command import Registry
from mountstore.control.commands import REGISTRY
from mountstore.control.context import Services
from mountstore.control.conversation import Conversation
from mountstore.control.jobs import Jobs
from mountstore.store import Store
from mountstore.store.create import create_store


class Desk:
    """Opens conversations with one store."""

    def __init__(self, services: Services, registry: Registry, jobs: Jobs) -> None:
        self.services = services
        self.store = services.store
        self.registry = registry
        self.jobs = jobs

    def open(self) -> Conversation:
        return Conversation(self.services, self.registry, self.jobs)

    async def ask(self, line: str) -> list[dict[str, Any]]:
        """The answers to one line, which has to succeed."""
        conversation = self.open()
        await conversation.write(line.encode("utf-8", "surrogateescape") + b"\n")
        found = answers(conversation)
        conversation.close()
        return found


def answers(conversation: Conversation) -> list[dict[str, Any]]:
    """What can be read now, without waiting for jobs."""
    data = b""
    while part := conversation.take(1000):
        data += part
    return [json.loads(line) for line in data.splitlines()]


@asynccontextmanager
async def desk_of(path: Path, registry: Registry = REGISTRY) -> AsyncIterator[Desk]:
    if not path.exists():
        create_store(str(path))
    async with Store.open(str(path)).running() as store, trio.open_nursery() as nursery:
        services = Services(store)
        jobs = Jobs(services, registry)
        await nursery.start(jobs.run)
        yield Desk(services, registry, jobs)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_of(tmp_path / "store") as made:
        yield made
