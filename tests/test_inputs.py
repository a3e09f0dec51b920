"""Whatever is typed: a partition or a configuration is good, or refused by the key that is wrong."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from partition_cases import OVERLAP, PARTS, WHOLE

from fl_cmi import partition
from fl_cmi.checks import check
from fl_cmi.command import command_line
from fl_cmi.compose import (
    bad_clients,
    build,
    compose_config,
    config_folder,
    dataset,
    make_partition,
    plain_config,
    readable,
    server_side,
)
from fl_cmi.nodes import leaves
from fl_cmi.partition import Partition
from fl_cmi.report.metrics import MetricsLog
from fl_cmi.report.progress import Progress
from fl_cmi.types import ConfigError


def quick(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


positive = st.one_of(st.floats(1e-3, 100.0), st.sampled_from([1e-300, 1e-9, 1e9, 1e300]))
labelled = st.builds(
    lambda classes, number, seed: np.random.default_rng(seed).integers(0, classes, number),
    st.integers(2, 10),
    st.integers(1, 300),
    st.integers(0, 99),
)

NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "alpha": positive,
    "beta": positive,
    "sigma": st.floats(0, 2),
    "noise": st.floats(0, 1),
    "shards_per_client": st.integers(1, 5),
    "num_labels": st.integers(1, 10),
}
"""Of a procedure's arguments; others stay as they are."""


def judged(
    procedure: Callable[..., Partition], kept: dict[str, Any], labels: np.ndarray, clients: int, seed: int
) -> Partition | None:
    """The partition, None where it is refused by a key; both the same when asked again."""

    def asked() -> Partition | str:
        try:
            return procedure(labels, clients, np.random.default_rng(seed), **kept)
        except ConfigError as error:
            assert error.key == "num_clients" or error.key.startswith("partition."), error
            return str(error)

    one, other = asked(), asked()
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
        return None
    assert one.hash == other.hash
    assert one.num_clients == clients
    assert min(one.sizes) > 0
    assert all(own.min() >= 0 and own.max() < len(labels) for own in one.indices)
    assert all(len(np.unique(own)) == len(own) for own in one.indices)
    return one


