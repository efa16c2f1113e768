"""Completion of casctl's command line, as a script for bash, zsh or fish.

The script has the names of all commands and options in it, so that a Tab starts no program; paths are completed by
the shell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from mountstore.cli.casctl.arguments import AnyCommand, OwnCommand, Settings
from mountstore.cli.casctl.exits import PROGRAM, Exit
from mountstore.control.command import Argument, Kind

_SETTINGS = ("--mount", "--json", "--quiet", "--help")

_FILES = (Kind.PATH, Kind.VERSION, Kind.FILE)

_BASH = """\
# bash completion of {program}
# put it into /etc/bash_completion.d/{program}, or: source <({program} completion bash)
_{program}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command= i options= words= files=
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            --mount) i=$((i + 1)) ;;
            -*) ;;
            *) command=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    if [[ $before == --mount ]]; then
        files=1
    elif [[ -z $command ]]; then
        words={names}
        options={settings}
    else
        case "$command ${{COMP_WORDS[i+1]-}}" in
{two}
        esac
        [[ -n $options ]] || case $command in
{one}
        esac
{values}
    fi
    if [[ $word == -* ]]; then
        words=$options files=
    fi
    if [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    fi
    if [[ -n $files ]]; then
        compopt -o filenames 2>/dev/null
        local found
        while IFS= read -r found; do COMPREPLY+=("$found"); done < <(compgen -f -- "$word")
    fi
}}
complete -F _{program} {program}
"""

_ZSH = """\
# zsh completion of {program}; put into ~/.zshrc: source <({program} completion zsh)
autoload -U +X compinit && compinit -u
autoload -U +X bashcompinit && bashcompinit
"""


def script(shell: str, commands: Iterable[AnyCommand]) -> str:
    """The completion script of a shell: bash, zsh or fish."""
    commands = sorted(commands, key=lambda command: command.name)
    if shell == "fish":
        return _fish(commands)
    text = _bash(commands)
    return _ZSH.format(program=PROGRAM) + text if shell == "zsh" else text


def _options(command: AnyCommand) -> list[str]:
    return [argument.name for argument in command.arguments if argument.is_option]


def _takes_files(arguments: Iterable[Argument]) -> bool:
    return any(not argument.is_option and argument.kind in _FILES for argument in arguments)


def _choices(command: AnyCommand, commands: list[AnyCommand]) -> list[str]:
    """Words that may stand behind a command: its second word, or what its arguments may be."""
    words = [other.name.split()[1] for other in commands if other.name.startswith(command.name + " ")]
    for argument in command.arguments:
        if not argument.is_option:
            words += argument.choices
    if command.name == "help":
        words += _first_words(commands)
    return words


def _first_words(commands: Iterable[AnyCommand]) -> list[str]:
    return sorted({command.name.split()[0] for command in commands})


def _bash(commands: list[AnyCommand]) -> str:
    one: list[str] = []
    two: list[str] = []
    values: list[str] = []
    for command in commands:
        body = f"options={_quoted([*_options(command), *_SETTINGS])}"
        words = _choices(command, commands)
        if words:
            body += f" words={_quoted(words)}"
        if _takes_files(command.arguments):
            body += " files=1"
        pattern = f'"{command.name}"' if " " in command.name else command.name
        (two if " " in command.name else one).append(f"            {pattern}) {body} ;;")
        for argument in command.arguments:
            if argument.is_option and argument.kind in _FILES:
                values.append(
                    f"        [[ $command == {command.name} && $before == {argument.name} ]] && words= files=1"
                )
            elif argument.is_option and argument.choices:
                values.append(
                    f"        [[ $command == {command.name} && $before == {argument.name} ]]"
                    f" && words={_quoted(argument.choices)} files="
                )
    return _BASH.format(
        program=PROGRAM,
        names=_quoted(_first_words(commands)),
        settings=_quoted([*_SETTINGS, "--version"]),
        one="\n".join(one),
        two="\n".join(two) or '            "") ;;',
        values="\n".join(values),
    )


def _quoted(words: Iterable[str]) -> str:
    return '"' + " ".join(words) + '"'


def _fish(commands: list[AnyCommand]) -> str:
    names = " ".join(_first_words(commands))
    lines = [
        f"# fish completion for {PROGRAM}; put it into ~/.config/fish/completions/{PROGRAM}.fish",
        f"complete -c {PROGRAM} -f",
        f"complete -c {PROGRAM} -l mount -r -F -d {_fish_text('a directory in the mount that is meant')}",
        f"complete -c {PROGRAM} -l json -d {_fish_text('print the answers as JSON lines')}",
        f"complete -c {PROGRAM} -s q -l quiet -d {_fish_text('only errors')}",
    ]
    for command in commands:
        first, _, second = command.name.partition(" ")
        if second:
            where = f"__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {second}"
            lines.append(f"complete -c {PROGRAM} -n '{where}' -a {second} -d {_fish_text(command.help)}")
            seen = f"__fish_seen_subcommand_from {first}; and __fish_seen_subcommand_from {second}"
        else:
            where = f"not __fish_seen_subcommand_from {names}"
            lines.append(f"complete -c {PROGRAM} -n '{where}' -a {first} -d {_fish_text(command.help)}")
            seen = f"__fish_seen_subcommand_from {first}"
        if _takes_files(command.arguments):
            lines.append(f"complete -c {PROGRAM} -n '{seen}' -F")
        for argument in command.arguments:
            if argument.is_option:
                value = "" if argument.kind is Kind.FLAG else " -r -F" if argument.kind in _FILES else " -x"
                option = f"-l {argument.name[2:]}{value} -d {_fish_text(argument.help)}"
                lines.append(f"complete -c {PROGRAM} -n '{seen}' {option}")
            elif argument.choices:
                lines.append(f"complete -c {PROGRAM} -n '{seen}' -a {_fish_text(' '.join(argument.choices))}")
    return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def make_completion(commands: Iterable[AnyCommand]) -> OwnCommand:
    """The command that prints the script."""

    def run(settings: Settings, got: argparse.Namespace) -> int:
        print(script(got.shell, [*commands, own]), end="")
        return Exit.OK

    own = OwnCommand(
        "completion",
        "Print a script that has a shell complete the command line.",
        run,
        (Argument("SHELL", "which shell", required=True, choices=("bash", "zsh", "fish")),),
        details=f"for bash: source <({PROGRAM} completion bash)",
    )
    return own
