"""The recording seam: what a program does to files, system call by system call, and what power loss after any of
them could leave.

strace(1) records the calls with their data. They are replayed on a model of a file system that promises no
more than POSIX does: data survive when the file was flushed, names when the directory was, and of everything else
any part may survive, in any combination. That is more than a journaling file system can do to us, and so finds
what a cut on a real one (`durability.power_loss`) hits by chance only; and it tries every step.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "openat,close,write,pwrite64,lseek,ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,"
    "rmdir,link,linkat,fsync,fdatasync,syncfs,dup,dup2,dup3,fcntl,pwritev,pwritev2,writev,copy_file_range"
)

_PAGE = 4096


class Call(NamedTuple):
    """One system call; `began` and `ended` are places in the order of all beginnings and ends."""

    name: str
    arguments: list[str]
    result: int
    began: int
    ended: int


_WHOLE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\w+|\?)(?: .*)?$")
_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\w+|\?)(?: .*)?$")


def record(output: Path, command: list[str], environment: dict[str, str]) -> list[Call]:
    """Run a program and return its system calls on files, in the order in which they ended.

    Raises: AssertionError if it does not end well.
    """
    strace = ["strace", "-f", "-qq", "-xx", "-s", str(64 << 20), "-e", "signal=none", "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*strace, "-o", str(output), *command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return list(_parse(output))


def _parse(output: Path) -> Iterator[Call]:
    begun: dict[tuple[str, str], tuple[int, str]] = {}
    with output.open() as lines:
        for place, line in enumerate(lines):
            if match := _WHOLE.match(line):
                _, name, arguments, result = match.groups()
                began = place
            elif match := _RESUMED.match(line):
                thread, name, rest, result = match.groups()
                began, head = begun.pop((thread, name))
                arguments = head + rest
            elif match := _BEGUN.match(line):
                begun[match[1], match[2]] = place, match[3]
                continue
            else:
                # Also of a thread that ended with the process, whose call strace could not read any more.
                assert "exited" in line or "killed" in line or "detached" in line, line
                continue
            if result != "?":
                yield Call(name, arguments.split(", "), int(result, 0), began, place)


def _bytes(argument: str) -> bytes:
    assert argument.startswith('"') and argument.endswith('"'), argument[:50]
    return bytes.fromhex(argument[1:-1].replace("\\x", ""))


# --- the model ---


@dataclass(eq=False)
class Node:
    """A file or directory. `data` and `names` are what survives for certain."""

    is_directory: bool = False
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, Node] = field(default_factory=dict)
    current: dict[bytes, Node] = field(default_factory=dict)
    """The names as programs see them."""


class Change(NamedTuple):
    """Something that may or may not survive.

    `data`: offset and bytes, or a size and None; `names`: directory, name, and what it stands for.
    """

    place: int
    node: Node | None
    data: tuple[int, bytes | None]
    names: tuple[tuple[Node, bytes, Node | None], ...]


Marked = tuple[int, bytes]


class Model:
    """The files below `root`, as a sequence of calls changes them.

    Args:
      before: A copy of what was below `root` at the beginning, all of which survives.
      marks: A file, not below `root`, to which the program writes what it wants to say in between.
    """

    def __init__(self, root: Path, before: Path, marks: Path) -> None:
        self._root = os.fsencode(root)
        self._marks = os.fsencode(marks)
        self.top = _load(before)
        self.pending: list[Change] = []
        self.marks: list[bytes] = []
        self._open: dict[int, tuple[Node | None, list[int]]] = {}

    def apply(self, call: Call) -> bool:
        """Whether the call could make a difference for what survives."""
        if call.result < 0:
            return False
        method = getattr(self, f"_{call.name}", None)
        return bool(method(call)) if method is not None else self._unknown(call)

    def _unknown(self, call: Call) -> bool:
        watched = call.name not in ("dup", "dup2", "dup3") and self._node(call) is not None
        assert not watched, f"{call.name} is not modelled"
        return False

    # --- names ---

    def _find(self, path: bytes) -> tuple[Node, bytes] | None:
        """The directory and the last part of a path; None outside of the root."""
        if not path.startswith(self._root + b"/"):
            return None
        *above, name = [part for part in path[len(self._root) :].split(b"/") if part]
        node = self.top
        for part in above:
            node = node.current[part]
        return node, name

    def _named(self, path: bytes) -> Node | None:
        if path == self._root:
            return self.top
        found = self._find(path)
        return None if found is None else found[0].current.get(found[1])

    def _name(self, call: Call, *changes: tuple[Node, bytes, Node | None]) -> bool:
        for directory, name, node in changes:
            if node is None:
                directory.current.pop(name, None)
            else:
                directory.current[name] = node
        self.pending.append(Change(call.ended, None, (0, None), changes))
        return True

    def _openat(self, call: Call) -> bool:
        base, quoted, flags = call.arguments[:3]
        path = _bytes(quoted)
        if path == self._marks:
            self._open[call.result] = None, [-1]
            return False
        if base != "AT_FDCWD" or (path != self._root and self._find(path) is None):
            self._open.pop(call.result, None)
            return False
        if "O_TMPFILE" in flags:
            self._open[call.result] = Node(), [0]
            return False
        node = self._named(path)
        changed = False
        if node is None:
            found = self._find(path)
            assert found is not None and "O_CREAT" in flags
            node = Node()
            changed = self._name(call, (*found, node))
        elif "O_TRUNC" in flags:
            changed = self._change(call, node, (0, None))
        assert "O_APPEND" not in flags
        self._open[call.result] = node, [0]
        return changed

    def _close(self, call: Call) -> bool:
        self._open.pop(int(call.arguments[0]), None)
        return False

    def _rename(self, call: Call) -> bool:
        return self._moved(call, _bytes(call.arguments[0]), _bytes(call.arguments[1]))

    def _renameat(self, call: Call) -> bool:
        return self._moved(call, _bytes(call.arguments[1]), _bytes(call.arguments[3]))

    _renameat2 = _renameat

    def _moved(self, call: Call, old: bytes, new: bytes) -> bool:
        source, target = self._find(old), self._find(new)
        if source is None or target is None:
            assert source is target, "a move into the store or out of it"
            return False
        return self._name(call, (*target, source[0].current[source[1]]), (*source, None))

    def _unlink(self, call: Call) -> bool:
        found = self._find(_bytes(call.arguments[-1] if call.name != "unlinkat" else call.arguments[1]))
        return found is not None and self._name(call, (*found, None))

    _rmdir = _unlinkat = _unlink

    def _mkdir(self, call: Call) -> bool:
        found = self._find(_bytes(call.arguments[0]))
        return found is not None and self._name(call, (*found, Node(is_directory=True)))

    # --- data ---

    def _node(self, call: Call) -> Node | None:
        try:
            return self._open[int(call.arguments[0])][0]
        except (KeyError, ValueError):
            return None

    def _change(self, call: Call, node: Node, data: tuple[int, bytes | None]) -> bool:
        self.pending.append(Change(call.ended, node, data, ()))
        return True

    def _write(self, call: Call) -> bool:
        known = self._open.get(int(call.arguments[0]))
        if known is None:
            return False
        node, position = known
        data = _bytes(call.arguments[1])[: call.result]
        if node is None:
            self.marks.append(data)
            return True
        offset = position[0]
        position[0] += len(data)
        return self._change(call, node, (offset, data))

    def _pwrite64(self, call: Call) -> bool:
        node = self._node(call)
        data = _bytes(call.arguments[1])[: call.result]
        return node is not None and self._change(call, node, (int(call.arguments[3]), data))

    def _lseek(self, call: Call) -> bool:
        known = self._open.get(int(call.arguments[0]))
        if known is not None:
            known[1][0] = call.result
        return False

    def _ftruncate(self, call: Call) -> bool:
        node = self._node(call)
        return node is not None and self._change(call, node, (int(call.arguments[1]), None))

    def _fallocate(self, call: Call) -> bool:
        assert self._node(call) is None or call.arguments[1] == "FALLOC_FL_KEEP_SIZE"
        return False

    def _fcntl(self, call: Call) -> bool:
        assert "DUP" not in call.arguments[1] or self._node(call) is None
        return False

    # --- flushes ---

    def _fsync(self, call: Call) -> bool:
        node = self._node(call)
        if node is None:
            return False
        self._survive(
            call, lambda change: change.node is node or any(entry[0] is node for entry in change.names)
        )
        return True

    _fdatasync = _fsync

    def _syncfs(self, call: Call) -> bool:
        if self._node(call) is not None:
            self._survive(call, lambda change: True)
        return True

    def _survive(self, call: Call, concerned: object) -> None:
        assert callable(concerned)
        left = []
        for change in self.pending:
            if change.place < call.began and concerned(change):
                _happen(change, None)
            else:
                left.append(change)
        self.pending = left

    # --- what power loss leaves ---

    def remains(self, survivors: list[Change]) -> dict[bytes, bytes | None]:
        """Files with their bytes, and directories with None, if just these of the pending changes survive."""
        overlay = _Overlay()
        for change in survivors:
            _happen(change, overlay)
        found: dict[bytes, bytes | None] = {}
        waiting = [(b"", self.top)]
        while waiting:
            above, directory = waiting.pop()
            for name, node in overlay.names.get(directory, directory.names).items():
                path = above + name
                if node.is_directory:
                    found[path] = None
                    waiting.append((path + b"/", node))
                elif not name.endswith(b"-shm"):
                    found[path] = bytes(overlay.data.get(node, node.data))
        return found


class _Overlay:
    """What changes on top of what survives for certain."""

    def __init__(self) -> None:
        self.data: dict[Node, bytearray] = {}
        self.names: dict[Node, dict[bytes, Node]] = {}


def _happen(change: Change, overlay: _Overlay | None) -> None:
    if change.node is not None:
        node = change.node
        data = node.data if overlay is None else overlay.data.setdefault(node, bytearray(node.data))
        offset, new = change.data
        if new is None:
            del data[offset:]
            data.extend(bytes(offset - len(data)))
        else:
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(new)] = new
    for directory, name, target in change.names:
        names = directory.names if overlay is None else overlay.names.setdefault(directory, dict(directory.names))
        if target is None:
            names.pop(name, None)
        else:
            names[name] = target


def _load(path: Path) -> Node:
    node = Node(is_directory=path.is_dir())
    if node.is_directory:
        node.names = {os.fsencode(entry.name): _load(entry) for entry in path.iterdir()}
        node.current = dict(node.names)
    else:
        node.data = bytearray(path.read_bytes())
    return node


# --- choosing ---


def choices(
    pending: list[Change], choice: random.Random, *, thorough: bool
) -> Iterator[tuple[str, list[Change]]]:
    """Ways in which the pending changes may survive; each with what it is called.

    Args:
      thorough: Also each change alone, all but each, and parts at random.
    """
    yield "nothing that was not flushed", []
    yield "everything", pending
    yield "names without data", [change for change in pending if change.node is None]
    yield "data without names", [change for change in pending if change.node is not None]
    if thorough:
        for index in range(len(pending)):
            yield f"all but change {index} of {len(pending)}", pending[:index] + pending[index + 1 :]
            yield f"only change {index} of {len(pending)}", pending[index : index + 1]
    for _ in range(5 if thorough else 0):
        chance = choice.choice((0.2, 0.5, 0.8))
        parts = [part for change in pending for part in _pages(change) if choice.random() < chance]
        yield f"parts of the changes, each with a chance of {chance}", parts


def _pages(change: Change) -> Iterator[Change]:
    """A write as several, one for each page."""
    offset, data = change.data
    if change.node is None or data is None:
        yield change
        return
    end = offset + len(data)
    start = offset
    while start < end:
        stop = min(end, start - start % _PAGE + _PAGE)
        yield change._replace(data=(start, data[start - offset : stop - offset]))
        start = stop


def write_out(files: dict[bytes, bytes | None], directory: Path) -> None:
    """Make what survived in an empty directory."""
    for path, data in sorted(files.items()):
        target = os.path.join(os.fsencode(directory), path)
        if data is None:
            os.mkdir(target)
        else:
            with open(target, "wb") as file:
                file.write(data)


PYTHON = sys.executable
