"""Bad clients: accuracy with 0, 1 and 2 of 10, for each attack and each rule of the ensemble.

python -m simulations.attacks                                    # all of it, alpha .5, seed 0
python -m simulations.attacks --rules agreement_weighted median_probs --attacks random_weights --seeds 0 1 2
python -m simulations.attacks --dry-run                          # the commands, and how long they may take
python -m simulations.attacks --quick                            # digits, two attacks, a few minutes

Fashion-MNIST in one round, Dirichlet by class, fed_cmi with nothing changed but the rule and the attack; honest clients
are trained once. `attacks.md` has a line for every rule and a column for every attack: the ensemble's accuracy, and the
student's. The rest is as in `simulations.one_shot`.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from fl_cmi.compose import compose_config
from fl_cmi.simulate import run as simulate
from simulations.federated import OURS, Method
from simulations.study import Study, main, options_of
from simulations.sweep import Cell, Launch

__all__ = ["ATTACKS", "RULES", "run", "study_of", "tabled"]

RULES = (
    "by_class_counts",
    "mean_logits",
    "mean_probs",
    "median_probs",
    "trimmed_probs",
    "agreement_weighted",
)
ATTACKS = ("random_weights", "label_flip", "scaled", "backdoor", "collusion")
NUMBERS = (0, 1, 2)
CLIENTS = 10

SETTING = ("data=fashion_mnist", "model=convnet", "model.blocks=4", "local.epochs=20")
"""As in `simulations.one_shot`, but no images for the server."""

QUICK = (
    "data=digits",
    "model=convnet",
    "local.epochs=40",
    "synthesizer.inversion.source.generator.width=8",
    "schedule.epochs=3",
    "schedule.batches=12",
    "schedule.steps=150",
)

UNATTACKED = ("student_start=previous", "distiller.mixup=0.5")
"""An average with bad clients in it is no place to start from."""

Row = Mapping[str, str]


def study_of(rules: Sequence[str], attacks: Sequence[str], numbers: Sequence[int], quick: bool) -> Study:
    """A method for every rule without bad clients, and for every rule, attack and number of them."""
    chosen = {
        " ".join((rule, attack, str(number))): [
            f"combine={rule}",
            f"attacks={attack}",
            f"attacks.number={number}",
        ]
        for rule in rules
        for attack in attacks
        for number in numbers
        if number
    }
    clean = {f"{rule} none 0": [f"combine={rule}"] for rule in rules if 0 in numbers}
    # The preset of OURS is for Fashion-MNIST.
    start, budget = ((), 0.0) if quick else ((*OURS, *UNATTACKED), 1.0)
    methods = {name: Method((*start, *change), budget) for name, change in {**clean, **chosen}.items()}
    return Study(
        "simulations.attacks",
        (__doc__ or "").split("\n")[0],
        QUICK if quick else SETTING,
        methods,
        alphas=(0.5,),
        clients=(CLIENTS,),
        budget=300.0,
    )


def tabled(rows: Sequence[Row]) -> str:
    """Two markdown tables, of the ensemble and of the student: rules by attacks and numbers, means over seeds in %."""
    heads = list(dict.fromkeys(tuple(row["method"].split()[1:]) for row in rows))
    heads.sort(key=lambda head: head[1] != "0")
    rules = list(dict.fromkeys(row["method"].split()[0] for row in rows))
    text = []
    for name, column in (("Ensemble", "ensemble"), ("Student", "accuracy")):
        text += [f"{name} %, by the number of bad clients:", ""]
        text += ["| rule | " + " | ".join(f"{a} {n}" if n != "0" else "none" for a, n in heads) + " |"]
        text += ["|---|" + "---|" * len(heads)]
        for rule in rules:
            found = []
            for head in heads:
                same = [r for r in rows if r["method"] == " ".join((rule, *head)) and not r["failure"]]
                found.append(f"{100 * fmean(float(r[column]) for r in same):.2f}" if same else "-")
            text.append(f"| {rule} | " + " | ".join(found) + " |")
        text.append("")
    return "\n".join(text)


def in_process(cell: Cell, limit: float | None) -> str | None:
    """Run a small cell here: starting Python would take longer."""
    simulate(compose_config(cell.overrides), cell.folder)
    return None


def run(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(add_help=False, prog="python -m simulations.attacks")
    parser.add_argument("--rules", nargs="+", choices=RULES, metavar="RULE")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, metavar="ATTACK")
    parser.add_argument("--numbers", nargs="+", type=int, metavar="BAD")
    parser.add_argument("--quick", action="store_true", help="digits and a few minutes")
    typed = sys.argv[1:] if arguments is None else arguments
    own, rest = parser.parse_known_args(typed)
    if not all(0 <= number <= CLIENTS for number in own.numbers or ()):
        parser.error(f"--numbers: 0 to {CLIENTS} bad clients")
    few = ("by_class_counts", "trimmed_probs", "agreement_weighted")
    study = study_of(
        own.rules or (few if own.quick else RULES),
        own.attacks or (ATTACKS[:2] if own.quick else ATTACKS),
        own.numbers or ((0, 2) if own.quick else NUMBERS),
        own.quick,
    )
    rest = ["--out", "outputs/attacks-quick", *rest] if own.quick else rest
    options = options_of(study, rest, [parser])
    if own.quick:
        if options.jobs > 1:
            parser.error("--quick: its runs are in one process, so --jobs is 1")
        launch = in_process if launch is None else launch
    code = main(study, rest, launch, [parser], typed)
    results = Path(options.out) / "results.csv"
    if not options.dry_run and code != 2 and results.is_file():
        with results.open(encoding="utf-8", newline="") as file:
            text = tabled(list(csv.DictReader(file)))
        (Path(options.out) / "attacks.md").write_text(text, encoding="utf-8")
        print(f"\n{text}")
    return code


if __name__ == "__main__":
    sys.exit(run())
