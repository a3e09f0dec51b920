"""Which teachers to believe, by what they and the others say of synthetic images.

Shape letters: K teachers, N images, C classes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fl_cmi.bank import Pool
from fl_cmi.ensemble import Ensemble

__all__ = ["agreement", "trust_scores", "trust_weights"]


def agreement(
    said_KN: Int[Tensor, "teachers images"], know_KN: Float[Tensor, "teachers images"]
) -> Float[Tensor, "teachers teachers"]:
    """`A_kj = sum_i o_ki o_ji 1[t_k(x_i) = t_j(x_i)] / sum_i o_ki o_ji`: how often two teachers say the same.

    In [0, 1], symmetric; NaN for two that have no image to judge in common.

    Args:
        said_KN: The class that each teacher sees.
        know_KN: o, how much a teacher's word counts on an image, >= 0.
    """
    common_KK = know_KN @ know_KN.T
    same_KK = torch.stack([((said_KN == said_KN[k]) * know_KN) @ know_KN[k] for k in range(len(said_KN))])
    return same_KK / common_KK


@torch.no_grad()
def trust_scores(
    ensemble: Ensemble, pool: Pool, rng: torch.Generator, most: int = 2000, familiar: float = 20.0
) -> list[float | None]:
    """Each teacher's `median_{j != k} A_kj`, with `o_ki = n_k(y_i) / (n_k(y_i) + s)`: do most of the others agree?

    y is the label that an image was made for: a teacher that never saw the class has no say on it. Images inverted from
    a bad teacher look like nothing to the others, and it errs on theirs; a median over the others is what fewer than
    half of them cannot move, however they collude. (Counts are believed: who lies about them can only be silent.)

    Args:
        ensemble: The teachers.
        pool: At least one synthetic image.
        rng: Chooses images where there are more than `most`.
        most: Images at most.
        familiar: s > 0: of so many images of a class a teacher has half a say. Clients that keep their counts have a
            full say on every class.

    Returns:
        In [0, 1], None for a teacher without others to compare with.
    """
    chosen = torch.randperm(len(pool), generator=rng)[:most]
    device = ensemble.num_examples_K.device
    said = [ensemble.logits(pool.get(some).x.to(device)).argmax(dim=2).cpu() for some in chosen.split(256)]
    know_KN = torch.ones(len(ensemble), len(chosen), dtype=torch.float64)
    if ensemble.class_counts_KC is not None:
        counts_KN = ensemble.class_counts_KC.cpu().double()[:, pool.targets[chosen]]
        know_KN = counts_KN / (counts_KN + familiar)
    agree_KK = agreement(torch.cat(said, dim=1), know_KN)
    agree_KK.fill_diagonal_(torch.nan)
    # Of two middles the higher one: with 2 of 5 bad, an honest one still has 2 of 4 others on its side.
    median_K = -(-agree_KK).nanmedian(dim=1).values
    return [None if score.isnan() else score.item() for score in median_K]


def trust_weights(
    scores: list[float | None], num_classes: int, least: float = 0.3, rest: float = 0.2
) -> list[float]:
    """`w_k = rest + (1 - rest) clip((r_k - least) / (1 - least), 0, 1)`, `r_k = u_k / median(u)`.

    u is the trust beyond chance, `max(0, trust - 1/C)`. Everyone as trusted as the median, or more, has weight 1, and
    whoever has at most the share `least` of it is left with `rest`. 1 for those without a score, and for all where the
    median is nothing but chance.

    Args:
        scores: Trust in [0, 1], or None.
        num_classes: C.
        least: In [0, 1).
        rest: In [0, 1): above 0, a class is not lost with its only owner, who had nobody to agree with.
    """
    above = [None if score is None else max(0.0, score - 1 / num_classes) for score in scores]
    known = sorted(score for score in above if score is not None)
    usual = known[len(known) // 2] if known else 0.0
    if usual == 0:
        return [1.0] * len(scores)
    shares = [1.0 if score is None else (score / usual - least) / (1 - least) for score in above]
    return [rest + (1 - rest) * min(1.0, max(0.0, share)) for share in shares]
