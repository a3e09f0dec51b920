"""The federated benchmarks: their grids, resuming, failing runs, shared teachers, tables and plots."""

import csv
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from fl_cmi.checks import check
from fl_cmi.compose import build, compose_config, dataset, make_partition, server_side
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.simulate import run as simulate
from simulations import ablation, client_sweep, fedgen, heterogeneity, mixed, one_shot
from simulations.federated import METHODS, Method
from simulations.lines import p_value, spread
from simulations.plots import best_first, series
from simulations.results import write_results
from simulations.study import Study, main, options_of, plan
from simulations.sweep import BusyError, Cell, carry_out, cores, launcher, sweep

pytestmark = pytest.mark.usefixtures("without_pictures")

SMALL = ("synthesizer.batch_size=4", "synthesizer.inversion.steps=1", "schedule.epochs=1")
SMALL += ("schedule.batches=1", "schedule.steps=1", "synthesizer.inversion.source.generator.width=4")
TINY = Study(
    "simulations.tiny",
    "A benchmark of tests.",
    ["data=synthetic", "model.width=2", "local.epochs=1"],
    {
        "fedavg": Method(("strategy=fedavg",), budget=0.0),
        "ours": Method(SMALL),
        "broken": Method(("local.optimizer.lr=-1.0", *SMALL)),
    },
    alphas=(0.5, 1.0),
    clients=(3,),
    budget=9.0,
)
STUDIES = [one_shot.STUDY, client_sweep.STUDY, heterogeneity.STUDY, ablation.STUDY, mixed.STUDY, fedgen.STUDY]


class Here:
    """Runs cells in this process, and remembers them."""

    def __init__(self) -> None:
        self.cells: list[str] = []

    def __call__(self, cell: Cell, limit: float | None) -> str | None:
        self.cells.append(cell.name)
        simulate(cell.config(), cell.folder)
        return None


def tiny(out: Path, here: Any, *options: str) -> int:
    return main(TINY, ["--out", str(out), "--threads", "1", *options, "--", "backend=local"], here)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_runs_are_resumed_and_failures_hide_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Here()
    assert tiny(tmp_path, here, "--methods", "fedavg", "broken") == 1
    names = [
        f"{m}, partition dirichlet, alpha {a}, clients 3, seed 0"
        for a in (0.5, 1.0)
        for m in ("fedavg", "broken")
    ]
    assert here.cells == names
    # What is there stays; what failed is tried again; the new method starts from the clients that are there.
    assert tiny(tmp_path, here) == 1
    assert [name.split(",")[0] for name in here.cells[4:]] == ["ours", "broken"] * 2
    rows = read(tmp_path / "results.csv")
    assert [row["method"] for row in rows] == ["fedavg", "ours", "broken"] * 2
    assert [bool(row["failure"]) for row in rows] == [False, False, True] * 2
    assert "learning rate" in rows[2]["failure"]
    first, ours = rows[0], rows[1]
    assert (first["teacher_cache"], ours["teacher_cache"]) == ("stored", "hit")
    assert first["partition_hash"] == ours["partition_hash"] != rows[3]["partition_hash"]
    assert first["ensemble"] == ours["ensemble"]
    assert (first["budget_cpu_s"], ours["budget_cpu_s"]) == ("", "9")
    assert float(ours["server_cpu_s"]) > 0
    assert float(ours["gap"]) == pytest.approx(float(ours["ensemble"]) - float(ours["accuracy"]))
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert "| 0.5 | broken | 0 (1 failed) | - |" in table
    assert "- broken, partition dirichlet alpha 1.0 clients 3 seed 0: " in table
    assert first["partition_hash"][:16] in table
    assert (tmp_path / "table.tex").read_text(encoding="utf-8").count(r"\\") == 1 + 6
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"accuracy_alpha.png", "accuracy_server_cpu_s.png", "accuracy_megabytes.png"}
    # How runs are carried out is no reason to repeat them; what they are is.
    assert main(TINY, ["--out", str(tmp_path), "--threads", "2", "--methods", "ours"], here) == 0
    assert len(here.cells) == 8
    assert tiny(tmp_path, here, "--methods", "ours", "--alphas", "1", "--budget", "8") == 0
    assert len(here.cells) == 9


