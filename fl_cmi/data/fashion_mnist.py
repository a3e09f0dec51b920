"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747): 60,000 + 10,000 gray garments, 28x28."""

from functools import partial
from pathlib import Path

from fl_cmi.data import idx
from fl_cmi.data.dataset import Dataset
from fl_cmi.data.location import fetch, root_folder
from fl_cmi.types import ConfigError

__all__ = ["load"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the gzipped files."""

MEAN, STD = (0.2860,), (0.3530,)

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load(root: str | None = None, download: bool = False) -> Dataset:
    """Fashion-MNIST from torchvision's folder under `root`, `root` itself or Debian's package, in place.

    Args:
        root: Folder with `FashionMNIST/raw/` as torchvision leaves it, or with the four IDX files (`.gz` or
            not); null for `~/.cache/fl_cmi`.
        download: Fetch the set into `root` with torchvision if it is in none of the three places.

    Raises:
        ConfigError: If the set is nowhere, cannot be fetched, or a file of it is damaged.
    """
    folder = root_folder(root, download)
    places = (folder / "FashionMNIST" / "raw", folder, DEBIAN)
    files = next((found for found in map(idx.find, places) if found), None)
    if files is None and download:
        from torchvision.datasets import FashionMNIST  # a slow import, for downloads only

        fetch(partial(FashionMNIST, str(folder), download=True), "Fashion-MNIST")
        files = idx.find(places[0])
    if files is None:
        raise ConfigError(
            "data.root",
            root,
            f"no Fashion-MNIST in {folder}; add data.download=true "
            "or run `apt-get install dataset-fashion-mnist`",
        )
    train = idx.read_images(files[0], files[1], len(CLASS_NAMES))
    test = idx.read_images(files[2], files[3], len(CLASS_NAMES))
    return Dataset("fashion_mnist", train, test, MEAN, STD, CLASS_NAMES)
