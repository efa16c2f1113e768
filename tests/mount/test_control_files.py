"""What commands change is seen at once; blobs by hash, pins and what was lost, as files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.conftest import MountMaker
from mount.live import LiveMount, run
from mount.test_control import Channel, opened
from mount.test_versions import error_of, settle
from mountstore.blobs.digest import Digest


@pytest.fixture
def channel(mount: LiveMount) -> Iterator[Channel]:
    with opened(mount) as channel:
        yield channel


def save(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    settle(path.parent)


# --- what the kernel remembers ---


def test_what_was_restored_is_seen_at_once(mount: LiveMount, channel: Channel) -> None:
    (mount.path / "d").mkdir()
    path = mount.path / "d/f"
    for text in (b"one", b"two and more", b"three"):
        save(path, text)
    reader = path.open("rb")
    before = (mount.path / "d").stat().st_mtime_ns
    for turn, (number, text) in enumerate(((1, b"one"), (2, b"two and more"), (3, b"three"), (1, b"one"))):
        channel.say(f"restore /d/f@{number}")
        assert path.read_bytes() == text, turn
        assert path.stat().st_size == len(text)
    assert (mount.path / "d").stat().st_mtime_ns > before
    # Who had it open has what it had.
    assert reader.read() == b"three"
    reader.close()
    channel.say("restore /d/f@2 --to /d/new")
    assert (mount.path / "d/new").read_bytes() == b"two and more"
    assert sorted(os.listdir(mount.path / "d")) == ["f", "new"]


def test_what_came_back_is_seen_at_once(mount: LiveMount, channel: Channel) -> None:
    path = mount.path / "f"
    save(path, b"text")
    path.unlink()
    # The kernel knows that there is no such name.
    assert not path.exists()
    channel.say("undelete /f")
    assert path.read_bytes() == b"text"
    assert error_of(channel.say, "undelete /f") == "EEXIST"


def test_a_restored_file_while_it_is_written(mount: LiveMount, channel: Channel) -> None:
    path = mount.path / "f"
    save(path, b"one")
    save(path, b"two")
    with path.open("r+b") as writer:
        writer.write(b"three")
        writer.flush()
        channel.say("restore /f@1")
        writer.write(b" and four")
    assert path.read_bytes() == b"one"


def test_dropped_versions_are_gone_at_once(mount: LiveMount, channel: Channel) -> None:
    path = mount.path / "f"
    for number in range(5):
        save(path, b"%d" % number)
    versions = mount.path / ".versions"
    assert (versions / "f/2").read_bytes() == b"1"
    assert (versions / "f@3").read_bytes() == b"2"
    held = (versions / "f/1").open("rb")
    assert channel.ask("prune --keep-last 1 /f")["versions_dropped"] == 3
    for gone in ("f/1", "f/2", "f/3", "f@3"):
        assert not (versions / gone).exists()
    assert (versions / "f/4").read_bytes() == b"3"
    channel.say("gc --grace 0")
    assert held.read() == b"0"
    held.close()


def test_policy_is_the_attribute(mount: LiveMount, channel: Channel) -> None:
    (mount.path / "d").mkdir()
    channel.say("policy /d keep_last=3")
    assert os.getxattr(mount.path / "d", "user.mountstore.versions") == b"keep_last=3"
    os.setxattr(mount.path / "d", "user.mountstore.versions", b"off")
    assert channel.ask("policy /d")["words"] == "off"


def test_commands_beside_writers_in_the_same_directory(mount: LiveMount, channel: Channel) -> None:
    """The kernel forgets an entry only when nobody is at work in its directory: nothing may wait in a circle."""
    import threading

    path = mount.path / "f"
    save(path, b"one")
    save(path, b"two")
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            turn = 0
            while not stop.is_set():
                own = mount.path / f"{number}-{turn % 5}"
                own.write_bytes(b"%d %d" % (number, turn))
                os.rename(own, mount.path / f"{number}")
                os.stat(mount.path / "f")
                os.listdir(mount.path)
                turn += 1
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        number = turn % 2 + 1
        channel.say(f"restore /f@{number}")
        assert path.read_bytes() == (b"one", b"two")[number - 1]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


# --- blobs ---


def test_blobs_by_their_hash(mount: LiveMount) -> None:
    data = os.urandom(3 << 20)
    save(mount.path / "f", data)
    save(mount.path / "empty", b"")
    blobs = mount.path / ".cas/blobs"
    digest = Digest.of(data)
    assert (blobs / digest.name).read_bytes() == data
    assert (blobs / digest.sha256.hex()).read_bytes() == data
    assert (blobs / digest.name).stat().st_size == len(data)
    assert run("sha256sum", blobs / digest.name).split()[0] == digest.sha256.hex()
    assert os.listdir(blobs) == []
    for absent in ("x", "0" * 64, "0" * 64 + "_5", digest.name + "0", digest.sha256.hex().upper()):
        assert error_of((blobs / absent).read_bytes) == "ENOENT"
    assert error_of((blobs / digest.name).write_bytes, b"x") == "EROFS"
    assert error_of((blobs / digest.name).unlink) == "EROFS"
    assert error_of((blobs / "new").touch) == "EROFS"


def test_a_collected_blob_is_gone_at_once(mount: LiveMount, channel: Channel) -> None:
    save(mount.path / "f", b"passing")
    (mount.path / "f").unlink()
    blob = mount.path / ".cas/blobs" / Digest.of(b"passing").name
    assert blob.read_bytes() == b"passing"
    channel.say("prune --all /f")
    channel.say("gc --grace 0")
    assert not blob.exists()
    channel.say(f"untrash {blob.name}")
    assert blob.read_bytes() == b"passing"


def test_a_damaged_blob_is_not_served(mount: LiveMount) -> None:
    save(mount.path / "f", b"what was written")
    digest = Digest.of(b"what was written")
    mount.remount()
    (path,) = (mount.store / "blobs").rglob(digest.name)
    path.chmod(0o644)
    path.write_bytes(b"what WAS written")
    assert error_of((mount.path / ".cas/blobs" / digest.name).read_bytes) == "EIO"
    mount.announce("damaged")
    path.write_bytes(b"what was written")


# --- pins ---


def test_pins_are_written_like_files(mount: LiveMount) -> None:
    pins = mount.path / ".cas/pins"
    names = []
    for number in range(3):
        data = b"pinned %d" % number
        save(mount.path / "f", data)
        names.append(Digest.of(data).name)
    (mount.path / "f").unlink()
    text = f"# what the site links to\n{names[0]}\n\n  {names[1]}  \n"
    (pins / "site").write_text(text)
    assert (pins / "site").read_text() == text
    with (pins / "site").open("a") as file:
        file.write(f"{names[2][:64]}\n")
    assert (pins / "site").read_text() == f"{text}{names[2][:64]}\n"
    assert (pins / "site").stat().st_size == len(text) + 65
    assert os.listdir(pins) == ["site"]
    with opened(mount) as channel:
        channel.say("prune --all /f")
        assert channel.ask("gc --grace 0")["kept"]["listed"]["blobs"] == 3
    # What a file manager, an editor or rsync does.
    (pins / "site.new").write_text(names[0] + "\n")
    os.replace(pins / "site.new", pins / "site")
    assert (pins / "site").read_text() == names[0] + "\n"
    os.truncate(pins / "site", 0)
    assert (pins / "site").read_bytes() == b""
    run("cp", "-p", "/dev/null", pins / "none")
    assert sorted(os.listdir(pins)) == ["none", "site"]
    (pins / "none").unlink()
    assert error_of((pins / "none").read_bytes) == "ENOENT"
    assert error_of((pins / "d").mkdir) == "EROFS"
    with opened(mount) as channel:
        assert channel.ask("gc --grace 0")["kept"]["listed"]["blobs"] == 0
    mount.remount()
    assert os.listdir(pins) == ["site"]


def test_a_line_that_is_no_blob_is_refused(mount: LiveMount, channel: Channel) -> None:
    pins = mount.path / ".cas/pins"
    good = "0" * 64 + "_5\n"
    mount.announce("there is no blob 0000")
    (pins / "list").write_text(good)
    assert error_of((pins / "list").write_text, "nonsense\n") == "EINVAL"
    fd = os.open(pins / "list", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"nonsense without an end")
    assert error_of(os.fsync, fd) == "EINVAL"
    os.close(fd)
    mount.announce("pins/list is as it was before: .*(nonsense without an end|what was written then is no blob)")
    settle(mount.path)
    channel.say("gc")
    assert (mount.store / "pins/list").read_text() == (pins / "list").read_text() == good
    big = os.open(pins / "big", os.O_WRONLY | os.O_CREAT)
    assert error_of(os.pwrite, big, b"x", 1 << 40) == "EFBIG"
    os.close(big)


def test_who_looks_at_a_list_sees_what_its_writer_wrote(mount: LiveMount) -> None:
    pins = mount.path / ".cas/pins"
    name = Digest.of(b"x").name
    save(mount.path / "f", b"x")
    with (pins / "list").open("w") as writer:
        writer.write(name + "\n")
        writer.flush()
        assert (pins / "list").read_text() == name + "\n"
        with (pins / "list").open("a") as other:
            other.write("# more\n")
        os.fsync(writer.fileno())
        assert (mount.store / "pins/list").read_text() == name + "\n# more\n"
        (pins / "list").unlink()
    assert os.listdir(pins) == []
    assert error_of((pins / ("x" * 256)).touch) == "ENAMETOOLONG"


def append(path: Path, text: str) -> None:
    """What `>>` of a shell does; the list is not looked at before or after."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def saved(mount: LiveMount, number: int) -> str:
    """A line for a blob that is there."""
    data = b"pinned %d" % number
    save(mount.path / f"f{number}", data)
    return Digest.of(data).name + "\n"


