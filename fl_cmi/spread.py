"""Whether the server synthesizes by itself or has workers, as `server` in the configuration says."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fl_cmi.checks import check_server
from fl_cmi.compose import Config
from fl_cmi.synthesis.crew import Crew
from fl_cmi.types import ConfigError

__all__ = ["check_room", "crew_of", "hired"]


def crew_of(config: Config) -> Crew | None:
    """The server's workers, who are not hired yet; None where it has none.

    Raises:
        ConfigError: For values that make no sense.
    """
    check_server(config)
    settings = config["server"]
    if settings["workers"] is None:
        return None
    from fl_cmi.flower.ray_workers import RayWorkers  # Ray takes seconds to import

    cpus, gpus = settings["worker_cpus"], settings["worker_gpus"]
    return Crew(RayWorkers(settings["workers"], cpus, gpus, config["device"]))


def check_room(crew: Crew | None, strategy: Any, backend: Any) -> None:
    """Raise ConfigError where a strategy has nothing for the crew to do, or a backend no room for it."""
    if crew is None:
        return
    if not hasattr(strategy, "synthesizer"):
        name = type(strategy).__name__
        raise ConfigError("server.workers", crew.number, f"null, because strategy={name} fills no pool")
    if not getattr(backend, "makes_room", False):
        why = f"{type(backend).__name__} keeps for its clients what Ray has; backend=ray and local make room"
        raise ConfigError("server.workers", crew.number, f"null, because {why}")


def hired(crew: Crew | None) -> AbstractContextManager[None]:
    """Inside, the crew can work; afterwards nothing of it is left."""
    return nullcontext() if crew is None else crew.workers.hired()
