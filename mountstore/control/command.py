"""What a command is: its name, its arguments, and what runs. Help, and the arguments of casctl, come from here.

A family of commands is a module with a tuple `COMMANDS`; all of them are put together in
`mountstore.control.commands`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from mountstore.blobs.digest import SHA256_BYTES, Digest
from mountstore.errors import MisuseError, shown

if TYPE_CHECKING:
    from mountstore.control.context import Context

__all__ = ["Answer", "Argument", "Arguments", "Command", "Kind", "Registry", "Rows"]


class Kind(Enum):
    """What an argument's words mean."""

    FLAG = "flag"
    """An option without a value."""
    TEXT = "text"
    INTEGER = "integer"
    """0 or more."""
    NUMBER = "number"
    """0 or more, perhaps with a fraction."""
    PATH = "path"
    """Of a file or directory in the mount, from its root; bytes."""
    VERSION = "version"
    """A path in the mount that may end in `@N` or `@TIME`; bytes."""
    DIGEST = "digest"
    """The name of a blob, a path that ends in one, or 64 hex characters; text, see `parse_digest`."""
    FILE = "file"
    """An absolute path outside of the mount, on the machine that serves it; text."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument.

    `name` is what help shows for a positional one (`PATH`), or the option (`--dry-run`); a `Kind.FLAG` has to be
    an option. What is neither `required` nor given is None, False, or an empty list if there may be `many`.
    """

    name: str
    help: str
    kind: Kind = Kind.TEXT
    required: bool = False
    many: bool = False
    value: str = ""
    """What help calls the value of an option (`DAYS`)."""
    choices: tuple[str, ...] = ()

    @property
    def is_option(self) -> bool:
        return self.name.startswith("--")

    @property
    def key(self) -> str:
        """What `Arguments` calls it: `dry_run` for `--dry-run`, `path` for `PATH`."""
        return self.name.lstrip("-").replace("-", "_").lower()

    @property
    def usage(self) -> str:
        if self.kind is Kind.FLAG:
            text = self.name
        elif self.is_option:
            text = f"{self.name} {self.value or self.kind.name}"
        else:
            text = self.name
        if not self.required:
            text = f"[{text}]"
        return text + "..." if self.many else text

    def parse(self, word: str) -> object:
        """The value that a word stands for. Raises: MisuseError."""
        if self.choices and word not in self.choices:
            raise MisuseError(f"{self.name}: {word!r} is none of {', '.join(self.choices)}")
        match self.kind:
            case Kind.INTEGER:
                if not (word.isascii() and word.isdigit() and len(word) <= 18):
                    raise MisuseError(f"{self.name}: {word!r} is no whole number")
                return int(word)
            case Kind.NUMBER:
                try:
                    number = float(word)
                except ValueError:
                    number = math.nan
                if not 0 <= number < math.inf:
                    raise MisuseError(f"{self.name}: {word!r} is no number from 0 on")
                return number
            case Kind.PATH | Kind.VERSION:
                return os.fsencode(word)
            case Kind.FILE:
                if not os.path.isabs(word):
                    raise MisuseError(f"{self.name}: {word!r} must be an absolute path")
                return word
            case _:
                return word


def parse_digest(text: str) -> tuple[bytes, int | None]:
    """The SHA-256 that a `Kind.DIGEST` has, and the size in bytes if it has one. Raises: MisuseError."""
    name = text.rpartition("/")[2]
    if len(name) == 2 * SHA256_BYTES and name == name.lower():
        try:
            return bytes.fromhex(name), None
        except ValueError:
            pass
    try:
        digest = Digest.parse(name)
    except MisuseError:
        raise MisuseError(f"{text!r} is neither the name of a blob nor a SHA-256 in hex") from None
    return digest.sha256, digest.size_bytes


def _without_parents(path: bytes) -> bytes:
    if b".." in path.split(b"/"):
        raise MisuseError(f"{shown(path)}: a path must not have '..' in it")
    return path