def test_what_is_written_is_in_place_when_the_write_returns(mount: LiveMount, channel: Channel) -> None:
    pins, lists = mount.path / ".cas/pins", mount.store / "pins"
    lines = [saved(mount, number) for number in range(3)]
    for number, line in enumerate(lines):
        (pins / f"list-{number}").write_text(line)
        assert (lists / f"list-{number}").read_text() == line
        append(pins / "all", line)
        assert (lists / "all").read_text() == "".join(lines[: number + 1])
        (mount.path / f"f{number}").unlink()
        channel.say(f"prune --all /f{number}")
        channel.say("gc --grace 0")
        assert line.strip() in mount.blobs()
    # Who empties a list is about to write it; the last line has not ended yet.
    fd = os.open(pins / "all", os.O_WRONLY | os.O_TRUNC)
    assert (lists / "all").read_text() == "".join(lines)
    os.write(fd, (lines[0] + lines[1][:5]).encode())
    assert (lists / "all").read_text() == "".join(lines)
    os.write(fd, lines[1][5:].encode())
    assert (lists / "all").read_text() == lines[0] + lines[1]
    # Amid the list, and cut.
    os.pwrite(fd, lines[2].encode(), 0)
    assert (lists / "all").read_text() == lines[0] + lines[1]
    os.ftruncate(fd, len(lines[2]))
    assert (lists / "all").read_text() == lines[2]
    assert os.fstat(fd).st_size == len(lines[2])
    os.close(fd)


