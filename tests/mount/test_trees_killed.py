"""The daemon is killed in the middle of work on trees: there is all of it, or nothing."""

from __future__ import annotations

import os

import pytest

from mount.conftest import MountMaker
from mount.live import SCALE, LiveMount
from mount.snapshots import ask, fill
from mount.test_trees import LIMBO, alike
from mountstore.care.checking import check_store
from mountstore.namespace.inodes import ROOT
from mountstore.store import Store

_FILES = 400 * SCALE

_DYING = """
import os, signal
from mountstore.namespace.commits import Committer
{module}
made, calls = [], 0
initialize = Committer.__init__
def noted(self, **arguments):
    initialize(self, **arguments)
    made.append(self)
Committer.__init__ = noted
usual = {what}
def dying(*arguments, **named):
    global calls
    calls += 1
    result = usual(*arguments, **named)
    if calls == {when}:
        if {commit}:
            made[0].commit()
        os.kill(os.getpid(), signal.SIGKILL)
    return result
{what} = dying
"""


def dying(mount: LiveMount, module: str, what: str, when: int, *, commit: bool = True) -> None:
    """Mount so that the daemon commits and dies when it has done something for the `when`th time."""
    mount.unmount()
    mount.prelude = _DYING.format(module=module, what=what, when=when, commit=commit)
    mount.start()


def come_back(mount: LiveMount) -> None:
    """Mount again, and wait until what lay in limbo is dealt with."""
    mount.kill()
    # What is half done is in order all the same.
    report = check_store(str(mount.store))
    assert not report.error_count, report.findings
    mount.prelude = ""
    mount.start()
    (mount.path / "last").mkdir()
    # After whatever was there before it.
    ask(mount, "rmtree --wait /last")


def require_no_limbo(mount: LiveMount) -> None:
    ask(mount, "sync")
    store = Store.open(str(mount.store), read_only=True)
    try:
        assert store.namespace.find(ROOT, LIMBO.encode()) is None
    finally:
        store._close()


@pytest.fixture
def filled(make_mount: MountMaker) -> LiveMount:
    mount = make_mount()
    (mount.path / "d").mkdir()
    fill(mount.path / "d")
    for i in range(_FILES):
        (mount.path / f"d/deep/{i}").write_bytes(b"%d" % i)
    ask(mount, "snapshot one")
    return mount


@pytest.mark.parametrize(
    ("line", "when"), [("clone /d /new", 1), ("restore /d --snapshot one --to /new", 5)]
)
def test_making(filled: LiveMount, line: str, when: int) -> None:
    before = alike(filled.path / "d")
    dying(filled, "from mountstore.namespace.grafting import Graft", "Graft.add", when)
    with pytest.raises(OSError):
        ask(filled, line)
    come_back(filled)
    assert os.listdir(filled.path) == ["d"]
    assert alike(filled.path / "d") == before
    assert not (filled.path / ".versions/new").exists()
    require_no_limbo(filled)
    ask(filled, line)
    assert alike(filled.path / "new") == before


@pytest.mark.parametrize("done", [False, True])
def test_replacing(filled: LiveMount, done: bool) -> None:
    """There is the old directory or the new one, never none: it is one step of one commit."""
    old = alike(filled.path / "d")
    (filled.path / "d/small").unlink()
    new = alike(filled.path / "d")
    what = "Limbo.reveal" if done else "Limbo.take_out"
    dying(filled, "from mountstore.namespace.limbo import Limbo", what, 1, commit=done)
    with pytest.raises(OSError):
        ask(filled, "restore /d --snapshot one --replace")
    come_back(filled)
    assert alike(filled.path / "d") == (old if done else new)
    require_no_limbo(filled)


@pytest.mark.parametrize("when", [1, _FILES // 2])
def test_removing(filled: LiveMount, when: int) -> None:
    kept = alike(filled.path / "d/deep/er")
    ask(filled, "clone /d/deep/er /er")
    dying(filled, "from mountstore.care.trees import Trees", "Trees._drop", when)
    with pytest.raises(OSError):
        ask(filled, "rmtree --wait /d")
    come_back(filled)
    assert os.listdir(filled.path) == ["er"]
    assert alike(filled.path / "er").keys() == kept.keys()
    require_no_limbo(filled)
    versions = filled.path / ".versions/d/deep"
    assert len([name for name in os.listdir(versions) if name.isdigit()]) == _FILES
    assert (versions / "17/1").read_bytes() == b"17"
