"""Command lines, called in this process."""

from collections.abc import Callable

import pytest


def call_main(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of an entry point with these arguments."""
    monkeypatch.setattr("sys.argv", [main.__module__, *arguments])
    try:
        main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


def complaint(said: str) -> str:
    """What went wrong, in the one line that standard error holds."""
    (line,) = said.splitlines()
    assert line.startswith("fl_cmi: ")
    return line
