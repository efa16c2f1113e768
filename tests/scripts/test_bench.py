"""scripts/bench: its arithmetic and tables, and every workload on a plain directory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmark.client import Client
from benchmark.figures import MIB, Sample, Spread, Unit, by_system, quantity, readable, speed_ratio, spread
from benchmark.goals import shortfalls
from benchmark.growth import format_growth, run_growth
from benchmark.large import format_large, run_large
from benchmark.machine import Quiet, file_system_type
from benchmark.operations import format_tables, run_operations, turn
from benchmark.program import Interruptions, chosen_workloads, fresh_disk, parse
from benchmark.report import header, load_json, markdown_table, replace_marked, save_json, write_marked
from benchmark.systems import Disk, System
from benchmark.workloads import WORKLOADS, Counts, Site, Sources, Workload, stage_repository, stage_tree

COUNTS = Counts(
    files=12,
    file_bytes=2048,
    listed=8,
    synced=2,
    stream_bytes=MIB,
    random_bytes=64 * 1024,
    random_reads=5,
    random_writes=5,
    fsync_every=2,
    clients=3,
)

BY_NAME = {workload.name: workload for workload in WORKLOADS}


class CalmMachine(Quiet):
    """Leaves the machine alone, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked: list[str] = []

    def settle(self) -> None:
        self.asked.append("settle")

    def drop_names(self) -> None:
        self.asked.append("names")

    def drop_everything(self) -> None:
        self.asked.append("everything")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(str(tmp_path_factory.mktemp("client")))


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """A small tree, and a repository made from it."""
    tree = tmp_path / "original"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("content\n")
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__" / "left.pyc").write_text("")
    os.symlink("sub/file", tree / "link")
    for command in (
        ["init", "-q"],
        ["add", "sub", "link"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first"],
    ):
        subprocess.run(["git", *command], cwd=tree, check=True)
    stage_tree(str(tree), str(tmp_path / "staged"))
    stage_repository(str(tree), str(tmp_path / "repository.git"))
    return Sources(str(tmp_path / "staged"), str(tmp_path / "repository.git"))


@pytest.fixture
def site(tmp_path: Path, client: Client, sources: Sources) -> Iterator[Site]:
    yield Site(Disk(str(tmp_path / "disk")), 0, COUNTS, sources, client, CalmMachine())


# --- figures ---


def test_a_spread_is_the_median_between_the_quartiles() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(2.0, 3.0, 4.0)
    assert spread([1.0, 2.0]) == Spread(1.25, 1.5, 1.75)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError):
        spread([])


def test_one_wild_round_does_not_move_the_median() -> None:
    assert spread([10.0, 11.0, 12.0, 11.0, 9000.0]).median == 11.0


def test_a_quantity_is_a_rate_or_a_time() -> None:
    assert quantity(Unit.PER_SECOND, 3000, 1.5) == 2000
    assert quantity(Unit.MIB_PER_SECOND, 8 * MIB, 2.0) == 4
    assert quantity(Unit.SECONDS, 1, 0.25) == 0.25


def test_a_ratio_over_one_means_faster_in_every_unit() -> None:
    assert speed_ratio(Unit.PER_SECOND, 300.0, 100.0) == 3.0
    assert speed_ratio(Unit.SECONDS, 0.5, 2.0) == 4.0


def test_samples_are_gathered_by_system() -> None:
    samples = [Sample("create", system, n, 10, 1.0 + n) for system in ("ours", "disk") for n in range(3)]
    assert by_system(Unit.SECONDS, samples) == {"ours": Spread(1.5, 2.0, 2.5), "disk": Spread(1.5, 2.0, 2.5)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12345.0, "12,300"),
        (999.6, "1,000"),
        (123.4, "123"),
        (99.96, "100"),
        (45.67, "45.7"),
        (9.996, "10.0"),
        (1.234, "1.23"),
        (1.0, "1.00"),
        (0.6, "0.600"),
        (0.04567, "0.0457"),
        (0.001, "0.00100"),
    ],
)
def test_figures_have_three_significant_digits(value: float, text: str) -> None:
    assert readable(value) == text


# --- goals ---


def row(**medians: float) -> dict[str, Spread]:
    return {name: Spread(value, value, value) for name, value in medians.items()}


def test_goals_on_any_core_are_the_two_peers_and_twice_s3ql() -> None:
    create = BY_NAME["create"]
    assert shortfalls(create, row(ours=9000, bindfs=8000, gocryptfs=5000, null=90_000), pinned=False) == []
    missed = shortfalls(create, row(ours=1500, bindfs=3000, gocryptfs=1400), pinned=False)
    assert missed == [
        "create+write+close, 2 KB: 0.500 of bindfs, wanted 1",
        "create+write+close, 2 KB: 1.40 of S3QL, wanted 2",
    ]


