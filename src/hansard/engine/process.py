"""One engine process, seen from its parent: started, spoken to over its pipe, and known to be gone when it is."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future

from hansard.engine import child
from hansard.engine.wire import Leave, Ready, ToChild, ToParent, Warm
from hansard.settings import Settings

log = logging.getLogger(__name__)

LEAVE_S = 3.0  # that the engine process has to end by itself when the worker does
SILENCE_S = (
    300.0  # without any sign of life, of which there is one every few seconds: no load holds them up for so long
)


class EngineProcess:
    """One engine process and the thread that reads from it."""

    def __init__(
        self,
        settings: Settings,
        receive: Callable[[EngineProcess, ToParent], None],
        died: Callable[[EngineProcess], None],
    ) -> None:
        spawn = multiprocessing.get_context("spawn")  # never fork: this process runs threads and an event loop
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=child.main, args=(theirs, settings), name="engine")
        self._process.start()
        theirs.close()
        self._sending = threading.Lock()
        self._receive = receive
        self._on_death = died
        self.ready = False
        self._silent = False
        self.warm = Warm()
        self.fitness: Future[tuple[str, ...]] = Future()
        self.fitness.set_running_or_notify_cancel()  # whoever gives up waiting for it does not cancel it
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def unfit(self) -> bool:
        """Has it said that it cannot work?"""
        return self.fitness.done() and bool(self.fitness.result())

    @property
    def death(self) -> str:
        """How the process ended, and what to do about it."""
        if self._process.exitcode == -signal.SIGKILL and not self._silent:
            return f"{self.end}; send a shorter recording or use a larger machine"
        return f"{self.end}; send the job again"

    @property
    def end(self) -> str:
        """How the process ended."""
        code = self._process.exitcode
        if self._silent:
            return f"it gave no sign of life for {SILENCE_S:.0f} s"
        if code == -signal.SIGKILL:
            return "it was killed, often for want of memory"
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

    def send(self, message: ToChild) -> bool:
        """Hand over a message; False when the process is gone."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def wait(self) -> None:
        """Return when the process is gone and everybody was told."""
        self._reader.join()

    def leave(self) -> None:
        """Ask the process to end, kill it when it does not, and return when it is gone."""
        self.send(Leave())
        self._reader.join(LEAVE_S)
        self.kill()
        self.wait()

    def _next(self) -> ToParent:
        """The next message; a process that hangs is killed, and with it its pipe ends. Raises EOFError, OSError."""
        if not self._connection.poll(SILENCE_S):
            log.error("the engine process has given no sign of life for %.0f s and is killed", SILENCE_S)
            self._silent = True
            self.kill()
        message: ToParent = self._connection.recv()
        return message

    def _read(self) -> None:
        while True:
            try:
                message = self._next()
            except Exception as end:  # the pipe's end, or bytes that make no message: either way it is over
                if not isinstance(end, EOFError | OSError):
                    log.exception("the engine process could not be understood")
                    self.kill()
                break
            self.ready |= isinstance(message, Ready)
            try:
                self._receive(self, message)
            except Exception:  # this thread must live, or every job would wait for ever
                log.exception("a message of the engine process could not be handled")
        self._process.join()
        self._connection.close()
        if not self.fitness.done():
            self.fitness.set_result((f"the engine process died as it started: {self.end}; the worker's log says why",))
        self._on_death(self)