@pytest.mark.parametrize("case", [*WHOLE, *PARTS, OVERLAP], ids=lambda case: case[0].__name__)
def test_any_partition_is_disjoint_complete_and_nobody_is_left_out(
    case: tuple[Callable[..., Partition], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dirichlet", "quantity", "client_prior"):
        monkeypatch.setattr(f"fl_cmi.partition.{module}.MAX_ATTEMPTS", 200)
    procedure, arguments = case
    drawn = {name: NUMBERS.get(name, st.just(value)) for name, value in arguments.items()}
    numbers = st.fixed_dictionaries(drawn)

    @quick(15)
    @given(labelled, st.integers(1, 12), st.integers(0, 9), numbers)
    def holds(labels: np.ndarray, clients: int, seed: int, kept: dict[str, Any]) -> None:
        found = judged(procedure, kept, labels, clients, seed)
        if found is None:
            return
        dealt = np.concatenate(found.indices)
        if procedure is not OVERLAP[0]:
            assert len(np.unique(dealt)) == len(dealt)
        if case in WHOLE:
            assert len(dealt) == len(labels)

    holds()


def test_the_cases_are_all_the_procedures() -> None:
    known = {case[0].__name__ for case in (*WHOLE, *PARTS, OVERLAP)}
    no_procedure = {"Partition", "client_tests", "hold_out", "flower_datasets", "quantity_exponential"}
    assert set(partition.__all__) - known == no_procedure


# Configurations

SMALL = ("data=synthetic", "model.width=2", "backend=local", "server_threads=1")
BASES = tuple(
    compose_config([*SMALL, *more])
    for more in (
        (),
        ("attacks=backdoor", "combine=agreement_weighted", "synthesizer=cmi", "distiller=cmi"),
        (
            "attacks=collusion",
            "combine=trimmed_probs",
            "strategy=fedavg",
            "local=adam",
            "buffers=recalibrate",
        ),
        ("attacks=scaled", "combine=by_energy", "strategy=fedgen", "partition=quantity_dirichlet"),
    )
)
KEYS = [
    (number, key)
    for number, base in enumerate(BASES)
    for key, value in leaves(base, "")
    if not isinstance(value, dict)
]
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(-10, 10),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.text(max_size=6),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def changed(base: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with another value at this key."""
    config = copy.deepcopy(base)
    node: Any = config
    *way, last = key.split(".")
    for part in way:
        node = node[part]
    node[last] = value
    return config


def prepared(config: dict[str, Any], folder: Path) -> None:
    """All that happens before clients are asked."""
    check(config)
    data = dataset(config)
    dealt = make_partition(config, data)
    attack, _ = bad_clients(config)
    attack.wanted(data.test)
    side = server_side(config, data, Progress(quiet=True), MetricsLog(folder / "log"), dealt)
    side.untrained_ensemble(build(config["combine"], "combine"))
    made = build(config["strategy"], "strategy")
    if callable(made):
        made(side=side)
    side.sharing.check(build(config["local"], "local"), side.student())
    build(config["backend"], "backend")


def test_the_bases_are_good(tmp_path: Path) -> None:
    for base in BASES:
        prepared(base, tmp_path)


@quick(200)
@given(st.sampled_from(KEYS), values)
def test_any_value_is_good_or_a_mistake_with_its_key(where: tuple[int, str], value: Any) -> None:
    number, key = where
    config = changed(BASES[number], key, value)
    try:
        check(config)
    except ConfigError as error:
        assert error.key
        assert error.allowed


@quick(15)
@given(st.sampled_from(KEYS), values)
def test_any_override_composes_or_says_why(where: tuple[int, str], value: Any) -> None:
    """Hydra's own errors are told in one line by the command; nothing else may come."""
    _, key = where
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        config = compose_config([*SMALL, f"{key}={text}"])
    except (HydraException, OmegaConfBaseException):
        return
    try:
        check(config)
    except ConfigError as error:
        assert error.key


# Files

lines = st.one_of(
    st.text(max_size=80),
    st.binary(max_size=80).map(lambda data: data.decode("latin-1")),
    st.sampled_from(
        [
            "a: [1",
            "a: {b",
            "- x",
            "? : :",
            "&a [*a]",
            "!!python/object/apply:os.system ['true']",
            "a: *b",
            "\t- x",
            "defaults:\n  - nowhere",
            "_target_: os.system",
            "a: ${b}",
            "a: ${",
            "{}",
            "null",
            "3",
            "a: 1\na: 2",
        ]
    ),
)


@quick(25)
@given(lines)
def test_a_file_of_garbage_is_one_error(tmp_path_factory: Any, text: str) -> None:
    told(tmp_path_factory.mktemp("conf"), text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("data", [b"\xff\xfe", b"&a {b: *a}", b"a: " + 2000 * b"[", b"3", b"a: [1"])
def test_files_that_are_no_configuration_are_named_as_such(tmp_path: Path, data: bytes) -> None:
    assert isinstance(told(tmp_path, data), ConfigError)


def told(folder: Path, data: bytes) -> Exception | None:
    """What comes of a configuration of which one file holds `data`."""
    shutil.copytree(config_folder() / "data", folder / "data")
    (folder / "combine").mkdir()
    (folder / "combine" / "garbage.yaml").write_bytes(data)
    groups = "defaults:\n  - data: synthetic\n  - combine: garbage\n  - _self_\n"
    (folder / "small.yaml").write_text(groups, encoding="utf-8")
    try:
        with readable(), hydra.initialize_config_dir(str(folder), version_base="1.3"):
            plain_config(hydra.compose("small"))
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return error
    return None


def test_the_command_tells_a_damaged_file_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(config_folder(), folder / "conf")
    (folder / "conf" / "combine" / "by_energy.yaml").write_text("a: [1", encoding="utf-8")
    monkeypatch.setattr("fl_cmi.command.config_folder", lambda: folder / "conf")
    monkeypatch.setattr("sys.argv", ["simulate", "combine=by_energy"])
    with pytest.raises(SystemExit) as left:
        command_line("simulate", lambda config: 0.0)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fl_cmi: configuration=")
    assert "by_energy.yaml, line 1" in line


def test_a_runs_own_errors_are_not_taken_for_those_of_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(config: Any) -> float:
        raise OSError("disk full")

    monkeypatch.setattr("sys.argv", ["simulate"])
    with pytest.raises(OSError, match="disk full"):
        command_line("simulate", breaks)
