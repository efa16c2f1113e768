"""Ordinary programs at work in a mount; what they made is compared again after a remount."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mount.live import PATIENCE_S, LiveMount, run
from mount.picture import assert_same, picture

PROJECT = Path(__file__).parent.parent.parent

GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}


def same_after_remount(mount: LiveMount) -> None:
    before = picture(mount.path, exact=True)
    mount.remount()
    assert_same(picture(mount.path, exact=True), before)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Real files: this project's own."""
    sources = tmp_path / "sources"
    shutil.copytree(
        PROJECT,
        sources,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info"),
    )
    return sources


def motley(directory: Path) -> None:
    """A tree with a little of everything that rsync and tar can carry."""
    directory.mkdir()
    (directory / "empty").touch()
    (directory / "text").write_text("some text\n" * 100)
    (directory / "large").write_bytes(random.Random(1).randbytes(9_000_001))
    (directory / "d/e/f").mkdir(parents=True)
    (directory / "d/e/f/deep").write_bytes(b"deep")
    os.link(directory / "text", directory / "d/hard")
    (directory / "soft").symlink_to("d/e/../hard")
    (directory / "dangling").symlink_to("nothing")
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "null", 0o020666, os.makedev(1, 3))
    os.setxattr(directory / "text", "user.note", b"an \0 attribute")
    os.setxattr(directory / "d", "user.directory", b"too")
    with open(directory / "sparse", "wb") as file:
        file.truncate(30_000_000)
        file.seek(10_000_000)
        file.write(b"in the middle")
    (directory / "setuid").write_bytes(b"x")
    os.chown(directory / "setuid", 1000, 1001)
    (directory / "setuid").chmod(0o4711)
    (directory / "d/e").chmod(0o2750)
    for number, name in enumerate([b"b\xc3\xa4r", b"\xff\xfe", b"two words", b"new\nline", b"-x", b"'\"\\"]):
        named = os.fsencode(directory) + b"/" + name
        with open(named, "wb") as file:
            file.write(name * 1000)
        os.utime(named, ns=(number, 1_600_000_000_123_456_789 + number))
    for path in sorted(directory.rglob("*"), reverse=True):
        if not path.is_symlink():
            os.utime(path, ns=(1, 1_500_000_000_111_111_111))


def test_git(mount: LiveMount, sources: Path, tmp_path: Path) -> None:
    origin, clone = mount.path / "origin", mount.path / "clone"
    shutil.copytree(sources, origin, symlinks=True)
    run("git", "init", "-q", "-b", "main", ".", cwd=origin, **GIT)
    run("git", "add", "-A", cwd=origin, **GIT)
    run("git", "commit", "-qm", "first", cwd=origin, **GIT)
    for number in range(5):
        (origin / "README.md").write_text(f"version {number}\n")
        (origin / f"new{number}").write_bytes(os.urandom(10_000))
        run("git", "add", "-A", cwd=origin, **GIT)
        run("git", "commit", "-qm", f"number {number}", cwd=origin, **GIT)
    run("git", "clone", "-q", f"file://{origin}", clone, **GIT)
    run("git", "checkout", "-qb", "other", "HEAD~3", cwd=clone, **GIT)
    (clone / "other").write_text("other\n")
    run("git", "add", "-A", cwd=clone, **GIT)
    run("git", "commit", "-qm", "other", cwd=clone, **GIT)
    run("git", "merge", "-q", "-m", "merged", "main", cwd=clone, **GIT)
    run("git", "gc", "-q", "--aggressive", "--prune=now", cwd=clone, **GIT)
    same_after_remount(mount)
    for repository in (origin, clone):
        assert run("git", "status", "--porcelain", cwd=repository, **GIT) == ""
        run("git", "fsck", "--full", "--strict", cwd=repository, **GIT)
    # Out of the mount again, and the same.
    run("git", "clone", "-q", clone, tmp_path / "out", **GIT)
    assert run("diff", "-r", "--exclude=.git", clone, tmp_path / "out") == ""