def test_what_a_write_does_not_save_is_saved_by_fsync(mount: LiveMount) -> None:
    pins, lists = mount.path / ".cas/pins", mount.store / "pins"
    lines = [saved(mount, number) for number in range(4)]
    long = f"# {'x' * 1021}\n" * 256
    fd = os.open(pins / "list", os.O_WRONLY | os.O_CREAT)
    os.write(fd, (long + lines[0]).encode())
    assert (lists / "list").read_text() == long + lines[0]
    # It would take long to write a long list anew for every line.
    os.write(fd, lines[1].encode())
    assert (lists / "list").read_text() == long + lines[0]
    os.fsync(fd)
    assert (lists / "list").read_text() == long + lines[0] + lines[1]
    os.close(fd)
    append(pins / "list", lines[2])
    assert (lists / "list").read_text() == long + "".join(lines[:3])
    append(pins / "list", lines[3].strip())
    run("sync", pins / "list")
    assert (lists / "list").read_text() == long + "".join(lines).strip()


def test_pins_survive_a_crash(make_mount: MountMaker) -> None:
    mount = make_mount()
    lines = [saved(mount, number) for number in range(2)]
    fd = os.open(mount.path / ".cas/pins/synced", os.O_WRONLY | os.O_CREAT)
    os.write(fd, lines[1].strip().encode())
    os.fsync(fd)
    append(mount.path / ".cas/pins/closed", lines[0])
    mount.kill()
    os.close(fd)
    mount.start()
    assert (mount.path / ".cas/pins/closed").read_text() == lines[0]
    assert (mount.path / ".cas/pins/synced").read_text() == lines[1].strip()
    assert sorted(os.listdir(mount.store / "pins")) == ["closed", "synced"]


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_list_removed_or_renamed_after_it_was_closed_does_not_come_back(
    mount: LiveMount, channel: Channel, end: str
) -> None:
    pins = mount.path / ".cas/pins"
    text = saved(mount, 0).strip() + end
    for _ in range(10):
        append(pins / "list", text)
        (pins / "list").unlink()
        append(pins / "list.new", text)
        os.rename(pins / "list.new", pins / "other")
        # It waits for what was closed to be saved.
        channel.say("gc --dry-run")
        assert os.listdir(mount.store / "pins") == ["other"]
        assert (mount.store / "pins/other").read_text() == text


