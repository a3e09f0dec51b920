"""Initialization from a generator: the same seed gives the same network in every process."""

import torch
from torch import nn

__all__ = ["initialize", "initialize_normal"]


@torch.no_grad()
def initialize(model: nn.Module, rng: torch.Generator) -> nn.Module:
    """Draw all weights afresh, in place, from PyTorch's own default distributions.

    Weights and biases of convolutions and linear layers ~ U(-b, b), `b = 1 / sqrt(fan_in)` (which is what
    `kaiming_uniform_` with `a = sqrt(5)` comes to); normalization layers start at weight 1, bias 0 and new
    running statistics. The global random number generator is neither read nor moved.

    Args:
        model: Any network of `Conv*d`, `Linear` and normalization layers, on any device.
        rng: A CPU generator; layers are drawn in module order, each its weight and then its bias.

    Returns:
        The same model.

    Raises:
        TypeError: If a layer of another kind has parameters: leaving them alone would be a silent difference.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=rng)
                    parameter.copy_(drawn)
        elif isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no rule to initialize a {type(module).__name__}")
    return model


@torch.no_grad()
def initialize_normal(model: nn.Module, rng: torch.Generator) -> None:
    """Draw all weights afresh, in place: ~ N(0, .02), of batch norm ~ N(1, .02), biases 0, running statistics new.

    DCGAN's initialization (Radford et al. 2016, arXiv 1511.06434), which generators keep.

    Args:
        model: A network of 2-d convolutions, linear and batch-norm layers, on any device.
        rng: A CPU generator; weights are drawn in module order.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            center = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            module.weight.copy_(torch.empty(module.weight.shape).normal_(center, 0.02, generator=rng))
            if module.bias is not None:
                module.bias.zero_()