_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
who, rounds = sys.argv[2], int(sys.argv[3])
for i in range(rounds):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t (who, i, data) VALUES (?, ?, randomblob(?))", (who, i, i * 37 % 3000))
    db.execute("UPDATE total SET n = n + 1")
    db.execute("COMMIT")
    if i % 50 == 7:
        db.execute("DELETE FROM t WHERE who = ? AND i % 3 = 0", (who,))
    if i % 97 == 5:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_with_two_writers(mount: LiveMount, journal: str) -> None:
    path = mount.path / "db"
    database = sqlite3.connect(path, isolation_level=None)
    assert database.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, who TEXT, i INT, data BLOB)")
    database.execute("CREATE INDEX by_who ON t (who, i)")
    database.execute("CREATE TABLE total (n INT)")
    database.execute("INSERT INTO total VALUES (0)")
    rounds = 300 if journal == "wal" else 60
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, path, who, str(rounds)]) for who in ("one", "two")
    ]
    while any(writer.poll() is None for writer in writers):
        # A reader beside them sees whole transactions.
        database.execute("BEGIN")
        (total,) = database.execute("SELECT n FROM total").fetchone()
        (largest,) = database.execute("SELECT coalesce(max(id), 0) FROM t").fetchone()
        database.execute("COMMIT")
        assert largest <= total
    assert [writer.returncode for writer in writers] == [0, 0]
    assert database.execute("SELECT n FROM total").fetchone() == (2 * rounds,)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = database.execute("SELECT * FROM t ORDER BY id").fetchall()
    database.close()
    same_after_remount(mount)
    assert run("sqlite3", path, "PRAGMA integrity_check") == "ok\n"
    database = sqlite3.connect(path)
    assert database.execute("SELECT * FROM t ORDER BY id").fetchall() == rows
    database.close()


def test_rsync_to_and_from(mount: LiveMount, tmp_path: Path) -> None:
    source, inside, back = tmp_path / "source", mount.path / "inside", tmp_path / "back"
    motley(source)
    shutil.copytree(PROJECT / "mountstore", source / "package")
    run("rsync", "-aHAX", "--sparse", f"{source}/", inside)
    assert run("rsync", "-anciHAX", "--delete", f"{source}/", inside) == ""
    assert_same(picture(inside), picture(source))
    same_after_remount(mount)
    assert run("rsync", "-anciHAX", "--delete", f"{source}/", inside) == ""
    assert run("diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=null", source, inside) == ""
    run("rsync", "-aHAX", f"{inside}/", back)
    assert_same(picture(back), picture(source))
    # A change, and only what changed is sent, both ways of writing it.
    with open(source / "large", "r+b") as file:
        file.seek(4_000_000)
        file.write(b"changed")
    (source / "d/e/f/deep").unlink()
    run("rsync", "-aHAX", "--delete", f"{source}/", inside)
    assert_same(picture(inside), picture(source))
    with open(source / "large", "ab") as file:
        file.write(b"more")
    run("rsync", "-aHAX", "--inplace", "--no-whole-file", f"{source}/", inside)
    assert_same(picture(inside), picture(source))
    same_after_remount(mount)


def test_tar_round_trip(mount: LiveMount, tmp_path: Path) -> None:
    source, inside = tmp_path / "source", mount.path / "inside"
    motley(source)
    inside.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner"]
    run("tar", *options, "-cf", mount.path / "in.tar", "-C", source, ".")
    run("tar", *options, "-xpf", mount.path / "in.tar", "-C", inside)
    assert_same(picture(inside), picture(source))
    run("tar", *options, "-df", mount.path / "in.tar", "-C", inside)
    same_after_remount(mount)
    run("tar", *options, "-cf", tmp_path / "out.tar", "-C", inside, ".")
    (tmp_path / "out").mkdir()
    run("tar", *options, "-xpf", tmp_path / "out.tar", "-C", tmp_path / "out")
    assert_same(picture(tmp_path / "out"), picture(source))


