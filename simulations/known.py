"""Rows that a sweep wrote before, on this machine or another: they join its tables, and their runs are not repeated."""

import argparse
import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simulations.sweep import CARRIAGE, Value

__all__ = [
    "NOTHING",
    "Known",
    "Row",
    "add_option",
    "check_overrides",
    "check_rows",
    "covered",
    "given",
    "joined",
    "typed",
]

Row = dict[str, Any]

WORDS = {"partition_hash", "commit", "digest", "failure"}
"""Columns that are text even where they look like numbers."""


@dataclass(frozen=True)
class Known:
    """What a sweep wrote.

    Args:
        rows: Of runs that came to an end.
        rounds: Of those that had several.
    """

    rows: Sequence[Row] = ()
    rounds: Sequence[Row] = ()


NOTHING = Known()


def add_option(parser: argparse.ArgumentParser, keys: Sequence[str], more: Sequence[str] = ()) -> None:
    """`--known`, a `Known` whose rows have the keys and more; another file is an error of the command line."""
    parser.add_argument(
        "--known",
        type=partial(known_at, keys=keys, more=more),
        default=NOTHING,
        metavar="CSV",
        help="a table that this program wrote before: its rows join the new ones, and their runs are left out",
    )


def check_overrides(
    parser: argparse.ArgumentParser, options: argparse.Namespace, told: Sequence[str] = ()
) -> None:
    """End with an error of the command line for overrides beside `--known` of which its rows tell nothing.

    Args:
        parser: Of the options.
        options: With `known` and `overrides`.
        told: Keys that the rows do tell.
    """
    for override in options.overrides if options.known.rows else ():
        if override.lstrip("+~").partition("=")[0].split(".")[0] not in (*told, *CARRIAGE):
            parser.error(f"--known: its rows do not tell whether they had {override}")


def check_rows(
    parser: argparse.ArgumentParser, rows: Iterable[Row], told: Callable[[Row], Mapping[str, Value]]
) -> None:
    """End with an error of the command line for a row of another setting, which no table may have beside the others.

    Args:
        parser: Of the options.
        rows: Of `--known`.
        told: What a row would say if it were run now, as far as that is known before.
    """
    for row in rows:
        for name, value in told(row).items():
            if row[name] != value:
                parser.error(
                    f"--known: it has rows with {name} {row[name] or 'none'}, here {value or 'none'}"
                )


def given(overrides: Iterable[str], key: str, default: Value) -> Value:
    """What the last override of the key sets it to, right or wrong; the default without one."""
    found = dict(override.partition("=")[::2] for override in overrides)
    return typed(found[key]) if key in found else default


def known_at(path: str, keys: Sequence[str], more: Sequence[str]) -> Known:
    """A table, with the rounds beside it: `rounds.csv` for `results.csv`, `NAME_rounds.csv` for `NAME.csv`."""
    table = Path(path)
    beside = table.with_name("rounds.csv" if table.stem == "results" else f"{table.stem}_rounds.csv")
    rounds = rows_of(beside, [*keys, "round"]) if beside.exists() else ()
    return Known(rows_of(table, [*keys, *more]), rounds)


def rows_of(path: Path, keys: Sequence[str]) -> list[Row]:
    """The rows of runs that came to an end; numbers are numbers, what is empty is `""`.

    Raises:
        argparse.ArgumentTypeError: If there is no such table with these columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
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
