"""How far an attack got."""

from collections.abc import Mapping

import torch
from torch import nn

from fl_cmi.attacks.attack import Attack
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.types import Images

__all__ = ["success"]


def success(
    attack: Attack, models: Mapping[str, nn.Module], test: Images, device: torch.device
) -> dict[str, float] | None:
    """Share of test images, in [0, 1], that each model judges as the attack wants; None of an attack without a wish."""
    wanted = attack.wanted(test)
    if wanted is None or not len(wanted):
        return None
    return {
        name: accuracy(predict(model.to(device), wanted, device), wanted) for name, model in models.items()
    }
