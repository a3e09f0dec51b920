"""FedDistill: clients tell each other what their models say of each class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.federated.method import ClientMethod, Visit, from_broadcast
from fl_cmi.losses import kl_divergence
from fl_cmi.session import Contribution, Session
from fl_cmi.training import LocalTraining
from fl_cmi.types import ConfigError, State, Task

__all__ = ["LOGITS", "LabelLogits", "global_logits"]

LOGITS = "logits"
"""The record of mean logits by label: up `mean` (C, C), and `count` (C,) where counts are shared; down `mean`, and
`known` (C,) where only some rows mean something."""


class LabelLogits(ClientMethod):
    """Draw the model's answer to an image towards what all clients' models answer to images of its class.

        m_c = sum_{i: y_i = c} f(x_i) / (1 + n_c)        over all training batches so far, from round to round
        L = CE + weight * KL(softmax(mbar_{y}) || softmax(f(x)))       once the server's mbar is there

    References:
        The baseline of Zhu, Hong, Zhou 2021 (FedGen), arXiv 2105.10056, after Seo et al. 2020, arXiv 2011.02367.

    Args:
        weight: Of the divergence, >= 0.
        share_model: True is FedDistill+, which averages the models too. Else clients keep their models, which may be
            of any architecture (`local.start=own`), and there is no global model.
        share_counts: A repair: sends true means, without the 1 in the count, and how many images each is of.
    """

    def __init__(self, weight: float = 1.0, share_model: bool = False, share_counts: bool = False) -> None:
        if not weight >= 0:
            raise ConfigError("strategy.client.weight", weight, "a number >= 0")
        self.weight, self.share_model, self.share_counts = weight, share_model, share_counts

    def check(self, local: LocalTraining) -> None:
        """A shared model is trained on; an own one is the client's start."""
        if self.share_model:
            from_broadcast(local, "strategy.client.share_model is on")
        elif local.start != "own":
            raise ConfigError("local.start", local.start, "own, because clients share no model")

    def private(self, model: nn.Module) -> frozenset[str]:
        """Everything, or nothing."""
        return frozenset() if self.share_model else frozenset(model.state_dict())

    def begin(self, visit: Visit) -> "LabelSession":
        """Go on with the sums of earlier rounds."""
        return LabelSession(visit, self.weight, self.share_counts)

    def disclosed(self, model: nn.Module, task: Task) -> list[str]:
        """A row of logits for each class, and the counts in it."""
        classes = task.num_classes
        lines = [f"mean logits for each label ({classes} x {classes} numbers)"]
        return lines + [f"how many images each is the mean of ({classes} integers)"] * self.share_counts


class LabelSession(Session):
    """One round of a client.

    Args:
        visit: The client.
        weight: Of the divergence.
        share_counts: As `LabelLogits`.
    """

    def __init__(self, visit: Visit, weight: float, share_counts: bool) -> None:
        classes, device = visit.images.num_classes, visit.device
        kept = visit.kept.get(LOGITS)
        fresh = {"sum": torch.zeros(classes, classes), "count": torch.zeros(classes, dtype=torch.int64)}
        now = {name: value.to(device) for name, value in (fresh if kept is None else kept).items()}
        self.sum_CC, self.count_C = now["sum"], now["count"]
        received = visit.received.get(LOGITS)
        self.target_CC = None if received is None else received["mean"].to(device)
        known = None if received is None else received.get("known")
        self.known_C = torch.ones(classes) if known is None else known
        self.known_C = self.known_C.to(device)
        self.weight, self.share_counts = weight, share_counts

    def loss(
        self, logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""] | float:
        """The divergence; the batch is added to the sums."""
        member_BC = F.one_hot(y, len(self.count_C))
        self.sum_CC += member_BC.to(logits.dtype).T @ logits.detach()
        self.count_C += member_BC.sum(dim=0)
        if self.target_CC is None:
            return 0.0
        return self.weight * kl_divergence(self.target_CC[y], logits, weight=self.known_C[y])

    def finish(self) -> Contribution:
        """The means for the server, the sums for the next round."""
        sums, counts = self.sum_CC.cpu(), self.count_C.cpu()
        divisor = counts.clamp(min=1) if self.share_counts else counts + 1
        sent: State = {"mean": sums / divisor[:, None]}
        if self.share_counts:
            sent["count"] = counts
        return Contribution(sent={LOGITS: sent}, kept={LOGITS: {"sum": sums, "count": counts}})


def global_logits(received: list[State]) -> State:
    """What the server sends back of the clients' mean logits.

    mbar_c = 1/K sum_k m_kc                                    a label that client k never saw counts as m_kc = 0
    mbar_c = sum_k n_kc m_kc / sum_k n_kc                      where counts are shared; `known` tells if any n_kc > 0
    """
    means_KCC = torch.stack([record["mean"] for record in received]).double()
    if "count" not in received[0]:
        return {"mean": means_KCC.mean(dim=0).float()}
    counts_KC = torch.stack([record["count"] for record in received]).double()
    total_C = counts_KC.sum(dim=0)
    weighted = (means_KCC * counts_KC[:, :, None]).sum(dim=0) / total_C.clamp(min=1)[:, None]
    return {"mean": weighted.float(), "known": (total_C > 0).float()}
