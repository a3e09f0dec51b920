"""The inversion loop: from models to one batch of images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fl_cmi.augment import Augment, Identity
from fl_cmi.checkpoint.state import Scene, restore, state_of
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.contrast import Contrast
from fl_cmi.synthesis.source import Source
from fl_cmi.synthesis.terms.term import Term, look
from fl_cmi.types import ConfigError, Task

__all__ = ["Inversion", "Inverted"]


@dataclass(frozen=True)
class Inverted:
    """One synthesized batch.

    Args:
        x: Images in [0, 1], not augmented.
        y: The labels they were driven to.
        losses: Each term, unweighted, and `total`, at the kept iterate.
        client: Partition id of the client whose model was inverted, -1 where it was several.
        labels: What the whole ensemble says of the images, as log-probabilities; None where nobody has asked it.
    """

    x: Float[Tensor, "batch channels height width"]
    y: Int[Tensor, " batch"]
    losses: dict[str, float]
    client: int = -1
    labels: Float[Tensor, "batch classes"] | None = None

    def labelled(self, ensemble: Ensemble) -> "Inverted":
        """With labels, for which the ensemble is asked where there are none: one pass of every teacher."""
        return replace(self, labels=ensemble.label(self.x)) if self.labels is None else self

    def chosen(self, ensemble: Ensemble) -> "Inverted":
        """As images that were made for no label: y becomes the ensemble's choice."""
        made = self.labelled(ensemble)
        assert made.labels is not None
        return replace(made, y=made.labels.argmax(dim=1))

    def state_dict(self) -> Tree:
        """All of it."""
        return [self.x, self.y, self.losses, self.client, self.labels]

    @classmethod
    def restored(cls, state: Tree, device: torch.device) -> "Inverted | None":
        """The batch as it was, on this device; None of None."""
        if state is None:
            return None
        x, y, losses, client, labels = state
        return cls(x.to(device), y.to(device), losses, client, None if labels is None else labels.to(device))


class Inversion:
    """Optimize a batch of images so that the teachers are sure of them and their statistics look familiar.

        for it in range(steps):
            x = source.images();  views;  total = sum_j w_j L_j + w_cr L_cr
            keep x if total is the lowest so far        (before the step; the views make it a noisy choice)
            step the source, step the contrast head

    The un-augmented x is kept. Classification, batch-norm and adversarial terms see the global view only.

    References:
        Fang et al. 2021 (CMI), IJCAI, algorithm of the released code.

    Args:
        source: What is optimized.
        terms: Named terms; those of weight 0 are left out.
        contrast: The contrastive term, or None.
        steps: Optimizer steps on one batch.
        global_view: Augmentation of the global view.
        keep: The `best` iterate by total loss (CMI), or the `last` one before the final step.
        student_mode: `eval` (CMI), or `train`: the student's batch norm uses the batch at hand (DFAD).
    """

    def __init__(
        self,
        source: Source,
        terms: Mapping[str, Term],
        contrast: Contrast | None = None,
        steps: int = 200,
        global_view: Augment | None = None,
        keep: Literal["best", "last"] = "best",
        student_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError("synthesizer.inversion.steps", steps, "an integer >= 1")
        if keep not in ("best", "last"):
            raise ConfigError("synthesizer.inversion.keep", keep, "best or last")
        if student_mode not in ("eval", "train"):
            raise ConfigError("synthesizer.inversion.student_mode", student_mode, "eval or train")
        self.source, self.steps, self.keep, self.student_mode = source, steps, keep, student_mode
        self.contrast = contrast if contrast is not None and contrast.weight > 0 else None
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms and self.contrast is None:
            raise ConfigError("synthesizer.inversion.terms", "{}", "at least one term with a weight > 0")
        self.global_view: Augment = Identity() if global_view is None else global_view

    def check(self, ensemble: Ensemble) -> None:
        """Raise ConfigError if the teachers lack what a term needs."""
        for term in self.terms.values():
            term.check(ensemble)
        if self.contrast is not None:
            self.contrast.check(ensemble)

    def __call__(
        self,
        ensemble: Ensemble,
        student: nn.Module,
        y: Int[Tensor, " batch"],
        task: Task,
        rng: torch.Generator,
    ) -> Inverted:
        """Synthesize one image for each label.

        The student, like the teachers, gets no gradients for its weights; its mode and flags are restored.

        Raises:
            FloatingPointError: If a term is not finite; it names the term and the step.
        """
        device = ensemble.num_examples_K.device
        contrast, y = self.contrast, y.to(device)
        self.source.begin(task, y, rng, device)
        learner = student if any(term.student for term in self.terms.values()) else None
        best, kept = float("inf"), None
        with frozen(student, training=self.student_mode == "train"):
            for step in range(self.steps):
                x = ensemble.run(self.source.images)
                seen = look(ensemble, learner, self.global_view(x, rng), y, task)
                losses = {name: term(seen) for name, term in self.terms.items()}
                total = sum(
                    (self.terms[name].weight * loss for name, loss in losses.items()), torch.zeros(())
                )
                views: tuple[Tensor, Tensor] | None = None
                if contrast is not None:
                    # Keys carry no gradient, so the global view's features are detached at once.
                    global_ = contrast.features(seen).detach()
                    local = contrast.features(ensemble.observe(contrast.local_view(x, rng)))
                    contrast.begin(ensemble, local.shape[1], rng)
                    losses["contrast"] = ensemble.run(contrast, local, global_, rng)
                    total = total + contrast.weight * losses["contrast"]
                    views = local.detach(), global_
                value = finite(total, losses, step)
                if value < best or self.keep == "last":
                    best, kept = value, (x.detach().clone(), views, losses)
                total.backward()
                self.source.step()
                if contrast is not None:
                    contrast.step()
        assert kept is not None
        image, views, losses = kept
        if contrast is not None and views is not None:
            contrast.remember(*views)
        self.source.finish()
        for term in self.terms.values():
            term.finish()
        return Inverted(image, y, {**{k: v.item() for k, v in losses.items()}, "total": best})

    def state_dict(self, scene: Scene) -> Tree:
        """What outlives a batch: of source, terms and contrast."""
        return {
            "source": state_of(self.source, scene),
            "terms": {name: term.state_dict(scene) for name, term in self.terms.items()},
            "contrast": None if self.contrast is None else self.contrast.state_dict(scene),
        }

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        restore(self.source, state["source"], scene)
        for name, term in self.terms.items():
            term.load_state_dict(state["terms"][name], scene)
        if self.contrast is not None:
            self.contrast.load_state_dict(state["contrast"], scene)


def finite(total: Tensor, losses: Mapping[str, Tensor], step: int) -> float:
    """The total as a number; an error that names the term at fault if it is not finite."""
    value = total.item()
    if value - value != 0:  # inf - inf and NaN - NaN are NaN
        bad = [name for name, loss in losses.items() if not loss.isfinite()] or ["total"]
        raise FloatingPointError(f"synthesis step {step}: {', '.join(bad)} is not finite ({value})")
    return value


class frozen:  # noqa: N801 - reads as a verb in `with frozen(student):`
    """Context: a model without weight gradients, in eval mode unless told; mode and flags are put back afterwards."""

    def __init__(self, model: nn.Module, training: bool = False) -> None:
        self.model, self.mode = model, training

    def __enter__(self) -> None:
        self.training = {module: module.training for module in self.model.modules()}
        self.flags = [(p, p.requires_grad) for p in self.model.parameters()]
        self.model.train(self.mode).requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for module, mode in self.training.items():
            module.training = mode
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)
