"""The terms and views of pixel synthesis again, as naive loops; see reference.py."""

import math
from collections.abc import Sequence

import torch
from reference import softmax
from torch import Tensor

Layer = tuple[Tensor, Sequence[float], Sequence[float]]
"""A layer's input (B, D, H, W), and the means and variances that it remembers."""


def normalized(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(x - mean) / std`, channel by channel."""
    return torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(x.shape[1])], dim=1)


def total_variation(x: Tensor, diagonals: bool) -> Tensor:
    """For each direction the mean of `|x_ij - x_neighbor|`; the sum of these."""
    batch, channels, height, width = x.shape
    total = torch.zeros((), dtype=x.dtype)
    for down, right in [(0, 1), (1, 0), (1, 1), (1, -1)][: 4 if diagonals else 2]:
        differences = [
            abs(x[n, c, i, j] - x[n, c, i + down, j + right])
            for n in range(batch)
            for c in range(channels)
            for i in range(height - down)
            for j in range(width)
            if 0 <= j + right < width
        ]
        total = total + sum(differences) / len(differences)
    return total


def norm(x: Tensor) -> Tensor:
    """`sqrt(sum x^2)`."""
    return torch.sqrt(sum((value**2 for value in x.flatten()), torch.zeros((), dtype=x.dtype)))


def smoothness(x: Tensor, sigma: float, reflect: bool) -> Tensor:
    """`mean (x - G * x)^2` with a 5 x 5 Gaussian."""

    def weight(i: int, j: int) -> float:
        return math.exp(-(i * i + j * j) / (2 * sigma**2))

    def mirrored(index: int, size: int) -> int:
        return -index if index < 0 else 2 * (size - 1) - index if index >= size else index

    offsets = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    whole = sum(weight(i, j) for i, j in offsets)
    batch, channels, height, width = x.shape
    total = torch.zeros((), dtype=x.dtype)
    for n in range(batch):
        for c in range(channels):
            for row in range(height):
                for column in range(width):
                    blurred = torch.zeros((), dtype=x.dtype)
                    for i, j in offsets:
                        y, z = row + i, column + j
                        if reflect:
                            y, z = mirrored(y, height), mirrored(z, width)
                        if 0 <= y < height and 0 <= z < width:
                            blurred = blurred + weight(i, j) / whole * x[n, c, y, z]
                    total = total + (x[n, c, row, column] - blurred) ** 2
    return total / x.numel()


def normal_kl(m: Tensor, v: Tensor, mu: Tensor, sd: Tensor) -> Tensor:
    """`ln(sd / v) - 1/2 + (v^2 + (m - mu)^2) / (2 sd^2)` of means and standard deviations."""
    return torch.log(sd / v) - 0.5 + (v**2 + (m - mu) ** 2) / (2 * sd**2)


def batch_norm_kl(clients: Sequence[Sequence[Layer]], direction: str) -> Tensor:
    """The mean over clients of `1/(L + 1) sum_l mean_channels KL_l`; each client's layers with the input among them."""
    of_clients = []
    for layers in clients:
        of_layers = []
        for f, means, variances in layers:
            of_channels = []
            for d in range(f.shape[1]):
                values = list(f[:, d].flatten())
                m = sum(values) / len(values)
                variance = sum((value - m) ** 2 for value in values) / len(values)
                v = torch.sqrt(variance if variance >= 1e-5 else torch.full_like(variance, 1e-5))
                mu = torch.tensor(float(means[d]), dtype=f.dtype)
                sd = torch.tensor(math.sqrt(max(float(variances[d]), 1e-5)), dtype=f.dtype)
                there, back = normal_kl(m, v, mu, sd), normal_kl(mu, sd, m, v)
                of_channels.append(
                    {
                        "batch_ref": there,
                        "ref_batch": back,
                        "sym": (there + back) / 2,
                        "mse": (m - mu) ** 2 + (v - sd) ** 2,
                    }[direction]
                )
            of_layers.append(sum(of_channels) / len(of_channels))
        of_clients.append(sum(of_layers) / len(of_layers))
    return sum(of_clients) / len(of_clients)  # type: ignore[return-value]


def class_logit(teacher: Tensor, y: Sequence[int], scale: float, form: str) -> Tensor:
    """`exp(-a m)`, `-a m` with m the mean logit of the label, or `a CE`."""
    mean = sum(row[label] for row, label in zip(teacher, y, strict=True)) / len(teacher)
    if form == "exp":
        return torch.exp(-scale * mean)
    if form == "logit":
        return -scale * mean
    losses = [-torch.log(softmax(row)[label]) for row, label in zip(teacher, y, strict=True)]
    return scale * sum(losses) / len(losses)  # type: ignore[return-value]


def jensen_shannon(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """`1/B sum_i KL(M || P) / 2 + KL(M || Q) / 2`, M the mean of P and Q, all three clamped to [.01, .99]."""
    total = torch.zeros((), dtype=one.dtype)
    for row, row_other in zip(one, other, strict=True):
        for p, q in zip(softmax(row, temperature), softmax(row_other, temperature), strict=True):
            m = ((p + q) / 2).clamp(0.01, 0.99)
            p, q = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99)
            total = total + 0.5 * m * torch.log(m / p) + 0.5 * m * torch.log(m / q)
    return total / len(one)


def rolled(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """The image moved with what leaves coming in opposite, then its columns turned."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                to = (j + right) % width
                out[c, (i + down) % height, width - 1 - to if flip else to] = image[c, i, j]
    return out
