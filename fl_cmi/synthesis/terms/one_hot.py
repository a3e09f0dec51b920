"""The classification term."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fl_cmi.synthesis.terms.term import Look, Term
from fl_cmi.types import ConfigError

__all__ = ["OneHot"]


class OneHot(Term):
    """`L_oh = CE(t, c)`: the teachers should be sure of a label, for each image the one it is driven to or their own.

    References:
        Label `aim`: Yin et al. 2020 (DeepInversion), arXiv 1912.08795; Fang et al. 2021 (CMI). Label `argmax`: Chen et
        al. 2019 (DAFL), arXiv 1904.01186; DFQ, RDSKD.

    Args:
        weight: Factor of the term, >= 0.
        label: `aim`, the label c = y that the batch was drawn for, or `argmax`, c = argmax_c t_c: whatever the teachers
            see already, for generators that know no label.
    """

    combined = True

    def __init__(self, weight: float = 1.0, label: Literal["aim", "argmax"] = "aim") -> None:
        super().__init__(weight)
        if label not in ("aim", "argmax"):
            raise ConfigError("synthesizer...oh.label", label, "aim or argmax")
        self.label = label

    def __call__(self, seen: Look) -> Float[Tensor, ""]:
        """Cross-entropy, averaged over the batch."""
        return F.cross_entropy(seen.teacher, seen.y if self.label == "aim" else seen.teacher.argmax(dim=1))
