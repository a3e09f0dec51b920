"""How good a synthetic set is in the eyes of the teachers, against real images of the same task.

Real images are test images and serve reporting only: no image, model or setting is chosen by these numbers.
Features are the inputs of the teachers' classifiers; everything is computed in float64 on the CPU.

Shape letters: N images, C classes, D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fl_cmi.bank import Pool
from fl_cmi.ensemble import Ensemble
from fl_cmi.types import Images

__all__ = [
    "class_balance",
    "diversity",
    "frechet_distance",
    "manifold_share",
    "measure_pool",
]

Features = Float[Tensor, "_ features"]


def class_balance(predicted: Int[Tensor, " images"], num_classes: int) -> float:
    """`-sum_c p_c ln p_c / ln C` with p_c the share of images that the teacher puts into class c.

    In [0, 1]: 1 for equal shares, 0 if all images are of one class. The normalized entropy that DAFL's balance term
    (Chen et al. 2019, arXiv 1904.01186) raises, on hard decisions.

    Args:
        predicted: The teacher's classes.
        num_classes: C >= 2.
    """
    share_C = torch.bincount(predicted, minlength=num_classes).double() / len(predicted)
    # The sum of a single class is 0, and its negative would be printed as -0.
    return abs(torch.xlogy(share_C, share_C).sum().item()) / math.log(num_classes)


def frechet_distance(real: Features, synthetic: Features) -> float:
    """`||m_r - m_s||^2 + tr(S_r + S_s - 2 (S_r S_s)^(1/2))` with means m and unbiased covariances S.

    In [0, inf): 0 for a set against itself. It grows as sets get smaller, so compare at equal sizes. FID (Heusel et
    al. 2017, arXiv 1706.08500) in the teacher's features instead of Inception's, by torchmetrics.

    Args:
        real: Features of real images, at least two.
        synthetic: Features of synthetic ones, at least two.
    """
    # Takes seconds to import, and a run needs it at its very end.
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=Given(real.shape[1]))
    distance.update(real.double(), real=True)
    distance.update(synthetic.double(), real=False)
    # The root of a covariance that lacks full rank may leave -1e-13.
    return max(0.0, float(distance.compute()))


class Given(nn.Identity):
    """Features that need no network, in the form that torchmetrics asks for.

    Args:
        num_features: D.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def diversity(features: Float[Tensor, "images features"], classes: Int[Tensor, " images"]) -> float:
    """Mean over classes of the mean Euclidean distance between two different images of the class.

        1/|C'| sum_{c in C'}  1/(n_c (n_c - 1)) sum_{i != j in c} ||f_i - f_j||,     C' = {c: n_c >= 2}

    In [0, inf), in units of the feature space: compare with the real images'. 0 for copies of one image per class, and
    where no class has two. Fang et al. 2021 (CMI) claim diversity; this
    is our own measure of it, without a perceptual network.

    Args:
        features: Of all images (N, D).
        classes: Their classes; the teacher's, so that images that were made for no class have one.
    """
    means = []
    for c in classes.unique():
        members = features[classes == c].double()
        if len(members) >= 2:
            means.append(torch.pdist(members).mean())
    return torch.stack(means).mean().item() if means else 0.0


def manifold_share(inside: Features, manifold: Features, k: int = 3) -> float:
    """Share of the rows of `inside` that lie in the k-NN manifold of the rows of `manifold`.

        1/N sum_i  1[ exists j: ||a_i - b_j|| <= ||b_j - NN_k(b_j)|| ],     NN_k among the other rows of b

    In [0, 1]; 1 for equal sets. Precision is the share of synthetic images in the real manifold (are they plausible?),
    recall that of real images in the synthetic one (is everything covered?). Kynkaanniemi et al. 2019,
    arXiv 1904.06991, equations 1 and 2.

    Args:
        inside: Rows a.
        manifold: Rows b, at least two; k is lowered to the number of others.
        k: Neighbors, >= 1.
    """
    b = manifold.double()
    # The nearest row of b to a row of b is itself.
    radius = exact_cdist(b, b).kthvalue(min(k, len(b) - 1) + 1, dim=1).values
    return (exact_cdist(inside.double(), b) <= radius).any(dim=1).double().mean().item()


