"""The contrastive term of CMI: each image should be told apart from all others, new and old.

Shape letters: B batch, D feature width, N bank rows drawn.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.augment import Augment, ResizedCropFlip
from fl_cmi.bank import Bank
from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble
from fl_cmi.losses import info_nce
from fl_cmi.models.initialize import initialize
from fl_cmi.precision import full
from fl_cmi.products import Linear
from fl_cmi.synthesis.features import BatchNormInputs, FeatureMap
from fl_cmi.synthesis.teachers import LastTeachers
from fl_cmi.types import ConfigError

__all__ = ["Contrast"]

Features = Float[Tensor, "batch features"]


class Contrast:
    """`L_cr` of CMI, with its head h and its bank of earlier images' features.

        q = h([L; CL]),  k = stop_grad(h([G; CG])),  c_i = -log softmax_i(q_i k^T / T)
        L_cr = mean(c[:B]) + mean(c[B:])        (bank empty: mean(c))

    L, G are the features of the batch's local and global views, CL, CG rows of the bank. Keys are detached, so the
    images are driven by the local view only, and the second mean trains the head alone. Bank rows enter without
    gradient; the value and all gradients equal the joint form, at half the cost.

    Features of models that were trained apart share no axes: with other teachers (another round's) head and bank start
    afresh.

    References:
        Fang et al. 2021 (CMI), IJCAI, released code.

    Args:
        weight: Factor of the term, >= 0.
        temperature: T > 0.
        bank_size: Rows kept, >= 1, each holding a local and a global feature (2 D floats).
        num_negatives: Bank rows drawn at each step, >= 1.
        head_width: Width of the head's output.
        learning_rate: Of the head's own Adam (betas .9, .999).
        local_view: Augmentation that makes the local view.
        features: What stands for an image; None: the inputs of all batch-norm layers.
    """

    def __init__(
        self,
        weight: float = 0.8,
        temperature: float = 0.1,
        bank_size: int = 40_960,
        num_negatives: int = 4096,
        head_width: int = 256,
        learning_rate: float = 1e-3,
        local_view: Augment | None = None,
        features: FeatureMap | None = None,
    ) -> None:
        if not weight >= 0:
            raise ConfigError("synthesizer...contrast.weight", weight, "a number >= 0")
        for key, rate in (("temperature", temperature), ("learning_rate", learning_rate)):
            if not rate > 0:
                raise ConfigError(f"synthesizer...contrast.{key}", rate, "a number > 0")
        for key, number in (
            ("bank_size", bank_size),
            ("num_negatives", num_negatives),
            ("head_width", head_width),
        ):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"synthesizer...contrast.{key}", number, "an integer >= 1")
        self.weight, self.temperature = weight, temperature
        self.num_negatives, self.head_width, self.learning_rate = num_negatives, head_width, learning_rate
        self.local_view: Augment = ResizedCropFlip() if local_view is None else local_view
        self.features: FeatureMap = BatchNormInputs() if features is None else features
        self.bank = Bank(bank_size)
        self.width = 0
        self.teachers = LastTeachers()
        self.head: nn.Sequential | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def check(self, ensemble: Ensemble) -> None:
        """Every teacher needs batch norm where the features are the inputs of these layers."""
        if not self.features.needs_batch_norm:
            return
        for teacher, layers in zip(ensemble.teachers, ensemble.batch_norm_counts, strict=True):
            if layers == 0:
                name = type(teacher.model).__name__
                raise ConfigError(
                    "synthesizer...contrast",
                    f"{self.weight}",
                    f"null, because client {teacher.client}'s model ({name}) has no batch norm to take features from;"
                    " features=Penultimate needs none",
                )

    def begin(self, ensemble: Ensemble, width: int, rng: torch.Generator) -> None:
        """Make the head, for features of this width, and empty the bank, unless the teachers are the last batch's."""
        if self.teachers.change(ensemble):
            self.bank = Bank(self.bank.capacity)
            initialize(self.make(width), rng)
            self.settle(ensemble.num_examples_K.device)

    def make(self, width: int) -> nn.Sequential:
        """A head for features of this width."""
        self.width = width
        self.head = nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, self.head_width))
        return self.head

    def settle(self, device: torch.device) -> torch.optim.Optimizer:
        """The head on its device, and its optimizer."""
        assert self.head is not None
        self.optimizer = torch.optim.Adam(self.head.to(device).parameters(), self.learning_rate)
        return self.optimizer

    def __call__(self, local: Features, global_: Features, rng: torch.Generator) -> Float[Tensor, ""]:
        """`L_cr` of one batch; the gradient reaches the images through `local` only."""
        batch = len(local)
        if len(self.bank) == 0:
            return info_nce(self.embed(local), self.embed(global_).detach(), self.temperature).mean()
        old_local, old_global = self.bank.draw(self.num_negatives, rng).chunk(2, dim=1)
        queries = torch.cat([self.embed(local), self.embed(old_local)])
        with torch.no_grad():
            keys = torch.cat([self.embed(global_), self.embed(old_global)])
        c = info_nce(queries, keys, self.temperature)
        return c[:batch].mean() + c[batch:].mean()

    def embed(self, x: Features) -> Float[Tensor, "batch embedding"]:
        """`h(x) / ||h(x)||`."""
        assert self.head is not None, "begin() comes first"
        return F.normalize(full(self.head(x)), dim=1)

    def step(self) -> None:
        """One step of the head, with the gradients of the last backward pass."""
        assert self.optimizer is not None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def remember(self, local: Features, global_: Features) -> None:
        """Put the features of the kept images into the bank."""
        self.bank.add(torch.cat([local, global_], dim=1).detach())

    def state_dict(self, scene: Scene) -> Tree:
        """Head, optimizer and bank, and whose features they know; between rounds nothing, as the next are others."""
        teachers = self.teachers.state_dict(scene)
        if self.head is None or self.optimizer is None or not teachers:
            return {"width": 0, "teachers": []}
        return {
            "width": self.width,
            "teachers": teachers,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state_dict(),
        }

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`; the head is made where there is none."""
        self.bank, self.width = Bank(self.bank.capacity), state["width"]
        self.head = self.optimizer = None
        self.teachers.load_state_dict(state["teachers"], scene)
        if self.width:
            self.make(self.width).load_state_dict(state["head"])
            self.settle(scene.device).load_state_dict(state["optimizer"])
            self.bank.load_state_dict(state["bank"], scene.device)
