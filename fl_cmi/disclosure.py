"""What a run's clients told the server: the list that every summary shows."""

from collections.abc import Sequence

from fl_cmi.ensemble import Ensemble
from fl_cmi.sides import ServerSide
from fl_cmi.types import Update

__all__ = ["disclosed"]


def disclosed(updates: Sequence[Update], ensemble: Ensemble, side: ServerSide) -> list[str]:
    """What left each client in a round, one phrase each."""
    phrases = []
    sizes = [sum(value.numel() for value in update.shared.values()) for update in updates]
    if any(sizes):
        what = "model weights" if any(update.private for update in updates) else "model weights and buffers"
        phrases.append(f"{what} ({_range(sizes)} numbers)")
    phrases.append("number of examples")
    told = {name for update in updates for name in update.shared}
    if any(ensemble.batch_norm_counts) and any(name.endswith("running_mean") for name in told):
        layers = _range(ensemble.batch_norm_counts)
        phrases.append(f"batch-norm statistics of its images ({layers} layers, among the buffers)")
    models = [side.build(client) for client in range(side.num_architectures)]
    beside = (phrase for model in models for phrase in side.sharing.method.disclosed(model, side.task))
    phrases += dict.fromkeys(beside)  # one line for each architecture that tells something else
    if side.share_label_counts:
        phrases.append(f"label counts ({side.task.num_classes} integers)")
    return [*phrases, "mean training loss and accuracy"]


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
