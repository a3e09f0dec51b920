"""How far a schedule is: what lets one that starts anew pass over what was done before a checkpoint."""

from collections.abc import Callable
from typing import Any

from fl_cmi.distillation.budget import Budget

__all__ = ["Replay"]


class Replay:
    """Counts what a schedule does, and what it was told when it asked for the time.

    A schedule decides by nothing else. So one that goes on from a checkpoint begins anew: actions counted before are
    not done again, questions asked before are answered as before, and it comes to where the checkpoint was taken.

    Args:
        budget: Of the round.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.actions = self.done = 0
        self.looks = self.known = 0
        self.yes: set[int] = set()

    def act(self) -> bool:
        """Count an action; whether it is to be done, and was not before the checkpoint."""
        self.actions += 1
        return self.actions > self.done

    @property
    def over(self) -> bool:
        """Whether no other lesson may begin, now or when this was asked before the checkpoint."""
        return self._look(lambda: self.budget.closing)

    @property
    def due(self) -> bool:
        """Whether it is time for a lesson, now or when this was asked before the checkpoint."""
        return self._look(lambda: self.budget.due)

    def _look(self, ask: Callable[[], bool]) -> bool:
        self.looks += 1
        if self.looks > self.known and ask():
            self.yes.add(self.looks)
        return self.looks in self.yes

    def state_dict(self) -> dict[str, Any]:
        """The counts, the answers, and the time spent."""
        counts = {"actions": self.actions, "looks": self.looks, "yes": sorted(self.yes)}
        return {**counts, "budget": self.budget.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`: to be called before the schedule begins."""
        self.done, self.known, self.yes = state["actions"], state["looks"], set(state["yes"])
        self.budget.load_state_dict(state["budget"])
