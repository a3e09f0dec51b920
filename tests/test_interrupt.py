"""SIGTERM is told from Ctrl-C, whatever is called while it comes."""

import os
import signal
import threading

import pytest

from fl_cmi.interrupt import Terminated, sigterm_unwinds


@pytest.fixture(autouse=True)
def _in_the_main_thread() -> None:
    """In another one no handler can be set, and SIGTERM would end the tests themselves."""
    assert threading.current_thread() is threading.main_thread()


def test_sigterm_raises_and_the_handler_goes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_unwinds():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_stays_sigterm_where_a_library_makes_a_plain_interrupt_of_it() -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Terminated:
            raise KeyboardInterrupt from None

    with pytest.raises(Terminated), sigterm_unwinds():
        library()


def test_an_interrupt_without_sigterm_is_one() -> None:
    with pytest.raises(KeyboardInterrupt) as found, sigterm_unwinds():
        raise KeyboardInterrupt
    assert not isinstance(found.value, Terminated)
