"""Labels that the pool has cached are those of the ensemble as it is, wherever lessons read them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, TASK, ensemble, inversion, network, pixels
from torch import Tensor

from fl_cmi.bank import Pool
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.distillation.learnt_weights import LearntWeights
from fl_cmi.distillation.perturb import EnsembleSign
from fl_cmi.distillation.schedules import GrowPool
from fl_cmi.distillation.targets import Fresh, Owners, Sharpened, Targets
from fl_cmi.distillation.transfer import Transfer, transfer
from fl_cmi.ensemble import Ensemble
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.synthesis.synthesizers import Joint

SGD = partial(torch.optim.SGD, lr=0.1)


def round_of(
    team: Ensemble, pool: Pool, distiller: Distiller, schedule: Callable[[Transfer], None], folder: Path
) -> dict[str, float]:
    return transfer(
        team,
        network(9),
        Joint(inversion(), 6),
        distiller,
        pool,
        schedule,  # type: ignore[arg-type]
        task=TASK,
        seed=0,
        server_round=2,
        progress=Progress(quiet=True),
        log=MetricsLog(folder / "metrics.jsonl"),
        evaluate=lambda model: 0.25,
    )


def labels_of(pool: Pool) -> Tensor:
    return pool.tensors()["labels"].clone()


class Nothing(GrowPool):
    """A round that is over at once."""

    def __call__(self, transfer: Transfer) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"targets": Sharpened(), "mixup": 0.5}, True),
        ({"targets": Sharpened(), "mixup": 1.0}, False),
        ({"targets": Sharpened(), "perturb": EnsembleSign()}, False),
        ({"targets": Owners()}, False),
        ({"targets": Fresh()}, False),
    ],
)
def test_images_of_earlier_rounds_are_labelled_by_the_new_teachers(
    options: dict[str, Any], reads: bool, tmp_path: Path
) -> None:
    team, pool, old = ensemble(), Pool(), torch.zeros(300, CLASSES)
    pool.add(pixels(300), torch.zeros(300, dtype=torch.int64), old)
    metrics = round_of(team, pool, Distiller(SGD, **options), Nothing(), tmp_path)
    assert metrics["teacher-passes"] == (2 * 3 if reads else 0)  # at most 256 images a pass
    expected = team.label(pool.get(torch.arange(300)).x) if reads else old
    torch.testing.assert_close(labels_of(pool), expected)


def test_an_empty_pool_costs_nothing(tmp_path: Path) -> None:
    metrics = round_of(ensemble(), Pool(), Distiller(SGD, targets=Sharpened()), Nothing(), tmp_path)
    assert metrics["teacher-passes"] == 0


@pytest.mark.parametrize(("targets", "reads"), [(Sharpened(), True), (Fresh(), False)])
def test_what_a_rule_has_learnt_labels_the_pool(targets: Targets, reads: bool, tmp_path: Path) -> None:
    team, pool = ensemble(combine=LearntWeights(0.1)), Pool()
    schedule, distiller = GrowPool(epochs=2, batches=1, steps=0), Distiller(SGD, targets=targets)
    metrics = round_of(team, pool, distiller, schedule, tmp_path)
    found = labels_of(pool)
    # Per epoch 3 steps and the labels of the batch; in the second, the rule's pass and perhaps all labels anew.
    assert metrics["teacher-passes"] == 3 * (2 * (3 + 1) + 1 + reads)
    expected = team.label(pool.get(torch.arange(len(pool))).x)
    assert torch.allclose(found, expected, atol=1e-6) is reads
