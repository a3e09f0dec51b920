"""Fast mode: networks in bfloat16, all else in float32; and that exact mode hears nothing of it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from makers import InProcess
from test_crew import outcome
from test_simulate import simulate
from tiny import COUNTS, TASK, contrast, ensemble, inversion, network, pixels, rng
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.bank import Pool
from fl_cmi.batchnorm import batch_statistics, observe, pooled_inputs
from fl_cmi.checkpoint.begin import differing
from fl_cmi.compose import compose_config
from fl_cmi.distillation.distiller import Distiller
from fl_cmi.losses import info_nce
from fl_cmi.precision import exact, fast, precision_called
from fl_cmi.synthesis.crew import Crew
from fl_cmi.synthesis.inversion import Inversion, Inverted
from fl_cmi.types import ConfigError

CPU = torch.device("cpu")
Y = torch.tensor([0, 0, 1, 1, 3, 3, 0, 1])


def synthesized(precision: str, made: Inversion) -> Inverted:
    return made(ensemble(precision=precision_called(precision, CPU)), network(9), Y, TASK, rng(1))


def taught(precision: str, student: nn.Module) -> tuple[float, nn.Module, torch.optim.Optimizer]:
    """The loss of a first step, the student after three, and its optimizer."""
    teachers, pool = ensemble(precision=precision_called(precision, CPU)), Pool()
    x = pixels(32, seed=3)
    pool.add(x, torch.zeros(32, dtype=torch.int64), teachers.label(x))
    lesson = Distiller(partial(torch.optim.SGD, lr=0.05, momentum=0.9), batch_size=16).begin(student)
    first = lesson(teachers, pool, 1, (0.0, 0.3), rng(2))
    lesson(teachers, pool, 2, (0.3, 1.0), rng(3))
    return first, student, lesson.optimizer


def tensors(module: nn.Module | None) -> Mapping[str, Tensor]:
    assert module is not None
    return {name: t for name, t in module.state_dict().items() if t.is_floating_point()}


def test_what_a_pass_answers() -> None:
    model, x = network().eval(), pixels(4)
    assert torch.equal(exact(CPU, model, x), model(x))
    quick = fast(CPU, model, x)
    assert quick.dtype == torch.float32
    assert not torch.equal(quick, model(x))
    torch.testing.assert_close(quick, model(x), rtol=0.05, atol=0.05)


def test_weights_are_those_of_the_moment_even_within_another_block() -> None:
    model, x = nn.Linear(3, 2), torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            fast(CPU, model, x)
        before = fast(CPU, model, x)
        before.sum().backward()
        assert model.weight.grad is not None, "what was rounded without gradient is not used again"
        model.weight.data += 1
        assert (fast(CPU, model, x) - before > 2.9).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_a_batch_is_synthesized(steps: int) -> None:
    found, made = {}, {}
    for precision in ("exact", "fast"):
        made[precision] = inversion(steps=1, contrastive=contrast())
        synthesized(precision, made[precision])  # the bank has something in it now
        made[precision].steps = steps
        found[precision] = synthesized(precision, made[precision])
    quick, slow = found["fast"], found["exact"]
    assert quick.x.dtype == torch.float32
    assert not torch.equal(quick.x, slow.x)
    for name, loss in slow.losses.items():
        assert quick.losses[name] == pytest.approx(loss, rel=0.02, abs=0.02), name
    source, cr = made["fast"].source, made["fast"].contrast
    assert cr is not None
    assert source.latents.dtype == torch.float32  # type: ignore[attr-defined]
    for module in (source.generator, cr.head):  # type: ignore[attr-defined]
        assert {t.dtype for t in tensors(module).values()} == {torch.float32}
    assert cr.bank.draw(8, rng()).dtype == torch.float32


def test_a_student_is_taught() -> None:
    (loss, student, optimizer), (expected, slow, _) = (taught(p, network(9)) for p in ("fast", "exact"))
    assert loss == pytest.approx(expected, rel=0.02)
    for name, value in tensors(student).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, tensors(slow)[name], rtol=0.05, atol=0.02)
    assert not torch.equal(student.state_dict()["classifier.weight"], slow.state_dict()["classifier.weight"])
    state = [t for row in optimizer.state.values() for t in row.values() if isinstance(t, Tensor)]
    assert {t.dtype for t in state} == {torch.float32}


def test_observed_maps_and_their_gradients_are_float32() -> None:
    model, x = network().eval(), pixels(6).requires_grad_()
    with observe(model) as seen:
        fast(CPU, model, x)
    deepest = list(seen.values())[-1]
    assert {f.dtype for f in seen.values()} == {torch.float32}
    assert torch.equal(deepest, deepest.bfloat16().float()), "they were computed in bfloat16"
    # What the statistics hand back is exact; it is rounded once, on its way into the network.
    var, _ = torch.var_mean(deepest.double(), dim=(0, 2, 3), correction=0)
    (found,) = torch.autograd.grad(batch_statistics(deepest)[1].sum(), deepest, retain_graph=True)
    (expected,) = torch.autograd.grad(var.sum(), deepest, retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    assert pooled_inputs(seen).dtype == torch.float32
    assert torch.autograd.grad(pooled_inputs(seen).sum(), x)[0].dtype == torch.float32


def test_similarities_in_bfloat16() -> None:
    keys = F.normalize(torch.randn(300, 24, generator=rng()), dim=1)
    near = F.normalize(keys + 0.05 * torch.randn(300, 24, generator=rng(1)), dim=1)[:290]
    queries, reference = near.clone().requires_grad_(), near.double().requires_grad_()
    c = fast(CPU, info_nce, queries, keys, 0.1)
    s = reference @ keys.double().T / 0.1
    expected = F.cross_entropy(s, torch.arange(290), reduction="none")
    assert (c.double() - expected).abs().max() > 1e-6, "it would be exact"
    assert (c >= 0).all(), "the positive is among what it is compared with"
    torch.testing.assert_close(c.double(), expected, rtol=0.02, atol=2e-3)
    c.sum().backward()
    expected.sum().backward()
    assert queries.grad is not None
    assert reference.grad is not None
    # Similarities up to 10 are rounded to 1/32.
    assert (queries.grad - reference.grad).norm() < 0.03 * reference.grad.norm()


def test_a_crew_works_as_fast_as_the_server(tmp_path: Path) -> None:
    chosen = "synthesizer=per_client"
    alone = outcome(chosen, tmp_path / "alone", None, precision=fast)
    assert outcome(chosen, tmp_path / "crew", Crew(InProcess(1)), precision=fast) == alone
    slow = outcome(chosen, tmp_path / "exact", None)
    assert slow["pool"] != alone["pool"]
    assert slow["student"] != alone["student"]


def test_a_client_alone_is_as_fast() -> None:
    assert ensemble(COUNTS, precision=fast).only(1).precision is fast


@pytest.mark.usefixtures("without_pictures")
def test_a_fast_run(tmp_path: Path) -> None:
    few = ("num_clients=2", "local.epochs=1", "schedule.epochs=1")
    first, again = (simulate(tmp_path / name, *few, "precision=fast") for name in "ab")
    assert first["digest"] == again["digest"]
    assert first["config"]["precision"] == "fast"
    slow = simulate(tmp_path / "c", *few)
    assert slow["digest"] != first["digest"]
    # Clients and measures are exact in both.
    assert [row["accuracy"] for row in first["clients"]] == [row["accuracy"] for row in slow["clients"]]
    assert first["ensemble"] == slow["ensemble"]


@pytest.mark.parametrize("program", ["simulate", "distill"])
def test_precision_is_part_of_a_run(program: str) -> None:
    config = compose_config(["data=synthetic"], program)
    assert config["precision"] == "exact"
    quick = compose_config(["data=synthetic", "precision=fast"], program)
    assert differing(config, quick) == ["precision (exact there, fast here)"]


@pytest.mark.parametrize("name", ["half", "FAST", None, 16, []])
def test_other_precisions_are_refused(name: object) -> None:
    typed = {"None": "null", "[]": r"\[\]"}.get(str(name), name)
    with pytest.raises(ConfigError, match=rf"^precision={typed}: exact or fast$"):
        precision_called(name, CPU)
