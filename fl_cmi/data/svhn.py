"""SVHN (Netzer et al. 2011): 73,257 + 26,032 color house-number digits, 32x32, cropped format."""

import hashlib
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from fl_cmi.data.dataset import Dataset
from fl_cmi.data.location import corrupt, fetch, root_folder
from fl_cmi.types import ConfigError, Images

__all__ = ["load"]

MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
"""Of the published files, as torchvision has them."""

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def load(root: str | None = None, download: bool = False) -> Dataset:
    """SVHN from its two MATLAB files in `root`, where torchvision leaves them.

    Args:
        root: Folder that holds `train_32x32.mat` and `test_32x32.mat`; null for `~/.cache/fl_cmi`.
        download: Fetch the missing files with torchvision (182 MB and 64 MB).

    Raises:
        ConfigError: If the set is not there, cannot be fetched, or a file of it is damaged.
    """
    folder = root_folder(root, download)
    paths = [folder / name for name in MD5]
    if download and not all(path.is_file() for path in paths):
        from torchvision.datasets import SVHN  # a slow import, for downloads only

        for split in ("train", "test"):
            fetch(partial(SVHN, str(folder), split=split, download=True), f"SVHN ({split})")
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                "data.root", root, f"no {path.name} in {folder}; add data.download=true to fetch SVHN"
            )
    return Dataset("svhn", _read(paths[0]), _read(paths[1]), MEAN, STD, tuple("0123456789"))


def _check(path: Path) -> None:
    """Nothing but the published files reaches SciPy's parser, which a damaged one can crash."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if found != MD5[path.name]:
        corrupt(path, f"its md5 is {found}, that of the published file {MD5[path.name]}")


def _read(path: Path) -> Images:
    """One file: `X` (32, 32, 3, N) uint8 and `y` (N, 1) with 10 for the digit 0."""
    _check(path)
    try:
        content = loadmat(str(path), variable_names=("X", "y"))
        x, y = content["X"], content["y"].reshape(-1).astype(np.int64) % 10
    except (MatReadError, OSError, ValueError, TypeError, KeyError, NotImplementedError, zlib.error) as error:
        corrupt(path, f"not a MATLAB file with X and y ({type(error).__name__})")
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or x.shape[3] != len(y):
        corrupt(
            path, f"X {x.shape} of {x.dtype} and {len(y)} labels, instead of (32, 32, 3, N) of uint8 and N"
        )
    return Images(torch.from_numpy(np.ascontiguousarray(x.transpose(3, 2, 0, 1))), torch.from_numpy(y), 10)