def test_goals_on_one_core_are_gocryptfs_and_the_null_file_system() -> None:
    mkdir = BY_NAME["mkdir"]
    assert shortfalls(mkdir, row(ours=20_000, bindfs=40_000, gocryptfs=4000, null=30_000), pinned=True) == []
    missed = shortfalls(mkdir, row(ours=10_000, gocryptfs=20_000, null=20_000), pinned=True)
    assert [miss.rpartition(": ")[2] for miss in missed] == [
        "0.500 of gocryptfs, wanted 1",
        "0.500 of null, wanted 0.6",
    ]


def test_a_shorter_time_reaches_a_goal() -> None:
    assert shortfalls(BY_NAME["cp"], row(ours=0.5, bindfs=0.6), pinned=False) == []
    assert len(shortfalls(BY_NAME["cp"], row(ours=0.7, bindfs=0.6), pinned=False)) == 1


# --- tables and documents ---


def test_a_table_is_padded_to_be_read_as_it_is() -> None:
    assert markdown_table(["what", "n"], [["a", "1"], ["longer", "1,000"]]).splitlines() == [
        "| what   |     n |",
        "| ------ | ----: |",
        "| a      |     1 |",
        "| longer | 1,000 |",
    ]


def test_tables_show_medians_ratios_misses_and_quartiles() -> None:
    samples = [Sample("mkdir", "ours", n, 100, elapsed) for n, elapsed in enumerate((0.01, 0.02, 0.04))]
    samples += [Sample("mkdir", "null", n, 100, 0.01) for n in range(3)]
    titles = {"ours": "mountstore", "null": "null"}
    before = [Sample("mkdir", "ours", 0, 100, 0.04)]
    text = format_tables(list(WORKLOADS), titles, samples, COUNTS, pinned=True, before=before)
    table = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1]] for line in table]
    assert cells[0] == ["operation", "unit", "mountstore", "null", "S3QL (1)", "/ null", "/ S3QL", "/ before"]
    assert cells[2] == ["mkdir", "/s", "5,000", "10,000", "3,800", "0.500", "1.32", "2.00"]
    assert cells[-1] == ["mkdir", "/s", "3,750 – 7,500", "10,000 – 10,000"]
    assert "- mkdir: 0.500 of null, wanted 0.6" in text
    assert "not of this run" in text


def test_a_row_without_a_system_stays_empty_there() -> None:
    samples = [Sample("read-remounted", "ours", 0, 100, 0.01)]
    text = format_tables(
        list(WORKLOADS), {"ours": "mountstore", "null": "null"}, samples, COUNTS, pinned=False
    )
    assert "| open+read+close, remounted |   /s |     10,000 |      |" in text
    assert "Every row here reaches its goals." in text


def test_the_marked_part_of_a_document_is_replaced_and_nothing_else() -> None:
    document = "a\n<!-- bench:large begin -->\nold\n<!-- bench:large end -->\nz\n"
    once = replace_marked(document, "large", "new\n")
    assert once == "a\n<!-- bench:large begin -->\nnew\n<!-- bench:large end -->\nz\n"
    assert replace_marked(once, "large", "new") == once


@pytest.mark.parametrize(
    "document", ["", "<!-- bench:large end -->\n<!-- bench:large begin -->", "<!-- bench:large begin -->"]
)
def test_a_document_without_marks_is_refused(document: str, tmp_path: Path) -> None:
    path = tmp_path / "document"
    path.write_text(document)
    with pytest.raises(ValueError, match="bench:large begin"):
        write_marked(str(path), "large", "text")
    assert path.read_text() == document
    assert os.listdir(tmp_path) == ["document"]


def test_the_document_of_the_project_has_all_marks() -> None:
    document = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    for section in ("any-core", "one-core", "large", "growth"):
        assert "text of the test" in replace_marked(document, section, "text of the test")


def test_samples_are_stored_and_loaded(tmp_path: Path) -> None:
    samples = [Sample("create", "ours", 0, 3000, 0.5), Sample("cp", "disk", 1, 1, 0.25)]
    path = str(tmp_path / "raw.json")
    save_json(path, {"date": "2026-01-01"}, "scripts/bench", samples, {"growth": []})
    assert load_json(path) == samples
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not stored by"):
        load_json(str(tmp_path / "other.json"))


def test_the_header_leaves_out_what_is_unknown() -> None:
    assert header({"date": "today", "revision": ""}, "scripts/bench") == "`scripts/bench`\n\ndate: today."


# --- the client ---


