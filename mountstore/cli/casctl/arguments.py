"""The command line, made from the records of the commands: those of the mount, and casctl's own.

What a command takes is written down once, in `mountstore.control.command.Command`; here it becomes an argparse
parser, and its values the words of a line for the control file.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from mountstore import __version__
from mountstore.cli.casctl.exits import PROGRAM, Exit, Failure
from mountstore.cli.casctl.places import MOUNT_VARIABLE
from mountstore.control.command import Argument, Command, Kind
from mountstore.errors import MisuseError

DESCRIPTION = "Look after a mounted store: garbage, versions, snapshots, space, backups."

EPILOG = f"""\
Which mount is meant follows from the paths; without paths from --mount, ${MOUNT_VARIABLE}, the current directory,
or there being one mount only. COMMAND --help tells about a command, docs/casctl.md about all.

exit codes: 0 done; 1 failed, or damage found; 2 wrong usage; 3 no mount; 4 a bug in casctl; 5 not permitted;
130 interrupted
"""


@dataclass(slots=True)
class Settings:
    """What may stand before a command or among its arguments."""

    mount: str | None = None
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class OwnCommand:
    """A command that casctl does itself; `run` returns the exit code."""

    name: str
    help: str
    run: Callable[[Settings, argparse.Namespace], int]
    arguments: tuple[Argument, ...] = ()
    details: str = ""


AnyCommand = Command | OwnCommand


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise Failure(Exit.USAGE, f"{message} (usage: {usage})")


def add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--mount", metavar="DIR", default=argparse.SUPPRESS, help="a directory in the mount that is meant"
    )
    group.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the answers as they come: JSON lines",
    )
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=argparse.SUPPRESS,
        help="no progress, no result, only errors",
    )


def make_main_parser(commands: Sequence[AnyCommand]) -> argparse.ArgumentParser:
    """The parser of what stands before the command; the rest are its `words`."""
    parser = _Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        usage=f"{PROGRAM} [--mount DIR] [--json] [-q] COMMAND [ARGUMENT]...",
        epilog=f"commands:\n{_list(commands)}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    add_settings(parser)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def take_settings(words: Sequence[str], settings: Settings, commands: Sequence[AnyCommand]) -> list[str]:
    """Take the settings that stand before the command; returns the rest.

    Raises:
      Failure: Wrong usage.
      SystemExit: Help or the version was asked for, and is printed.
    """
    parser = make_main_parser(commands)
    got = parser.parse_args(list(words))
    note_settings(got, settings)
    rest: list[str] = got.words
    if not rest:
        parser.error("which command?")
    return rest


def note_settings(got: argparse.Namespace, settings: Settings) -> None:
    settings.mount = getattr(got, "mount", settings.mount)
    settings.json = getattr(got, "json", settings.json)
    settings.quiet = getattr(got, "quiet", settings.quiet)


def _list(commands: Iterable[AnyCommand]) -> str:
    """The commands, one a line."""
    rows = sorted((command.name, command.help) for command in commands)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)


def find_command(words: Sequence[str], commands: Sequence[AnyCommand]) -> tuple[AnyCommand, list[str]]:
    """The command that words begin with, and the words behind its name, which may be two words.

    Raises: Failure
    """
    by_name = {command.name: command for command in commands}
    for count in (2, 1):
        command = by_name.get(" ".join(words[:count])) if len(words) >= count else None
        if command is not None:
            return command, list(words[count:])
    import difflib

    close = difflib.get_close_matches(words[0], by_name, 1)
    hint = f"; did you mean {close[0]}?" if close else f"; {PROGRAM} --help lists them"
    raise Failure(Exit.USAGE, f"there is no command {words[0]!r}{hint}")


def make_parser(command: AnyCommand) -> argparse.ArgumentParser:
    """The parser of one command's arguments."""
    details = command.details if isinstance(command, OwnCommand) else ""
    parser = _Parser(
        prog=f"{PROGRAM} {command.name}",
        description=command.help,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument in command.arguments:
        _add(parser, argument)
    add_settings(parser)
    return parser


def sorted_words(words: Sequence[str], command: AnyCommand) -> list[str]:
    """The words with all options first, then `--`: argparse does not take options among places reliably."""
    valued = {f"--{name}" for name in ("mount",)}
    valued |= {argument.name for argument in command.arguments if argument.kind is not Kind.FLAG}
    options: list[str] = []
    places: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            places += rest
        elif word.startswith("-") and word != "-":
            options.append(word)
            if word in valued:
                options += [following for following in (next(rest, None),) if following is not None]
        else:
            places.append(word)
    return [*options, "--", *places] if places else options


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    # argparse takes a % in a help text for a format.
    text = argument.help.replace("%", "%%")
    if argument.kind is Kind.FLAG:
        parser.add_argument(argument.name, action="store_true", dest=argument.key, help=text)
        return
    choices = argument.choices or None
    if argument.is_option:
        parser.add_argument(
            argument.name,
            action="append" if argument.many else "store",
            dest=argument.key,
            required=argument.required,
            metavar=argument.value or argument.kind.name,
            choices=choices,
            type=_Checked(argument),
            help=text,
        )
        return
    nargs = {(True, True): "+", (True, False): "*", (False, True): None, (False, False): "?"}[
        argument.many, argument.required
    ]
    parser.add_argument(argument.key, nargs=nargs, metavar=argument.name, type=_Checked(argument), help=text)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A word, if the command's record accepts it."""

    argument: Argument
    __name__: str = field(init=False, default="value")

    def __call__(self, word: str) -> str:
        if self.argument.kind is Kind.FILE:
            word = os.path.abspath(word)
        try:
            self.argument.parse(word)
        except MisuseError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc
        return word


def words_of(command: Command, got: argparse.Namespace, inside: Callable[[str], str]) -> list[str]:
    """The line for the control file, in words.

    Args:
      inside: Turns a path of the user into one in the mount.
    """
    words = command.name.split()
    places: list[str] = []
    for argument in command.arguments:
        value = getattr(got, argument.key)
        if value is None or value is False:
            continue
        if argument.kind is Kind.FLAG:
            words.append(argument.name)
            continue
        for text in value if argument.many else [value]:
            if argument.kind in (Kind.PATH, Kind.VERSION):
                text = inside(text)
            if argument.is_option:
                words.append(f"{argument.name}={text}")
            else:
                places.append(text)
    # Whatever follows is no option, whatever it looks like.
    return [*words, "--", *places] if places else words
