"""Images moved a little before they are taught, so that the ensemble has something else to say about them."""

from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fl_cmi.ensemble import Ensemble
from fl_cmi.gradients import require_gradients
from fl_cmi.models.normalize import Normalize
from fl_cmi.types import ConfigError

__all__ = ["EnsembleSign", "Perturb"]

Batch = Float[Tensor, "batch channels height width"]


class Perturb(Protocol):
    """Moves images, with the ensemble's help."""

    def check(self, ensemble: Ensemble) -> None:
        """Raise ConfigError where these teachers cannot help."""
        ...

    def __call__(self, ensemble: Ensemble, x: Batch, rng: torch.Generator) -> Batch:
        """The moved images."""
        ...


class EnsembleSign:
    """`x + e sign( grad_x sum_i sum_c u_ic softmax(T(x_i) / t)_c )`, u ~ U(-1, 1) for each image and class.

    One step of length e in a direction in which the ensemble's prediction changes, another one every time an image is
    taught: the diverse images of Co-Boosting. It costs one pass of every teacher, and its backward.

    References:
        R. Dai et al., *Enhancing One-Shot Federated Learning Through Data and Ensemble Co-Boosting*, ICLR 2024, arXiv
        2402.15070, released code.

    Args:
        epsilon: e >= 0.
        temperature: t > 0.
        space: Where e is measured: `normalized` images (in pixels e times the data set's standard deviation), or
            `pixels`. The released code's images are normalized by 1/2, so that its 8/255 are 4/255 in pixels.
    """

    def __init__(
        self,
        epsilon: float = 4 / 255,
        temperature: float = 4.0,
        space: Literal["normalized", "pixels"] = "pixels",
    ) -> None:
        if not epsilon >= 0:
            raise ConfigError("distiller.perturb.epsilon", epsilon, "a number >= 0")
        if not temperature > 0:
            raise ConfigError("distiller.perturb.temperature", temperature, "a number > 0")
        if space not in ("normalized", "pixels"):
            raise ConfigError("distiller.perturb.space", space, "normalized or pixels")
        self.epsilon, self.temperature, self.space = epsilon, temperature, space

    def check(self, ensemble: Ensemble) -> None:
        """A prediction needs a direction in which it changes."""
        require_gradients(ensemble, "distiller.perturb moves images by its gradient")

    def __call__(self, ensemble: Ensemble, x: Batch, rng: torch.Generator) -> Batch:
        """The moved images; not cut to [0, 1], as in the released code."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            p_BC = (ensemble(leaf) / self.temperature).softmax(dim=1)
            u_BC = 2 * torch.rand(p_BC.shape, generator=rng) - 1
            (slope,) = torch.autograd.grad((u_BC.to(p_BC) * p_BC).sum(), leaf)
        return x + self.epsilon * self.unit(ensemble) * slope.sign()

    def unit(self, ensemble: Ensemble) -> Tensor | float:
        """What 1 is in pixels, per channel."""
        layers = [layer for layer in ensemble.models[0].modules() if isinstance(layer, Normalize)]
        return layers[0].std if self.space == "normalized" and layers else 1.0
