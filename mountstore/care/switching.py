"""How soon the thread that answers requests gets the interpreter back from a worker that computes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SWITCH_S: Final = 0.0005
"""Ten times less than usual, so that a request that lets go of the interpreter several times is not held up
for that long each time."""

_usual_s: list[float] = []


@contextmanager
def prompt_switching() -> Iterator[None]:
    """The context in which workers compute for long, in any number at once; on the owner's thread."""
    _usual_s.append(sys.getswitchinterval() if not _usual_s else _usual_s[0])
    sys.setswitchinterval(min(_usual_s[0], _SWITCH_S))
    try:
        yield
    finally:
        usual_s = _usual_s.pop()
        if not _usual_s:
            sys.setswitchinterval(usual_s)