def test_contents_depend_on_seed_and_number_only(tmp_path: Path, client: Client) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        assert client("create", str(tmp_path / name), count=3, size=2048, seed=seed).amount == 3
    contents = {
        name: [(tmp_path / name / f"f{n:06d}").read_bytes() for n in range(3)] for name in ("a", "b", "c")
    }
    assert contents["a"] == contents["b"]
    assert len({*contents["a"], *contents["c"]}) == 6
    assert all(len(content) == 2048 for content in contents["a"])


def test_a_stream_is_the_same_whatever_the_calls(tmp_path: Path, client: Client) -> None:
    size = 3 * MIB + 123
    client("seqwrite", str(tmp_path), file="a", size=size, call=4096, seed=7)
    client("seqwrite", str(tmp_path), file="b", size=size, call=MIB, seed=7, fsync_each=1)
    client("seqwrite", str(tmp_path), file="c", size=size, call=131072, seed=7, shift=1)
    content = (tmp_path / "a").read_bytes()
    assert len(content) == size
    assert (tmp_path / "b").read_bytes() == content
    assert (tmp_path / "c").read_bytes() == b"\0" + content
    assert client("seqread", str(tmp_path), file="a", size=size).elapsed_s > 0


def test_no_block_of_a_stream_occurs_twice(tmp_path: Path, client: Client) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        client("seqwrite", str(tmp_path), file=name, size=66 * MIB, seed=seed)
    blocks: set[int] = set()
    for name in ("a", "b"):
        with (tmp_path / name).open("rb") as file:
            blocks.update(hash(block) for block in iter(lambda: file.read(4096), b""))
    assert len(blocks) == 2 * 66 * 256


def test_files_spread_over_directories_are_found_again(tmp_path: Path, client: Client) -> None:
    client("create", str(tmp_path), count=10, per_dir=4, size=10)
    client("create", str(tmp_path), start=10, count=5, per_dir=4, size=10)
    assert sorted(os.listdir(tmp_path)) == ["d000000", "d000001", "d000002", "d000003"]
    assert client("stat", str(tmp_path), count=5, step=3, per_dir=4).amount == 5
    assert client("rename", str(tmp_path), count=15, per_dir=4).amount == 15
    assert client("unlink", str(tmp_path), count=15, per_dir=4, prefix="r").amount == 15


def test_clients_at_once_share_no_content(tmp_path: Path, client: Client) -> None:
    assert client("create", str(tmp_path), count=4, workers=3).amount == 12
    files = list(tmp_path.glob("w?/f*"))
    assert len({file.read_bytes() for file in files}) == len(files) == 12


def test_a_change_is_one_block_in_the_middle(tmp_path: Path, client: Client) -> None:
    client("seqwrite", str(tmp_path), size=MIB, seed=1)
    before = (tmp_path / "stream").read_bytes()
    client("change", str(tmp_path), size=MIB, seed=2)
    after = (tmp_path / "stream").read_bytes()
    differing = {n for n in range(256) if before[n * 4096 :][:4096] != after[n * 4096 :][:4096]}
    assert differing == {128}


