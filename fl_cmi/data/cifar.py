"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 color photographs, 32x32.

Read from the *binary version*, a plain format: one or two label bytes, then 1,024 bytes each of red, green
and blue (https://www.cs.toronto.edu/~kriz/cifar.html). The Python version is a pickle, which runs code when
it is read, so it is left alone.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from fl_cmi.data.dataset import Dataset
from fl_cmi.data.location import corrupt, fetch, root_folder
from fl_cmi.types import ConfigError, Images

__all__ = ["cifar10", "cifar100"]

URL = "https://www.cs.toronto.edu/~kriz/"
SHAPE = (3, 32, 32)
NUM_PIXELS = 3 * 32 * 32


def cifar10(root: str | None = None, download: bool = False) -> Dataset:
    """CIFAR-10 from `cifar-10-batches-bin` under `root`.

    Args:
        root: Folder that holds `cifar-10-batches-bin/`; null for `~/.cache/fl_cmi`.
        download: Fetch the binary version into `root` if it is not there (163 MB).

    Raises:
        ConfigError: If the set is not there, cannot be fetched, or a file of it is damaged.
    """
    folder = _locate(
        root, download, "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
    )
    names = _class_names(folder / "batches.meta.txt", 10)
    train = [_read(folder / f"data_batch_{batch}.bin", 1, 10) for batch in range(1, 6)]
    for batch, (_, labels) in enumerate(train, start=1):
        if len(labels) < max(len(y) for _, y in train):
            corrupt(folder / f"data_batch_{batch}.bin", f"{len(labels)} records, fewer than in another batch")
    x, y = (torch.cat(parts) for parts in zip(*train, strict=True))
    test = Images(*_read(folder / "test_batch.bin", 1, 10), num_classes=10)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return Dataset("cifar10", Images(x, y, num_classes=10), test, mean, std, names)


def cifar100(root: str | None = None, download: bool = False) -> Dataset:
    """CIFAR-100 with its 100 fine labels, from `cifar-100-binary` under `root`.

    Args:
        root: Folder that holds `cifar-100-binary/`; null for `~/.cache/fl_cmi`.
        download: Fetch the binary version into `root` if it is not there (161 MB).

    Raises:
        ConfigError: If the set is not there, cannot be fetched, or a file of it is damaged.
    """
    folder = _locate(
        root, download, "cifar-100-binary", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"
    )
    names = _class_names(folder / "fine_label_names.txt", 100)
    train = Images(*_read(folder / "train.bin", 2, 100), num_classes=100)
    test = Images(*_read(folder / "test.bin", 2, 100), num_classes=100)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return Dataset("cifar100", train, test, mean, std, names)


def _locate(root: str | None, download: bool, name: str, archive: str, md5: str) -> Path:
    """The folder `name` under `root`, after a download if that is wanted."""
    parent = root_folder(root, download)
    folder = parent / name
    if not folder.is_dir() and download:
        from torchvision.datasets.utils import download_and_extract_archive  # slow, for downloads only

        get = partial(download_and_extract_archive, URL + archive, str(parent), md5=md5, remove_finished=True)
        fetch(get, archive)
    if not folder.is_dir():
        remedy = f"add data.download=true or unpack {URL}{archive} there"
        raise ConfigError("data.root", root, f"no {name} (the binary version) in {parent}; {remedy}")
    return folder


def _class_names(path: Path, num_classes: int) -> tuple[str, ...]:
    """One name per line."""
    if not path.is_file():
        corrupt(path, "missing file")
    names = tuple(path.read_text(errors="replace").split())
    if len(names) != num_classes:
        corrupt(path, f"{len(names)} class names instead of {num_classes}")
    return names


def _read(path: Path, num_labels: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 3, 32, 32) and labels (N,) of a file of records; the last label byte is the finest."""
    if not path.is_file():
        corrupt(path, "missing file")
    content = np.fromfile(path, np.uint8)
    size = num_labels + NUM_PIXELS
    if len(content) == 0 or len(content) % size:
        corrupt(path, f"{len(content)} bytes, no multiple of the {size} bytes of a record")
    records = content.reshape(-1, size)
    y = records[:, num_labels - 1].astype(np.int64)
    if y.max() >= num_classes:
        corrupt(path, f"label {y.max()}, but labels must be 0..{num_classes - 1}")
    x = np.ascontiguousarray(records[:, num_labels:]).reshape(-1, *SHAPE)
    return torch.from_numpy(x), torch.from_numpy(y)