_MAKEFILE = """
OBJECTS = main.o stack.o calc.o
CFLAGS = -O1 -g -Wall -Werror
calc: libcalc.a main.o
\t$(CC) $(CFLAGS) -o $@ main.o -L. -lcalc
libcalc.a: stack.o calc.o
\t$(AR) rcs $@ $^
%.o: %.c calc.h
\t$(CC) $(CFLAGS) -MMD -c -o $@ $<
check: calc
\ttest "$$(./calc 1 2 + 4 x)" = 12
"""
_SOURCES = {
    "Makefile": _MAKEFILE,
    "calc.h": "void push(long v);\nlong pop(void);\nlong calc(int n, char **words);\n",
    "stack.c": '#include "calc.h"\nstatic long s[64]; static int n;\n'
    "void push(long v) { s[n++] = v; }\nlong pop(void) { return s[--n]; }\n",
    "calc.c": '#include <stdlib.h>\n#include "calc.h"\nlong calc(int n, char **w) {\n'
    "  for (int i = 0; i < n; i++) {\n    if (*w[i] == '+') push(pop() + pop());\n"
    "    else if (*w[i] == 'x') push(pop() * pop());\n    else push(atol(w[i]));\n  }\n  return pop();\n}\n",
    "main.c": '#include <stdio.h>\n#include "calc.h"\n'
    'int main(int n, char **w) { printf("%ld\\n", calc(n - 1, w + 1)); return 0; }\n',
}


def test_gcc_and_make(mount: LiveMount) -> None:
    for name, text in _SOURCES.items():
        (mount.path / name).write_text(text)
    run("make", "-j4", "check", cwd=mount.path)
    assert "is up to date" in run("make", "calc", cwd=mount.path)
    same_after_remount(mount)
    assert "is up to date" in run("make", "calc", cwd=mount.path)
    assert run(mount.path / "calc", "6", "7", "x") == "42\n"
    os.utime(mount.path / "stack.c")
    made = run("make", "check", cwd=mount.path)
    assert "stack.c" in made
    assert "main.c" not in made


def test_python_environment(mount: LiveMount) -> None:
    environment = mount.path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    (mount.path / "module.py").write_text("import json\nprint(json.dumps([__file__]))\n")
    python = environment / "bin/python"
    assert run(python, "-c", "import sys; print(sys.prefix)").strip() == str(environment)
    run(python, "-m", "compileall", "-q", mount.path / "module.py")
    same_after_remount(mount)
    assert run(python, "-c", "import module", cwd=mount.path) == f'["{mount.path}/module.py"]\n'


@pytest.mark.parametrize(
    "options", ["set nobackup nowritebackup", "set backup writebackup backupcopy=no", "set backup backupcopy=yes"]
)
def test_vim(mount: LiveMount, options: str) -> None:
    path = mount.path / "text"
    path.write_text("first line\nsecond line\n")
    path.chmod(0o640)
    commands = ["set backupskip=", options, "%s/line/LINE/", "normal Gothird", "wq"]
    run("vim", "-u", "NONE", "-es", *(word for command in commands for word in ("-c", command)), path)
    assert path.read_text() == "first LINE\nsecond LINE\nthird\n"
    assert path.stat().st_mode & 0o777 == 0o640
    names = sorted(os.listdir(mount.path))
    assert names == (["text"] if "nobackup" in options else ["text", "text~"])
    if "text~" in names:
        assert (mount.path / "text~").read_text() == "first line\nsecond line\n"
    same_after_remount(mount)


