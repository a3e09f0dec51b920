"""What a run of rounds comes to."""

from dataclasses import dataclass, field

from fl_cmi.distillation.budget import CLOCKS
from fl_cmi.types import State, Update

__all__ = ["Outcome"]


@dataclass
class Outcome:
    """What a run produced.

    Args:
        student: The global model after the last round.
        accuracies: Its test accuracy after each round, in [0, 1], None where it was not tested; see `Scores` for
            clients that keep a part of it, and for strategies whose predictions are not the global model's.
        own_tests: Accuracy on the clients' own test images after each tested round, where it is measured.
        updates: What the clients of the last round sent, by partition id.
        bytes_up: Payload that clients sent, over all rounds.
        bytes_down: Payload that clients received, over all rounds.
        failures: Clients that failed and were dropped.
        served: Good replies by the machine they came from, on a cluster, in this process.
        server_seconds: What the server did between the clients' replies and the new global model, over all rounds:
            seconds by the `wall` and of the `cpu` (all threads of this process and of its workers).
    """

    student: State = field(default_factory=dict)
    accuracies: list[float | None] = field(default_factory=list)
    own_tests: list[float] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    failures: list[dict[str, object]] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    server_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))
