"""The control of every synthesizer: images that show nothing at all."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.synthesis.inversion import Inverted
from fl_cmi.synthesis.pixels import on_grid
from fl_cmi.synthesis.synthesizers import checked_batch_size
from fl_cmi.types import Task

__all__ = ["Noise"]


class Noise:
    """`x ~ N(mean, std)` for each pixel on its own, with the data set's statistics per channel, clamped, 8 bit.

    No model is inverted and nothing is optimized: what a student learns from these images comes from the distillation
    alone. They were made for no label; `y` is the ensemble's choice for each image, by the one pass of every teacher
    that also labels the batch for the pool. Batch norm that trains on them drifts to the statistics of noise.

    References:
        Haroush et al. 2020 (The Knowledge Within), arXiv 1912.01274: the Gaussian control.

    Args:
        batch_size: Images a batch, >= 2.
    """

    def __init__(self, batch_size: int = 256) -> None:
        self.batch_size = checked_batch_size(batch_size)

    def check(self, ensemble: Ensemble) -> None:
        """Any teachers will do."""

    def __call__(self, ensemble: Ensemble, student: nn.Module, task: Task, rng: torch.Generator) -> Inverted:
        """One batch; its only loss is a `total` of 0."""
        x = self.sample(ensemble, task, self.batch_size, rng)
        return Inverted(x, x.new_zeros(len(x), dtype=torch.int64), {"total": 0.0}).chosen(ensemble)

    def check_sample(self) -> None:
        """Noise can be drawn at any time."""

    def sample(
        self, ensemble: Ensemble, task: Task, batch_size: int, rng: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Fresh noise."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (task.mean, task.std))
        x = torch.randn(batch_size, *task.shape, generator=rng) * std + mean
        return on_grid(x).to(ensemble.num_examples_K.device)

    def state_dict(self, scene: Scene) -> Tree:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Nothing."""