@pytest.mark.parametrize("at_once", [True, False])
def test_a_line_that_was_not_ended_and_is_none_leaves_nothing(
    mount: LiveMount, channel: Channel, at_once: bool
) -> None:
    pins = mount.path / ".cas/pins"
    lines = [saved(mount, number) for number in range(4)]
    (pins / "list").write_text(lines[0])
    for number in range(1, 4):
        append(pins / "list", "oops")
        mount.announce("pins/list is as it was before: pins/list: line .: 'oops' is neither")
        if not at_once:
            channel.say("gc --dry-run")
        append(pins / "list", lines[number])
        assert (mount.store / "pins/list").read_text() == "".join(lines[: number + 1])
    assert (pins / "list").stat().st_size == sum(map(len, lines))
    append(pins / "list", "oops")
    channel.say("gc --dry-run")
    assert (pins / "list").stat().st_size == sum(map(len, lines))
    assert (pins / "list").read_text() == "".join(lines)


def test_all_who_append_to_a_list_at_a_time_are_heard(mount: LiveMount) -> None:
    pins = mount.path / ".cas/pins"
    lines = [saved(mount, number) for number in range(6)]
    (pins / "list").touch()
    writers = [os.open(pins / "list", os.O_WRONLY | os.O_APPEND) for _ in range(3)]
    for writer, line in zip(writers * 2, lines, strict=True):
        os.write(writer, line.encode())
        assert (pins / "list").stat().st_size == len((pins / "list").read_bytes())
    assert (mount.store / "pins/list").read_text() == "".join(lines)
    for writer in writers:
        os.close(writer)
    # Where nobody wrote there is no blob, and so no line.
    fd = os.open(pins / "list", os.O_WRONLY)
    assert error_of(os.pwrite, fd, lines[0].encode(), sum(map(len, lines)) + 5) == "EINVAL"
    os.close(fd)
    assert (pins / "list").read_text() == "".join(lines)


# --- lost and found ---


def test_what_was_moved_aside_can_be_looked_at(mount: LiveMount) -> None:
    lost = mount.path / ".cas/lost+found"
    assert sorted(os.listdir(lost)) == ["blobs", "drafts", "findings"]
    assert os.listdir(lost / "blobs") == os.listdir(lost / "drafts") == []
    assert (lost / "findings").read_bytes() == b""
    save(mount.path / "f", b"what was written")
    mount.unmount()
    digest = Digest.of(b"what was written")
    (path,) = (mount.store / "blobs").rglob(digest.name)
    path.chmod(0o644)
    path.write_bytes(b"what WAS written")
    from mountstore.cli.fsck import main

    assert main(["-y", "--full", str(mount.store)]) in (1, 5, 4)
    mount.start()
    aside = [Path(where) / name for where, _, names in os.walk(lost / "blobs") for name in names]
    assert [file.read_bytes() for file in aside] == [b"what WAS written"]
    assert aside[0].stat().st_mode & 0o777 == 0o400
    assert "damaged" in (lost / "findings").read_text()
    assert hashlib.sha256(aside[0].read_bytes()).digest() != digest.sha256
    assert error_of(aside[0].write_bytes, b"x") == "EACCES"
    mount.checked = False
