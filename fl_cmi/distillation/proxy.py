"""What a server can distil on without synthesizing: held-out images without their labels, or noise."""

import torch
from jaxtyping import Int
from torch import Tensor

from fl_cmi.bank import PoolBatch
from fl_cmi.ensemble import Ensemble
from fl_cmi.losses import entropy
from fl_cmi.synthesis.noise import Noise
from fl_cmi.types import ConfigError, Images, Task

__all__ = ["NoiseDraws", "Unlabelled", "surest"]


class Unlabelled:
    """Images whose labels nobody looks at.

    Args:
        images: At least one.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def get(self, index: Int[Tensor, " batch"]) -> PoolBatch:
        """The images of these numbers."""
        nowhere = torch.full((len(index),), -1)
        return PoolBatch(self.images.pixels(index), None, None, nowhere, nowhere)


class NoiseDraws:
    """Gaussian noise with the data set's statistics, new for every batch.

    Args:
        ensemble: Says on which device.
        task: Shape, mean and standard deviation.
    """

    def __init__(self, ensemble: Ensemble, task: Task) -> None:
        self.ensemble, self.task = ensemble, task

    def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
        """New noise."""
        nowhere = torch.full((batch_size,), -1)
        x = Noise(batch_size).sample(self.ensemble, self.task, batch_size, rng)
        return PoolBatch(x, None, None, nowhere, nowhere)


def surest(ensemble: Ensemble, images: Images, share: float, batch_size: int = 1000) -> Images:
    """The share of `images` on which the ensemble's prediction has the least entropy (FedDF, low-entropy proxy).

    Args:
        ensemble: Teachers; one pass over the images.
        images: At least one.
        share: In (0, 1]; at least one image is kept.
        batch_size: Images a forward pass.
    """
    if not 0 < share <= 1:
        raise ConfigError("strategy.surest", share, "a share in (0, 1], or null for all")
    device = ensemble.num_examples_K.device
    batches = torch.arange(len(images)).split(batch_size)
    spread = torch.cat([entropy(ensemble.label(images.pixels(b).to(device)).exp()).cpu() for b in batches])
    kept = spread.topk(max(1, round(share * len(images))), largest=False).indices
    return images.subset(kept.sort().values)
