"""The 8x8 handwritten digits that ship inside scikit-learn: real data without a download.

1,797 images, the test part of *Optical Recognition of Handwritten Digits* (Alpaydin and Kaynak 1998, UCI
machine learning repository, https://doi.org/10.24432/C50P49). Pixels are counts 0..16 of ink in a 4x4 block.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits

from fl_cmi.data.dataset import Dataset
from fl_cmi.rng import numpy_stream
from fl_cmi.types import Images

__all__ = ["load"]

SPLIT_SEED = 0
"""The split is part of the data set: it stays the same whatever the seed of a run."""

MEAN, STD = (0.3050,), (0.3756,)
"""Over the pixels of the training part."""


def load(root: str | None = None, download: bool = False) -> Dataset:
    """Digits as 1,438 training and 359 test images (1, 8, 8), the same split in every run.

    Pixels become uint8 by `round(x * 255 / 16)`. Of each class a fifth, rounded, is drawn for the test part
    (seed `SPLIT_SEED`), so both parts have the classes in the same proportions.

    Args:
        root: Not used; all data sets are called alike.
        download: Not used.
    """
    digits = load_digits()
    y = digits.target.astype(np.int64)
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    rng = numpy_stream(SPLIT_SEED, "digits", "split")
    train, test = [], []
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(y == digit))
        size = round(len(members) / 5)
        test.append(members[:size])
        train.append(members[size:])

    def part(indices: list[np.ndarray]) -> Images:
        chosen = np.sort(np.concatenate(indices))
        return Images(torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen]), num_classes=10)

    return Dataset("digits", part(train), part(test), MEAN, STD, tuple("0123456789"))
