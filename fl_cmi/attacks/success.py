"""How far an attack got."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import nn

from fl_cmi.attacks.attack import Attack
from fl_cmi.evaluate import accuracy, predict
from fl_cmi.types import Images

__all__ = ["success"]


def success(
    attack: Attack, models: Mapping[str, Sequence[nn.Module]], test: Images, device: torch.device
) -> dict[str, float] | None:
    """Share of test images, in [0, 1], judged as the attack wants; None of an attack without a wish.

    Args:
        attack: What bad clients do.
        models: Those of whose shares the mean is told, by name.
        test: Test images.
        device: Where to predict.
    """
    wanted = attack.wanted(test)
    if wanted is None or not len(wanted):
        return None
    return {
        name: fmean(accuracy(predict(model.to(device), wanted, device), wanted) for model in several)
        for name, several in models.items()
    }