@pytest.mark.parametrize(
    ("operation", "values"),
    [("stat", {}), ("nonsense", {}), ("create", {"call": 0}), ("create", {"colour": 1})],
)
def test_a_client_that_fails_is_an_error(
    tmp_path: Path, client: Client, operation: str, values: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        client(operation, str(tmp_path), count=1, **values)
    assert capfd.readouterr().err.startswith(("client: ", "f000000"))


# --- workloads ---


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_workload_runs_by_itself(workload: Workload, site: Site) -> None:
    timing = workload.run(site)
    assert timing.elapsed_s > 0
    assert timing.amount > 0
    assert isinstance(site.quiet, CalmMachine)
    assert "settle" in site.quiet.asked


def test_workloads_that_delete_are_last() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert set(names[-3:]) == {"rm", "unlink", "rmdir"}
    assert len(set(names)) == len(names)


def test_cold_workloads_drop_caches_after_everything_else(site: Site) -> None:
    for name, dropped in (("stat", "names"), ("read-cold", "everything"), ("stream-cold", "everything")):
        BY_NAME[name].run(site)
        assert isinstance(site.quiet, CalmMachine)
        assert site.quiet.asked[-1] == dropped


def test_the_same_contents_again_are_the_same(site: Site) -> None:
    BY_NAME["create"].run(site)
    BY_NAME["create-again"].run(site)
    directories = sorted(Path(site.system.root).glob("r0/*"))
    first, second = ({file.read_bytes() for file in directory.iterdir()} for directory in directories)
    assert first == second


def test_rounds_share_no_contents(site: Site) -> None:
    BY_NAME["create"].run(site)
    BY_NAME["create"].run(dataclasses.replace(site, round=1, kept={}))
    contents = [file.read_bytes() for file in Path(site.system.root).glob("r*/*/*")]
    assert len(set(contents)) == len(contents) == 24


def test_what_is_copied_leaves_out_caches(sources: Sources) -> None:
    assert sorted(os.listdir(sources.tree)) == ["link", "sub"]


def test_systems_take_turns(tmp_path: Path) -> None:
    systems: list[System] = [Disk(str(tmp_path / name)) for name in "abc"]
    orders = [[os.path.basename(system.place) for system in turn(systems, number)] for number in range(6)]
    assert ["".join(order) for order in orders] == ["abc", "bca", "cab", "cba", "acb", "bac"]


def test_a_system_that_forgets_is_spared_the_remount(
    tmp_path: Path, client: Client, sources: Sources
) -> None:
    class Forgetful(Disk):
        name = "null"
        keeps = False

    systems = [Disk(str(tmp_path / "disk")), Forgetful(str(tmp_path / "null"))]
    chosen = [BY_NAME["create"], BY_NAME["read-remounted"]]
    said: list[str] = []
    samples = run_operations(systems, chosen, 2, COUNTS, sources, client, CalmMachine(), said.append)
    assert sorted((sample.workload, sample.system) for sample in samples) == sorted(
        [("create", "disk"), ("create", "null"), ("read-remounted", "disk")] * 2
    )
    assert len(said) == len(samples)


def test_large_and_growth_run_on_a_plain_directory(tmp_path: Path, client: Client) -> None:
    systems = [Disk(str(tmp_path / "disk"))]
    large = run_large(systems, 2, MIB, MIB, MIB, client, CalmMachine(), lambda _: None)
    assert len(large.samples) == 8
    assert large.facts == []
    assert "| sequential read, warm" in format_large({"disk": "ext4"}, large, MIB)
    rows = run_growth(systems, [1000, 2000], 10, client, CalmMachine(), lambda _: None)
    assert [row.files for row in rows] == [1000, 2000]
    assert "| ext4            | 2,000 |" in format_growth({"disk": "ext4"}, rows)


# --- the command line ---


def test_systems_and_workloads_are_chosen_by_name() -> None:
    choices = parse(["--systems", "null,ours", "--workloads=stat,create"])
    assert choices.systems == ["ours", "null"]
    chosen = chosen_workloads(choices.workloads, with_repository=False)
    assert [workload.name for workload in chosen] == ["create", "stat"]
    assert all(not workload.needs_repository for workload in chosen_workloads(None, with_repository=False))


@pytest.mark.parametrize(
    "words", [["--systems", "ours,zfs"], ["--workloads", "fly"], ["--rounds", "0", "--systems=ours"]]
)
def test_what_is_unknown_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_peers_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        parse([])
    assert "not installed: bindfs gocryptfs; --install-peers installs" in capsys.readouterr().err


def test_help_needs_no_setting_up() -> None:
    script = Path(__file__).parents[2] / "scripts" / "bench"
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "read-remounted" in done.stdout
    assert done.stderr == ""


@pytest.mark.mount
def test_a_small_run_leaves_nothing_behind(tmp_path: Path) -> None:
    words = ["--systems=ours,null,disk", "--workloads=create,stat,read-remounted", "--rounds=1", "--quick"]
    document = tmp_path / "document.md"
    document.write_text("<!-- bench:one-core begin -->\n<!-- bench:one-core end -->\n")
    script = Path(__file__).parents[2] / "scripts"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmark",
            *words,
            "--pin",
            f"--work={tmp_path}",
            "--json=raw.json",
            f"--write={document}",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{script.parent}:{script}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in document.read_text()
    assert len(load_json(str(tmp_path / "raw.json"))) == 8
    assert sorted(os.listdir(tmp_path)) == ["document.md", "raw.json"]


def test_a_fresh_disk_is_a_new_ext4_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    with pytest.raises(KeyboardInterrupt), fresh_disk(str(tmp_path), 0.0625, Interruptions()) as work:
        assert file_system_type(work) == "ext4"
        assert os.listdir(work) == ["lost+found"]
        image = os.stat(tmp_path / "disk")
        assert image.st_blocks * 512 >= image.st_size
        raise KeyboardInterrupt
    assert not os.path.ismount(tmp_path / "fresh")
    attached = subprocess.run(["losetup", "--associated", tmp_path / "disk"], capture_output=True, check=True)
    assert not attached.stdout
    with fresh_disk(str(tmp_path), None, Interruptions()) as work:
        assert work == str(tmp_path)