def test_small_tools(mount: LiveMount, tmp_path: Path) -> None:
    root = mount.path
    (root / "text").write_text("one\ntwo\nthree\n")
    os.link(root / "text", root / "hard")
    run("sed", "-i", "s/two/2/", root / "text")
    assert (root / "text").read_text() == "one\n2\nthree\n"
    assert (root / "hard").read_text() == "one\ntwo\nthree\n"
    run("sed", "-i.bak", "-e", "1d", root / "text")
    assert (root / "text.bak").read_text() == "one\n2\nthree\n"
    run("sh", "-c", "sort -r text > sorted; tee copy < text > /dev/null; cat text >> copy", cwd=root)
    assert (root / "copy").read_text() == "2\nthree\n2\nthree\n"

    zeros = root / "zeros"
    with open(zeros, "wb") as file:
        file.write(bytes(3_000_000) + b"middle" + bytes(3_000_000))
    run("cp", "--sparse=always", zeros, root / "sparse")
    run("cp", "--sparse=never", root / "sparse", tmp_path / "full")
    run("cmp", zeros, root / "sparse")
    run("cmp", zeros, tmp_path / "full")
    run("cp", "-a", "--reflink=auto", root / "text", root / "kept")
    assert (root / "kept").stat().st_mtime_ns == (root / "text").stat().st_mtime_ns
    run("dd", "if=/dev/urandom", f"of={root}/dd", "bs=70000", "count=30", "seek=3", "conv=fsync", "status=none")
    assert (root / "dd").stat().st_size == 33 * 70_000
    run("dd", f"if={root / 'text'}", f"of={root / 'dd'}", "bs=1", "seek=100000", "conv=notrunc", "status=none")
    assert (root / "dd").stat().st_size == 33 * 70_000
    run("install", "-D", "-m", "751", root / "text", root / "deep/er/text")
    assert (root / "deep/er/text").stat().st_mode & 0o7777 == 0o751
    run("mv", root / "deep", tmp_path / "moved-out")
    run("mv", tmp_path / "moved-out", root / "moved-in")
    assert (root / "moved-in/er/text").read_bytes() == (root / "text").read_bytes()
    run("flock", "-x", root / "text", "true")
    same_after_remount(mount)

    found = run("find", root, "-mindepth", "1", "-type", "f", "-newermt", "2000-01-01", "-printf", "%P\n")
    assert set(found.split()) == {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert run("find", root, "-samefile", root / "hard", "-printf", "%P") == "hard"
    total = sum(path.lstat().st_blocks for path in [root, *root.rglob("*")]) * 512
    assert int(run("du", "-s", "-B1", root).split()[0]) == total
    assert int(run("du", "-s", "-b", root / "dd").split()[0]) == 33 * 70_000
    device, kind, *_ = run("df", "--output=source,fstype,target", root).splitlines()[1].split()
    assert (device, kind) == (str(mount.store), "fuse.cas")
    run("rm", "-r", *root.iterdir())
    assert list(root.iterdir()) == []


def test_locks_are_seen_by_other_processes(mount: LiveMount) -> None:
    path = mount.path / "locked"
    path.touch()
    code = (
        "import fcntl, sys\n"
        "f = open(sys.argv[1], 'r+')\n"
        "for lock in (fcntl.flock, fcntl.lockf):\n"
        "    try: lock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except BlockingIOError: print('held')\n"
        "    else: print('free')\n"
    )
    import fcntl

    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(sys.executable, "-c", code, path) == "held\nfree\n"
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        assert run(sys.executable, "-c", code, path) == "free\nheld\n"


def test_a_change_is_noticed_by_inotify(mount: LiveMount) -> None:
    (mount.path / "d").mkdir()
    watcher = subprocess.Popen(
        [sys.executable, "-u", "-c", _WATCH, str(mount.path / "d")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"ready\n"
    (mount.path / "d/new").touch()
    assert watcher.stdout.readline() == b"new\n"
    watcher.communicate(timeout=PATIENCE_S)
    assert watcher.returncode == 0


_WATCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
assert libc.inotify_add_watch(fd, sys.argv[1].encode(), 0x100) > 0  # IN_CREATE
print("ready")
event = os.read(fd, 4096)
print(event[16:].rstrip(b"\\0").decode())
"""
