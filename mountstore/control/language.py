"""The language of the control file: lines, and the words of a line. Pure.

A line ends in a newline. Its words are separated by spaces and tabs, and quoted as for a shell:

    'as it stands'    "with \" and \\"    one\\ word    $'any byte: \\n \\x01 \\\\ \\''

Nothing else that means something to a shell does here (`*`, `$HOME`, `;`, `|`), but for two things: a word that
begins with `#` begins a comment, and `&` as the last word lets the command run as a job.

Words are text: bytes that are no UTF-8 are kept as Python's surrogate escapes, so any file name can be said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from mountstore.errors import MisuseError

LINE_MAX_BYTES: Final = 64 << 10
"""A longer line is refused; sixteen of the longest paths fit."""

_ESCAPE = re.compile(rb"x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.)", re.DOTALL)
_ESCAPED: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./^!<>~-]+")


class Line(NamedTuple):
    """A line taken apart; no words for an empty one."""

    words: list[str]
    background: bool


class LineBuffer:
    """Cuts what is written into lines; what is not ended waits for the rest."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skipping = False

    @property
    def unfinished(self) -> bytes:
        """What was written since the last newline; of a line that was refused, nothing."""
        return bytes(self._rest)

    def drop_rest(self) -> None:
        """Forget what was not ended; the next write begins a line, unless it ends one that was refused."""
        self._rest.clear()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what was written; yields the lines that it ends, without their newlines.

        Raises:
          MisuseError: A line is too long, or `data` begins with more of one that was. Nothing of it is ever
            yielded, nor what follows in `data`: nobody shall take the end of a line for a command.
        """
        if self._skipping:
            self._skipping = b"\n" not in data
            raise MisuseError("this is the rest of a line that was too long; nothing of it was run")
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            line = data[begin:end]
            begin = end + 1
            if self._rest:
                line = bytes(self._rest) + line
                self._rest.clear()
            if len(line) > LINE_MAX_BYTES:
                raise _too_long()
            yield line
        self._rest += data[begin:]
        if len(self._rest) > LINE_MAX_BYTES:
            self._rest.clear()
            self._skipping = True
            raise _too_long()


def _too_long() -> MisuseError:
    return MisuseError(f"a line has more than {LINE_MAX_BYTES} bytes")


def parse_line(line: bytes) -> Line:
    """Take a line apart.

    Raises: MisuseError for a quote that is not closed, or a zero byte.
    """
    if b"\0" in line:
        raise MisuseError("a command has a zero byte; the control file takes lines of text")
    words: list[str] = []
    background = False
    for word, quoted in _split(line):
        if background:
            raise MisuseError("& stands at the end of a command")
        if word == b"&" and not quoted:
            background = True
        else:
            words.append(word.decode("utf-8", "surrogateescape"))
    if background and not words:
        raise MisuseError("& without a command")
    return Line(words, background)


def _split(line: bytes) -> Iterator[tuple[bytes, bool]]:
    """Words, and whether anything of each was quoted."""
    at, length = 0, len(line)
    while True:
        while at < length and line[at] in b" \t\r":
            at += 1
        if at == length or line[at] == ord("#"):
            return
        word = bytearray()
        quoted = False
        while at < length and line[at] not in b" \t\r":
            character = line[at : at + 1]
            if character == b"'":
                end = _closing(line, at, b"'")
                word += line[at + 1 : end]
                at, quoted = end + 1, True
            elif character == b'"':
                at, quoted = _take_double(line, at + 1, word), True
            elif character == b"$" and line[at + 1 : at + 2] == b"'":
                at, quoted = _take_escaped(line, at + 2, word), True
            elif character == b"\\":
                if at + 1 == length:
                    raise MisuseError("a command ends in a backslash")
                word += line[at + 1 : at + 2]
                at, quoted = at + 2, True
            elif character == b"&" and word and line[at + 1 :].strip(b" \t\r") == b"":
                # `gc&`, as a shell takes it.
                break
            else:
                word += character
                at += 1
        yield bytes(word), quoted


def _closing(line: bytes, at: int, quote: bytes) -> int:
    end = line.find(quote, at + 1)
    if end < 0:
        raise MisuseError(f"a quote ({quote.decode()}) is not closed")
    return end


def _take_double(line: bytes, at: int, word: bytearray) -> int:
    while at < len(line):
        character = line[at : at + 1]
        if character == b'"':
            return at + 1
        if character == b"\\" and line[at + 1 : at + 2] in (b"\\", b'"', b"$", b"`"):
            at += 1
            character = line[at : at + 1]
        word += character
        at += 1
    raise MisuseError('a quote (") is not closed')


def _take_escaped(line: bytes, at: int, word: bytearray) -> int:
    while at < len(line):
        character = line[at : at + 1]
        at += 1
        if character == b"'":
            return at
        if character != b"\\":
            word += character
            continue
        match = _ESCAPE.match(line, at)
        if match is None:
            break
        hexadecimal, octal, other = match.groups()
        if other is not None:
            word += _ESCAPED.get(other, other)
        else:
            value = int(hexadecimal, 16) if hexadecimal is not None else int(octal, 8)
            if not 0 < value < 256:
                raise MisuseError(f"\\{match[0].decode()} is no byte that a command may have")
            word.append(value)
        at = match.end()
    raise MisuseError("a quote ($') is not closed")


def quote(word: str) -> str:
    """A word as it is to be written so that it is read as it is."""
    if _PLAIN.fullmatch(word):
        return word
    if word.isprintable() and "'" not in word:
        return f"'{word}'"
    parts = []
    for byte in word.encode("utf-8", "surrogateescape"):
        character = chr(byte)
        if character in "\\'":
            parts.append("\\" + character)
        elif 32 <= byte < 127:
            parts.append(character)
        else:
            parts.append(f"\\x{byte:02x}")
    return "$'" + "".join(parts) + "'"
