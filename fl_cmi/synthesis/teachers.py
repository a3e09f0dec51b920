"""Whose models the last batch was made from: what fits them may not fit those of another round."""

from torch import nn

from fl_cmi.checkpoint.state import Scene
from fl_cmi.checkpoint.tree import Tree
from fl_cmi.ensemble import Ensemble

__all__ = ["LastTeachers"]


class LastTeachers:
    """The models that were met last; a client that comes back in another round brings another one."""

    def __init__(self) -> None:
        self.models: frozenset[nn.Module] = frozenset()

    def change(self, ensemble: Ensemble) -> bool:
        """Whether these are others than before, as the first ones are; from now on they are the last."""
        models = frozenset(ensemble.models)
        changed, self.models = models != self.models, models
        return changed

    def state_dict(self, scene: Scene) -> Tree:
        """Their names; none between rounds, for the next ones are others."""
        return [name for name, layer in scene.layers.items() if layer in self.models]

    def load_state_dict(self, state: Tree, scene: Scene) -> None:
        """Go on from `state`."""
        self.models = frozenset(scene.layers[name] for name in state)
