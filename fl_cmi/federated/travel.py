"""How far an optimizer would carry a weight whose gradient is always 1."""

import torch
from torch.optim import Optimizer

__all__ = ["Travel"]


class Travel:
    """`sum_j a_j`, where `w_start - w_end = sum_j a_j g_j` over the gradients g_j of an SGD training.

    For plain SGD `a_j` is the rate of step j; momentum rho and a constant rate make `a_j = rate (1 - rho^(K-j)) / (1 -
    rho)` for j = 0..K-1, and a proximal term mu `a_j = rate (1 - rate mu)^(K-1-j)`. Instead of one formula a case
    there is a probe: a scalar in the same optimizer (of the same rates and momentum, without weight decay) that is
    given the gradient 1, plus `mu` times its way. It is exact for anything that is linear in the gradients: momentum,
    dampening, Nesterov, rate schedules, the proximal term.

    References:
        Wang et al. 2020 (FedNova), arXiv 2007.07481, section 4: `||a_i||_1` for these optimizers (ours has the rate
        inside).

    Args:
        optimizer: SGD, before its first step.
        proximal_mu: FedProx's mu >= 0.
    """

    def __init__(self, optimizer: Optimizer, proximal_mu: float = 0.0) -> None:
        device = optimizer.param_groups[0]["params"][0].device
        self.probe = torch.zeros((), dtype=torch.float64, device=device, requires_grad=True)
        self.mu = proximal_mu
        optimizer.add_param_group({**_settings(optimizer), "params": [self.probe], "weight_decay": 0.0})

    def step(self) -> None:
        """Give the probe its gradient; the optimizer's next step moves it."""
        self.probe.grad = 1 + self.mu * self.probe.detach()

    @property
    def distance(self) -> float:
        """`sum_j a_j` so far.

        Raises:
            RuntimeError: If it is not positive: changes of the weights cannot be divided by it.
        """
        found = 0.0 - self.probe.item()
        if not found > 0:
            raise RuntimeError(
                f"a gradient of 1 would have moved the weights by {found:g} in local training; set a learning rate"
                " above 0 (a schedule that begins at 0 needs more than one step), but below 1 / proximal_mu"
            )
        return found


def _settings(optimizer: Optimizer) -> dict[str, object]:
    """Of the first parameter group, which may differ from the optimizer's defaults."""
    return {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
