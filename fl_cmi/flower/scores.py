"""How good the result of a round is, in the server's hands or in the clients'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import nn

from fl_cmi.evaluate import accuracy, predict
from fl_cmi.sides import ServerSide
from fl_cmi.types import Images, State, Update

__all__ = ["Scores"]


@dataclass
class Scores:
    """Accuracies after each round.

    Where clients share all of their models, the global model is scored on the test set. Where they keep a part (batch
    norm's buffers, all but the head, everything), a model is the global model's tensors with the client's own ones in
    their places, and the score is the mean over the round's clients.

    Args:
        side: What the server knows of the run.
        predictor: Who predicts after a round, where it is not the global model (FedEnsemble's vote).
        own_tests: FedGen's metric besides: test images of each client (`fl_cmi.flower.client.own_tests`); every client
            scores its model on its own ones, pooled over all clients of the run. Easier than the test set: they are of
            the client's classes only. None: not measured.
    """

    side: ServerSide
    predictor: Callable[[], nn.Module] | None = None
    own_tests: Sequence[Images] | None = None
    private: dict[int, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sharing, build = self.side.sharing, self.side.build
        # A network takes long to make, and an architecture says all.
        self._kept: Callable[[int], frozenset[str]] = cache(lambda number: sharing.kept(build(number)))

    def remember(self, updates: Sequence[Update]) -> None:
        """What the round's clients keep, tested or not."""
        for update in updates:
            kept = self._kept(update.client % self.side.num_architectures)
            self.private[update.client] = {name: update.state[name] for name in kept}

    def __call__(self, student: State, updates: Sequence[Update]) -> dict[str, float]:
        """Of one round.

        Args:
            student: The new global model.
            updates: What the round's clients sent; they have been remembered.

        Returns:
            `accuracy`, and `own_tests` where that is measured, in [0, 1].
        """
        found = [self.side.test_accuracy(model) for model in self.models(student, updates)]
        scores = {"accuracy": sum(found) / len(found)}
        if self.own_tests is not None:
            scores["own_tests"] = self.on_own_tests(student)
        return scores

    def models(self, student: State, updates: Sequence[Update]) -> list[nn.Module]:
        """Who predicts after a round: the global model, or each client's own version of it."""
        if any(self.private.values()):
            return [self.model(update.client, student) for update in updates]
        return [self.shared_model(student)]

    def on_own_tests(self, student: State) -> float:
        """Right answers of all clients on their own test images, out of all."""
        assert self.own_tests is not None
        right, total = 0.0, 0
        for client, images in enumerate(self.own_tests):
            if len(images):
                logits = predict(self.model(client, student), images, self.side.device)
                right += accuracy(logits, images) * len(images)
                total += len(images)
        return right / total if total else float("nan")

    def shared_model(self, student: State) -> nn.Module:
        """Who predicts where clients keep nothing: the global model, or what the strategy has in its place."""
        if self.predictor is not None:
            return self.predictor().to(self.side.device)
        model = self.side.student()
        model.load_state_dict(student)
        return model.to(self.side.device)

    def model(self, client: int, student: State) -> nn.Module:
        """Who predicts for a client; one that never took part has its private tensors as they were at the start."""
        model = self.side.build(client)
        initial, kept = model.state_dict(), self.side.sharing.kept(model)
        if not kept:  # its own network may be of another architecture than the global model
            return self.shared_model(student)
        shared = {name: student[name] for name in initial.keys() - kept}
        model.load_state_dict({**initial, **shared, **self.private.get(client, {})})
        return model.to(self.side.device)
