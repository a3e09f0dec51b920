"""Rows that a sweep wrote before, on this machine or another: they join its tables, and their runs are not repeated."""

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from simulations.sweep import Value

__all__ = ["Row", "add_option", "covered", "joined"]

Row = dict[str, Any]

WORDS = {"partition_hash", "commit", "digest", "failure"}
"""Columns that are text even where they look like numbers."""


def add_option(parser: argparse.ArgumentParser, keys: Sequence[str]) -> None:
    """`--known`, a list of rows that have these columns; another file is an error of the command line."""
    parser.add_argument(
        "--known",
        type=partial(rows_of, keys=keys),
        default=[],
        metavar="CSV",
        help="a table that this program wrote before: its rows join the new ones, and their runs are left out",
    )


def rows_of(path: str, keys: Sequence[str]) -> list[Row]:
    """The rows of runs that came to an end; numbers are numbers, what is empty is `""`.

    Raises:
        argparse.ArgumentTypeError: If there is no such table with these columns.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if missing := [key for key in keys if key not in (table.fieldnames or ())]:
                raise ValueError(f"without the column {missing[0]}")
            return [
                {name: value if name in WORDS else typed(value) for name, value in row.items()}
                for row in table
                if not row.get("failure")
            ]
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: no table of this program ({error})") from None


def typed(text: str) -> Value:
    """True or false, a whole number, a number, or text."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def covered(where: Mapping[str, Value], rows: Iterable[Row]) -> bool:
    """Whether one of the rows is of this cell."""
    return any(all(row.get(name) == value for name, value in where.items()) for row in rows)


def joined(known: Sequence[Row], rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """The known rows, but for those with the `keys` of a new one, and then the new ones."""
    new = {tuple(row[key] for key in keys) for row in rows}
    return [*(row for row in known if tuple(row[key] for key in keys) not in new), *rows]
