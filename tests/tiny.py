"""Small clients, ensembles and images that many tests start from."""

from collections.abc import Callable, Sequence
from functools import partial

import reference
import torch
from torch import Tensor, nn

from fl_cmi.augment import Augment
from fl_cmi.ensemble import Combine, Ensemble, mean_logits
from fl_cmi.models.convnet import ConvNet
from fl_cmi.models.generator import Generator
from fl_cmi.models.initialize import initialize
from fl_cmi.moments import moments_of, remember
from fl_cmi.precision import Precision, exact
from fl_cmi.synthesis.contrast import Contrast
from fl_cmi.synthesis.inversion import Inversion
from fl_cmi.synthesis.source import GeneratorSource, Source
from fl_cmi.synthesis.terms.adversarial import Adversarial
from fl_cmi.synthesis.terms.batch_norm import BatchNorm
from fl_cmi.synthesis.terms.one_hot import OneHot
from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import Images, Shape, Task, Teacher

SHAPE: Shape = (1, 8, 8)
CLASSES = 4
TASK = Task(SHAPE, CLASSES, (0.5,), (0.25,))

WIDTH = 4
"""Of made-up features."""

COUNTS = ((9, 1, 0, 0), (0, 6, 0, 2), (3, 3, 0, 0))
"""Three clients' images per class; nobody owns class 2."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(batch: int, seed: int = 0, shape: Shape = SHAPE) -> Tensor:
    return torch.rand(batch, *shape, generator=rng(seed))


def rows(number: int, seed: int, width: int = WIDTH) -> Tensor:
    return torch.randn(number, width, dtype=torch.float64, generator=rng(seed))


def images(number: int, seed: int = 0, shape: Shape = SHAPE, classes: int = CLASSES) -> Images:
    """Random uint8 images; each class has its own brightness, so that something can be learnt."""
    y = torch.randint(classes, (number,), generator=rng(seed))
    noise = torch.randint(0, 60, (number, *shape), generator=rng(seed + 1))
    return Images((noise + 45 * y[:, None, None, None]).to(torch.uint8), y, classes)


def network(seed: int = 0, width: int = 2) -> nn.Module:
    """A convnet with three batch-norm layers that have seen some images."""
    model = ConvNet(SHAPE, CLASSES, TASK.mean, TASK.std, width=width)
    initialize(model, rng(seed))
    model.train()
    with torch.no_grad():
        for step in range(3):
            model(pixels(16, seed=100 * seed + step))
    return model


def remembering(seed: int = 0) -> nn.Module:
    """The same network, with the moments of some images, as clients of `fed_cmi_moments` send them."""
    model = network(seed)
    remember(model, moments_of(model, [pixels(8, seed)]))
    return model


def ensemble(
    counts: Sequence[Sequence[int] | None] = COUNTS,
    combine: Combine = mean_logits,
    make: Callable[[int], nn.Module] = network,
    first_client: int = 0,
    precision: Precision = exact,
) -> Ensemble:
    """One teacher for each row of counts; partition ids in steps of ten."""
    return Ensemble(
        [
            Teacher(
                first_client + 10 * k,
                10 if row is None else sum(row),
                None if row is None else torch.tensor(row),
                make(k),
            )
            for k, row in enumerate(counts)
        ],
        combine,
        precision=precision,
    )


def look_of(
    y: Tensor,
    teacher: Tensor,
    student: Tensor | None = None,
    x: Tensor | None = None,
    features: Sequence[Tensor] = (),
) -> Look:
    """A look of one made-up teacher without batch norm."""
    images = pixels(len(y)).to(teacher.dtype) if x is None else x
    return Look(images, y, teacher[None], teacher, [], features, student, TASK)


def generator(shape: Shape) -> Generator:
    return Generator(shape, num_latents=6, width=2)


def contrast(bank_size: int = 20, num_negatives: int = 8, weight: float = 0.8) -> Contrast:
    return Contrast(weight=weight, bank_size=bank_size, num_negatives=num_negatives, head_width=5)


def head_of(made: Contrast) -> reference.Head:
    assert made.head is not None
    weight_1, bias_1, weight_2, bias_2 = made.head.parameters()
    return weight_1, bias_1, weight_2, bias_2


def inversion(
    steps: int = 3,
    terms: dict[str, Term] | None = None,
    contrastive: Contrast | None = None,
    global_view: Augment | None = None,
    reset: bool = True,
    source: Source | None = None,
) -> Inversion:
    """All terms of CMI on a small generator."""
    adam = partial(torch.optim.Adam, lr=0.01, betas=(0.5, 0.999))
    chosen: dict[str, Term] = {"bn": BatchNorm(1.0), "oh": OneHot(0.5), "adv": Adversarial(0.5)}
    return Inversion(
        GeneratorSource(generator, adam, reset) if source is None else source,
        chosen if terms is None else terms,
        contrastive,
        steps=steps,
        global_view=global_view,
    )
