"""info, df and du, through the control file's language."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
from care.garbage import Work

from control.conftest import Desk, answers
from mountstore.control.conversation import CommandFailedError
from mountstore.control.language import quote

pytestmark = pytest.mark.trio


async def test_info_tells_where_the_blob_is(desk: Desk) -> None:
    work = Work(desk.store)
    directory = work.directory(b"a b")
    await work.save(b"n\xffme", b"hello", directory.id)
    await work.save(b"n\xffme", b"changed", directory.id)
    path = quote("/a b/n\udcffme")
    (answer,) = await desk.ask(f"info {path}")
    assert (answer["kind"], answer["path"], answer["size_bytes"]) == ("file", "/a b/n\udcffme", 7)
    assert Path(answer["content"]["blob_path"]).read_bytes() == b"changed"
    assert answer["version"] == 2
    (answer,) = await desk.ask("info " + quote("/a b/n\udcffme@1"))
    assert Path(answer["content"]["blob_path"]).read_bytes() == b"hello"
    (answer,) = await desk.ask(f"info {path} --sharing --pieces")
    assert answer["sharing"]["unique_bytes"] == 7 and len(answer["content"]["entries"]) == 1
    conversation = desk.open()
    with pytest.raises(CommandFailedError):
        await conversation.write(b"info /nowhere\n")
    assert answers(conversation)[0]["error"] == "AbsentError"


async def test_df_and_du_add_up(desk: Desk) -> None:
    work = Work(desk.store)
    directory = work.directory(b"d")
    await work.save(b"one", b"same bytes", directory.id)
    await work.save(b"two", b"same bytes")
    await work.save(b"three", b"others", directory.id)
    (df,) = await desk.ask("df")
    assert (df["files"], df["logical_bytes"], df["stored"]) == (3, 26, {"blobs": 2, "bytes": 16})
    assert df["ratio"] == pytest.approx(26 / 16)
    (du,) = [answer for answer in await desk.ask("du /d /two") if answer["type"] == "result"]
    rows = {row["path"]: row for row in du["rows"]}
    assert (rows["/d"]["logical_bytes"], rows["/d"]["unique_bytes"], rows["/d"]["shared_bytes"]) == (16, 6, 10)
    assert (rows["/two"]["unique_bytes"], rows["/two"]["shared_bytes"]) == (0, 10)
    (whole,) = [answer for answer in await desk.ask("du") if answer["type"] == "result"]
    assert whole["rows"][0]["stored_bytes"] == 16


async def test_info_answers_within_five_milliseconds(desk: Desk) -> None:
    work = Work(desk.store)
    for number in range(10):
        await work.save(b"f%d" % number, b"hello %d" % number)
    took = []
    for number in range(200):
        began = time.perf_counter()
        await desk.ask(f"info /f{number % 10}")
        took.append(time.perf_counter() - began)
    assert statistics.median(took) < 0.005
