"""What makes a small model of a large one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from fl_cmi.types import ConfigError

__all__ = ["CompressionFailure", "Compressor", "Written", "by_library", "distance_of"]


class CompressionFailure(RuntimeError):  # noqa: N818 - like those of clients
    """A library could not make the small model, or made another one than it should; the message tells all."""


@contextmanager
def by_library(task: str) -> Iterator[None]:
    """Inside, whatever a library raises, which has exceptions of its own, is a CompressionFailure: `task (reason)`.

    What the system raises, such as a full disk, and a user's mistake pass.
    """
    try:
        yield
    except (OSError, ConfigError, CompressionFailure):
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CompressionFailure(f"{task} ({said})") from error


def distance_of(found: Float[Tensor, "batch classes"], expected: Float[Tensor, "batch classes"]) -> float:
    """The largest distance of logits, as a share of the largest of those expected."""
    return float((found - expected).abs().max() / expected.abs().max())


@dataclass(frozen=True)
class Written:
    """What a compressor wrote.

    Args:
        files: The first one counts.
        measured: What it found out on the way, for the summary.
    """

    files: Sequence[Path]
    measured: Mapping[str, Any] = field(default_factory=dict)


class Compressor(Protocol):
    """A way to compress a trained model.

    Attributes:
        executed: Whether the machine computes with the bits that are reported; else they are simulated, and only
            accuracy and size mean anything.
        trainable: Whether the small model can be fine-tuned.
    """

    executed: bool
    trainable: bool

    def check(self, model: nn.Module) -> None:
        """Raise ConfigError where the model, or this environment, lacks what this needs."""
        ...

    def __call__(
        self, model: nn.Module, batches: Iterable[Float[Tensor, "_ channels height width"]]
    ) -> nn.Module:
        """A small copy of `model`, in eval mode, calibrated on images in [0, 1]."""
        ...

    def predictor(self, small: nn.Module) -> Callable[[Tensor], Tensor]:
        """Logits of images in [0, 1], as the small model is run."""
        ...

    def save(self, small: nn.Module, folder: Path) -> Written:
        """Write it.

        Raises:
            CompressionFailure: What was written is not the model.
        """
        ...

    def load(self, path: Path, model: nn.Module) -> nn.Module:
        """Read it back from that file.

        Args:
            path: The first file that `save` wrote.
            model: What was compressed: it gives architecture and device, where a file has none.

        Raises:
            ConfigError: The file is damaged, or another one.
        """
        ...

    def describe(self, small: nn.Module) -> dict[str, Any]:
        """Bits, for the summary."""
        ...
