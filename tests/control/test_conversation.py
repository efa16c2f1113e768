"""What is written to a control file, and what can be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from control.conftest import Desk, answers, desk_of
from mountstore.control.basics import COMMANDS
from mountstore.control.command import Answer, Argument, Arguments, Command, Kind, Registry
from mountstore.control.context import Context
from mountstore.control.conversation import CommandFailedError
from mountstore.control.jobs import RUNNING_MAX
from mountstore.control.language import LINE_MAX_BYTES
from mountstore.errors import AbsentError

pytestmark = pytest.mark.trio


class Stage:
    """Commands that wait until they are told to go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = trio.Event()

    async def wait(self, context: Context, arguments: Arguments) -> Answer:
        self.begun += 1
        context.progress(1, 3, "steps")
        with context.exclusively("wait" + arguments.text("key"), "somebody waits"):
            await self.go.wait()
        return {"waited": arguments.text("key")}

    async def fail(self, context: Context, arguments: Arguments) -> Answer:
        raise AbsentError("not here")

    async def table(self, context: Context, arguments: Arguments) -> Answer:
        numbers = range(arguments.integer("count"))
        return {"rows": [{"number": number, "name": b"a\xff"} for number in numbers], "n": 1}

    @property
    def registry(self) -> Registry:
        return Registry(
            (
                *COMMANDS,
                Command("wait", "", self.wait, (Argument("KEY", ""),)),
                Command("fail", "", self.fail),
                Command("table", "", self.table, (Argument("COUNT", "", Kind.INTEGER, required=True),)),
            )
        )


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
async def desk(tmp_path: Path, stage: Stage) -> AsyncIterator[Desk]:
    async with desk_of(tmp_path / "store", stage.registry) as made:
        yield made


async def test_a_line_is_run_when_it_has_come_whole(desk: Desk) -> None:
    conversation = desk.open()
    await conversation.write(b"hel")
    assert answers(conversation) == []
    await conversation.write(b"p jobs\nhelp can")
    (answer,) = answers(conversation)
    assert [row["name"] for row in answer["rows"]] == ["jobs"]
    await conversation.write(b"cel\n")
    assert answers(conversation)[0]["rows"][0]["usage"] == "cancel ID"


async def test_what_is_read_is_cut_anywhere(desk: Desk) -> None:
    conversation = desk.open()
    await conversation.write(b"help jobs\nhelp cancel\n")
    data = b""
    while part := await conversation.read(7):
        assert len(part) <= 7
        data += part
    assert data.count(b"\n") == 2


async def test_lines_of_one_write_run_up_to_the_first_that_fails(desk: Desk) -> None:
    conversation = desk.open()
    with pytest.raises(CommandFailedError) as failure:
        await conversation.write(b"help jobs\nfail\nhelp jobs\nhel")
    assert failure.value.error == "AbsentError"
    assert [answer["type"] for answer in answers(conversation)] == ["result", "error"]
    # What followed is gone, also the begun line.
    await conversation.write(b"help jobs\n")
    assert [answer["type"] for answer in answers(conversation)] == ["result"]


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\n",
        b"fail too much\n",
        b"table\n",
        b"table x\n",
        b"table --no-such-option 1\n",
        b"wait 'open\n",
        b"fail \0\n",
        b"\x80\xff\xfe\n",
        b"help " + b"x" * LINE_MAX_BYTES + b"\n",
        b"x" * (1 << 20),
        b"& fail\n",
        b"&\n",
    ],
)
async def test_what_cannot_be_understood_is_refused_and_does_no_harm(desk: Desk, text: bytes) -> None:
    conversation = desk.open()
    with pytest.raises(CommandFailedError, match="MisuseError"):
        await conversation.write(text)
    (answer,) = answers(conversation)
    assert answer["type"] == "error"
    if not text.endswith(b"\n"):
        with pytest.raises(CommandFailedError, match="MisuseError"):
            await conversation.write(b"x\nhelp jobs\n")
        assert answers(conversation)[0]["type"] == "error"
    await conversation.write(b"help jobs\n")
    assert answers(conversation)[0]["type"] == "result"


async def test_nothing_is_said_about_an_empty_line_or_a_comment(desk: Desk) -> None:
    assert await desk.ask("") == []
    assert await desk.ask("   \t ") == []
    assert await desk.ask("# help") == []
    assert len(await desk.ask("help jobs # please")) == 1


