"""The commands about snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.conftest import desk_of
from mountstore.control.conversation import CommandFailedError
from mountstore.namespace.inodes import ROOT
from mountstore.namespace.namespace import Caller

pytestmark = pytest.mark.trio


async def test_snapshots_are_taken_listed_compared_and_deleted(tmp_path: Path) -> None:
    async with desk_of(tmp_path / "store") as desk:
        create = desk.store.namespace.create
        create(ROOT, b"a", 0o100644, Caller(0, 0))
        (taken,) = [answer for answer in await desk.ask("snapshot before") if answer["type"] == "result"]
        assert taken["name"] == "before"
        assert taken["inodes"] == 2
        create(ROOT, b"b \xff", 0o100644, Caller(0, 0))
        (unnamed,) = [answer for answer in await desk.ask("snapshot") if answer["type"] == "result"]
        (listed,) = await desk.ask("snapshots")
        assert [row["name"] for row in listed["rows"]] == [unnamed["name"], "before"]
        assert [row["automatic"] for row in listed["rows"]] == [False, False]
        (compared,) = await desk.ask(f"snapshot-diff before {unnamed['name']}")
        assert compared["rows"] == [{"path": "/b \udcff", "difference": "added"}]
        assert compared["more"] == 0
        await desk.ask(f"snapshot-delete before {unnamed['name']}")
        (listed,) = await desk.ask("snapshots")
        assert listed["rows"] == []


async def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    async with desk_of(tmp_path / "store") as desk:
        await desk.ask("snapshot one")
        for line, error in (
            ("snapshot one", "ExistsError"),
            ("snapshot auto-x", "MisuseError"),
            ("snapshot a/b", "MisuseError"),
            ("snapshot-delete two", "AbsentError"),
            ("snapshot-diff one two", "AbsentError"),
        ):
            with pytest.raises(CommandFailedError, match=error):
                await desk.ask(line)
