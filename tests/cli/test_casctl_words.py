"""casctl's command line: what the records of the commands become, and how a shell completes it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountstore.cli.casctl.arguments import find_command, make_parser, sorted_words, words_of
from mountstore.cli.casctl.completion import script
from mountstore.cli.casctl.exits import Exit, Failure
from mountstore.cli.casctl.main import all_commands, main
from mountstore.cli.casctl.rendering import fields, table, value
from mountstore.cli.sizes import size
from mountstore.control.answers import encode
from mountstore.control.command import Argument, Arguments, Command, Kind
from mountstore.control.context import Context
from mountstore.control.language import parse_line, quote


async def _run(context: Context, arguments: Arguments) -> dict[str, object]:
    return {}


COMMAND = Command(
    "make it",
    "Make something of 100%.",
    _run,
    (
        Argument("--dry-run", "only tell", Kind.FLAG),
        Argument("--days", "how many", Kind.NUMBER, value="DAYS"),
        Argument("--keep", "a list", Kind.FILE, many=True),
        Argument("--how", "in which way", choices=("quickly", "well")),
        Argument("SRC", "from", Kind.PATH, required=True),
        Argument("DEST", "to", Kind.VERSION, many=True),
    ),
)


def line_of(*words: str) -> list[str]:
    got = make_parser(COMMAND).parse_args(sorted_words(words, COMMAND))
    return words_of(COMMAND, got, lambda path: "/inside/" + path)


def test_options_and_places_become_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert line_of("a") == ["make", "it", "--", "/inside/a"]
    words = line_of("a", "--dry-run", "--days", "1.5", "b@2", "--keep=x", "--keep", "/y", "--how=well", "c")
    assert words == [
        *("make", "it", "--dry-run", "--days=1.5", f"--keep={tmp_path}/x", "--keep=/y", "--how=well"),
        *("--", "/inside/a", "/inside/b@2", "/inside/c"),
    ]
    # As the mount reads it.
    parsed = COMMAND.parse(words[2:])
    assert parsed.flag("dry_run") and parsed.number("days") == 1.5 and parsed.text("how") == "well"
    assert (parsed.path("src"), parsed.paths("dest")) == (b"/inside/a", [b"/inside/b@2", b"/inside/c"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a", "--days", "-1"],
        ["a", "--days", "soon"],
        ["a", "--how", "badly"],
        ["a", "--nothing"],
        ["a", "--dry"],
    ],
)
def test_what_does_not_fit_is_refused_with_the_usage(words: list[str]) -> None:
    with pytest.raises(Failure, match=r"usage: casctl make it") as caught:
        line_of(*words)
    assert caught.value.code is Exit.USAGE


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0\n")).map(lambda t: t.encode("utf-8", "ignore").decode())
    )
)
def test_words_arrive_as_they_are(words: list[str]) -> None:
    line = " ".join(map(quote, words)).encode("utf-8", "surrogateescape")
    assert b"\n" not in line
    assert parse_line(line).words == words


def test_commands_of_two_words_and_mistyped_ones() -> None:
    command, rest = find_command(["make", "it", "x"], [COMMAND])
    assert command is COMMAND and rest == ["x"]
    with pytest.raises(Failure, match="did you mean make it"):
        find_command(["makeit"], [COMMAND])


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in all_commands():
        with pytest.raises(SystemExit) as ended:
            main([*command.name.split(), "--help"])
        assert ended.value.code == 0
        assert command.help in " ".join(capsys.readouterr().out.split())
    assert main(["help"]) == 0
    listed = capsys.readouterr().out
    for command in all_commands():
        assert f"  {command.name} " in listed


def test_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == Exit.USAGE
    assert main(["nonsense"]) == Exit.USAGE
    assert main(["info"]) == Exit.USAGE
    assert "usage: casctl info" in capsys.readouterr().err


# --- showing ---


def test_values_show_their_units() -> None:
    assert value("size_bytes", 1536) == "1.5 KiB" and size(5) == "5 B"
    assert value("live", {"blobs": 1200, "bytes": 2048}) == "1,200 blobs, 2.0 KiB"
    assert value("elapsed_s", 0.25) == "0.25 s" and value("x", None) == "-" and value("x", True) == "yes"
    assert value("mtime_ns", 1_700_000_000 * 10**9)[:7] == "2023-11"
    assert value("path", "a\nb\udcff") == "a\\nb\\xff"


def test_tables_line_up() -> None:
    text = table([{"name": "a", "size_bytes": 1}, {"name": "日本", "size_bytes": 2048, "more": "x"}])
    assert text == "NAME     SIZE  MORE\na         1 B\n日本  2.0 KiB  x"
    assert table([]) == ""
    nested = fields({"kept": {"live": {"blobs": 1, "bytes": 5}}, "rows": [{"a": 1}], "n": 3})
    assert nested == "kept:\n  live  1 blobs, 5 B\nrows:\n  A\n  1\nn  3"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_any_answer_can_be_shown(answer: object) -> None:
    fields({"answer": answer, "x_bytes": answer, "x_s": answer})
    encode({"answer": answer})


# --- completion ---


def complete(tmp_path: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    source = tmp_path / "completion"
    source.write_text(script("bash", all_commands()))
    program = (
        f"source {source}; COMP_WORDS=(casctl {shlex.join(words)}); COMP_CWORD={len(words)}; _casctl;"
        " printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-u", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert not done.stderr, done.stderr
    return set(done.stdout.splitlines()) - {""}


def test_bash_completes_commands_options_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a b").touch()
    (tmp_path / "other").mkdir()
    assert {"info", "df", "backup", "jobs"} <= complete(tmp_path, "")
    assert complete(tmp_path, "inf") == {"info"}
    assert complete(tmp_path, "info", "--sh") == {"--sharing"}
    assert complete(tmp_path, "info", "a") == {"a b"}
    assert complete(tmp_path, "--mount", "o") == {"other"}
    assert complete(tmp_path, "--mount", "other", "inf") == {"info"}
    assert complete(tmp_path, "gc", "h") == {"hold"}
    assert complete(tmp_path, "gc", "hold", "--t") == {"--timeout"}
    assert complete(tmp_path, "gc", "--keep", "o") == {"other"}
    assert complete(tmp_path, "completion", "") == {"bash", "zsh", "fish"}
    assert complete(tmp_path, "backup", "--store", "o") == {"other"}
    assert complete(tmp_path, "help", "inf") == {"info"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "completion" in text and "backup" in text


# --- the manual ---


def test_the_manual_has_every_command_and_option() -> None:
    manual = (Path(__file__).parent.parent.parent / "docs" / "casctl.md").read_text()
    sections = dict(part.split("\n", 1) for part in manual.split("\n### ")[1:])
    elsewhere = (Path(__file__).parent.parent.parent / "docs" / "backup.md").read_text()
    assert set(sections) == {command.name for command in all_commands()}, "docs/casctl.md has a section for each"
    for command in all_commands():
        section = sections[command.name] + (elsewhere if command.name == "backup" else "")
        for argument in command.arguments:
            if argument.is_option:
                assert f"{argument.name}" in section, f"{command.name} {argument.name}"
