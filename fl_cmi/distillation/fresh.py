"""Images for the moment."""

import torch

from fl_cmi.bank import PoolBatch
from fl_cmi.distillation.transfer import Transfer

__all__ = ["FreshImages"]


class FreshImages:
    """Images that a trained generator makes for the step at hand; nothing of them is kept."""

    def __init__(self, transfer: Transfer) -> None:
        self.supply = transfer.supply

    def draw(self, batch_size: int, rng: torch.Generator) -> PoolBatch:
        """New images, without labels."""
        x = self.supply.sample(batch_size, rng)
        return PoolBatch(x, None, None, torch.full((batch_size,), -1), torch.full((batch_size,), -1))
