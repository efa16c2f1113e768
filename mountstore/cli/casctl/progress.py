"""A progress bar on a terminal; elsewhere nothing, so that logs stay readable."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress

_BYTES = ("B", "bytes")


class ProgressBar:
    """Shows how far something is, from the first `tell` to the end of the context, which takes it away.

    Args:
      title: What is being done.
      shown: Nothing is shown otherwise, nor if standard error is no terminal.
    """

    def __init__(self, title: str, *, shown: bool = True) -> None:
        self._title = title
        self._shown = shown and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: Any = None
        self._unit: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def rename(self, title: str) -> None:
        """Something else is being done from now on."""
        self._title = title
        self._end()

    def tell(self, done: int, total: int | None, unit: str) -> None:
        """`total` is None as long as nobody knows."""
        if not self._shown:
            return
        if self._bar is None or unit != self._unit:
            self._begin(done, total, unit)
            return
        self._bar.update(self._task, completed=done, total=total)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _begin(self, done: int, total: int | None, unit: str) -> None:
        # Imported here: half of what a quick command takes.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._end()
        amounts: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("{task.fields[unit]}")]
        if unit in _BYTES:
            amounts = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            *amounts,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._title, completed=done, total=total, unit=unit)
        self._unit = unit
        self._bar.start()
