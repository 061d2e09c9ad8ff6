"""Ending in order when asked to."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopSignals:
    """While active, the first SIGINT or SIGTERM is only noted, so that work can end in order.

    Outside the main thread nothing changes.

    Args:
        second_ends: a second signal ends the process at once. False where somebody else sees to
            that: torchrun kills what has not ended in half a minute, and the signal may come from
            it and from the system as well.
    """

    def __init__(self, second_ends: bool = True) -> None:
        self.received: int | None = None
        self.second_ends = second_ends
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and self.second_ends:
            raise SystemExit(128 + number)
        self.received = self.received or number
