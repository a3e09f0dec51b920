"""The student's layers reproduce the teacher's: for a student that is the teacher itself, at fewer bits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.ensemble import Ensemble
from fl_cmi.models.normalize import Normalize
from fl_cmi.types import ConfigError, same_architecture

__all__ = ["LayerMatch", "layer_outputs"]


class LayerMatch(DistillLoss):
    """`L = sum_k w_k SmoothL1(h_k^s, h_k^t)`, `w_k = 2 (k + 1) / (n^2 + n)`, k = 0 .. n-1: deeper layers weigh more.

    `h_k` are the outputs of the model's parts in order of execution (see `layer_outputs`); the weights add up to 1.
    SmoothL1 is `d^2 / 2` for `|d| < 1`, else `|d| - 1/2`, averaged over all numbers of the output.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274: .01 of this beside KL at T = 1.
    """

    needs_layers = True

    def check(self, ensemble: Ensemble, student: nn.Module) -> None:
        """One teacher, of the student's architecture."""
        if len(ensemble) != 1:
            allowed = "another one: layers are those of one teacher, not of several"
            raise ConfigError("distiller.loss", self, allowed)
        if not same_architecture(model.state_dict() for model in (student, ensemble.models[0])):
            allowed = "another one, unless the student has the teacher's architecture"
            raise ConfigError("distiller.loss", self, allowed)

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The distance, from one teacher."""
        (taught,), learnt = answers.teacher_layers, answers.student_layers
        n = len(taught)
        weighted = [
            2 * (k + 1) / (n**2 + n) * F.smooth_l1_loss(s, t)
            for k, (s, t) in enumerate(zip(learnt, taught, strict=True))
        ]
        return torch.stack(weighted).sum()


@contextmanager
def layer_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a model's parts during one forward pass, in order of execution.

    Parts are the direct children, the members of lists and sequences in their place; without the normalization of
    images, identities, and the classifier, of which the input is taken instead of the output. An activation that works
    in place behind a part belongs to its output.
    """
    found: list[Tensor] = []
    with ExitStack() as stack:
        for part in parts(model):
            if part is model.get_submodule("classifier"):
                handle = part.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
            else:
                handle = part.register_forward_hook(lambda _, inputs, output: found.append(output))
            stack.callback(handle.remove)
        yield found


def parts(model: nn.Module) -> Iterator[nn.Module]:
    """What `layer_outputs` looks at."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from parts(child)
        elif not isinstance(child, Normalize | nn.Identity):
            yield child
