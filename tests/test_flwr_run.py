"""The run as Flower apps, on a grid of this process: what `flwr run .` starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from test_simulate import TINY

from fl_cmi.compose import compose_config
from fl_cmi.flower import app
from fl_cmi.flower.local_backend import LocalGrid
from fl_cmi.simulate import run
from fl_cmi.types import ConfigError

CLIENTS = 3
OVERRIDES = (*TINY, "strategy=fedavg", "rounds=2", "local.start=own")


class AppGrid(LocalGrid):
    """Clients whose contexts hold the run's configuration, as Flower's engine makes them."""

    overrides = ""

    def fresh_context(self, client: int) -> Context:
        context = super().fresh_context(client)
        context.run_config = {"overrides": self.overrides}
        return context


def serve(overrides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppGrid, "overrides", overrides)
    context = Context(1, 0, {}, RecordDict(), {"overrides": overrides})
    app.server_app(AppGrid(app.client_app, CLIENTS), context)


def test_the_apps_give_the_same_student(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(" ".join([*OVERRIDES, "'combine.saturation=2.0'"]), monkeypatch)
    (found,) = (folder / "outputs" / "flwr").glob("*/summary.json")
    summary: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    plain = compose_config([*OVERRIDES, f"num_clients={CLIENTS}", "backend=local"])
    assert summary["digest"] == run(plain, folder / "plain")["digest"]
    assert (summary["config"]["num_clients"], summary["config"]["combine"]["saturation"]) == (CLIENTS, 2.0)
    assert "flwr run . --run-config" in (found.parent / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("override", ["client_timeout=5", "resume=there"])
def test_what_the_engine_cannot_do_is_refused(
    override: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"^{override}[^:]*: null with flwr run"):
        serve(" ".join([*OVERRIDES, override]), monkeypatch)
    assert list(folder.iterdir()) == []
