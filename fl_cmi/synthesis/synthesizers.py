"""Which teachers are inverted for which labels: all (or some) of them jointly, or one client at a time."""

import copy
from dataclasses import replace
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.gradients import require_gradients
from fl_cmi.synthesis.drawn import check_drawing, draw
from fl_cmi.synthesis.inversion import Inversion, Inverted
from fl_cmi.synthesis.source import Samples
from fl_cmi.types import ConfigError, Task

__all__ = ["Joint", "PerClient", "Synthesizer"]


class Synthesizer(Protocol):
    """Makes images from the teachers, a batch at a time."""

    def check(self, ensemble: Ensemble) -> None:
        """Raise ConfigError where these teachers lack what the method needs."""
        ...

    def __call__(self, ensemble: Ensemble, student: nn.Module, task: Task, rng: torch.Generator) -> Inverted:
        """Synthesize one batch."""
        ...

    def check_sample(self) -> None:
        """Raise ConfigError where `sample` cannot work, because images exist only once they are optimized."""
        ...

    def sample(
        self, ensemble: Ensemble, task: Task, batch_size: int, rng: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Fresh images of a trained generator, without gradient and without optimizing for them."""
        ...


def checked_batch_size(batch_size: int) -> int:
    """A batch whose statistics mean something.

    Raises:
        ConfigError: Below two images.
    """
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ConfigError(
            "synthesizer.batch_size", batch_size, "an integer >= 2 (statistics need two images)"
        )
    return batch_size


def check_halves(inversion: Inversion, batch_size: int) -> None:
    """Raise ConfigError for an odd batch where a term compares its halves."""
    if batch_size % 2 and any(term.halves for term in inversion.terms.values()):
        raise ConfigError("synthesizer.batch_size", batch_size, "an even number, for the mode-seeking term")


def sampling(inversion: Inversion) -> Samples:
    """The inversion's source, as one that makes images on demand.

    Raises:
        ConfigError: If its images exist only once they are optimized.
    """
    source = inversion.source
    if not isinstance(source, Samples):
        raise ConfigError(
            "synthesizer.inversion.source",
            type(source).__name__,
            "a generator that is trained for the whole run, such as TrainedGenerator, because the schedule"
            " draws fresh images",
        )
    return source


class Joint:
    """Invert all teachers at once: their combined logits, the mean of their batch-norm terms.

    Labels are of the classes that some client owns (all classes where clients keep their counts). Under label skew the
    batch is asked to match statistics that contradict each other; see `PerClient`.

    Args:
        inversion: Of one batch; its generator and bank persist over batches.
        batch_size: Images a batch.
        labels: `uniform` draws them, sorted. `cyclic` counts through the classes where the batch has at least
            max(classes, 64) images, else draws (The Knowledge Within). `ensemble` is for terms that drive images to no
            label: afterwards they get the ensemble's choice. The pass of every teacher serves the pool as well.
        teachers: m >= 1, how many are drawn for each batch in the place of all; what is right on average then and what
            is not, see `fl_cmi.synthesis.drawn`. None, or no fewer than there are: all. Any number asks for a rule
            and terms that allow drawing.
    """

    def __init__(
        self,
        inversion: Inversion,
        batch_size: int = 256,
        labels: Literal["uniform", "cyclic", "ensemble"] = "uniform",
        teachers: int | None = None,
    ) -> None:
        if labels not in ("uniform", "cyclic", "ensemble"):
            raise ConfigError("synthesizer.labels", labels, "one of uniform, cyclic, ensemble")
        if teachers is not None and (
            isinstance(teachers, bool) or not isinstance(teachers, int) or teachers < 1
        ):
            raise ConfigError("synthesizer.teachers", teachers, "an integer >= 1, or null for all")
        self.inversion, self.batch_size, self.labels = inversion, checked_batch_size(batch_size), labels
        self.teachers = teachers

    def check(self, ensemble: Ensemble) -> None:
        """As the inversion's terms; whether images can follow the rule, and whether teachers may be drawn."""
        check_halves(self.inversion, self.batch_size)
        self.inversion.check(ensemble)
        following = [name for name, term in self.inversion.terms.items() if term.combined]
        if following:
            why = f"images follow it in terms.{following[0]} (synthesizer=per_client follows one teacher at a time)"
            require_gradients(ensemble, why)
        if self.teachers is not None:
            check_drawing(ensemble, self.inversion, self.teachers)

    def __call__(self, ensemble: Ensemble, student: nn.Module, task: Task, rng: torch.Generator) -> Inverted:
        """One batch of all teachers, or of those drawn."""
        owned = ensemble.owned_classes
        classes = torch.arange(task.num_classes) if owned is None else owned.cpu()
        y = self.draw(classes, rng)
        made = self.inversion(draw(ensemble, self.teachers, rng), student, y, task, rng)
        return made.chosen(ensemble) if self.labels == "ensemble" else made

    def draw(self, classes: Int[Tensor, " classes"], rng: torch.Generator) -> Int[Tensor, " batch"]:
        """The labels of a batch, out of these classes."""
        number = len(classes)
        if self.labels == "cyclic" and self.batch_size >= max(number, 64):
            return classes[torch.arange(self.batch_size) % number]
        return classes[torch.randint(number, (self.batch_size,), generator=rng)].sort().values

    def check_sample(self) -> None:
        """The source must be a generator trained for the whole run."""
        sampling(self.inversion)

    def sample(
        self, ensemble: Ensemble, task: Task, batch_size: int, rng: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Images of the one generator."""
        source, device = sampling(self.inversion), ensemble.num_examples_K.device
        return ensemble.run(source.sample, task, batch_size, rng, device)

    def state_dict(self, scene: Scene) -> Tree:
        """The inversion's."""
        return self.inversion.state_dict(scene)

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.inversion.load_state_dict(state, scene)


class PerClient:
    """Invert one client's model at a time, under its own label mix; then let the whole ensemble label the images.

        c ~ U(owned classes),  k ~ v_k n_k(c) / sum_j v_j n_j(c),  y_i ~ n_k / |n_k|
        x = argmin  CE(t_k(x), y) + L_bn of client k + ...

    The batch has the label mix that the client's batch-norm statistics were taken under, so the terms do not contradict
    each other, and a step costs one teacher pass instead of K. v is what the ensemble's rule has learnt to think of its
    teachers (agreement_weighted), so that the models of bad clients are seldom inverted; else 1. Where clients keep
    their counts, clients take turns at random and labels are uniform.

    Args:
        inversion: Of one batch; each client gets a copy, with its own generator and bank.
        batch_size: Images a batch.
    """

    def __init__(self, inversion: Inversion, batch_size: int = 128) -> None:
        self.template, self.batch_size = inversion, checked_batch_size(batch_size)
        self.inversions: dict[int, Inversion] = {}

    def check(self, ensemble: Ensemble) -> None:
        """As the inversion's terms, for every client."""
        check_halves(self.template, self.batch_size)
        self.template.check(ensemble)

    def __call__(self, ensemble: Ensemble, student: nn.Module, task: Task, rng: torch.Generator) -> Inverted:
        """One batch of one client."""
        k, y = self.draw(ensemble, task.num_classes, rng)
        client = ensemble.teachers[k].client
        made = self.inversion_of(client)(ensemble.only(k), student, y, task, rng)
        return replace(made, client=client)

    def check_sample(self) -> None:
        """The source must be a generator trained for the whole run."""
        sampling(self.template)

    def sample(
        self, ensemble: Ensemble, task: Task, batch_size: int, rng: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Images of one client's generator, the client drawn as for a batch."""
        k, _ = self.draw(ensemble, task.num_classes, rng)
        source = sampling(self.inversion_of(ensemble.teachers[k].client))
        return ensemble.run(source.sample, task, batch_size, rng, ensemble.num_examples_K.device)

    def inversion_of(self, client: int) -> Inversion:
        """The client's own inversion, copied from the template when it is first asked for."""
        if client not in self.inversions:
            self.inversions[client] = copy.deepcopy(self.template)
        return self.inversions[client]

    def state_dict(self, scene: Scene) -> Tree:
        """The state of each client's inversion so far."""
        return {client: inversion.state_dict(scene) for client, inversion in self.inversions.items()}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.inversions = {}
        for client, own in state.items():
            self.inversion_of(client).load_state_dict(own, scene)

    def draw(
        self, ensemble: Ensemble, classes: int, rng: torch.Generator
    ) -> tuple[int, Int[Tensor, " batch"]]:
        """A teacher's position and the labels of its batch."""
        counts_KC, owned, say_K = ensemble.class_counts_KC, ensemble.owned_classes, ensemble.say.cpu()
        if counts_KC is None or owned is None:
            k = int(torch.multinomial(say_K, 1, generator=rng))
            return k, torch.randint(classes, (self.batch_size,), generator=rng)
        histogram_KC = counts_KC.cpu().float()
        share_KC = say_K[:, None] * histogram_KC
        if not share_KC.any():
            share_KC = histogram_KC
        # A class may have no owner left who has a say.
        heard = [c for c in owned.tolist() if share_KC[:, c].sum() > 0]
        c = heard[int(torch.randint(len(heard), (), generator=rng))]
        k = int(torch.multinomial(share_KC[:, c], 1, generator=rng))
        return k, torch.multinomial(histogram_KC[k], self.batch_size, replacement=True, generator=rng)
