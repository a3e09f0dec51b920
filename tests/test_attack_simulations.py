"""The benchmark of attacks: its cells compose, and its table has a line a rule and a column an attack."""

from pathlib import Path

import pytest

from fl_cmi.checks import check
from fl_cmi.compose import bad_clients
from simulations import attacks
from simulations.attacks import ATTACKS, RULES, run, study_of, tabled
from simulations.study import options_of, plan
from simulations.sweep import Cell


def test_every_rule_meets_every_attack() -> None:
    study = study_of(RULES, ATTACKS, (0, 1, 2), quick=False)
    assert len(study.methods) == len(RULES) * (1 + 2 * len(ATTACKS))
    cells = plan(study, options_of(study, ["--out", "somewhere"]))
    for cell in (cells[0], cells[-1]):
        config = cell.config()
        assert config["num_clients"] == 10
        assert config["partition"]["alpha"] == 0.5
    assert len({cell.folder for cell in cells}) == len(cells)
    chosen = [cell for cell in cells if cell.where["method"] == "median_probs collusion 2"]
    config = chosen[0].config()
    check(config)
    assert len(bad_clients(config)[1]) == 2


def test_a_dry_run_prints_commands_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(cell: Cell, limit: float | None) -> str | None:
        raise AssertionError

    chosen = ["--rules", "mean_probs", "--attacks", "scaled", "--numbers", "0", "1", "--quick"]
    assert run([*chosen, "--dry-run", "--out", str(tmp_path / "out")], never) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " -m fl_cmi.simulate " in line]
    assert len(lines) == 2
    assert "data=digits" in lines[0]
    assert "attacks=scaled" in lines[1]
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        run(["--help"], never)
    assert "--rules" in capsys.readouterr().out


TINY = ["data=synthetic", "model.width=2", "num_clients=3", "local.epochs=1", "schedule.epochs=1"]
TINY += [
    "schedule.batches=1",
    "schedule.steps=1",
    "synthesizer.batch_size=4",
    "synthesizer.inversion.steps=1",
]
TINY += ["synthesizer.inversion.source.generator.width=4", "backend=local", "server_threads=1"]


def test_runs_end_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--rules", "agreement_weighted", "--attacks", "scaled", "--numbers", "0", "1", "--quick"]
    assert run([*chosen, "--out", str(tmp_path), "--", *TINY]) == 0
    table = (tmp_path / "attacks.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert table.count("| rule | none | scaled 1 |") == 2
    assert table.count("| agreement_weighted | ") == 2
    assert f"simulations.attacks {' '.join(chosen)}" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_the_table_has_means_and_gaps() -> None:
    rows = [
        {"method": "median_probs scaled 2", "accuracy": "0.5", "ensemble": "0.75", "failure": ""},
        {"method": "median_probs scaled 2", "accuracy": "0.7", "ensemble": "0.75", "failure": ""},
        {"method": "median_probs none 0", "accuracy": "0.9", "ensemble": "1.0", "failure": ""},
        {"method": "mean_probs none 0", "accuracy": "", "ensemble": "", "failure": "fell over"},
    ]
    lines = tabled(rows).splitlines()
    assert "| rule | none | scaled 2 |" in lines
    assert "| median_probs | 100.00 | 75.00 |" in lines
    assert "| median_probs | 90.00 | 60.00 |" in lines
    assert "| mean_probs | - | - |" in lines


def test_quick_is_quick() -> None:
    study = study_of(("mean_probs",), ATTACKS[:2], (0, 2), quick=True)
    assert all(method.budget == 0 for method in study.methods.values())
    assert attacks.QUICK[0] == "data=digits"


@pytest.mark.parametrize(
    "wrong", [["--numbers", "-1"], ["--numbers", "11"], ["--jobs", "2", "--threads", "1"]]
)
def test_what_cannot_be_run_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        run([*wrong, "--quick", "--dry-run"])
