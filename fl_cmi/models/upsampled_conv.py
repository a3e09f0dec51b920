"""A convolution of a map whose sides were doubled, without the doubled map."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["UpsampledConv"]

TAPS = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))
"""Row t, column p: whether tap t of the wide kernel holds tap p of the 3-tap one."""


class UpsampledConv(nn.Conv2d):
    """`conv3x3(nearest x2 of x)`, padded by one, no bias.

    Doubling repeats every pixel, so the two steps are one transposed convolution of stride 2 with the 4 x 4 kernel

        w_4[a, b] = sum_pq TAPS[a, p] TAPS[b, q] w[p, q]

    Same result but for the order of summation, 16 products for each input pixel in place of 36: on a CPU 2.0 to 2.7
    times as fast, backward included (`simulations/bench/`).

    Args:
        before: Channels of the input.
        after: Channels of the output.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch before height width"]
    ) -> Float[Tensor, "batch after height2 width2"]:
        """The map (B, after, 2 H, 2 W)."""
        taps = self.weight.new_tensor(TAPS)
        wide = torch.einsum("ap,bq,oipq->ioab", taps, taps, self.weight)
        return F.conv_transpose2d(x, wide.contiguous(memory_format=torch.channels_last), stride=2, padding=1)
