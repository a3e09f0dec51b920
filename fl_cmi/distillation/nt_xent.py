"""Contrast of student and teacher within the batch and a queue, by pytorch-metric-learning."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.distillation.projection import embed, projection, restored
from fl_cmi.types import ConfigError, State

__all__ = ["NTXent"]

INSTALL = "another loss, or the extra: pip install 'fl_cmi[metric-learning]'"


class NTXent(DistillLoss):
    """`L = mean of -ln( exp(e_i e_j / tau) / (exp(e_i e_j / tau) + sum_k exp(e_i e_k / tau)) )` over positive pairs.

    Compared are the 2 B unit vectors `e_s = normalize(W_s f_s + b_s)` and `e_t = normalize(W_t f_t + b_t)`. Student's
    and teacher's of one image are positive pairs (i, j), in both orders; those of other images are the negatives k.
    With a queue, j and k come from it: it holds the last vectors of both, without gradient, this batch's included.

    Teachers' features are taken side by side. Images are told apart by their slot's serial number where they come from
    a pool, so that one drawn twice is not its own negative; fresh images serve as well.

    References:
        Chen et al. 2020 (SimCLR), arXiv 2002.05709, equation 1; queue: Wang et al. 2020 (cross-batch memory), arXiv
        1912.06798. Both by `pytorch_metric_learning`.

    Args:
        temperature: tau > 0.
        width: d >= 1 of the embeddings.
        queue: Earlier batches kept, >= 0. Time and memory grow with B^3 times one more than this number.

    Raises:
        ConfigError: For a missing extra, or a number out of range.
    """

    needs_features = True

    def __init__(self, temperature: float = 0.07, width: int = 128, queue: int = 0) -> None:
        if temperature <= 0:
            raise ConfigError("distiller.loss...temperature", temperature, "a number > 0")
        for name, number, least in (("width", width, 1), ("queue", queue, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ConfigError(f"distiller.loss...{name}", number, f"an integer >= {least}")
        try:
            from pytorch_metric_learning import losses  # an extra
        except ImportError as error:
            raise ConfigError("distiller.loss", "NTXent", INSTALL) from error
        self.width, self.queue = width, queue
        self.contrast: Any = losses.NTXentLoss(temperature=temperature)
        self.remembering: Callable[..., Any] = losses.CrossBatchMemory
        self.student: nn.Linear | None = None
        self.teacher: nn.Linear | None = None
        self.memory: Any = None
        self.shown = 0

    def begin(self, answers: Answers, rng: torch.Generator) -> Iterable[nn.Parameter]:
        """Make the two projections and the queue."""
        student, teachers = answers.student_features, side_by_side(answers)
        assert student is not None
        if self.student is None or self.teacher is None:
            self.student, self.teacher = (projection(f, self.width, rng) for f in (student, teachers))
            if self.queue:
                rows = 2 * len(student) * (1 + self.queue)
                self.memory = self.remembering(self.contrast, self.width, memory_size=rows)
        self.student.to(student)
        self.teacher.to(student)
        return [*self.student.parameters(), *self.teacher.parameters()]

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """The contrast of one batch, which then is in the queue."""
        assert answers.student_features is not None and self.student is not None and self.teacher is not None
        e_s = embed(self.student, answers.student_features)
        e_t = embed(self.teacher, side_by_side(answers))
        images = self.identify(answers).to(e_s.device)
        contrast = self.contrast if self.memory is None else self.memory
        loss: Tensor = contrast(torch.cat([e_s, e_t]), torch.cat([images, images]))
        return loss

    def identify(self, answers: Answers) -> Int[Tensor, " batch"]:
        """A number for each image, the same for the same image: its serial in the pool, or else one below 0."""
        if answers.pool is not None and answers.index is not None:
            return answers.pool.serials[answers.index]
        self.shown += len(answers.student)
        return torch.arange(len(answers.student)) - self.shown

    def state_dict(self) -> State:
        """The projections and the queue."""
        if self.student is None or self.teacher is None:
            return {}
        layers = {"student": self.student, "teacher": self.teacher}
        state = {f"{side}.{k}": v for side, layer in layers.items() for k, v in layer.state_dict().items()}
        state["shown"] = torch.tensor(self.shown)
        if self.memory is not None:
            state["queue.embeddings"] = self.memory.embedding_memory
            state["queue.images"] = self.memory.label_memory
            state["queue.next"] = torch.tensor(self.memory.queue_idx)
            state["queue.full"] = torch.tensor(self.memory.has_been_filled)
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state`."""
        if not state:
            return
        self.student, self.teacher = (restored(state, side) for side in ("student", "teacher"))
        self.shown = int(state["shown"])
        if self.queue:
            rows = len(state["queue.embeddings"])
            self.memory = self.remembering(self.contrast, self.width, memory_size=rows)
            self.memory.embedding_memory = state["queue.embeddings"].clone()
            self.memory.label_memory = state["queue.images"].clone()
            self.memory.queue_idx = int(state["queue.next"])
            self.memory.has_been_filled = bool(state["queue.full"])


def side_by_side(answers: Answers) -> Float[Tensor, "batch features"]:
    """The features of all teachers: models that were trained apart share no axes to average."""
    return torch.cat(list(answers.teacher_features), dim=1)
