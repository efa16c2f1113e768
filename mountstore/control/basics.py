"""Commands about commands: help, jobs, cancel."""

from __future__ import annotations

from mountstore.control.command import Answer, Argument, Arguments, Command, Kind, Rows
from mountstore.control.context import Context
from mountstore.errors import AbsentError


async def _help(context: Context, arguments: Arguments) -> Answer:
    wanted = " ".join(arguments.texts("command"))
    commands = [
        command
        for command in context.registry
        if not wanted or command.name == wanted or command.name.startswith(wanted + " ")
    ]
    if not commands:
        raise AbsentError(f"there is no command {wanted!r}; help lists them")
    rows: Rows = [command.describe() for command in sorted(commands, key=lambda command: command.name)]
    return {"rows": rows}


async def _jobs(context: Context, arguments: Arguments) -> Answer:
    if "id" in arguments:
        return {"rows": [context.jobs.get(arguments.integer("id")).describe()]}
    return {"rows": [job.describe() for job in context.jobs.all() if job is not context.job]}


async def _cancel(context: Context, arguments: Arguments) -> Answer:
    job = context.jobs.get(arguments.integer("id"))
    if job.ended_s is not None:
        raise AbsentError(f"job {job.number} has ended: {job.state.value}")
    job.cancel()
    return {"job": job.number}


COMMANDS = (
    Command(
        "help",
        "List the commands, or say what one takes.",
        _help,
        (Argument("COMMAND", "only this one", many=True),),
    ),
    Command(
        "jobs",
        "List what runs, and background jobs that ended lately.",
        _jobs,
        (Argument("ID", "only this one", Kind.INTEGER),),
    ),
    Command(
        "cancel",
        "Have a job end as soon as it can; what it did so far stays.",
        _cancel,
        (Argument("ID", "its number", Kind.INTEGER, required=True),),
    ),
)