class Arguments:
    """The values of one call, by `Argument.key`. Asking for one of another kind is a mistake in the command."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values: Final = values

    def __contains__(self, key: str) -> bool:
        """Whether it was given."""
        value = self._values.get(key)
        # Not by comparing: 0 equals False, and is a value.
        return value is not None and value is not False and value != []

    def flag(self, key: str) -> bool:
        value = self._values[key]
        assert isinstance(value, bool)
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self._values[key]
        assert value is None or isinstance(value, str)
        return default if value is None else value

    def texts(self, key: str) -> list[str]:
        return [value for value in self._many(key) if isinstance(value, str)]

    def path(self, key: str) -> bytes:
        """A path in the mount that is required. Raises: MisuseError if it has `..` in it, as the others."""
        value = self._values[key]
        assert isinstance(value, bytes)
        return _without_parents(value)

    def path_or_none(self, key: str) -> bytes | None:
        value = self._values[key]
        assert value is None or isinstance(value, bytes)
        return None if value is None else _without_parents(value)

    def paths(self, key: str) -> list[bytes]:
        return [_without_parents(value) for value in self._many(key) if isinstance(value, bytes)]

    def integer(self, key: str, default: int = 0) -> int:
        value = self._values[key]
        assert value is None or isinstance(value, int)
        return default if value is None else value

    def number(self, key: str, default: float = 0.0) -> float:
        value = self._values[key]
        assert value is None or isinstance(value, float)
        return default if value is None else value

    def _many(self, key: str) -> Sequence[object]:
        value = self._values[key]
        assert isinstance(value, list)
        return cast("list[object]", value)


Answer = Mapping[str, object]
"""The fields of a result, `{}` if there is nothing to say: what JSON can say, and bytes, which name files."""

Rows = list[dict[str, object]]
"""Of a result that is a table: `{"rows": rows}`."""

Run = Callable[["Context", Arguments], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    `name` may be of two words (`gc hold`). `run` is called on the owner's thread; it may be cancelled at any
    `await`, and must leave the store in order then. Whatever it raises of `mountstore.errors` or as an OSError is
    the answer. `long` says that it may take more than a moment: casctl shows its progress.
    """

    name: str
    help: str
    run: Run
    arguments: tuple[Argument, ...] = ()
    long: bool = False
    _by_option: dict[str, Argument] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        options = {argument.name: argument for argument in self.arguments if argument.is_option}
        object.__setattr__(self, "_by_option", options)

    @property
    def usage(self) -> str:
        options = [argument for argument in self.arguments if argument.is_option]
        places = [argument for argument in self.arguments if not argument.is_option]
        return " ".join([self.name, *(argument.usage for argument in (*options, *places))])

    def parse(self, words: Sequence[str]) -> Arguments:
        """The values of the words behind the command's name. Options may stand anywhere before `--`.

        Raises: MisuseError, with the usage.
        """
        try:
            return self._parse(words)
        except MisuseError as exc:
            raise MisuseError(f"{self.name}: {exc} (usage: {self.usage})") from None

    def _parse(self, words: Sequence[str]) -> Arguments:
        values: dict[str, object] = {
            argument.key: [] if argument.many else False if argument.kind is Kind.FLAG else None
            for argument in self.arguments
        }
        given: set[str] = set()
        loose: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                loose += rest
            elif word.startswith("--"):
                self._take_option(word, rest, values, given)
            else:
                loose.append(word)
        places = [argument for argument in self.arguments if not argument.is_option]
        for place, argument in enumerate(places):
            wanted = sum(1 for later in places[place + 1 :] if later.required)
            count = len(loose) - wanted if argument.many else min(1, len(loose) - wanted)
            taken, loose = loose[: max(count, 0)], loose[max(count, 0) :]
            for word in taken:
                _put(values, given, argument, argument.parse(word))
        if loose:
            raise MisuseError(f"{loose[0]!r} is one argument too many")
        for argument in self.arguments:
            if argument.required and argument.name not in given:
                raise MisuseError(f"{argument.name} is missing")
        return Arguments(values)

    def _take_option(
        self, word: str, rest: Iterator[str], values: dict[str, object], given: set[str]
    ) -> None:
        name, equals, value = word.partition("=")
        argument = self._by_option.get(name)
        if argument is None:
            raise MisuseError(f"there is no option {name}")
        if argument.kind is Kind.FLAG:
            if equals:
                raise MisuseError(f"{name} takes no value")
            values[argument.key] = True
            return
        if not equals:
            following = next(rest, None)
            if following is None:
                raise MisuseError(f"{name} needs a value")
            value = following
        _put(values, given, argument, argument.parse(value))

    def describe(self) -> dict[str, object]:
        """What `help` says."""
        return {
            "name": self.name,
            "usage": self.usage,
            "help": self.help,
            "long": self.long,
            "arguments": [
                {
                    "name": argument.name,
                    "kind": argument.kind.value,
                    "help": argument.help,
                    "required": argument.required,
                    "many": argument.many,
                    "value": argument.value,
                    "choices": list(argument.choices),
                }
                for argument in self.arguments
            ],
        }


def _put(values: dict[str, object], given: set[str], argument: Argument, value: object) -> None:
    if argument.many:
        many = values[argument.key]
        assert isinstance(many, list)
        many.append(value)
    elif argument.name in given:
        raise MisuseError(f"{argument.name} is given twice")
    else:
        values[argument.key] = value
    given.add(argument.name)


class Registry:
    """Commands by name."""

    def __init__(self, commands: Iterable[Command]) -> None:
        self._commands: dict[str, Command] = {}
        for command in commands:
            assert command.name not in self._commands, f"two commands {command.name}"
            self._commands[command.name] = command

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands.values())

    def get(self, name: str) -> Command | None:
        return self._commands.get(name)

    def find(self, words: Sequence[str]) -> tuple[Command, Sequence[str]]:
        """The command that words begin with, and the words behind its name. Raises: MisuseError."""
        for count in (2, 1):
            command = self._commands.get(" ".join(words[:count])) if len(words) >= count else None
            if command is not None:
                return command, words[count:]
        raise MisuseError(f"there is no command {words[0]!r}; help lists them")
