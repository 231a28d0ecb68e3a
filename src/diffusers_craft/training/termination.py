# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""SIGTERM of a batch system: remembered, so that a run ends after a whole step."""

import signal
import threading
from typing import Any


class Termination:
    """Whether SIGTERM `came` between `listen` and `release`. It knows no run, which the handler would keep in memory."""

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def listen(self) -> None:
        """Takes the place of the handler that is there; outside the main thread, which alone gets signals, nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember) or signal.SIG_DFL

    def release(self) -> None:
        """Puts the earlier handler back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _remember(self, *_: Any) -> None:
        self.came = True
