"""Does a store that was recovered keep what was promised to the clients of `durability.load`?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from durability.load import PAGE, Client, History, State
from mountstore.errors import BlobMissingError, CorruptError
from mountstore.namespace.inodes import ROOT, Inode
from mountstore.store import Store


@asynccontextmanager
async def opened(path: str) -> AsyncIterator[Store]:
    """The store, recovered."""
    async with Store.open(path).running() as store:
        yield store


async def broken_promises(
    store: Store, clients: Iterable[Client], crash_ns: int, *, unsynced_ns: int
) -> tuple[list[str], list[str]]:
    """What is there and should not be, or the other way round; and the files that cannot be read because
    they were new and were never flushed.

    Args:
      crash_ns: When the crash came, CLOCK_MONOTONIC.
      unsynced_ns: What had returned so long before the crash has to be there without fsync.
    """
    problems: list[str] = []
    lost: list[str] = []
    for client in clients:
        directory = store.namespace.find(ROOT, client.directory.name.encode())
        if directory is None:
            problems.append(f"{client.directory.name} is gone")
            continue
        for name, history in sorted(client.histories.items()):
            where = f"{client.directory.name}/{name}"
            inode = store.namespace.find(directory.id, name.encode())
            floor, allowed = history.allowed(crash_ns, unsynced_ns=unsynced_ns)
            try:
                content = None if inode is None else await store.files.read(inode, 0, 1 << 30)
            except (CorruptError, BlobMissingError) as exc:
                # The name may have stood for nothing, and then for a file that was new.
                if all(state.content for state in allowed):
                    problems.append(f"{where}: {exc}, allowed are {_list(floor, allowed)}")
                else:
                    lost.append(where)
                continue
            if not any(content == state.content or content in state.earlier for state in allowed):
                found = _describe(history, content)
                problems.append(f"{where}: {found}, allowed are {_list(floor, allowed)}")
        problems += await _broken_pages(store, client, directory, crash_ns)
    return problems, lost


def _describe(history: History, content: bytes | None) -> str:
    if content is None:
        return "does not exist"
    known = [index for index, state in enumerate(history.states) if state.content == content]
    kind = f"that is state {known}" if known else "which it never had"
    return f"has {len(content)} bytes, {kind}"


def _list(floor: int, allowed: list[State]) -> str:
    return ", ".join(
        f"{floor + i} ({state.cause}: {'none' if state.content is None else len(state.content)})"
        for i, state in enumerate(allowed)
    )


async def _broken_pages(store: Store, client: Client, directory: Inode, crash_ns: int) -> list[str]:
    written: dict[int, list[int]] = {}
    for time_ns, page, number in client.page_writes:
        if time_ns < crash_ns:
            written.setdefault(page, []).append(number)
    promised = {
        page: number for time_ns, page, number in client.page_promises if time_ns < crash_ns
    }
    inode = store.namespace.find(directory.id, b"pages")
    where = f"{client.directory.name}/pages"
    if inode is None:
        return [f"{where} is gone"] if promised else []
    try:
        content = await store.files.read(inode, 0, 1 << 30)
    except (CorruptError, BlobMissingError) as exc:
        return [f"{where}: {exc}"] if promised else []
    problems = []
    for page, number in promised.items():
        data = content[page * PAGE : (page + 1) * PAGE]
        allowed = [b"%016d" % later * (PAGE // 16) for later in written[page] if later >= number]
        if data not in allowed:
            problems.append(f"{where}: page {page} is {data[:16]!r}, promised was {number}")
    return problems
