"""Which values each layer sees: the ranges that activations are quantized to."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.augment import Augment, Identity
from fl_cmi.bank import Pool
from fl_cmi.types import ConfigError

__all__ = ["Calibration", "Range", "layers", "measure_ranges", "no_images", "sample_range"]


def no_images() -> ConfigError:
    """What is raised where there is nothing to calibrate on."""
    return ConfigError("calibration", 0, "at least one image to calibrate on")


@dataclass(frozen=True)
class Range:
    """The values that a layer's input takes.

    Args:
        low: Least.
        high: Greatest.
    """

    low: float
    high: float


def layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers by name, in module order: first the stem, last the classifier."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }


def sample_range(x: Float[Tensor, "batch ..."]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Least and greatest value of each sample."""
    flat = x.detach().flatten(1)
    return flat.amin(dim=1), flat.amax(dim=1)


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers(model)}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: found[name].append(sample_range(inputs[0]))
        )
        for name, layer in layers(model).items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure_ranges(
    model: nn.Module, batches: Iterable[Float[Tensor, "_ channels height width"]]
) -> dict[str, Range]:
    """`low = 1/N sum_i min x_i`, `high = 1/N sum_i max x_i` of each layer's input x, over all N samples of all batches.

    The mean of the samples' extremes, not the extremes of all: one unusual image moves it by 1/N. The model is the
    one in floating point, in eval mode; its mode is put back.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274.

    Args:
        model: On the device of the batches.
        batches: Images in [0, 1], at least one.

    Raises:
        ConfigError: There is no image, a layer never ran, or a layer's input is the same number for all images, or no
            number.
    """
    training = model.training
    model.eval()
    try:
        with _watching(model) as found:
            for x in batches:
                model(x)
    finally:
        model.train(training)
    if not any(found.values()):
        raise no_images()
    ranges = {}
    for name, seen in found.items():
        if not seen:
            raise ConfigError(
                "model", type(model).__name__, f"a model that runs all its layers, not all but {name}"
            )
        low, high = (torch.cat(ends).double().mean().item() for ends in zip(*seen, strict=True))
        if not isfinite(low) or not isfinite(high):
            sane = f"a model whose layers see finite numbers; the input of {name} is not"
            raise ConfigError("model", type(model).__name__, sane)
        if not high > low:
            everywhere = (
                f"on these images the input of {name} is {low:g} everywhere, which leaves it no range"
            )
            raise ConfigError(
                "calibration", "images", f"images on which all layers see something; {everywhere}"
            )
        ranges[name] = Range(low, high)
    return ranges


class Calibration:
    """`batches` batches, drawn with replacement and augmented as in training; the ranges of what the layers see.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274: 200 batches of 256, training augmentation and
        cutout.

    Args:
        batches: Batches, >= 1.
        batch_size: Images in each, >= 1.
        augment: Applied to each batch.
    """

    def __init__(self, batches: int = 200, batch_size: int = 256, augment: Augment | None = None) -> None:
        for key, value in (("batches", batches), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"calibrate.{key}", value, "an integer >= 1")
        self.batches, self.batch_size = batches, batch_size
        self.augment: Augment = Identity() if augment is None else augment

    def images(
        self, pool: Pool, rng: torch.Generator, device: torch.device
    ) -> Iterator[Float[Tensor, "batch channels height width"]]:
        """The batches, one after the other.

        Raises:
            ConfigError: There is none, or all are of one colour each, as from a generator that has collapsed. Cutout
                would give them a range all the same.
        """
        if not len(pool):
            raise no_images()
        x = pool.pixels.flatten(2)
        if bool((x.amin(2) == x.amax(2)).all()):
            why = f"images that show something; these {len(x):,} are of one colour each"
            raise ConfigError("calibration", "images", why)
        for _ in range(self.batches):
            yield self.augment(pool.draw(self.batch_size, rng).x.to(device), rng)
