"""One global model for each architecture among the clients: what averaging means where they differ."""

from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fl_cmi.checkpoint.tree import Tree
from fl_cmi.flower.participation import Participation
from fl_cmi.flower.records import ARRAYS, to_record
from fl_cmi.sides import ServerSide
from fl_cmi.types import Architecture, State, Update, architecture

__all__ = ["Prototypes"]


class Prototypes:
    """The global models by architecture, the student's own first.

    Args:
        side: What the server knows of the run.
    """

    def __init__(self, side: ServerSide) -> None:
        makers: list[Callable[[], nn.Module]] = [side.student]
        makers += [lambda client=client: side.build(client) for client in range(side.num_architectures)]  # type: ignore[misc]
        self.side = side
        self.make: dict[Architecture, Callable[[], nn.Module]] = {}
        self.states: dict[Architecture, State] = {}
        kinds = []
        for make in makers:
            state = make().state_dict()
            kinds.append(architecture(state))
            self.make.setdefault(kinds[-1], make)
            self.states.setdefault(kinds[-1], state)
        self.own, *self.kinds = kinds
        """The student's architecture, and the clients' in turn."""

    @property
    def mixed(self) -> bool:
        """Whether there are several."""
        return len(self.states) > 1

    def model(self, kind: Architecture) -> nn.Module:
        """A new network with the prototype's weights, on the server's device."""
        model = self.make[kind]()
        model.load_state_dict(self.states[kind])
        return model.to(self.side.device)

    def of_client(self, client: int) -> Architecture:
        """The architecture that a client trains."""
        return self.kinds[client % self.side.num_architectures]

    def average(self, updates: Sequence[Update]) -> list[Architecture]:
        """Put the average of each architecture's clients into its place; tells which had any."""
        found = []
        for kind in self.states:
            group = [update for update in updates if architecture(update.state) == kind]
            if group:
                average = self.side.average(group)
                assert average is not None
                self.states[kind] = average
                found.append(kind)
        return found

    def state_dict(self) -> Tree:
        """The global models, in their order."""
        return list(self.states.values())

    def load_state_dict(self, state: Tree) -> None:
        """Go on from `state`."""
        self.states = dict(zip(self.states, state, strict=True))

    def addressed(self, messages: Iterable[Message], grid: Grid) -> Iterable[Message]:
        """The same messages, each client's with the prototype of its architecture where the grid knows who it is."""
        if not self.mixed or not isinstance(grid, Participation):
            return messages
        contents: dict[Architecture, RecordDict] = {}
        sent = []
        for message in messages:
            kind, about = self.of_client(grid.client_of(message)), message.metadata
            if (
                kind not in contents
            ):  # one for all clients of an architecture, as grids send each content once
                contents[kind] = RecordDict(dict(message.content.items()))
                contents[kind][ARRAYS] = to_record(self.states[kind])
            sent.append(Message(contents[kind], about.dst_node_id, about.message_type))
        return sent
