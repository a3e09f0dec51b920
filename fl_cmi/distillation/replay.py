"""How far a schedule is: what lets one that starts anew pass over what was done before a checkpoint."""

from typing import Any

from fl_cmi.distillation.budget import Budget

__all__ = ["Replay"]


class Replay:
    """Counts what a schedule does, and how often it asks whether the time is up.

    A schedule decides by nothing else. So one that goes on from a checkpoint begins anew: actions counted before are
    not done again, questions asked before are answered as before, and it comes to where the checkpoint was taken.

    Args:
        budget: Of the round.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.actions = self.done = 0
        self.looks = self.known = 0
        self.over_since: int | None = None

    def act(self) -> bool:
        """Count an action; whether it is to be done, and was not before the checkpoint."""
        self.actions += 1
        return self.actions > self.done

    @property
    def over(self) -> bool:
        """Whether the time is up, now or when this was asked before the checkpoint."""
        self.looks += 1
        if self.over_since is None and self.looks > self.known and self.budget.over:
            self.over_since = self.looks
        return self.over_since is not None and self.looks >= self.over_since

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the time spent."""
        counts = {"actions": self.actions, "looks": self.looks, "over_since": self.over_since}
        return {**counts, "budget": self.budget.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`: to be called before the schedule begins."""
        self.done, self.known, self.over_since = state["actions"], state["looks"], state["over_since"]
        self.budget.load_state_dict(state["budget"])
