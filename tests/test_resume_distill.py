"""A distillation that ends in the middle goes on, and its teacher is not trained again."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_distill import QUICK
from test_resume import CutOffError, cut_after, rows

import fl_cmi.checkpoint.store as store_module
import fl_cmi.distill
from fl_cmi.compose import compose_config
from fl_cmi.types import ConfigError
from fl_cmi.verify import findings


def test_a_distillation_cut_off_at_every_checkpoint_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config([*QUICK, "checkpoint.every=1"], "distill")
    whole = fl_cmi.distill.run(config, tmp_path / "whole")
    folder, cuts, taught = tmp_path / "cut", 0, 0
    train = fl_cmi.distill.train

    def counted(*given: Any) -> None:
        nonlocal taught
        taught += 1
        train(*given)

    monkeypatch.setattr(fl_cmi.distill, "train", counted)
    finished = False
    while not finished:
        with pytest.MonkeyPatch.context() as patch:
            cut_after(1, patch)
            try:
                fl_cmi.distill.run({**config, "resume": str(folder) if cuts else None}, folder)
                finished = True
            except CutOffError:
                cuts += 1
    assert cuts == 2 + 3 * (2 + 1)  # the beginning, the teacher; epochs of batches and lesson
    assert taught == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["digest"] == whole["digest"]
    for key in ("teacher_passes", "images", "student", "agreement"):
        assert summary[key] == json.loads(json.dumps(whole[key])), key
    assert rows(folder) == rows(tmp_path / "whole")
    assert list(findings(folder)) == []


def test_rows_before_the_first_checkpoint_are_not_doubled(tmp_path: Path) -> None:
    config = compose_config([*QUICK, "schedule.epochs=1"], "distill")
    (tmp_path / "metrics.jsonl").write_text('{"event": "half a row')
    fl_cmi.distill.run({**config, "resume": str(tmp_path)}, tmp_path)
    assert list(findings(tmp_path)) == []


def test_a_teacher_that_is_still_trained_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config([*QUICK, "schedule.epochs=1"], "distill")
    monkeypatch.setattr(store_module, "PATIENCE", 0.0)
    train, refused = fl_cmi.distill.train, 0

    def meanwhile(*given: Any) -> None:
        nonlocal refused
        with pytest.raises(ConfigError, match="another process"):
            fl_cmi.distill.run({**config, "resume": str(tmp_path)}, tmp_path)
        refused += 1
        train(*given)

    monkeypatch.setattr(fl_cmi.distill, "train", meanwhile)
    fl_cmi.distill.run(config, tmp_path)
    assert refused == 1
    assert list(findings(tmp_path)) == []
