"""The equations again, as naive loops: what the package is tested against.

Written from the papers' formulas over single samples, classes and pixels; nothing of the package is imported.
Tensors go in as float64 and results stay differentiable, so that gradients can be compared as well.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Head = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weight and bias of the first, then of the second linear layer."""


def softmax(row: Tensor, temperature: float = 1.0) -> list[Tensor]:
    """`exp(z_c / T) / sum_j exp(z_j / T)`."""
    exponentials = [torch.exp(z / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def kl_divergence(
    target: Tensor, student: Tensor, temperature: float, weight: Sequence[float] | None = None
) -> Tensor:
    """`T^2 / B sum_i w_i sum_c p_ic ln(p_ic / q_ic)`."""
    total = torch.zeros((), dtype=target.dtype)
    for i in range(len(target)):
        p, q = softmax(target[i], temperature), softmax(student[i], temperature)
        divergence = sum(p_c * torch.log(p_c / q_c) for p_c, q_c in zip(p, q, strict=True) if p_c > 0)
        total = total + (1.0 if weight is None else weight[i]) * divergence
    return temperature**2 * total / len(target)


def adversarial(teacher: Tensor, student: Tensor, mask: str) -> Tensor:
    """`-1/B sum_i m_i KL(p_t,i || p_s,i)`."""
    weights = []
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        agree = t.index(max(t)) == s.index(max(s))
        weights.append(float({"agree": agree, "disagree": not agree, "none": True}[mask]))
    return -kl_divergence(teacher, student, 1.0, weights)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`-1/B sum_i ln softmax(z_i)_{y_i}`."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels.tolist(), strict=True):
        total = total - torch.log(softmax(row)[label])
    return total / len(logits)


def soft_cross_entropy(target: Tensor, student: Tensor) -> Tensor:
    """`-1/B sum_i sum_c q_ic ln softmax(s_i)_c`."""
    total = torch.zeros((), dtype=student.dtype)
    for q, row in zip(target, student, strict=True):
        for q_c, p_c in zip(q, softmax(row), strict=True):
            total = total - q_c * torch.log(p_c)
    return total / len(student)


def entropy(probabilities: Sequence[float]) -> float:
    """`-sum_c p_c ln p_c`, where 0 ln 0 = 0."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def label_log_prior(counts: Sequence[float], smoothing: float) -> list[float]:
    """`ln( (n_c + s) / (N + s C) )`."""
    return [math.log((n + smoothing) / (sum(counts) + smoothing * len(counts))) for n in counts]


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> list[Tensor]:
    """`-ln( exp(q_i k_i / T) / sum_j exp(q_i k_j / T) )` for each i."""
    losses = []
    for i, query in enumerate(queries):
        scores = [torch.exp(dot(query, key) / temperature) for key in keys]
        losses.append(-torch.log(scores[i] / sum(scores)))
    return losses


def dot(a: Tensor, b: Tensor) -> Tensor:
    """`sum_d a_d b_d`."""
    return sum(x * y for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def embed(head: Head, row: Tensor) -> Tensor:
    """`h(f) / ||h(f)||` with `h = W2 relu(W1 f + b1) + b2`."""
    weight_1, bias_1, weight_2, bias_2 = head
    hidden = torch.stack([torch.relu(dot(w, row) + b) for w, b in zip(weight_1, bias_1, strict=True)])
    out = torch.stack([dot(w, hidden) + b for w, b in zip(weight_2, bias_2, strict=True)])
    return out / torch.sqrt(dot(out, out))


def contrast(
    local: Tensor, global_: Tensor, head: Head, temperature: float, old_local: Tensor, old_global: Tensor
) -> Tensor:
    """CMI's `L_cr` in its joint form: all rows through the head, the keys detached afterwards."""
    queries = torch.stack([embed(head, row) for row in [*local, *old_local]])
    keys = torch.stack([embed(head, row) for row in [*global_, *old_global]]).detach()
    losses = info_nce(queries, keys, temperature)
    new, old = losses[: len(local)], losses[len(local) :]
    return sum(new) / len(new) + (sum(old) / len(old) if old else 0.0)  # type: ignore[return-value]


def statistics_distance(layers: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """`sum_l ||running_var - Var(f)|| + ||running_mean - Mean(f)||` over (f, running_mean, running_var)."""
    total = torch.zeros((), dtype=layers[0][0].dtype)
    for f, running_mean, running_var in layers:
        squares_mean = squares_var = torch.zeros((), dtype=f.dtype)
        for d in range(f.shape[1]):
            values = [
                f[n, d, i, j] for n in range(f.shape[0]) for i in range(f.shape[2]) for j in range(f.shape[3])
            ]
            mean = sum(values) / len(values)
            var = sum((v - mean) ** 2 for v in values) / len(values)
            squares_mean = squares_mean + (running_mean[d] - mean) ** 2
            squares_var = squares_var + (running_var[d] - var) ** 2
        total = total + torch.sqrt(squares_var) + torch.sqrt(squares_mean)
    return total


def pooled(inputs: Sequence[Tensor]) -> list[list[float]]:
    """The spatial mean of each layer's input, channel after channel, layer after layer, for each sample."""
    rows = []
    for n in range(len(inputs[0])):
        row = []
        for f in inputs:
            for channel in f[n].tolist():
                pixels = [pixel for line in channel for pixel in line]
                row.append(sum(pixels) / len(pixels))
        rows.append(row)
    return rows


def combined(
    rule: str, logits: Tensor, counts: Sequence[Sequence[float]], sizes: Sequence[int]
) -> list[list[float]]:
    """Combined logits, or log-probabilities where the rule averages those, for each sample."""
    teachers, batch, classes = logits.shape
    rows = []
    for b in range(batch):
        z = [[float(v) for v in logits[k, b]] for k in range(teachers)]
        p = [[float(v) for v in softmax(logits[k, b])] for k in range(teachers)]
        row = []
        for c in range(classes):
            if rule == "mean_logits":
                row.append(sum(z[k][c] for k in range(teachers)) / teachers)
            elif rule == "mean_probs":
                row.append(math.log(sum(p[k][c] for k in range(teachers)) / teachers))
            elif rule == "by_energy":
                energy = [math.log(sum(math.exp(v) for v in z[k])) for k in range(teachers)]
                trust = [math.exp(e / 2.0) for e in energy]
                row.append(math.log(sum(trust[k] * p[k][c] for k in range(teachers)) / sum(trust)))
            elif rule == "by_num_examples":
                row.append(sum(sizes[k] * z[k][c] for k in range(teachers)) / sum(sizes))
            elif rule == "by_class_counts":
                owned = sum(counts[k][c] for k in range(teachers))
                row.append(sum(counts[k][c] / owned * p[k][c] for k in range(teachers)) if owned else 0.0)
            elif rule == "prior_corrected_logits":
                priors = [label_log_prior(counts[k], 1.0) for k in range(teachers)]
                row.append(sum(z[k][c] - priors[k][c] for k in range(teachers)) / teachers)
            elif rule == "majority":
                votes = sum(z[k].index(max(z[k])) == c for k in range(teachers))
                row.append(math.log((votes + 0.5) / (teachers + 0.5 * classes)))
        if rule == "by_class_counts":
            row = [math.log(value / sum(row)) if value > 0 else -math.inf for value in row]
        rows.append(row)
    return rows


def sharpened_target(log_p: Sequence[float], label: int, sharpen: float, mix: float) -> list[float]:
    """`(1 - m) P^s / sum_c P_c^s + m onehot(y)`."""
    powers = [math.exp(v) ** sharpen for v in log_p]
    return [(1 - mix) * v / sum(powers) + mix * (c == label) for c, v in enumerate(powers)]


def shifted(image: Tensor, padding: int, top: int, left: int, flip: bool) -> Tensor:
    """Zero padding, a crop of the old size at (top, left) of the padded image, then a flip of its columns."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                column = width - 1 - j if flip else j
                y, x = top + i - padding, left + column - padding
                if 0 <= y < height and 0 <= x < width:
                    out[c, i, j] = image[c, y, x]
    return out


def stretched(image: Tensor, top: int, left: int, height: int, width: int, flip: bool) -> Tensor:
    """The box, in whole pixels, stretched to the full size: bilinear, corners aligned."""
    channels, full_height, full_width = image.shape
    out = torch.zeros_like(image)
    for i in range(full_height):
        for j in range(full_width):
            column = full_width - 1 - j if flip else j
            y = top + i * (height - 1) / max(full_height - 1, 1)
            x = left + column * (width - 1) / max(full_width - 1, 1)
            y0, x0 = math.floor(y + 1e-9), math.floor(x + 1e-9)
            y1, x1 = min(y0 + 1, full_height - 1), min(x0 + 1, full_width - 1)
            for c in range(channels):
                upper = image[c, y0, x0] * (1 - (x - x0)) + image[c, y0, x1] * (x - x0)
                lower = image[c, y1, x0] * (1 - (x - x0)) + image[c, y1, x1] * (x - x0)
                out[c, i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return out


def linear_training(
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    y: Sequence[int],
    prior: Sequence[float],
    rate: float,
    steps: int,
    mu: float,
) -> tuple[Tensor, Tensor]:
    """Gradient descent on `mean CE(W x + b + prior, y) + mu/2 ||(W, b) - start||^2`, gradients by hand."""
    start_weight, start_bias = weight.clone(), bias.clone()
    for _ in range(steps):
        grad_weight, grad_bias = mu * (weight - start_weight), mu * (bias - start_bias)
        for sample, label in zip(x, y, strict=True):
            logits = torch.stack(
                [dot(w, sample) + b + p for w, b, p in zip(weight, bias, prior, strict=True)]
            )
            for c, p_c in enumerate(softmax(logits)):
                error = (p_c - float(c == label)) / len(x)
                grad_weight[c] += error * sample
                grad_bias[c] += error
        weight, bias = weight - rate * grad_weight, bias - rate * grad_bias
    return weight, bias
