"""Ctrl-C, and SIGTERM as another Ctrl-C: both unwind the run, so that everything it started ends with it."""

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "raise_in", "sigterm_unwinds", "signals_given_to", "signals_wait"]


class Terminated(KeyboardInterrupt):  # noqa: N818 - like KeyboardInterrupt, no error
    """The process was told to end, by SIGTERM."""


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`, once: a second one must not disturb the first one's work."""
    came = False

    def terminate(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    try:
        with _handler(signal.SIGTERM, terminate):
            yield
    except KeyboardInterrupt as error:
        # Within a call to Ray, whatever a handler raises comes out as a plain KeyboardInterrupt.
        if came and not isinstance(error, Terminated):
            raise Terminated from None
        raise


@contextmanager
def signals_given_to(act: Callable[[type[KeyboardInterrupt]], None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM call `act` with their exception instead of raising it."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        act(KeyboardInterrupt)

    def terminate(signum: int, frame: FrameType | None) -> None:
        act(Terminated)

    with _handler(signal.SIGINT, interrupt), _handler(signal.SIGTERM, terminate):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait for the end; handlers that are set inside (Ray does) are gone after it."""
    came: list[type[KeyboardInterrupt]] = []
    with signals_given_to(came.append):
        yield
    if came:
        raise came[0]


def raise_in(thread: int, exception: type[BaseException]) -> None:
    """Raise `exception` in the thread of this identity, at its next step in Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))


@contextmanager
def _handler(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, a signal's handler is this one; afterwards it is again what it was."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.getsignal(number)
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
