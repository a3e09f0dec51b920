"""Made-up images for tests and dry runs: one blurred spot per image, its place and color set by the class."""

import math

import numpy as np
import torch

from fl_cmi.data.dataset import Dataset
from fl_cmi.rng import numpy_stream
from fl_cmi.types import ConfigError, Images

__all__ = ["load"]


def load(
    root: str | None = None,
    download: bool = False,
    *,
    channels: int = 1,
    side: int = 8,
    num_classes: int = 4,
    num_train: int = 400,
    num_test: int = 100,
    noise: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Images `x = a_c exp(-|p - m_c - e|^2 / 2 r^2) + noise`, clipped to [0, 1] and rounded to uint8.

    The centers `m_c` lie on a circle, e is a jitter of 5 % of the side, r is 15 % of the side and the
    amplitudes `a_c` per channel are drawn once per class. Labels are balanced to within one image and
    shuffled.

    Args:
        root: Not used; all data sets are called alike.
        download: Not used.
        channels: Channels of an image.
        side: Height and width.
        num_classes: C.
        num_train: Training images, at least one per class.
        num_test: Test images, at least one per class.
        noise: Standard deviation of the Gaussian noise per pixel, on the scale of [0, 1].
        seed: Seed of the data set; not the seed of the run, so that the data stay the same.

    Raises:
        ConfigError: If a size is out of range.
    """
    least = {"channels": 1, "side": 2, "num_classes": 2, "num_train": num_classes, "num_test": num_classes}
    given = {
        "channels": channels,
        "side": side,
        "num_classes": num_classes,
        "num_train": num_train,
        "num_test": num_test,
    }
    for key, value in given.items():
        if not (isinstance(value, int) and value >= least[key]):
            raise ConfigError(f"data.{key}", value, f"an integer >= {least[key]}")
    if not (isinstance(noise, int | float) and noise >= 0):
        raise ConfigError("data.noise", noise, "a number >= 0")
    angles = 2 * math.pi * np.arange(num_classes) / num_classes
    centers = 0.5 + 0.3 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    amplitudes = numpy_stream(seed, "synthetic", "colors").uniform(0.5, 1.0, (num_classes, channels))

    def part(name: str, size: int) -> Images:
        rng = numpy_stream(seed, "synthetic", name)
        y = rng.permutation(np.arange(size) % num_classes)
        middle = centers[y] + rng.normal(0, 0.05, (size, 2))
        grid = (np.arange(side) + 0.5) / side
        rows, columns = ((grid - middle[:, axis, None]) ** 2 for axis in (0, 1))
        spot = np.exp(-(rows[:, :, None] + columns[:, None, :]) / (2 * 0.15**2))
        x = amplitudes[y][:, :, None, None] * spot[:, None]
        x = np.clip(x + rng.normal(0, noise, x.shape), 0, 1)
        pixels = torch.from_numpy(np.rint(255 * x).astype(np.uint8))
        return Images(pixels, torch.from_numpy(y.astype(np.int64)), num_classes)

    train = part("train", num_train)
    pixels = train.pixels().double()
    mean = tuple(pixels.mean(dim=(0, 2, 3)).tolist())
    std = tuple(pixels.std(dim=(0, 2, 3), correction=0).clamp_min(1e-3).tolist())
    names = tuple(f"spot {label}" for label in range(num_classes))
    return Dataset("synthetic", train, part("test", num_test), mean, std, names)
