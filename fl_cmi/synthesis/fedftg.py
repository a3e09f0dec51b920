"""FedFTG's generator: conditioned on the label, trained against one client after the other.

Shape letters: K teachers, B batch, C classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble, owner_weights
from fl_cmi.losses import kl_divergence, pairwise_diversity
from fl_cmi.models.generator import ImageGenerator
from fl_cmi.synthesis.inversion import Inverted, finite, frozen
from fl_cmi.synthesis.source import MakeOptimizer, TrainedGenerator
from fl_cmi.synthesis.synthesizers import checked_batch_size
from fl_cmi.synthesis.teachers import LastTeachers
from fl_cmi.types import ConfigError, Task

__all__ = ["FedFtgGenerator", "fidelity", "hard_samples"]

Logits = Float[Tensor, "batch classes"]
PerSample = Float[Tensor, " batch"]


def hard_samples(
    student: Logits, teacher: Logits, weight: PerSample, divergence: Literal["l1", "kl"] = "l1"
) -> Float[Tensor, ""]:
    """`-1/B sum_i W_i D_i`, `D_i = 1/C sum_c |s_ic - t_ic|` on logits (code) or `KL(p_t || p_s)` (paper).

    The teacher's side is detached: images look for the student's error, not for the teacher's.
    """
    teacher = teacher.detach()
    if divergence == "kl":
        return -kl_divergence(teacher, student, 1.0, weight)
    return -((student - teacher).abs().mean(dim=1) * weight).mean()


def fidelity(teacher: Logits, y: Int[Tensor, " batch"], weight: PerSample) -> Float[Tensor, ""]:
    """`CE(t, y) * 1/B sum_i W_i`: the mean loss times the mean weight, as in the code, and not the mean of products."""
    return F.cross_entropy(teacher, y) * weight.mean()


class FedFtgGenerator:
    """A lasting generator `x = G(z, y)`, one Adam step against each client in turn on the same z and y.

        y ~ sum_k n_k(y);  z ~ N(0, I);  W_yk = n_k(y) / sum_j n_j(y)
        for each client k:  step G on  a hard(s, t_k, W_k) + o fidelity(t_k, y, W_k) + d diversity(x, z) / K

    The batch handed on is G(z, y) after the last step, by running statistics, and each round begins with an optimizer
    without memory. Clients that own more of a label have more say in its images. Needs label counts. z and the one-hot
    y enter the generator side by side; diversity looks at normalized images.

    References:
        L. Zhang et al., *Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning*,
        CVPR 2022, arXiv 2203.09249; L1, the form of the second term, the generator's modes and its optimizer of a round
        from the released code.

    Args:
        generator: Makes a generator from an image shape and `num_latents` = n_z + C.
        optimizer: Makes the optimizer of its weights.
        num_latents: n_z; the paper has 100 for CIFAR-10, else 256.
        batch_size: B.
        adversarial: a >= 0.
        one_hot: o >= 0.
        diversity: d >= 0.
        divergence: `l1` (code) or `kl` (paper).
        scheduler: Makes the scheduler of the optimizer's rate, which counts batches; None keeps the rate.
    """

    def __init__(
        self,
        generator: Callable[..., ImageGenerator],
        optimizer: MakeOptimizer,
        num_latents: int = 100,
        batch_size: int = 50,
        adversarial: float = 1.0,
        one_hot: float = 1.0,
        diversity: float = 1.0,
        divergence: Literal["l1", "kl"] = "l1",
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        for key, weight in (("adversarial", adversarial), ("one_hot", one_hot), ("diversity", diversity)):
            if not weight >= 0:
                raise ConfigError(f"synthesizer.{key}", weight, "a number >= 0")
        if divergence not in ("l1", "kl"):
            raise ConfigError("synthesizer.divergence", divergence, "l1 or kl")
        if not isinstance(num_latents, int) or num_latents < 1:
            raise ConfigError("synthesizer.num_latents", num_latents, "an integer >= 1")
        self.make, self.optimizer, self.scheduler = generator, optimizer, scheduler
        self.num_latents, self.batch_size = num_latents, checked_batch_size(batch_size)
        self.adversarial, self.one_hot, self.diversity = adversarial, one_hot, diversity
        self.divergence: Literal["l1", "kl"] = divergence
        self.source: TrainedGenerator | None = None
        self.teachers = LastTeachers()

    def check(self, ensemble: Ensemble) -> None:
        """Label counts are needed."""
        ensemble.require_class_counts("synthesizer=fedftg")

    def __call__(self, ensemble: Ensemble, student: nn.Module, task: Task, rng: torch.Generator) -> Inverted:
        """K steps of the generator, then its batch."""
        device = ensemble.num_examples_K.device
        source = self.source_of(task)
        generator = source.built(task, rng, device)
        if self.teachers.change(ensemble):
            source.forget()
        y, z = self.draw(ensemble, self.batch_size, rng)
        code = torch.cat([z, F.one_hot(y, task.num_classes).to(z)], dim=1)
        counts_KC = ensemble.require_class_counts("synthesizer=fedftg")
        weight_KB = owner_weights(counts_KC).float()[:, y]
        losses: dict[str, Tensor] = {}
        with frozen(student):
            for k in range(len(ensemble)):
                x = ensemble.run(generator.images, code, task)
                losses = self.losses(
                    ensemble.only(k)(x), ensemble.run(student, x), x, y, z, weight_KB[k], task
                )
                total = self.total(losses, len(ensemble))
                finite(total, losses, k)
                total.backward()
                source.step()
        source.finish()
        with frozen(generator), torch.no_grad():
            x = ensemble.run(generator.images, code, task)
        last = {name: loss.item() for name, loss in losses.items()}
        return Inverted(x, y, {**last, "total": self.total(losses, len(ensemble)).item()})

    def losses(
        self,
        teacher: Logits,
        student: Logits,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        z: Float[Tensor, "batch latents"],
        weight: PerSample,
        task: Task,
    ) -> dict[str, Tensor]:
        """The three terms for one client, unweighted."""
        mean, std = (x.new_tensor(v)[:, None, None] for v in (task.mean, task.std))
        return {
            "adversarial": hard_samples(student, teacher, weight, self.divergence),
            "one_hot": fidelity(teacher, y, weight),
            "diversity": pairwise_diversity((x - mean) / std, z),
        }

    def total(self, losses: dict[str, Tensor], num_clients: int) -> Tensor:
        """What one client's step follows."""
        return (
            self.adversarial * losses["adversarial"]
            + self.one_hot * losses["one_hot"]
            + self.diversity * losses["diversity"] / num_clients
        )

    def draw(
        self, ensemble: Ensemble, batch_size: int, rng: torch.Generator
    ) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch latents"]]:
        """Labels as frequent as at all clients together, and latents."""
        total_C = ensemble.require_class_counts("synthesizer=fedftg").sum(dim=0).cpu().double()
        y = torch.multinomial(total_C, batch_size, replacement=True, generator=rng)
        z = torch.randn(batch_size, self.num_latents, generator=rng)
        device = ensemble.num_examples_K.device
        return y.to(device), z.to(device)

    def source_of(self, task: Task) -> TrainedGenerator:
        """The lasting generator with its optimizer; it takes the one-hot label beside the latents."""
        if self.source is None:
            make = partial(self.make, num_latents=self.num_latents + task.num_classes)
            self.source = TrainedGenerator(make, self.optimizer, scheduler=self.scheduler)
        return self.source

    def check_sample(self) -> None:
        """The generator lasts, so images can be had at any time."""

    def sample(
        self, ensemble: Ensemble, task: Task, batch_size: int, rng: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Images of fresh latents and labels."""
        generator = self.source_of(task).built(task, rng, ensemble.num_examples_K.device)
        y, z = self.draw(ensemble, batch_size, rng)
        code = torch.cat([z, F.one_hot(y, task.num_classes).to(z)], dim=1)
        with frozen(generator), torch.no_grad():
            return ensemble.run(generator.images, code, task)

    def state_dict(self, scene: Scene) -> Tree:
        """The generator's, and whose round it is."""
        source = None if self.source is None else self.source.state_dict(scene)
        return {"source": source, "teachers": self.teachers.state_dict(scene)}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.source = None
        if state["source"] is not None:
            self.source_of(scene.task).load_state_dict(state["source"], scene)
        self.teachers.load_state_dict(state["teachers"], scene)
