"""mount(8), umount(8) and mkfs(8) with the links that scripts/install-helpers makes.

Everything happens in a mount namespace of its own, in which /sbin and /etc/fstab are private copies and other
stores are not mounted: the machine the tests run on is left as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.programs import BIN
from mountstore.fuse.mounts import mount_at

pytestmark = pytest.mark.mount

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"

PREPARE = """
set -euo pipefail
cd "$T"
# A copy of somebody else's mount would keep it alive.
awk '$3 == "fuse.cas" { print $2 }' /proc/self/mounts | while read -r place; do
    umount -i -l "$(printf '%b' "$place")"
done
sbin=$(realpath /sbin)
mkdir -p real-sbin
mount --bind "$sbin" real-sbin
mount -t tmpfs none "$sbin"
ln -s "$T"/real-sbin/* "$sbin"
rm -f "$sbin"/*.cas  # this machine's own links
touch fstab
mount --bind fstab /etc/fstab
"$SCRIPTS/install-helpers" --from "$BIN" --to "$sbin" 2>links.txt
mkdir -p mnt
ours() { awk '$3 == "fuse.cas" { print $1, $2 }' /proc/self/mounts; }
fail() { echo "FAILED: $*"; exit 1; }
"""


# Where the root directory is no mount point (chroot), nothing can be said about how mounts in it spread: it is
# mounted once more, and the script runs in that.
IN_CHROOT = """
mkdir "$T/root"
mount --rbind / "$T/root"
mount --make-rslave "$T/root"
exec chroot "$T/root" bash -c "$1"
"""


def run(tmp_path: Path, script: str) -> str:
    command = ["unshare", "--mount", "--propagation", "slave", "bash", "-c", PREPARE + script]
    if mount_at("/") is None:
        command[3:] = ["unchanged", "bash", "-ec", IN_CHROOT, "bash", PREPARE + script]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "T": str(tmp_path), "BIN": str(BIN), "SCRIPTS": str(SCRIPTS)},
        )
    finally:
        if os.path.ismount(tmp_path / "root"):
            # What the chroot lies on passes mounts on.
            subprocess.run(["umount", "--recursive", "--lazy", tmp_path / "root"], check=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("filesystem_type", ["cas", "fuse.cas"])
def test_mount_and_umount(tmp_path: Path, filesystem_type: str) -> None:
    said = run(
        tmp_path,
        f"""
mount -t {filesystem_type} -o "log=$T/log,nofail,_netdev,uhelper=cas,noatime,x-foo=bar" "$T/data" "$T/mnt"
ours
echo hello >mnt/x
umount "$T/mnt"
# The umount was ours: nobody holds the lock any more.
flock --nonblock --exclusive data/lock echo free
""",
    )
    assert said == f"{tmp_path}/data {tmp_path}/mnt\nfree\n"


def test_fake_mounts_nothing_and_returns(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
mount -f -v -t cas "$T/data" "$T/mnt"
ours
[ ! -e data ] || fail "a store was made"
if mount -f -t cas "$T/data" "$T/none"; then fail "not checked"; fi
""",
    )
    assert "fuse.cas" not in said


def test_exit_codes_pass_through(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
touch file
mount -t cas "$T/data" "$T/file" || echo "code $?"
mount -t cas -o frobnicate "$T/data" "$T/mnt" || echo "code $?"
mount -s -t cas -o "frobnicate,log=$T/log" "$T/data" "$T/mnt" && echo "code $?"
mount -t cas "$T/data" "$T/mnt" || echo "code $?"
exec 9>mnt/held
umount "$T/mnt" || echo "code $?"
exec 9>&-
mount -o remount,ro "$T/mnt" || echo "code $?"
umount "$T/mnt"
""",
    )
    assert said.splitlines() == ["code 32", "code 1", "code 0", "code 32", "code 32", "code 1"]


def test_fstab_lines_with_odd_paths_and_options(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        r"""
mkdir "with space"
cat >fstab <<FSTAB
$T/a,\040b  $T/with\040space  cas       rw,nofail,noauto,x-systemd.requires-mounts-for=/data,log=$T/log 0 0
$T/c        $T/mnt            fuse.cas  ro,noauto,noexec,log=$T/log                                     0 0
FSTAB
mkfs -t cas "$T/c" >mkfs.txt
mount "$T/with space"
mount "$T/mnt"
ours
grep -c " ro,.*noexec" /proc/self/mounts
umount "$T/with space" "$T/mnt"
ours
""",
    )
    assert said.splitlines()[0] == f"{tmp_path}/a,\\040b {tmp_path}/with\\040space"
    assert said.splitlines()[1] == f"{tmp_path}/c {tmp_path}/mnt"
    assert len(said.splitlines()) == 3


def test_mkfs_finds_its_helper(tmp_path: Path) -> None:
    assert "made a store" in run(tmp_path, 'mkfs -t cas "$T/data"')


def test_the_links_are_made_once_kept_and_removed(tmp_path: Path) -> None:
    to = tmp_path / "sbin"
    to.mkdir()
    script = SCRIPTS / "install-helpers"

    def helpers(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, "--from", BIN, "--to", to, *arguments], capture_output=True, text=True, check=False
        )

    assert helpers().returncode == 0
    names = {"mount.cas", "mount.fuse.cas", "umount.cas", "umount.fuse.cas", "mkfs.cas"}
    assert names <= {path.name for path in to.iterdir()}
    assert helpers().stderr == ""
    (to / "mount.cas").unlink()
    (to / "mount.cas").write_text("somebody else's")
    done = helpers()
    assert done.returncode == 1
    assert "not a link" in done.stderr
    assert helpers("--remove").returncode == 0
    assert [path.name for path in to.iterdir()] == ["mount.cas"]
    assert helpers("--nonsense").returncode == 1
    assert "Usage" in helpers("--help").stdout


def test_mount_all_leaves_alone_what_is_mounted(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
echo "$T/data $T/mnt cas nofail,uhelper=cas,log=$T/log 0 0" >fstab
mount -a
mount -a
ours
umount "$T/mnt"
ours
flock --nonblock --exclusive data/lock echo free
""",
    )
    assert said == f"{tmp_path}/data {tmp_path}/mnt\nfree\n"


def test_an_automount_is_covered_while_somebody_waits_for_it(tmp_path: Path) -> None:
    automounter = Path(__file__).parent / "automounter.py"
    said = run(
        tmp_path,
        f"""
grep -q autofs /proc/filesystems || modprobe autofs4
mount -t cas -o "log=$T/log" "$T/data" "$T/mnt"
touch mnt/seen-by-who-waited
umount "$T/mnt"
'{sys.executable}' '{automounter}' "$T/mnt" mount -t cas -o "log=$T/log" "$T/data" "$T/mnt"
umount "$T/mnt"
umount "$T/mnt"
""",
    )
    assert said == "seen-by-who-waited\n"
