"""Contrastive representation distillation: the student's features should tell the teacher's images apart.

Shape letters: B batch, J = 1 + K compared with (the positive first), n images in the pool, D feature width, d width of
the embeddings.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.bank import Pool
from fl_cmi.distillation.loss import Answers, DistillLoss
from fl_cmi.distillation.negatives import Deck
from fl_cmi.distillation.projection import by_width, embed, projection, restored
from fl_cmi.types import ConfigError, State

__all__ = ["CRD", "Side", "noise_contrast"]

Embeddings = Float[Tensor, "batch width"]
Chosen = Int[Tensor, "batch compared"]


class CRD(DistillLoss):
    """`L_CRD = L(student side) + L(teacher side)`, noise-contrastive estimation against two banks of embeddings.

        e_s = normalize(W_s f_s + b_s),  e_t = normalize(W_t f_t + b_t)
        a_s(j) = exp(<M_t[j], e_s> / tau) / Z_s,  a_t(j) = exp(<M_s[j], e_t> / tau) / Z_t,  P_n = 1 / n
        L(side) = -1/B sum_i [ ln(a_i(i) / (a_i(i) + K P_n)) + sum_k ln(K P_n / (a_i(k) + K P_n)) ]
        afterwards M[i] <- normalize(m M[i] + (1 - m) e_i), both banks

    The Z are `n mean(exp(<.,.> / tau))` of the first batch. What is kept of them is Z / n, so that Z and P_n follow
    the pool as it grows. A slot with a new image gets new random rows. Summed over negatives: about 2 (ln K + 1.8) at
    the start.

    Teachers of one feature width, that is of one architecture, are embedded together, their features side by side; each
    width has its own W_s, W_t, banks and Z, and the loss is the mean over widths.

    References:
        Tian, Krishnan, Isola 2020, ICLR, arXiv 1910.10699, and its released code.

    Args:
        num_negatives: K >= 1, as far as the pool has as many (paper: 16,384).
        temperature: tau > 0.
        momentum: m in [0, 1), of the banks.
        width: d >= 1.
        positive: `exact`, the image itself; or `relax`, any image of its class.
        negatives: Images of `other_classes`, by the labels that images were made for; or `any` other images.
        gather: Whether to gather the rows compared with (B J d numbers) rather than to score all rows of the bank
            (B n numbers) and pick. Equal but for rounding, and quicker only for pools far beyond 65,536 images.
    """

    needs_features = True
    needs_pool = True

    def __init__(
        self,
        num_negatives: int = 1024,
        temperature: float = 0.07,
        momentum: float = 0.5,
        width: int = 128,
        positive: Literal["exact", "relax"] = "exact",
        negatives: Literal["other_classes", "any"] = "other_classes",
        gather: bool = False,
    ) -> None:
        for name, number in (("num_negatives", num_negatives), ("width", width)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"distiller.loss...{name}", number, "an integer >= 1")
        if temperature <= 0:
            raise ConfigError("distiller.loss...temperature", temperature, "a number > 0")
        if not 0 <= momentum < 1:
            raise ConfigError("distiller.loss...momentum", momentum, "a number in [0, 1)")
        if positive not in ("exact", "relax"):
            raise ConfigError("distiller.loss...positive", positive, "exact or relax")
        if negatives not in ("other_classes", "any"):
            raise ConfigError("distiller.loss...negatives", negatives, "other_classes or any")
        self.num_negatives, self.temperature, self.momentum = num_negatives, temperature, momentum
        self.width, self.gather = width, gather
        self.positive: Literal["exact", "relax"] = positive
        self.negatives: Literal["other_classes", "any"] = negatives
        self.sides: list[tuple[Side, Side]] = []
        self.serials = torch.empty(0, dtype=torch.int64)
        self.deck: Deck | None = None

    def begin(self, answers: Answers, rng: torch.Generator) -> Iterable[nn.Parameter]:
        """Make student's and teacher's side for each width of the teachers' features."""
        assert answers.student_features is not None
        student, teachers = answers.student_features, by_width(answers.teacher_features)
        if not self.sides:
            self.sides = [
                (Side(projection(student, self.width, rng)), Side(projection(teacher, self.width, rng)))
                for teacher in teachers
            ]
        assert len(self.sides) == len(teachers), "a checkpoint of other teachers"
        both = [side.to(student) for pair in self.sides for side in pair]
        return [p for side in both for p in side.layer.parameters()]

    def __call__(self, answers: Answers, rng: torch.Generator) -> Float[Tensor, ""]:
        """Score the batch against the banks, then write it into them."""
        f_s, index, pool = answers.student_features, answers.index, answers.pool
        assert f_s is not None and index is not None and pool is not None, "checked by the schedule"
        chosen = self.follow(pool, rng).deal(index, self.num_negatives, rng).to(f_s.device)
        losses = []
        for (student, teacher), f_t in zip(self.sides, by_width(answers.teacher_features), strict=True):
            e_s, e_t = embed(student.layer, f_s), embed(teacher.layer, f_t)
            losses.append(self.contrast(student, e_s, teacher.bank, chosen))
            losses.append(self.contrast(teacher, e_t, student.bank, chosen))
            student.remember(index, e_s, self.momentum)
            teacher.remember(index, e_t, self.momentum)
        return torch.stack(losses).sum() / len(self.sides)

    def follow(self, pool: Pool, rng: torch.Generator) -> Deck:
        """Give new rows to the slots that have a new image since the last batch; deal from the pool as it is."""
        serials, known = pool.serials, len(self.serials)
        assert len(serials) >= known, "a lesson's pool may grow and turn over, but not start afresh"
        new = torch.ones(len(serials), dtype=torch.bool)
        new[:known] = serials[:known] != self.serials
        if new.any():
            for pair in self.sides:
                for side in pair:
                    side.forget(new, rng)
        if self.deck is None or new.any():
            self.serials = serials
            self.deck = Deck(pool.targets, self.positive, self.negatives)
        return self.deck

    def contrast(
        self, side: "Side", e: Embeddings, bank: Float[Tensor, "images width"], chosen: Chosen
    ) -> Float[Tensor, ""]:
        """`L(side)`, and its Z at the first batch."""
        scores = gathered(e, bank, chosen) if self.gather else (e @ bank.T).gather(1, chosen)
        likeness = (scores / self.temperature).exp()
        if side.mean is None:
            side.mean = likeness.detach().mean()
        return noise_contrast(likeness / (len(bank) * side.mean), len(bank))

    def state_dict(self) -> State:
        """Projections, banks and Z / n of each width's sides, and whose images the rows are."""
        state = {
            f"{number}.{name}.{key}": value
            for number, pair in enumerate(self.sides)
            for name, side in zip(("student", "teacher"), pair, strict=True)
            for key, value in side.state_dict().items()
        }
        return {**state, "serials": self.serials.clone()}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state`; the pool has to be the one that it was taken with."""
        self.serials, self.deck = state["serials"].clone(), None
        count = len({key.partition(".")[0] for key in state} - {"serials"})
        self.sides = [(Side.of(state, f"{i}.student"), Side.of(state, f"{i}.teacher")) for i in range(count)]


class Side:
    """Of student or teachers: the projection, the bank of its embeddings, and the constant of its likeness to others.

    Args:
        layer: W and b, from D to d.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.bank = layer.weight.detach().new_empty(0, layer.out_features)
        self.mean: Tensor | None = None

    def to(self, like: Tensor) -> "Side":
        """Move beside `like`."""
        self.layer.to(like)
        self.bank = self.bank.to(like)
        self.mean = None if self.mean is None else self.mean.to(like)
        return self

    def forget(self, new: Tensor, rng: torch.Generator) -> None:
        """Rows ~ U(-1, 1) / sqrt(d / 3), of expected squared norm 1, for the slots in the mask `new` (n,)."""
        width = self.bank.shape[1]
        bound = (3 / width) ** 0.5
        rows = torch.empty(int(new.sum()), width).uniform_(-bound, bound, generator=rng)
        bank = self.bank.new_empty(len(new), width)
        bank[: len(self.bank)] = self.bank
        bank[new.to(bank.device)] = rows.to(bank)
        self.bank = bank

    @torch.no_grad()
    def remember(self, index: Int[Tensor, " batch"], e: Embeddings, momentum: float) -> None:
        """`M[i] <- normalize(m M[i] + (1 - m) e_i)`; of an image that was drawn twice the last view counts."""
        last = {slot: row for row, slot in enumerate(index.tolist())}
        slots, rows = (torch.tensor(list(part), device=e.device) for part in (last.keys(), last.values()))
        mixed = F.normalize(momentum * self.bank[slots] + (1 - momentum) * e[rows], dim=1)
        # Into a copy: the backward pass needs the rows as they were scored.
        self.bank = self.bank.index_copy(0, slots, mixed)

    def state_dict(self) -> State:
        """Plain tensors on the CPU; no `mean` before the first batch."""
        state = {"weight": self.layer.weight, "bias": self.layer.bias, "bank": self.bank}
        if self.mean is not None:
            state["mean"] = self.mean
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    @classmethod
    def of(cls, state: State, name: str) -> "Side":
        """The side as it was."""
        side = cls(restored(state, name))
        side.bank, side.mean = state[f"{name}.bank"].clone(), state.get(f"{name}.mean")
        return side


def gathered(
    e: Embeddings, bank: Float[Tensor, "images width"], chosen: Chosen
) -> Float[Tensor, "batch compared"]:
    """`<e_i, M[j]>` for the chosen j of each i, from copies of their rows."""
    return torch.einsum("bd,bjd->bj", e, bank[chosen])


def noise_contrast(a: Float[Tensor, "batch compared"], num_images: int) -> Float[Tensor, ""]:
    """`-1/B sum_i [ ln(a_i0 / (a_i0 + K/n + eps)) + sum_k ln((K/n) / (a_ik + K/n + eps)) ]`, eps = 1e-7.

    Args:
        a: Likeness of each image to its positive, first, and to its K negatives, divided by Z.
        num_images: n.
    """
    epsilon, noise = 1e-7, (a.shape[1] - 1) / num_images
    hit = (a[:, 0] / (a[:, 0] + noise + epsilon)).log()
    misses = (noise / (a[:, 1:] + noise + epsilon)).log().sum(dim=1)
    return -(hit + misses).mean()