def test_many_rounds_have_a_course(tmp_path: Path) -> None:
    options = [
        "--out",
        str(tmp_path),
        "--methods",
        "fedavg",
        "--alphas",
        "1",
        "--",
        "rounds=2",
        "backend=local",
    ]
    assert main(TINY, options, Here()) == 0
    rounds = read(tmp_path / "rounds.csv")
    assert [row["round"] for row in rounds] == ["1", "2"]
    assert int(rounds[1]["bytes"]) == 2 * int(rounds[0]["bytes"])
    (row,) = read(tmp_path / "results.csv")
    assert int(rounds[1]["bytes"]) == int(row["bytes_up"]) + int(row["bytes_down"])
    assert rounds[1]["accuracy"] == row["accuracy"]
    names = {"accuracy_round.png", "accuracy_megabytes.png", "accuracy_server_cpu_s.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    assert "own tests" not in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert main(TINY, [*options, "own_tests=true"], Here()) == 0
    (row,) = read(tmp_path / "results.csv")
    table = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    line = next(line for line in table if line.startswith("| fedavg "))
    assert line.split(" | ")[3] == spread([float(row["own_tests"])], 100)
    assert "| own tests % |" in table[4]
    tex = (tmp_path / "table.tex").read_text(encoding="utf-8").splitlines()
    assert tex[1] == r"\begin{tabular}{ll" + "r" * 10 + "}"
    assert tex[3].count("&") == 2 + 10 - 1


def test_a_dry_run_prints_commands_and_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Here()
    assert main(TINY, ["--out", str(tmp_path / "out"), "--dry-run", "--seeds", "0", "4"], here) == 0
    *lines, empty, said = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 2 * 3
    assert all(" -m fl_cmi.simulate " in line for line in lines)
    assert empty == ""
    assert said.startswith("12 runs, 4 of which nothing is known: about ")
    assert (here.cells, list(tmp_path.iterdir())) == ([], [])


def test_processes_side_by_side_share_the_cores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options_of(TINY, ["--jobs", "1"]).threads == cores()
    assert options_of(TINY, ["--jobs", str(cores())]).threads == 1
    with pytest.raises(SystemExit):
        options_of(TINY, ["--jobs", "2", "--threads", str(cores())])
    assert "cores" in capsys.readouterr().err
    monkeypatch.setattr("simulations.study.cores", lambda: 2)
    cells = plan(TINY, options_of(TINY, ["--jobs", "2", "--threads", "1", "--out", str(tmp_path)]))
    assert len(cells) == 6
    assert all({"backend=local", "server_threads=1"} <= set(cell.overrides) for cell in cells)


def test_jobs_run_at_once_and_keep_their_order() -> None:
    meeting, seen = threading.Barrier(2, timeout=20), []

    class Known(Cell):
        def result(self) -> dict[str, Any]:
            meeting.wait()
            return {"student": {"accuracy_last": 0.5}}

    cells = [Known({"method": name}, (), Path(name)) for name in "abcd"]
    found = sweep(cells, lambda *_: None, lambda done: seen.append(len(done)), jobs=2)
    assert [cell.name for cell, _ in found] == list("abcd")
    assert seen == [1, 2, 3, 4]


def test_a_folder_is_one_sweeps_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with launcher(tmp_path, 1) as start:
        with pytest.raises(BusyError, match="another sweep"), launcher(tmp_path, 1):
            pass
        assert main(TINY, ["--out", str(tmp_path)]) == 2
        assert "another sweep" in capsys.readouterr().err
        # A process of a sweep that was killed holds the folder until it ends.
        (lock,) = start.keywords["keep"]  # type: ignore[attr-defined]
        code = f"import os; assert os.environ['OMP_NUM_THREADS'] == '1'; os.fstat({lock})"
        cell: Any = SimpleNamespace(folder=tmp_path / "cell", command=[sys.executable, "-c", code])
        assert start(cell, 60) is None
    with launcher(tmp_path, 1):
        pass


@pytest.mark.slow
def test_a_cell_is_a_process(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--methods", "fedavg", "--alphas", "1", "--", "backend=local"]
    program = (
        "import sys; from simulations.study import Study, main; from simulations.federated import Method\n"
        "study = Study('simulations.tiny', '', ['data=synthetic','model.width=2','local.epochs=1'],"
        " {'fedavg': Method(('strategy=fedavg',), 0.0)})\n"
        "sys.exit(main(study, sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read(tmp_path / "results.csv")) == 1


def test_the_default_grids_are_those_that_were_asked_for() -> None:
    def points(study: Study) -> dict[tuple[Any, ...], set[str]]:
        found: dict[tuple[Any, ...], set[str]] = {}
        for cell in plan(study, options_of(study, [])):
            where = dict(cell.where)
            method = str(where.pop("method"))
            found.setdefault(tuple(where.values()), set()).add(method)
        return found

    rivals = {"fedavg", "feddf", "f_adi", "f_dafl", "dense", "co_boosting", "fedftg", "fed_cmi"}
    rivals |= {"fed_cmi_moments", "fed_cmi_settled", "fed_cmi_x4"}
    at = [(0.1, 0), (0.1, 1), (0.1, 2), (0.3, 0), (0.5, 0)]
    assert points(one_shot.STUDY) == {("dirichlet", alpha, 5, seed): rivals for alpha, seed in at}
    few = {"fedavg", "dense", "fed_cmi"}
    assert points(client_sweep.STUDY) == {("dirichlet", 0.5, k, 0): few for k in (5, 10, 20, 50)}
    several = {"fedavg", "fedprox", "fedgen", "fedftg", "fed_cmi"}
    assert points(heterogeneity.STUDY) == {("dirichlet", 0.1, 20, 0): several}
    (variants,) = points(ablation.STUDY).values()
    asked = {
        "no_bn",
        "no_one_hot",
        "contrast",
        "mean_logits",
        "majority",
        "joint",
        "no_label_counts",
        "fed_cmi",
    }
    assert asked <= variants


def test_equal_budgets_and_the_same_clients() -> None:
    cells = plan(one_shot.STUDY, options_of(one_shot.STUDY, ["--alphas", "0.1", "--seeds", "0"]))
    configs = {str(cell.where["method"]): cell.config() for cell in cells}
    budgets = {name: config["strategy"].get("budget_s") for name, config in configs.items()}
    assert budgets.pop("fedavg") is None
    assert budgets.pop("fed_cmi_x4") == 4 * 600.0
    assert set(budgets.values()) == {600.0}
    assert {config["budget_clock"] for name, config in configs.items() if name != "fedavg"} == {"cpu"}
    keys = (
        "data",
        "model",
        "teachers",
        "local",
        "partition",
        "num_clients",
        "held_out",
        "seed",
        "client_threads",
    )
    keys += ("share_label_counts", "rounds", "buffers", "teacher_cache")
    assert len({json.dumps([config.get(key) for key in keys]) for config in configs.values()}) == 1
    assert len({cell.folder for cell in cells}) == len(cells)


ALL = {(study.program, name): (study, name) for study in STUDIES[2:] for name in study.methods}
ALL |= {("one_shot", name): (one_shot.STUDY, name) for name in one_shot.STUDY.chosen or ()}


@pytest.mark.parametrize("which", ALL, ids=lambda which: "-".join(which))
def test_every_method_of_a_study_fits_together(
    which: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would compose and check the very configuration that is looked at here.
    monkeypatch.setattr("simulations.study.mistake_of", lambda *_: None)
    study, name = ALL[which]
    # Small in all that has no say in what fits.
    small = ["data=synthetic", "model.width=2", "model.blocks=2"]
    small = ["data=digits"] if study is fedgen.STUDY else small
    own = study in (heterogeneity.STUDY, fedgen.STUDY) and name != "feddf"
    small += [] if own else ["held_out=40"]
    options = options_of(
        study, ["--methods", name, "--clients", "10", "--seeds", "0", "--out", str(tmp_path), "--", *small]
    )
    cell = plan(study, options)[0]
    config = compose_config(cell.overrides)
    check(config)
    data = dataset(config)
    side = server_side(
        config, data, Progress(quiet=True), MetricsLog(tmp_path / "log"), make_partition(config, data)
    )
    strategy = build(config["strategy"], "strategy")
    strategy = strategy(side=side) if callable(strategy) else strategy
    side.sharing.method.check(build(config["local"], "local"))
    if "schedule" in config["strategy"] and name != "fedftg":
        endless = "steps" if name in ("fed_cmi_moments", "fed_cmi_settled") else "epochs"
        assert config["schedule"][endless] == 1_000_000, "time ends it"


@pytest.mark.parametrize("others", [[], ["feddf"]])
def test_images_that_a_method_keeps_are_kept_from_all_clients(others: list[str], tmp_path: Path) -> None:
    options = options_of(heterogeneity.STUDY, ["--methods", "fedavg", *others, "--out", str(tmp_path)])
    cells = plan(heterogeneity.STUDY, options)
    assert len(cells) == 1 + len(others)
    assert {cell.config()["held_out"] for cell in cells} == {5000 if others else 0}


def test_fedgen_trains_at_its_own_rate_in_every_sweep() -> None:
    """That of its own experiment, which is constant within a round."""

    def local(study: Study) -> Any:
        return plan(study, options_of(study, ["--methods", "fedgen", "--seeds", "0"]))[0].config()["local"]

    many, own = local(heterogeneity.STUDY), local(fedgen.STUDY)
    assert own["schedule"]["_target_"] == "fl_cmi.training.constant"
    for key in ("optimizer", "schedule", "round_decay", "decay_by"):
        assert many[key] == own[key], key


def summary(accuracy: float, budget: float | None = 600.0, clients: str = "0") -> dict[str, Any]:
    return {
        "student": {"accuracy_last": accuracy, "accuracy_best": accuracy},
        "ensemble": {"accuracy": 0.9},
        "average": {"accuracy": None},
        "gap": 0.9 - accuracy,
        "own_tests": None,
        "rounds": 1,
        "bytes": {"up": 1_500_000, "down": 500_000},
        "config": {"strategy": {"budget_s": budget}},
        "server_seconds": {"wall": 300.0, "cpu": 600.0},
        "seconds": {"total": 400.0},
        "teacher_cache": "hit",
        "failures": [],
        "partition": {"hash": clients * 64},
        "threads": {"server": 2},
        "device": "cpu",
        "commit": None,
        "digest": "1" * 64,
    }


def cell(method: str, seed: int, alpha: float = 0.1) -> Cell:
    where = {"method": method, "partition": "dirichlet", "alpha": alpha, "clients": 5, "seed": seed}
    return Cell(where, (), Path(method))


def test_lines_are_tested_against_the_best_rival(tmp_path: Path) -> None:
    ours, theirs, worse = (0.80, 0.84, 0.82), (0.70, 0.79, 0.73), (0.50, 0.51, 0.60)
    results: list[tuple[Cell, Any]] = [
        (cell(method, seed), summary(values[seed], budget))
        for method, values, budget in (
            ("long", (0.90, 0.91, 0.93), 2400.0),
            ("worse", worse, None),
            ("ours", ours, 600.0),
            ("theirs", theirs, 600.0),
        )
        for seed in range(3)
    ]
    results += [(cell("ours", 0, 0.5), summary(0.8)), (cell("theirs", 0, 0.5), "fl_cmi: 100 % wrong_")]
    text = write_results(tmp_path, "python -m simulations.x", results)
    table = [line for line in text.splitlines() if line.startswith("| 0.")]
    heads = ("alpha", "method", "seeds", "student")
    rows = [dict(zip(heads, line.split(" | "), strict=False)) for line in table]
    assert [(row["alpha"], row["method"]) for row in rows] == [
        ("| 0.1", "long"),
        ("| 0.1", "ours"),
        ("| 0.1", "theirs"),
        ("| 0.1", "worse"),
        ("| 0.5", "ours"),
        ("| 0.5", "theirs"),
    ]
    assert rows[1]["student"] == "82.00 +- 2.00"
    assert rows[5]["seeds"] == "0 (1 failed)"
    expected = ttest_rel(ours, theirs).pvalue
    # The longer budget is no rival of the others, and both of the first two have one.
    assert table[1].endswith(f" {expected:.3f} |")
    assert table[2].endswith(f" {expected:.3f} |")
    assert table[0].endswith(f" {ttest_rel((0.90, 0.91, 0.93), ours).pvalue:.3f} |")
    assert table[4].endswith(" - |")
    tex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"82.00 $\pm$ 2.00" in tex
    assert tex.count(r"\midrule") == 2
    assert "- theirs, partition dirichlet alpha 0.5 clients 5 seed 0: fl_cmi: 100 % wrong_" in text
    assert "partition dirichlet; clients 5; 600 or 2400 CPU seconds" in text


def test_rivals_are_those_who_started_from_the_same_clients(tmp_path: Path) -> None:
    """Neither one lucky seed nor runs from other clients are what a method is tested against."""
    ours, theirs = (0.80, 0.84, 0.82), (0.70, 0.79, 0.73)
    results: list[tuple[Cell, Any]] = [(cell("lucky", 0), summary(0.99))]
    for seed in range(3):
        results.append((cell("ours", seed), summary(ours[seed])))
        results.append((cell("theirs", seed), summary(theirs[seed])))
        results.append((cell("others", seed), summary(0.9 + 0.01 * seed**2, clients="1")))
    text = write_results(tmp_path, "python -m simulations.x", results)
    p = {
        line.split(" | ")[0][2:]: line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| ")
    }
    expected = f"{ttest_rel(ours, theirs).pvalue:.3f} |"
    assert {name: p[name] for name in ("lucky", "others", "ours", "theirs")} == {
        "lucky": "- |",
        "others": "- |",
        "ours": expected,
        "theirs": expected,
    }
    for seed in range(3):
        for clients in "01":
            assert f"- partition dirichlet alpha 0.1 clients 5 seed {seed}: `{clients * 16}`" in text


def test_own_tests_have_a_test_of_their_own(tmp_path: Path) -> None:
    accuracy = {"ours": (0.80, 0.84, 0.82), "theirs": (0.70, 0.79, 0.73)}
    own = {"ours": (0.50, 0.52, 0.57), "theirs": (0.49, 0.55, 0.58)}
    text = write_results(
        tmp_path,
        "python -m simulations.x",
        [
            (cell(name, seed), {**summary(accuracy[name][seed]), "own_tests": own[name][seed]})
            for name in accuracy
            for seed in range(3)
        ],
    )
    found = [ttest_rel(*metric.values()).pvalue for metric in (accuracy, own)]
    assert "| p | p of own tests |" in text
    assert text.count(f" | {found[0]:.3f} | {found[1]:.3f} |") == 2


def test_versions_of_the_code_are_told_where_they_differ(tmp_path: Path) -> None:
    def told(*commits: str) -> str:
        results = [(cell("ours", k), {**summary(0.5), "commit": commit}) for k, commit in enumerate(commits)]
        return write_results(tmp_path, "python -m simulations.x", results)

    assert "version" not in told("a" * 40, "a" * 40)
    assert f"run's): `{'a' * 12}` 2, `{'b' * 12}` 1." in told("a" * 40, "b" * 40, "a" * 40)


def test_a_test_needs_three_pairs_that_differ() -> None:
    assert p_value([0.1, 0.2], [0.2, 0.4]) is None
    assert p_value([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]) is None
    # t = mean / (s / sqrt 3) with differences .1, .2, .3: .2 / (.1 / sqrt 3), two degrees of freedom.
    t = 0.2 / (0.1 / 3**0.5)
    assert p_value([0.1, 0.2, 0.3], [0.0, 0.0, 0.0]) == pytest.approx(1 - t / (t**2 + 2) ** 0.5)


def test_spread() -> None:
    assert spread([]) == "-"
    assert spread([0.5], 100) == "50.00"
    assert spread([0.5, 0.7], 100, 1) == "60.0 +- 14.1"


def test_a_configuration_that_does_not_compose_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert "nowhere" in str(carry_out(Cell({}, ("strategy=nowhere",), tmp_path), None, Here()))
    assert set(METHODS) >= {"feddf", "fedgen", "scaffold"}


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.program)
def test_overrides_that_fit_are_taken(study: Study) -> None:
    assert options_of(study, ["--", "backend=local"]).overrides == ["backend=local"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--partitions", "nope"], "invalid choice: 'nope'"),
        (["--", "backend=loca"], "backend=loca: one of flower, local, ray"),
        (["--", "rounds=0"], "rounds=0: an integer >= 1"),
        (["--", "nonsense=1"], "nonsense"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(TINY, ["--out", str(tmp_path / "out"), *given], Here())
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rounds_that_are_known_keep_their_course(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(out: str, *options: str) -> list[dict[str, str]]:
        arguments = [
            "--out",
            str(tmp_path / out),
            "--alphas",
            "1",
            *options,
            "--",
            "rounds=2",
            "backend=local",
        ]
        assert main(TINY, arguments, Here()) == 0
        return read(tmp_path / out / "rounds.csv")

    before = run("first", "--methods", "fedavg")
    rounds = run("second", "--methods", "fedavg", "ours", "--known", str(tmp_path / "first/results.csv"))
    assert rounds[:2] == before
    assert [(row["method"], row["round"]) for row in rounds[2:]] == [("ours", "1"), ("ours", "2")]
    # The names of tables that are kept.
    for old, new in (("results", "kept"), ("rounds", "kept_rounds")):
        (tmp_path / f"second/{old}.csv").rename(tmp_path / f"{new}.csv")
    known = ("--known", str(tmp_path / "kept.csv"))
    assert run("third", "--methods", "fedavg", "ours", *known) == rounds
    options = ["--methods", "fedavg", "--alphas", "1", *known, "--dry-run", "--", "backend=local"]
    capsys.readouterr()
    assert main(TINY, [*options, "rounds=2"]) == 0
    assert capsys.readouterr().out.startswith("\n0 runs")
    for wrong, said in (
        ("rounds=3", "it has rows with rounds 2, here 3"),
        ("local.epochs=2", "its rows do not tell whether they had local.epochs=2"),
    ):
        with pytest.raises(SystemExit) as error:
            main(TINY, [*options, wrong])
        assert error.value.code == 2
        assert said in capsys.readouterr().err


def test_rows_that_are_known_are_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny(tmp_path / "first", Here(), "--methods", "fedavg", "broken", "--alphas", "1") == 1
    table = tmp_path / "first/results.csv"
    before = read(table)
    here = Here()
    options = ("--methods", "fedavg", "broken", "ours", "--known", str(table))
    assert tiny(tmp_path / "second", here, *options) == 1
    # A failure is nothing that is known.
    assert [name.split(", partition")[0] for name in here.cells] == [
        "fedavg",
        "broken",
        "ours",
        "broken",
        "ours",
    ]
    assert "alpha 0.5" in here.cells[0]
    assert "alpha 1.0" in here.cells[3]
    rows = read(tmp_path / "second/results.csv")
    assert [(row["alpha"], row["method"]) for row in rows] == [
        (alpha, method) for alpha in ("0.5", "1.0") for method in ("fedavg", "broken", "ours")
    ]
    assert rows[3] == before[0]
    text = (tmp_path / "second/table.md").read_text(encoding="utf-8")
    assert f"alpha 1.0 clients 3 seed 0: `{before[0]['partition_hash'][:16]}`" in text
    table = tmp_path / "second/results.csv"
    options = ("--methods", "ours", "--alphas", "1", "--known", str(table))
    assert tiny(tmp_path / "third", here, *options) == 0
    assert len(here.cells) == 5
    assert read(tmp_path / "third/results.csv") == [row for row in rows if not row["failure"]]
    capsys.readouterr()
    for wrong, said in (
        ([str(table), "--budget", "8"], "it has rows with budget_cpu_s 9, here 8.0"),
        ([str(tmp_path / "none.csv")], "No such file"),
        ([str(tmp_path / "first/table.md")], "column method"),
    ):
        with pytest.raises(SystemExit) as error:
            tiny(tmp_path / "fourth", here, "--known", *wrong)
        assert error.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "fourth").exists()


@pytest.mark.parametrize(("rounds", "bands"), [(30, 0), (31, 1)])
def test_a_line_of_many_points_has_a_band_instead_of_bars(rounds: int, bands: int) -> None:
    rows = [
        {"round": number, "accuracy": number / 100 + seed / 10}
        for number in range(1, rounds + 1)
        for seed in range(2)
    ]
    axes = Figure().add_subplot()
    series(axes, rows, "round", "ours", 0, points=False)
    assert list(axes.lines[0].get_ydata()) == pytest.approx([n / 100 + 0.05 for n in range(1, rounds + 1)])
    found = [area for area in axes.collections if isinstance(area, PolyCollection)]
    assert len(found) == bands
    assert len(axes.containers) == 1 - bands
    for area in found:  # the mean and the deviation of two numbers that lie .1 apart
        heights = area.get_paths()[0].vertices[:, 1]
        assert max(heights) == pytest.approx(rounds / 100 + 0.05 + 0.1 / 2**0.5)


def test_a_plot_names_the_best_method_first_and_tells_ten_apart() -> None:
    rows = [
        {"method": name, "accuracy": value}
        for name, value in (("worst", 0.1), ("best", 0.9), ("worst", 0.4), ("middle", 0.3))
    ]
    assert best_first(rows) == ["best", "middle", "worst"]
    axes = Figure().add_subplot()
    for place in range(10):
        series(axes, [{"round": 1, "accuracy": 0.5}], "round", f"method {place}", place, points=False)
    assert len({box[0].get_color() for box in axes.containers}) == 10