def exact_cdist(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances without the matrix product, which would not give 0 for equal rows."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class View:
    """What the teachers make of a set of images.

    Args:
        features: Inputs of each teacher's classifier (N, D_k), float64.
        probabilities: Of the ensemble (N, C), float64.
    """

    features: list[Tensor]
    probabilities: Tensor

    @property
    def concatenated(self) -> Tensor:
        """Features of all teachers side by side (N, sum_k D_k)."""
        return torch.cat(self.features, dim=1)

    @property
    def classes(self) -> Tensor:
        """The ensemble's classes (N,)."""
        return self.probabilities.argmax(dim=1)


@torch.no_grad()
def view(
    ensemble: Ensemble, pixels: Callable[[Tensor], Tensor], chosen: Tensor, batch_size: int = 256
) -> View:
    """Show the images at `chosen` to the teachers; `pixels` gives those at some places, in [0, 1]."""
    device = ensemble.num_examples_K.device
    features: list[list[Tensor]] = []
    probabilities = []
    for some in chosen.split(batch_size):
        seen = ensemble.observe(pixels(some).to(device))
        logits = ensemble.combine(torch.stack(list(seen.logits)), ensemble)
        probabilities.append(logits.double().softmax(dim=1).cpu())
        features.append([f.double().cpu() for f in seen.features])
    return View([torch.cat(parts) for parts in zip(*features, strict=True)], torch.cat(probabilities))


def measure_pool(
    pool: Pool, ensemble: Ensemble, real: Images, rng: torch.Generator, most: int = 2000
) -> dict[str, float]:
    """Measure a pool against real images, in the eyes of the ensemble; a single teacher is an ensemble of one.

    Args:
        pool: At least two images.
        ensemble: The teachers.
        real: At least two real images; test images, for reporting only.
        rng: Chooses images where there are more than `most`.
        most: Images measured of either set at most, without replacement; half of them for precision and recall.

    Returns:
        - `images`: synthetic images measured,
        - `balance`: see `class_balance`,
        - `confidence`: mean of the ensemble's highest probability, in [1/C, 1],
        - `aimed`: share of images in whose aimed class the ensemble puts them, in [0, 1]; near 1 by construction where
          a generator aims at no class, for such images are filed under the ensemble's choice,
        - `frechet`: see `frechet_distance`; of several teachers the mean over each one's own features, because
          time and noise grow fast with the width,
        - `diversity`, `diversity_real`: see `diversity`, of either set; on concatenated features,
        - `precision`, `recall`: see `manifold_share`; on concatenated features.
    """
    chosen, real_chosen = (torch.randperm(len(given), generator=rng)[:most] for given in (pool, real))
    synthetic = view(ensemble, lambda some: pool.get(some).x, chosen)
    actual = view(ensemble, real.pixels, real_chosen)
    a, b = synthetic.concatenated, actual.concatenated
    few = max(2, most // 2)
    frechet = [frechet_distance(r, s) for r, s in zip(actual.features, synthetic.features, strict=True)]
    return {
        "images": len(chosen),
        "balance": class_balance(synthetic.classes, real.num_classes),
        "confidence": synthetic.probabilities.max(dim=1).values.mean().item(),
        "aimed": (synthetic.classes == pool.targets[chosen]).double().mean().item(),
        "frechet": sum(frechet) / len(frechet),
        "diversity": diversity(a, synthetic.classes),
        "diversity_real": diversity(b, actual.classes),
        "precision": manifold_share(a[:few], b[:few]),
        "recall": manifold_share(b[:few], a[:few]),
    }
