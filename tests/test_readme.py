"""The README lists what there is to choose."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())


@pytest.mark.parametrize("group", GROUPS)
def test_every_value_of_a_group_is_in_its_row(group: str) -> None:
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{group}` | "))
    # Methods have a table of their own.
    where = README if group == "method" else row
    values = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert {value for value in values if f"`{value}`" not in where} == set()


@pytest.mark.parametrize("program", ["simulate", "distill", "compress"])
def test_every_top_level_key_is_named(program: str) -> None:
    config = yaml.safe_load((ROOT / "conf" / f"{program}.yaml").read_text(encoding="utf-8"))
    keys = set(config) - {"defaults", "hydra"}
    assert {key for key in keys if f"`{key}`" not in README and f"`{key}." not in README} == set()
