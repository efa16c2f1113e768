"""Keep idle cores quick to wake while requests follow each other.

Whoever asks a mount for something waits for the answer, and its core goes idle meanwhile. Waking it costs 25 to
50 us on a virtual machine, where an idle core is handed back to the host, and as much on a machine whose cores
sleep deeply: several times what answering takes. The kernel can be told how long waking may take, by a number
written to /dev/cpu_dma_latency (Documentation/power/pm_qos_interface.rst in its sources). That holds while the
descriptor is open, so it ends with the process, however that ends. It holds for all cores, hence for bursts only.
"""

from __future__ import annotations

import logging
import os
import struct

__all__ = ["QuickWake"]

log = logging.getLogger(__name__)

_DEVICE = "/dev/cpu_dma_latency"
_DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver"

# A guest's idle cores either look for work or are handed back to the host, which only a bound of 0 rules out.
_GUEST_DRIVER = "haltpoll"
_GUEST_US = 0
# Elsewhere this leaves the shallow states (C1 wakes within some 2 us), in which a core costs little.
_MACHINE_US = 10
_NO_BOUND = -1


class QuickWake:
    """The bound on how long an idle core may take to wake; without effect where it may not be set (not root)."""

    def __init__(self) -> None:
        self.held = False
        self._descriptor: int | None = None
        self._bound = b""

    def open(self) -> None:
        """Get ready to hold; a second call changes nothing."""
        if self._descriptor is not None:
            return
        try:
            self._descriptor = os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as exc:
            log.debug("idle cores cannot be kept quick to wake: %s: %s", _DEVICE, exc.strerror)
            return
        self._bound = struct.pack("i", _GUEST_US if _idle_driver() == _GUEST_DRIVER else _MACHINE_US)

    def hold(self) -> None:
        """Have every core wake quickly from now on."""
        if self._descriptor is not None and not self.held:
            self.held = self._write(self._bound)

    def let_go(self) -> None:
        """Let cores sleep as they would."""
        if self._descriptor is not None and self.held:
            self._write(struct.pack("i", _NO_BOUND))
            self.held = False

    def close(self) -> None:
        """Let go for good."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.held = False

    def _write(self, bound: bytes) -> bool:
        assert self._descriptor is not None
        try:
            os.write(self._descriptor, bound)
        except OSError as exc:
            log.warning("idle cores are not kept quick to wake any more: %s: %s", _DEVICE, exc.strerror)
            self.close()
            return False
        return True


def _idle_driver() -> str:
    try:
        with open(_DRIVER) as file:
            return file.read().strip()
    except OSError:
        return ""
