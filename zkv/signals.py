"""What SIGTERM, SIGINT and SIGHUP do to zkv-server: a thread waits for them, from first to last.

They are blocked in every thread, so that none breaks into a system call or into the work of the
proxy. So a process 1 gets them too, to which the kernel gives no others without a handler. What it
was started to ignore, as by nohup or in the background of a script, stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from queue import SimpleQueue
from typing import Final

from zkv.errors import Shortage

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """To be made before any other thread is started, which then blocks them as well.

    At first a signal ends the process at once, with `exit_code`, or with the one by which a
    shell tells of a signal. Raises Shortage where no thread can be had.
    """

    def __init__(self, exit_code: int | None = None) -> None:
        self._exit_code = exit_code
        self._serving = self._held = False
        self._lock = threading.Lock()
        self._first: SimpleQueue[signal.Signals] = SimpleQueue()
        optional = {signal.SIGINT, signal.SIGHUP}
        ignored = {it for it in optional if signal.getsignal(it) == signal.SIG_IGN}
        self._awaited = {*STOP_SIGNALS} - ignored
        signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        try:
            threading.Thread(target=self._watch, name="zkv-signals", daemon=True).start()
        except RuntimeError as error:
            raise Shortage(str(error)) from None

    def serve(self) -> None:
        """From now on `wait` returns for the first signal, and the second ends the process."""
        with self._lock:
            self._exit_code, self._serving = None, True

    def hold(self) -> None:
        """From now on none does anything."""
        with self._lock:
            self._held = True

    def wait(self) -> signal.Signals:
        """The first signal that came while serving."""
        return self._first.get()

    def _watch(self) -> None:
        while True:
            # A file that is to be read again on SIGHUP would be read here; until then it stops.
            signum = signal.Signals(signal.sigwait(self._awaited))
            with self._lock:
                if self._serving:
                    self._serving = False
                    self._first.put(signum)
                elif not self._held:
                    os._exit(128 + signum if self._exit_code is None else self._exit_code)
