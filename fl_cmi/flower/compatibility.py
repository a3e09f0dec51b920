"""Whether the parts of a run go together, as far as it shows only when they are built."""

from typing import Any

from fl_cmi.compose import Config
from fl_cmi.flower.strategies import one_architecture
from fl_cmi.sides import ServerSide
from fl_cmi.types import ConfigError

__all__ = ["check_strategy", "strategy_name"]


def check_strategy(config: Config, side: ServerSide, strategy: Any) -> None:
    """Raise ConfigError where a strategy, Flower's own included, does not go with the rest of the run.

    Args:
        config: Of the run.
        side: What the server knows of the run.
        strategy: As built.
    """
    check_sampling(strategy, config["clients_per_round"] or config["num_clients"])
    check_architectures(config, side, strategy)
    check_pull(config["local"].get("start"), strategy)


def strategy_name(config: Config) -> str:
    """The strategy's class."""
    return str(config["strategy"]["_target_"].rsplit(".", 1)[-1])


def check_sampling(strategy: Any, size: int) -> None:
    """Raise ConfigError unless a strategy trains all nodes that it sees, and asks for nothing else.

    Who takes part is settled by `clients_per_round`: Flower draws by the global random generator, waits for ever for
    nodes that do not come, and has clients evaluate, which they cannot.

    Args:
        strategy: One without Flower's settings passes.
        size: Clients of a round.
    """
    instead = "; clients_per_round says who takes part"
    for name, only in (("fraction_train", 1), ("fraction_evaluate", 0)):
        if (value := getattr(strategy, name, only)) != only:
            raise ConfigError(f"strategy.{name}", value, f"{only:.1f}{instead}")
    for name in ("min_train_nodes", "min_available_nodes"):
        if (value := getattr(strategy, name, 1)) > size:
            raise ConfigError(f"strategy.{name}", value, f"at most {size}, the clients of a round{instead}")


def check_pull(start: str | None, strategy: Any) -> None:
    """Raise ConfigError where clients would be pulled to a start of their own instead of the global model."""
    mu = getattr(strategy, "proximal_mu", 0)
    if mu > 0 and start in ("own", "scratch"):
        raise ConfigError(
            "local.start", start, f"broadcast, because strategy.proximal_mu={mu:g} pulls clients to it"
        )


def check_architectures(config: Config, side: ServerSide, strategy: Any) -> None:
    """Raise ConfigError where the global model would have to fit other architectures than its own."""
    if one_architecture(side):
        return
    why = "because not all clients train the global model's architecture"
    sent = getattr(strategy, "sends_own_architecture", False)
    if config["local"].get("start") == "broadcast" and not sent:
        raise ConfigError("local.start", "broadcast", f"scratch or own, {why}")
    if not getattr(strategy, "mixed_architectures", False):
        raise ConfigError(
            "strategy", strategy_name(config), f"fed_cmi, feddf, fed_ensemble or feddistill, {why}"
        )