@pytest.mark.parametrize("line", [b"help\n", b"\n", b"# nothing\n"])
async def test_many_lines_leave_others_their_turn_and_can_be_cancelled(desk: Desk, line: bytes) -> None:
    turns = 0
    conversation = desk.open()

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1
            if turns == 20:
                conversation.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with pytest.raises(CommandFailedError, match="CancelledError"):
            await conversation.write(line * 2000)
        nursery.cancel_scope.cancel()
    assert 20 <= turns < 40
    # The next write is another one.
    await conversation.write(b"help\n")
    conversation.close()


async def test_a_line_without_an_end_is_never_run(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    conversation = desk.open()
    await conversation.write(b"wait")
    conversation.close()
    assert desk.services.statistics.commands == 0
    assert "was not run: wait" in caplog.text


async def test_a_job_answers_at_once_and_its_result_can_be_read_later(desk: Desk, stage: Stage) -> None:
    conversation = desk.open()
    await conversation.write(b"wait for &\n")
    (started,) = answers(conversation)
    assert started == {"type": "job", "job": 1}
    await trio.testing.wait_all_tasks_blocked()
    assert answers(conversation) == [{"type": "progress", "done": 1, "total": 3, "unit": "steps", "job": 1}]
    (row,) = (await desk.ask("jobs"))[0]["rows"]
    assert (row["job"], row["command"], row["state"], row["done"]) == (1, "wait for &", "running", 1)
    stage.go.set()
    assert await conversation.read(1000) == b'{"type": "result", "waited": "for", "job": 1}\n'
    assert await conversation.read(1000) == b""
    (row,) = (await desk.ask("jobs 1"))[0]["rows"]
    assert row["state"] == "done"
    assert row["result"] == {"waited": "for"}


async def test_a_job_outlives_who_started_it(desk: Desk, stage: Stage) -> None:
    conversation = desk.open()
    await conversation.write(b"wait&\n")
    await trio.testing.wait_all_tasks_blocked()
    conversation.close()
    stage.go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (await desk.ask("jobs 1"))[0]["rows"][0]["state"] == "done"


async def test_a_job_can_be_cancelled(desk: Desk) -> None:
    conversation = desk.open()
    await conversation.write(b"wait &\n")
    await trio.testing.wait_all_tasks_blocked()
    await desk.ask("cancel 1")
    await trio.testing.wait_all_tasks_blocked()
    assert answers(conversation)[-1]["error"] == "CancelledError"
    assert (await desk.ask("jobs 1"))[0]["rows"][0]["state"] == "cancelled"
    with pytest.raises(CommandFailedError, match="AbsentError"):
        await desk.ask("cancel 1")
    with pytest.raises(CommandFailedError, match="AbsentError"):
        await desk.ask("cancel 99")


async def test_a_command_that_somebody_waits_for_can_be_cancelled(desk: Desk) -> None:
    conversation = desk.open()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(CommandFailedError, match="CancelledError"):
                await conversation.write(b"wait\n")

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        conversation.cancel()
    assert answers(conversation)[-1]["error"] == "CancelledError"


async def test_what_only_one_may_do_is_refused_to_the_second(desk: Desk, stage: Stage) -> None:
    conversation = desk.open()
    await conversation.write(b"wait &\n")
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(CommandFailedError, match="BusyError"):
        await desk.ask("wait")
    stage.go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (await desk.ask("wait"))[-1]["type"] == "result"


async def test_not_everything_runs_at_once(desk: Desk, stage: Stage) -> None:
    conversation = desk.open()
    for number in range(RUNNING_MAX):
        await conversation.write(b"wait %d &\n" % number)
    with pytest.raises(CommandFailedError, match="BusyError"):
        await conversation.write(b"wait more &\n")
    stage.go.set()
    await trio.testing.wait_all_tasks_blocked()
    await conversation.write(b"wait more &\n")


async def test_jobs_end_with_the_mount(tmp_path: Path) -> None:
    stage = Stage()
    async with desk_of(tmp_path / "other", stage.registry) as desk:
        conversation = desk.open()
        await conversation.write(b"wait &\n")
        await trio.testing.wait_all_tasks_blocked()
        (job,) = desk.jobs.all()
    assert job.state == "cancelled"
    with pytest.raises(CommandFailedError, match="BusyError"):
        await conversation.write(b"wait &\n")


async def test_a_large_table_comes_whole(desk: Desk) -> None:
    (answer,) = await desk.ask("table 1000")
    assert len(answer["rows"]) == 1000
    assert answer["rows"][999] == {"number": 999, "name": "a\udcff"}
    assert answer["n"] == 1
