"""Tiny ImageNet (Stanford CS231n): 100,000 + 10,000 color photographs of 200 classes, 64x64."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fl_cmi.data.dataset import Dataset
from fl_cmi.data.location import corrupt, fetch, root_folder
from fl_cmi.types import ConfigError, Images

__all__ = ["load"]

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
SIDE = 64

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def load(root: str | None = None, download: bool = False) -> Dataset:
    """Tiny ImageNet from its folder layout under `root`; the labelled validation part is the test part.

    Labels follow the order of `wnids.txt`; a class is called by its first name in `words.txt`, or by its
    WordNet id where that file is missing. The images are JPEGs (some are gray) and are decoded once: 1.4 GB
    in memory, about half a minute.

    Args:
        root: Folder that holds `tiny-imagenet-200/`; null for `~/.cache/fl_cmi`.
        download: Fetch and unpack the set into `root` if it is not there (248 MB).

    Raises:
        ConfigError: If the set is not there, cannot be fetched, or a file of it is missing or damaged.
    """
    parent = root_folder(root, download)
    folder = parent / FOLDER
    if not folder.is_dir() and download:
        from torchvision.datasets.utils import download_and_extract_archive  # slow, for downloads only

        get = partial(download_and_extract_archive, URL, str(parent), md5=MD5, remove_finished=True)
        fetch(get, "Tiny ImageNet")
    if not folder.is_dir():
        raise ConfigError(
            "data.root", root, f"no {FOLDER} in {parent}; add data.download=true or unpack {URL} there"
        )
    wnids = _lines(folder / "wnids.txt")
    label = {wnid: index for index, wnid in enumerate(wnids)}
    found = [
        (path, wnid) for wnid in wnids for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
    ]
    if not found:
        corrupt(folder / "train", "no images")
    numbers = Counter(wnid for _, wnid in found)
    most = max(numbers.values())
    for wnid in wnids:  # half of a set would give numbers that look right
        if numbers[wnid] < most:
            corrupt(folder / "train" / wnid / "images", f"{numbers[wnid]} images, elsewhere {most}")
    train = [(path, label[wnid]) for path, wnid in found]
    annotations = folder / "val" / "val_annotations.txt"
    test = []
    for line in _lines(annotations):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label:
            corrupt(annotations, f"{wnid!r} is not in wnids.txt")
        test.append((folder / "val" / "images" / name, label[wnid]))
    names = _class_names(folder / "words.txt", wnids)
    return Dataset("tiny_imagenet", _read(train, len(wnids)), _read(test, len(wnids)), MEAN, STD, names)


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    if not path.is_file():
        corrupt(path, "missing file")
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if not lines:
        corrupt(path, "empty file")
    return lines


def _class_names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    """Of each class the first of the names that `words.txt` gives after its id and a tab."""
    words = dict(line.partition("\t")[::2] for line in _lines(path)) if path.is_file() else {}
    return tuple(words.get(wnid, wnid).split(",")[0] for wnid in wnids)


def _read(samples: list[tuple[Path, int]], num_classes: int) -> Images:
    """Decode the images one by one into one tensor (N, 3, 64, 64)."""
    x = np.empty((len(samples), 3, SIDE, SIDE), np.uint8)
    for index, (path, _) in enumerate(samples):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            corrupt(path, f"no readable JPEG ({type(error).__name__})")
        if pixels.shape != (SIDE, SIDE, 3):
            corrupt(path, f"an image of {pixels.shape[0]}x{pixels.shape[1]} instead of {SIDE}x{SIDE}")
        x[index] = pixels.transpose(2, 0, 1)
    y = torch.tensor([label for _, label in samples], dtype=torch.int64)
    return Images(torch.from_numpy(x), y, num_classes)
