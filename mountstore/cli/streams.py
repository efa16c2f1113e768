"""The standard streams of a program, whatever its caller has left of them."""

from __future__ import annotations

import os
import sys

__all__ = ["open_standard_streams"]


def open_standard_streams() -> None:
    """Have stdin, stdout and stderr lead to /dev/null if the caller closed them (`mount.cas … >&-`).

    Otherwise the next files to be opened get their numbers, and Python has None in their place.
    """
    # The system gives out the lowest number that is free.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
