"""Every value of a configuration is checked against the parameter it is meant for."""

import math
import sys
from typing import Any

import pytest

from fl_cmi.compose import compose_config
from fl_cmi.nodes import check_nodes
from fl_cmi.types import ConfigError

POOL = "fl_cmi.bank.Pool"
GROW = "fl_cmi.distillation.schedules.GrowPool"
ADVERSARIAL = "fl_cmi.synthesis.terms.adversarial.Adversarial"
INVERSION = "fl_cmi.synthesis.inversion.Inversion"
CONVNET = "fl_cmi.models.convnet.ConvNet"


@pytest.mark.parametrize("strategy", ["fed_cmi", "fedavg", "fedadam"])
@pytest.mark.parametrize("synthesizer", ["per_client", "cmi"])
def test_the_defaults_fit(strategy: str, synthesizer: str) -> None:
    check_nodes(compose_config([f"strategy={strategy}", f"synthesizer={synthesizer}"]))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": POOL, "capacity": "x"}, "a.capacity=x: an integer"),
        ({"_target_": POOL, "capacity": 1.5}, "a.capacity=1.5: an integer"),
        ({"_target_": POOL, "capacity": True}, "a.capacity=true: an integer"),
        ({"_target_": CONVNET, "_partial_": True, "width": "two"}, "a.width=two: an integer"),
        ({"_target_": "fl_cmi.synthesis.terms.one_hot.OneHot", "weight": "x"}, "a.weight=x: a number"),
        ({"_target_": ADVERSARIAL, "weight": "x"}, "a.weight=x: a number"),
        ({"_target_": ADVERSARIAL, "mask": "maybe"}, "a.mask=maybe: agree or disagree or none"),
        (
            {"_target_": INVERSION, "terms": {"t": {"_target_": ADVERSARIAL, "weight": []}}},
            "a.terms.t.weight=",
        ),
        ({"list": [{"_target_": POOL, "capacity": None}]}, "a.list.0.capacity=null: an integer"),
        ({"_target_": INVERSION, "contrast": 2}, "a.contrast=2: a Contrast or null"),
        ({"_target_": INVERSION, "source": "x"}, "a.source=x: a Source"),
        ({"_target_": GROW, "_partial_": 3}, "a._partial_=3: true or false"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(node: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_nodes({"a": node})
    assert str(error.value).startswith(message)


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(
        ConfigError, match=r"^partition\.partitioner\..* pip install 'fl_cmi\[flwr-datasets\]'"
    ):
        check_nodes(compose_config(["partition=flower_dirichlet"]))


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": ADVERSARIAL, "weight": 1},
        {"_target_": ADVERSARIAL, "weight": math.inf},
        {"_target_": GROW, "epochs": 3},
        {"_target_": INVERSION, "contrast": None, "source": {"_target_": "builtins.dict"}},
        {"_target_": "builtins.dict", "whatever": "fits"},
    ],
)
def test_a_value_that_fits_passes(node: Any) -> None:
    check_nodes({"a": node})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "local.optimizer.lr=fast: a number"),
        ({"lr": -1}, "Invalid learning rate"),
        ({"lr": 0.1, "nesterov": True}, "momentum"),
        ({"lr": 0.1, "speed": 3}, "speed"),
    ],
)
def test_optimizers_speak_before_the_run(values: dict[str, Any], message: str) -> None:
    node = {"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, **values}}
    with pytest.raises(ConfigError, match="local.optimizer") as error:
        check_nodes({"local": node})
    assert message in str(error.value)


def test_the_key_that_was_typed_is_named_and_not_its_copy() -> None:
    pool = {"_target_": POOL, "capacity": "x"}
    with pytest.raises(ConfigError, match="^pool.capacity"):
        check_nodes({"strategy": {"_target_": "builtins.dict", "pool": pool}, "pool": pool})
