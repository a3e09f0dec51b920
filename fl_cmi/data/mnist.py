"""MNIST (LeCun, Cortes and Burges 1998): 60,000 + 10,000 gray handwritten digits, 28x28."""

from functools import partial

from fl_cmi.data import idx
from fl_cmi.data.dataset import Dataset
from fl_cmi.data.location import fetch, root_folder
from fl_cmi.types import ConfigError

__all__ = ["load"]

MEAN, STD = (0.1307,), (0.3081,)


def load(root: str | None = None, download: bool = False) -> Dataset:
    """MNIST from torchvision's folder under `root` or from `root` itself.

    Args:
        root: Folder with `MNIST/raw/` as torchvision leaves it, or with the four IDX files (`.gz` or not);
            null for `~/.cache/fl_cmi`.
        download: Fetch the set into `root` with torchvision if it is in neither place.

    Raises:
        ConfigError: If the set is not there, cannot be fetched, or a file of it is damaged.
    """
    folder = root_folder(root, download)
    raw = folder / "MNIST" / "raw"
    files = idx.find(raw) or idx.find(folder)
    if files is None and download:
        from torchvision.datasets import MNIST  # a slow import, for downloads only

        fetch(partial(MNIST, str(folder), download=True), "MNIST")
        files = idx.find(raw)
    if files is None:
        raise ConfigError("data.root", root, f"no MNIST in {folder}; add data.download=true to fetch it")
    train = idx.read_images(files[0], files[1], num_classes=10)
    test = idx.read_images(files[2], files[3], num_classes=10)
    return Dataset("mnist", train, test, MEAN, STD, tuple("0123456789"))
