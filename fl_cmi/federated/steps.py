"""The server's steps: the new global model from the clients' ones. Pure functions, in double precision."""

from collections.abc import Sequence

from fl_cmi.federated.buffers import weighted_mean
from fl_cmi.types import State

__all__ = ["control_step", "nova_step", "shares", "step_towards"]


def shares(examples: Sequence[int], weighted: bool = True) -> list[float]:
    """`p_k = n_k / sum_j n_j`, or 1/K where `weighted` is off."""
    return [n / sum(examples) if weighted else 1 / len(examples) for n in examples]


def step_towards(start: State, ends: Sequence[State], weights: Sequence[float], rate: float = 1.0) -> State:
    """`x + rate sum_k p_k (y_k - x)`.

    Args:
        start: x, of floating point.
        ends: y_k, with the names of x.
        weights: p_k, summing to 1.
        rate: The server's learning rate.
    """
    mean = weighted_mean([_double(end, start) for end in ends], weights)
    return {name: (x.double() + rate * (mean[name] - x.double())).to(x.dtype) for name, x in start.items()}


def control_step(control: State, changes: Sequence[State], num_clients: int) -> State:
    """`c + 1/N sum_{k in S} (c_k+ - c_k)`: the mean change of the round's clients, times their share of all N.

    References:
        Karimireddy et al. 2020 (SCAFFOLD), arXiv 1910.06378, algorithm 1, line 17.
    """
    return {
        name: (c.double() + sum(change[name].double() for change in changes) / num_clients).to(c.dtype)
        for name, c in control.items()
    }


def nova_step(
    start: State, ends: Sequence[State], weights: Sequence[float], distances: Sequence[float]
) -> tuple[State, float]:
    """`x - tau sum_k p_k d_k` with `d_k = (x - y_k) / A_k`, `tau = sum_k p_k A_k`; A_k is `rate ||a_k||_1`.

    References:
        Wang et al. 2020 (FedNova), arXiv 2007.07481, equation 6, with `tau_eff = sum_k p_k ||a_k||_1`.

    Args:
        start: x, of floating point.
        ends: y_k, with the names of x.
        weights: p_k, summing to 1.
        distances: A_k > 0.

    Returns:
        The step's end, and tau.
    """
    tau = sum(p * a for p, a in zip(weights, distances, strict=True))
    result = {}
    for name, x in start.items():
        direction = sum(
            p * (x.double() - y[name].double()) / a for p, y, a in zip(weights, ends, distances, strict=True)
        )
        result[name] = (x.double() - tau * direction).to(x.dtype)
    return result, tau


def _double(state: State, names: State) -> State:
    return {name: state[name].double() for name in names}
