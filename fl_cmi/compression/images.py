"""Where the images come from that a model is calibrated and fine-tuned on."""

import copy
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from fl_cmi.bank import Pool
from fl_cmi.ensemble import Ensemble
from fl_cmi.files import check_header
from fl_cmi.report.origin import Origin
from fl_cmi.rng import stream
from fl_cmi.synthesis.inversion import Inversion
from fl_cmi.synthesis.synthesizers import Joint, PerClient, Synthesizer
from fl_cmi.types import ConfigError, Images, Task

__all__ = ["Real", "Saved", "Source", "Synthesized"]


class Source(Protocol):
    """Makes the set of images.

    Attributes:
        origin: Where they come from; known when they are there.
        typed: Key and value that choose them on the command line.
    """

    origin: Origin
    typed: tuple[str, str]

    def check(self, teacher: Ensemble) -> None:
        """Raise ConfigError where the teacher lacks what this needs."""
        ...

    def __call__(self, teacher: Ensemble, task: Task, real: Images, seed: int) -> Pool:
        """The images, with the teacher's labels.

        Args:
            teacher: The model that is to be compressed, as an ensemble of one.
            task: What it fits.
            real: Training images; only the control looks at them.
            seed: Of the run.
        """
        ...


def checked(number: int) -> int:
    """A number of images, >= 2 as in every pool.

    Raises:
        ConfigError: If it is none.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 2:
        raise ConfigError("calibration.images", number, "an integer >= 2")
    return number


class Synthesized:
    """Images inverted from the model itself, by any synthesizer.

    BNS, Inception and both of The Knowledge Within; CMI and its kin; Gaussian noise, the control. The model is teacher
    and student at once, so that terms of their disagreement are constant and do nothing.

    Args:
        synthesizer: Makes a batch at a time.
        images: Number of images, >= 2; the last batch may leave some over.
    """

    def __init__(self, synthesizer: Synthesizer, images: int = 512) -> None:
        self.synthesizer, self.images = synthesizer, checked(images)
        self.inversion = inversion_of(synthesizer)
        terms = () if self.inversion is None else tuple(self.inversion.terms)
        self.origin = Origin(True, type(synthesizer).__name__, terms)
        self.typed = "calibration", "synthesized"

    def check(self, teacher: Ensemble) -> None:
        """As the synthesizer's terms: statistics need batch norm; and there must be another term than disagreement."""
        self.synthesizer.check(teacher)
        how = self.inversion
        if how is not None and how.contrast is None and all(term.student for term in how.terms.values()):
            why = "at least one that does not ask for a student, because here the model is its own"
            raise ConfigError("synthesizer.inversion.terms", ", ".join(how.terms), why)

    def __call__(self, teacher: Ensemble, task: Task, real: Images, seed: int) -> Pool:
        """Batches until there are enough; a stream for each."""
        pool, number = Pool(self.images), 0
        student = copy.deepcopy(teacher.models[0])  # a method may show images to a student in train mode
        while pool.written < self.images:
            rng = stream(seed, "compression", "synthesis", number)
            made = self.synthesizer(teacher, student, task, rng)
            rest = self.images - pool.written
            pool.add(made.x[:rest], made.y[:rest], teacher.label(made.x[:rest]))
            number += 1
        return pool


def inversion_of(synthesizer: Synthesizer) -> Inversion | None:
    """What the synthesizer optimizes images by, if it does."""
    if isinstance(synthesizer, PerClient):
        return synthesizer.template
    return synthesizer.inversion if isinstance(synthesizer, Joint) else None


class Saved:
    """The pool that a run has saved; its header says where the images come from.

    Args:
        path: `pool.safetensors` with `pixels` (uint8), `targets`, `labels` (log-probabilities) and `clients`.
        images: Images kept at most, >= 2, those of the highest slots; None: all.
    """

    def __init__(self, path: str, images: int | None = None) -> None:
        self.path, self.images = path, None if images is None else checked(images)
        self.origin = Origin()
        self.typed = "calibration.path", path

    def check(self, teacher: Ensemble) -> None:
        """The file must be there."""
        if not Path(self.path).expanduser().is_file():
            raise ConfigError("calibration.path", self.path, "a pool.safetensors (simulate save_pool=true)")

    def __call__(self, teacher: Ensemble, task: Task, real: Images, seed: int) -> Pool:
        """The images and the labels that they were aimed at; cached log-probabilities are the model's own."""
        key = "calibration.path"
        path = Path(self.path).expanduser()
        try:
            check_header(path)
            with safe_open(path, "pt") as file:  # no more is read than is used
                x, y = file.get_tensor("pixels"), file.get_tensor("targets")
                self.origin = Origin.read(file.metadata())
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(key, self.path, f"a pool with pixels and targets ({error})") from error
        if x.ndim == 0 or len(x) < 2:
            raise ConfigError(key, self.path, "a pool with at least two images")
        if tuple(x.shape[1:]) != tuple(task.shape) or x.dtype != torch.uint8:
            raise ConfigError(
                key, self.path, f"uint8 images of {task.shape}, not {tuple(x.shape[1:])} {x.dtype}"
            )
        if y.shape != x.shape[:1] or y.dtype != torch.int64 or not 0 <= y.min() <= y.max() < task.num_classes:
            raise ConfigError(
                key, self.path, f"int64 targets of 0 to {task.num_classes - 1}, one for each image"
            )
        kept = len(x) if self.images is None else min(self.images, len(x))
        return labelled(Images(x[-kept:], y[-kept:], task.num_classes), teacher)


class Real:
    """Training images, equally many of each class as far as they go: the upper control, which is not data-free.

    Args:
        images: Number of images, >= 2; the number of classes is the control of one image a class.
    """

    origin = Origin(data_free=False)
    typed = "calibration", "real"

    def __init__(self, images: int = 2048) -> None:
        self.images = checked(images)

    def check(self, teacher: Ensemble) -> None:
        """Any model will do."""

    def __call__(self, teacher: Ensemble, task: Task, real: Images, seed: int) -> Pool:
        """Drawn without replacement, class by class in turn."""
        order = torch.randperm(len(real), generator=stream(seed, "compression", "real"))
        y = real.y[order]
        rank = torch.zeros(len(y), dtype=torch.int64)
        for c in y.unique():
            mine = y == c
            rank[mine] = torch.arange(int(mine.sum()))
        chosen = order[rank.argsort(stable=True)[: self.images]]
        return labelled(real.subset(chosen), teacher)


def labelled(images: Images, teacher: Ensemble, batch_size: int = 500) -> Pool:
    """A pool of the images, with the teacher's log-probabilities."""
    pool = Pool(len(images))
    for at in torch.arange(len(images)).split(batch_size):
        x = images.pixels(at).to(teacher.num_examples_K.device)
        pool.add(x, images.y[at], teacher.label(x))
    return pool
