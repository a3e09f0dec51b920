"""The IDX format of MNIST and its relatives, plain or gzipped, read in place.

A file is: two zero bytes, a type code (8 = uint8), the number of dimensions, each dimension as big-endian
uint32, and then the values in C order (http://yann.lecun.com/exdb/mnist/).
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from fl_cmi.data.location import corrupt
from fl_cmi.types import Images

__all__ = ["FILES", "find", "read", "read_images"]

FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
"""Images and labels of the training part, then of the test part."""


def find(folder: Path) -> list[Path] | None:
    """The four files of `FILES` in that order, plain before gzipped; None unless all are there."""
    found = []
    for name in (name for part in FILES for name in part):
        present = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not present:
            return None
        found.append(present[0])
    return found


def read(path: Path, num_dims: int) -> np.ndarray:
    """One IDX file of uint8 values with `num_dims` dimensions.

    Raises:
        ConfigError: If the file is cut short, too long or not of this kind; it names the file.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        corrupt(path, f"unreadable file ({error})")
    start = 4 + 4 * num_dims
    if content[:4] != bytes((0, 0, 8, num_dims)) or len(content) < start:
        corrupt(path, f"not an IDX file of uint8 with {num_dims} dimensions")
    dims = tuple(int(size) for size in np.frombuffer(content, ">u4", count=num_dims, offset=4))
    expected = start + int(np.prod(dims, dtype=np.int64))
    if len(content) != expected:
        corrupt(path, f"{len(content)} bytes, but its header promises {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(dims).copy()


def read_images(images: Path, labels: Path, num_classes: int) -> Images:
    """Gray images (N, 1, H, W) and their labels from two IDX files.

    Raises:
        ConfigError: If a file is damaged, the two differ in length or a label is out of range.
    """
    x, y = read(images, 3), read(labels, 1)
    if len(x) != len(y):
        corrupt(labels, f"{len(y)} labels for {len(x)} images")
    if len(y) == 0 or y.max() >= num_classes:
        corrupt(labels, f"labels must be 0..{num_classes - 1} and at least one")
    return Images(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y.astype(np.int64)), num_classes)
