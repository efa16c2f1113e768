"""The language of the control file."""

from __future__ import annotations

import os
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountstore.control.command import Answer, Argument, Arguments, Command, Kind, parse_digest
from mountstore.control.context import Context
from mountstore.control.language import LINE_MAX_BYTES, LineBuffer, parse_line, quote
from mountstore.errors import MisuseError

TEXT = st.binary(min_size=0, max_size=40).filter(lambda data: b"\0" not in data).map(os.fsdecode)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  \t ", []),
        ("gc --dry-run", ["gc", "--dry-run"]),
        ("a 'b c' d", ["a", "b c", "d"]),
        ('a "b \\" \\\\ \\x" \'\'', ["a", 'b " \\ \\x', ""]),
        ("a\\ b c\\'", ["a b", "c'"]),
        ("a'b'\"c\"d", ["abcd"]),
        ("$'a\\nb\\x41\\101\\\\\\''", ["a\nbAA\\'"]),
        ("*.jpg $HOME; | > <", ["*.jpg", "$HOME;", "|", ">", "<"]),
        ("a # b", ["a"]),
        ("a#b", ["a#b"]),
        ("a '#b'", ["a", "#b"]),
        ("a b&c '&'", ["a", "b&c", "&"]),
        ("a\r", ["a"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert parse_line(line.encode()) == (words, False)


@pytest.mark.parametrize("line", ["gc &", "gc&", "gc & "])
def test_background(line: str) -> None:
    assert parse_line(line.encode()) == (["gc"], True)


@pytest.mark.parametrize(
    "line", ["'a", '"a', "$'a", "a\\", "$'\\", "a & b", "a & &", "&", "\0", "$'\\0'", "$'\\777'"])
def test_what_is_no_line(line: str) -> None:
    with pytest.raises(MisuseError):
        parse_line(line.encode())


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_quoted_words_come_back(words: list[str]) -> None:
    line = " ".join(map(quote, words)).encode("ascii" if all(map(str.isascii, words)) else "utf-8")
    assert b"\n" not in line
    assert parse_line(line) == (words, False)


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0\n"), max_size=20), min_size=1))
def test_words_that_a_shell_would_quote_are_read(words: list[str]) -> None:
    assert parse_line(shlex.join(words).encode()) == (words, False)


@given(st.binary(max_size=100))
def test_any_line_is_taken_apart_or_refused(line: bytes) -> None:
    try:
        parse_line(line)
    except MisuseError:
        pass


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_lines_are_the_same_however_they_come(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    buffer = LineBuffer()
    lines = [line for part in parts for line in buffer.feed(part)]
    assert b"\n".join([*lines, buffer.unfinished]) == whole


@pytest.mark.parametrize("part", [1, 1000, LINE_MAX_BYTES, 1 << 20])
def test_a_long_line_is_passed_over(part: int) -> None:
    data = b"x" * (LINE_MAX_BYTES + 5) + b"\n"
    buffer = LineBuffer()
    refused = 0
    for begin in range(0, len(data), part if part > 1 else 101):
        try:
            assert not list(buffer.feed(data[begin : begin + (part if part > 1 else 101)]))
        except MisuseError:
            refused += 1
    assert refused >= 1
    assert list(buffer.feed(b"next\n")) == [b"next"]


def test_the_rest_of_a_long_line_is_no_command() -> None:
    buffer = LineBuffer()
    with pytest.raises(MisuseError):
        list(buffer.feed(b"x" * (LINE_MAX_BYTES + 1)))
    with pytest.raises(MisuseError):
        list(buffer.feed(b"gc"))
    with pytest.raises(MisuseError):
        list(buffer.feed(b" --purge\ngc --purge\n"))
    assert list(buffer.feed(b"next\n")) == [b"next"]


async def _nothing(context: Context, arguments: Arguments) -> Answer:
    return {}


COPY = Command(
    "copy",
    "",
    _nothing,
    (
        Argument("SRC", "", Kind.VERSION, required=True, many=True),
        Argument("DEST", "", Kind.PATH, required=True),
        Argument("--fill", "", Kind.FLAG),
        Argument("--quality", "", Kind.INTEGER),
        Argument("--days", "", Kind.NUMBER, value="DAYS"),
        Argument("--keep", "", Kind.FILE, many=True),
        Argument("--as", "", choices=("a", "b")),
    ),
)


def test_arguments() -> None:
    words = ["a@1", "--fill", "--keep", "/x", "b", "--quality=3", "--keep=/y", "c", "--as", "b", "--days", ".5"]
    arguments = COPY.parse(words)
    assert arguments.paths("src") == [b"a@1", b"b"]
    assert arguments.path("dest") == b"c"
    assert arguments.flag("fill")
    assert arguments.integer("quality") == 3
    assert arguments.number("days") == 0.5
    assert arguments.texts("keep") == ["/x", "/y"]
    assert arguments.text("as") == "b"
    assert "quality" in arguments
    none = COPY.parse(["a", "b", "--quality", "0", "--days", "0"])
    assert "quality" in none
    assert "days" in none
    assert "fill" not in none
    few = COPY.parse(["a", "--", "--fill"])
    assert few.path("dest") == b"--fill"
    assert not few.flag("fill")
    assert few.integer("quality", 80) == 80
    assert "keep" not in few
    assert COPY.usage == (
        "copy [--fill] [--quality INTEGER] [--days DAYS] [--keep FILE]... [--as TEXT] SRC... DEST"
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a"],
        ["a", "b", "--fill=1"],
        ["a", "b", "--quality"],
        ["a", "b", "--quality", "-1"],
        ["a", "b", "--quality", "²"],
        ["a", "b", "--quality", "1", "--quality", "1"],
        ["a", "b", "--days", "nan"],
        ["a", "b", "--days", "inf"],
        ["a", "b", "--days", "-1"],
        ["a", "b", "--keep", "relative"],
        ["a", "b", "--as", "c"],
        ["a", "b", "--qual", "1"],
    ],
)
def test_wrong_arguments(words: list[str]) -> None:
    with pytest.raises(MisuseError, match=r"usage: copy"):
        COPY.parse(words)


def test_digests() -> None:
    sha256 = "ab" * 32
    assert parse_digest(sha256) == (bytes.fromhex(sha256), None)
    assert parse_digest(f"a/b/{sha256}_1f") == (bytes.fromhex(sha256), 31)
    for wrong in ("", "x" * 64, sha256.upper(), sha256 + "_", sha256 + "_01", sha256[1:]):
        with pytest.raises(MisuseError):
            parse_digest(wrong)
