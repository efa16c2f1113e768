"""kill -9 of a daemon under load, again and again on one store; every promise and the checker after each.

    python -m durability.kill --kills 300
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import trio
from mount.live import LiveMount

from durability.load import Client
from durability.verdict import broken_promises, opened
from mountstore.care.checking import check_store

UNSYNCED_NS = 500_000_000
"""Closed files older than that are there (promise 3: a quarter second, and the time a commit may take)."""


def kill_once(mount: LiveMount, number: int, choice: random.Random) -> list[str]:
    """Let clients work in a mount, kill its daemon, and say what was lost that should not be.

    The mount is down afterwards.
    """
    clients = []
    for client_number in range(3):
        directory = mount.path / f"k{number}-{client_number}"
        directory.mkdir()
        clients.append(Client(directory, choice.randrange(1 << 30), names=8))
    for client in clients:
        client.start()
    time.sleep(choice.uniform(0.05, 1.2))
    for client in clients:
        client.expect_crash()
    killed_ns = time.monotonic_ns()
    mount.kill()
    for client in clients:
        client.stop()
    store = str(mount.store)
    problems = trio.run(_judge, store, clients, killed_ns)
    findings = check_store(store).findings
    return problems + [str(finding) for finding in findings if finding.is_error]


async def _judge(store_path: str, clients: list[Client], killed_ns: int) -> list[str]:
    async with opened(store_path) as store:
        problems, lost = await broken_promises(store, clients, killed_ns, unsynced_ns=UNSYNCED_NS)
    return problems + [f"{name} cannot be read" for name in lost]


def main(argv: Sequence[str] | None = None) -> int:
    """The program: exit code 1 if a promise was broken, with the store kept."""
    parser = argparse.ArgumentParser(
        prog="scripts/killtest", description="Kill a mount under load, and check its promises."
    )
    parser.add_argument("--kills", type=int, default=300, metavar="N", help="default: 300")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    choice = random.Random(options.seed)
    base = Path(tempfile.mkdtemp(prefix="killtest-"))
    mount = LiveMount(base, checked=False)
    for number in range(options.kills):
        if number:
            mount.start()
        problems = kill_once(mount, number, choice)
        if problems:
            print(f"seed {options.seed}, kill {number}:", *problems, sep="\n  ")
            print(f"the store is kept: {mount.store}")
            return 1
        if number % 20 == 19:
            print(f"{number + 1} kills", flush=True)
    shutil.rmtree(base)
    print(f"seed {options.seed}: {options.kills} kills, no promise broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
