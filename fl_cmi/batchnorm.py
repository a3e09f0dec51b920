"""What each batch-norm layer saw in one forward pass, and how far that is from what it remembers.

The hooks live in a context manager and the result is a value, so two passes cannot overwrite each other and nothing
stays behind on the model.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fl_cmi.precision import full

__all__ = [
    "Observed",
    "Seen",
    "batch_norm_layers",
    "batch_statistics",
    "classifier_input",
    "observe",
    "pooled_inputs",
    "recalibrate",
    "statistics_distance",
]

Seen = dict[nn.BatchNorm2d, Tensor]
"""The input of each batch-norm layer (B, D_l, H, W), filled by the forward pass in the order of execution; never in
bfloat16, in which batch norm's own kernel would round statistics to 8 bits."""


def batch_norm_layers(model: nn.Module) -> list[nn.BatchNorm2d]:
    """All `BatchNorm2d` layers of a model, in module order."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@dataclass(frozen=True)
class Observed:
    """What one forward pass of every teacher showed; one entry per teacher.

    Args:
        logits: (B, C).
        seen: Inputs of the batch-norm layers.
        features: Inputs of the classifier (B, D_k).
    """

    logits: Sequence[Float[Tensor, "batch classes"]]
    seen: Sequence[Seen]
    features: Sequence[Float[Tensor, "batch _"]]


@contextmanager
def observe(model: nn.Module) -> Iterator[Seen]:
    """Collect the input of every batch-norm layer during the one forward pass inside the block.

    Raises:
        RuntimeError: If a layer runs twice inside the block; its first input would be lost.
    """
    seen: Seen = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer in seen:
            raise RuntimeError("a batch-norm layer ran twice while it was observed")
        assert isinstance(layer, nn.BatchNorm2d)
        seen[layer] = full(inputs[0])

    handles = [layer.register_forward_pre_hook(keep) for layer in batch_norm_layers(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def classifier_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a model's `classifier` sees, its penultimate features (B, D), during one forward pass."""
    found: list[Tensor] = []
    handle = model.get_submodule("classifier").register_forward_pre_hook(
        lambda _, inputs: found.append(full(inputs[0]))
    )
    try:
        yield found
    finally:
        handle.remove()


class _Statistics(torch.autograd.Function):
    """Mean and biased variance over (N, H, W), and `d/dx = g_mean / n + 2 g_var (x - mean) / n`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # Batch norm's own kernel: one pass, some 20 times as fast as torch.var_mean on channels-last maps.
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_mean: Tensor, to_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // len(mean)
        slope = 2 * to_var / n
        shift = to_mean / n - slope * mean
        return torch.addcmul(shift[:, None, None], x, slope[:, None, None])


def batch_statistics(
    f: Float[Tensor, "batch channels height width"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and biased variance of each channel over batch, height and width; differentiable once."""
    mean, var = _Statistics.apply(f)
    return mean, var


def statistics_distance(seen: Seen) -> Float[Tensor, ""]:
    """`L_bn = sum_l ||running_var_l - Var(f_l)|| + ||running_mean_l - Mean(f_l)||`.

    Statistics are over (N, H, W) with the biased variance; plain 2-norms, summed over layers (Yin et al. 2020, arXiv
    1912.08795, equation 4; Fang et al. 2021).

    Args:
        seen: Layer inputs f_l from `observe`; at least one.
    """
    total = []
    for layer, f in seen.items():
        assert layer.running_mean is not None and layer.running_var is not None
        mean, var = batch_statistics(f)
        total.append((layer.running_var - var).norm() + (layer.running_mean - mean).norm())
    return torch.stack(total).sum()


def pooled_inputs(seen: Seen) -> Float[Tensor, "batch width"]:
    """The spatial mean of each layer's input, concatenated over layers: the features of CMI (width = sum_l D_l)."""
    return torch.cat([f.mean(dim=(2, 3)) for f in seen.values()], dim=1)


def recalibrate(model: nn.Module, batches: Iterable[Float[Tensor, "batch channels height width"]]) -> None:
    """Replace running statistics by the plain mean of the batches' own ones (the variance unbiased, as in training).

    Args:
        model: Its batch norm is changed, nothing else; comes back in the mode it was in. Without any nothing is done.
        batches: Images in [0, 1], at least two each.
    """
    layers, was_training = batch_norm_layers(model), model.training
    if not layers:
        return
    device = next(model.parameters()).device
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's word for the plain mean over all batches
    model.train()
    with torch.no_grad():
        for x in batches:
            model(x.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.train(was_training)
