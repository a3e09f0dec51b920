"""How long a model takes on this CPU."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fl_cmi.types import Shape

__all__ = ["latency_ms"]


@torch.no_grad()
def latency_ms(
    predict: Callable[[Tensor], Tensor],
    shape: Shape,
    batch_sizes: Sequence[int] = (1, 64),
    repeats: int = 20,
    warmup: int = 3,
) -> dict[str, float]:
    """Median wall time of one call on black images, in milliseconds, by batch size.

    With the process's threads as they are. The median, because whatever else runs can only slow a call down.

    Args:
        predict: Logits of images on the CPU.
        shape: Of an image.
        batch_sizes: Images in a call.
        repeats: Timed calls, >= 1.
        warmup: Calls before these; compilers work then.
    """
    found = {}
    for batch_size in batch_sizes:
        x, seconds = torch.zeros(batch_size, *shape), []
        for call in range(warmup + repeats):
            start = time.perf_counter()
            predict(x)
            if call >= warmup:
                seconds.append(time.perf_counter() - start)
        found[str(batch_size)] = 1000 * statistics.median(seconds)
    return found
