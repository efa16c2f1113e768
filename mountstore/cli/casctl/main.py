"""casctl: commands for a mounted store, for people and scripts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from mountstore.cli.casctl.arguments import (
    AnyCommand,
    OwnCommand,
    Settings,
    find_command,
    make_main_parser,
    make_parser,
    note_settings,
    sorted_words,
    take_settings,
    words_of,
)
from mountstore.cli.casctl.backup import BACKUP
from mountstore.cli.casctl.client import READABLE, Answer, Control, read_report
from mountstore.cli.casctl.completion import make_completion
from mountstore.cli.casctl.exits import Exit, run_guarded
from mountstore.cli.casctl.places import Resolver
from mountstore.cli.casctl.progress import ProgressBar
from mountstore.cli.casctl.results import render, verdict
from mountstore.cli.casctl.verify import VERIFY
from mountstore.cli.exits import message_of
from mountstore.control.command import Argument, Command
from mountstore.control.commands import REGISTRY
from mountstore.errors import MountstoreError


def all_commands() -> list[AnyCommand]:
    """Those of the mount, and casctl's own; one of its own goes before one of the mount."""
    own: list[AnyCommand] = [_HELP, BACKUP, VERIFY]
    names = {command.name for command in own}
    commands = [*own, *(command for command in REGISTRY if command.name not in names)]
    return [*commands, make_completion(commands)]


def _help(settings: Settings, got: argparse.Namespace) -> int:
    commands = all_commands()
    if not got.command:
        make_main_parser(commands).print_help()
        return Exit.OK
    command, _ = find_command(got.command, commands)
    make_parser(command).print_help()
    return Exit.OK


_HELP = OwnCommand(
    "help", "List the commands, or say what one takes.", _help, (Argument("COMMAND", "this one", many=True),)
)


def _run(argv: Sequence[str]) -> int:
    # File names are bytes: what cannot be shown is escaped, not refused.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # it is a TextIOWrapper
    settings = Settings()
    commands = all_commands()
    words = take_settings(argv, settings, commands)
    command, rest = find_command(words, commands)
    got = make_parser(command).parse_args(sorted_words(rest, command))
    note_settings(got, settings)
    if isinstance(command, OwnCommand):
        return _run_own(command, settings, got)
    return _ask(command, settings, got)


def _run_own(command: OwnCommand, settings: Settings, got: argparse.Namespace) -> int:
    try:
        return command.run(settings, got)
    except (MountstoreError, OSError) as exc:
        if settings.json:
            print(json.dumps({"type": "error", "error": None, "message": message_of(exc)}))
        raise


def _ask(command: Command, settings: Settings, got: argparse.Namespace) -> int:
    """Have the mount run a command, and show its answer."""
    resolver = Resolver(settings.mount)
    words = words_of(command, got, resolver.inside)
    if resolver.mount().read_only and command.name in READABLE:
        result = read_report(resolver.mount(), command.name)
        if settings.json:
            print(json.dumps(result))
        return _show(command, settings, got, result)
    with Control(resolver.mount()) as control, ProgressBar(command.name, shown=not settings.quiet) as bar:

        def listen(answer: Answer, line: str) -> None:
            if settings.json:
                print(line, flush=True)
            elif answer.get("type") == "progress":
                bar.tell(answer["done"], answer["total"], answer["unit"])

        result = control.run(words, job=command.long, listener=listen)
    return _show(command, settings, got, result)


def _show(command: Command, settings: Settings, got: argparse.Namespace, result: Answer) -> int:
    if not settings.json and not settings.quiet:
        text = render(command.name, result, got)
        if text:
            print(text)
    return verdict(command.name, result)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_guarded(lambda: _run(sys.argv[1:] if argv is None else argv))
