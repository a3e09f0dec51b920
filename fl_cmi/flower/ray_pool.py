"""Actors on the machines of a Ray: where there is room, replaced where they die, none where software or data differ."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fl_cmi.flower.failure import BackendFailure, cause_of_death
from fl_cmi.flower.ray_session import RAY_NAMES
from fl_cmi.flower.surroundings import Surroundings

__all__ = ["LOOK", "ActorHandle", "ActorPool", "Describe"]

log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks for machines that have joined."""

ActorHandle = Any
"""Ray has no type for the handle of an actor."""

Describe = Callable[[], Surroundings]
"""Tells what a process finds around it; called here and in each actor."""


class ActorPool:
    """At most so many actors; each gets work once it is up, since one on a lost machine may never be.

    Each is started on a machine chosen here, the one with the most room left: so both what has joined and what has
    been lost is seen at once, and a machine that was found wanting stays empty.

    Args:
        make: Starts an actor with these options of Ray's; it has a method `ready`.
        resources: Ray's options that say what one actor takes, such as `num_cpus`.
        most: Actors at once.
        retries: So often, for each of them, actors may die while they start.
        describe: What has to be alike on all machines; None: nothing is compared.

    Attributes:
        idle: Those that are up and have nothing to do.
        starting: Those that come up, by the reference that tells when.
    """

    def __init__(
        self,
        make: Callable[[Mapping[str, Any]], ActorHandle],
        resources: Mapping[str, float],
        most: int,
        retries: int,
        describe: Describe | None = None,
    ) -> None:
        self._make, self._resources, self._most, self._retries = make, resources, most, retries
        self._describe, self._here = describe, None if describe is None else describe()
        self._homes: dict[ActorHandle, str] = {}
        self._stillborn, self._last_look = 0, 0.0
        self._addresses: dict[str, str] = {}
        self._wanting: set[str] = set()
        self._seen: set[str] = set()
        self.idle: list[ActorHandle] = []
        self.starting: dict[ray.ObjectRef, ActorHandle] = {}
        self._first = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self.fill()

    @property
    def full(self) -> bool:
        """Whether there is nothing to gain from machines that join."""
        return len(self._homes) >= self._most

    def fill(self) -> None:
        """Start actors wherever there is room; those without work whose machine is lost make place for others."""
        self._last_look = time.monotonic()
        if self.full:
            return
        rooms = self._rooms()
        for actor in [actor for actor in self.idle if self._homes[actor] not in rooms]:
            self.idle.remove(actor)
            self._end(actor)
        taken = Counter(self._homes.values())
        left = {node: places - taken[node] for node, places in rooms.items() if node not in self._wanting}
        # Of equals, always the same: Ray lists machines in no order that lasts.
        while not self.full and left and left[node := max(sorted(left), key=left.__getitem__)] > 0:
            options = {
                **self._resources,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
            }
            actor = self._make(options)
            left[node] -= 1
            self._homes[actor] = node
            self.starting[actor.ready.remote(self._describe)] = actor

    def look(self) -> None:
        """The same, where the last look was a while ago."""
        if not self.full and time.monotonic() - self._last_look >= LOOK:
            self.fill()

    def take(self, but_not: str = "") -> ActorHandle:
        """One of those without work, if possible on another machine than `but_not` (address)."""
        other = [actor for actor in self.idle if self.address(actor) != but_not]
        actor = (other or self.idle)[-1]
        self.idle.remove(actor)
        return actor

    def came_up(self, reference: ray.ObjectRef) -> None:
        """Take an actor that is up into the pool, or replace it where it died on the way.

        Raises:
            ConfigError: If a machine that was there at the start differs from this one.
            BackendFailure: If too many have died.
        """
        actor = self.starting.pop(reference)
        try:
            found: Surroundings | None = ray.get(reference)
        except RayError as error:
            self._died_on_the_way(actor, error)
            self.replace(actor)
            return
        self._stillborn = 0
        if self._differs(actor, found):
            self.replace(actor)
        else:
            self.idle.append(actor)

    def replace(self, actor: ActorHandle) -> None:
        """End an actor, be it dead or not, and start another one where there is room."""
        self._end(actor)
        self.fill()

    def close(self) -> None:
        """End all actors."""
        for actor in list(self._homes):
            self._end(actor)
        self.idle, self.starting = [], {}

    def address(self, actor: ActorHandle) -> str:
        """The address of an actor's machine."""
        return self._addresses[self._homes[actor]]

    def _end(self, actor: ActorHandle) -> None:
        ray.kill(actor)
        self._homes.pop(actor, None)

    def _rooms(self) -> dict[str, int]:
        """How many actors each machine that is there holds, by Ray's id of it."""
        nodes = ray.nodes()
        self._addresses |= {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
        return {node["NodeID"]: room(node["Resources"], self._resources) for node in nodes if node["Alive"]}

    def _died_on_the_way(self, actor: ActorHandle, error: RayError) -> None:
        """Count it, unless its machine was lost: that is nobody's fault here."""
        kind, reason = cause_of_death(f"{type(error).__name__}: {error}")
        if isinstance(error, ActorUnschedulableError) or "machine was lost" in reason:
            return
        self._stillborn += 1
        if self._stillborn > self._retries * self._most:
            told = reason if kind == "memory" else str(error).strip().splitlines()[-1]
            where = "" if self._describe is None else f" on {self.address(actor)}"
            raise BackendFailure(f"the clients' processes die while they start{where}: {told}") from error

    def _differs(self, actor: ActorHandle, found: Surroundings | None) -> bool:
        """Whether no client may work where this actor is; told once for each machine."""
        node, machine = self._homes[actor], self.address(actor)
        if found is None or self._here is None:
            return False
        mistake = found.mistake(self._here, machine)
        if mistake is None:
            if node not in self._seen:
                found.warn(self._here, machine)
            self._seen.add(node)
            return False
        if node in self._first:
            raise mistake
        if node not in self._wanting:
            log.warning("a machine that joined gets no clients: %s", mistake)
        self._wanting.add(node)
        return True


def room(there: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many actors a machine holds: for each resource of Ray's, what it has over what one takes."""
    # 1e-9 makes ten tenths one.
    holds = [int(there.get(RAY_NAMES[name], 0) / amount + 1e-9) for name, amount in wanted.items() if amount]
    return min(holds, default=sys.maxsize)
