"""The inversion loop leaves no trace: streams, frozen weights, modes and hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import (
    TASK,
    contrast,
    ensemble,
    inversion,
    network,
    rng,
)
from torch import Tensor, nn

from fl_cmi.augment import CropFlip
from fl_cmi.batchnorm import batch_norm_layers
from fl_cmi.synthesis import inversion as inversion_module
from fl_cmi.synthesis.inversion import Inversion, frozen
from fl_cmi.synthesis.terms.adversarial import Adversarial

Y = torch.tensor([0, 0, 1, 1, 3, 3])


def images_of(seed: int, batches: int = 2, make: Callable[[], Inversion] | None = None) -> list[Tensor]:
    loop = make() if make else inversion(contrastive=contrast(bank_size=6), global_view=CropFlip(1))
    team, student = ensemble(), network(9)
    return [loop(team, student, Y, TASK, rng(10 * seed + batch)).x for batch in range(batches)]


def test_the_same_seed_gives_identical_images_and_another_seed_others() -> None:
    """Over three batches of a bank that is exactly full after the first."""
    first, second, other = images_of(1, 3), images_of(1, 3), images_of(2, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(torch.isfinite(x).all() for x in first)


def test_the_global_generator_plays_no_part() -> None:
    torch.manual_seed(1)
    first = images_of(1)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, images_of(1), strict=True))


def test_frozen_and_unfrozen_synthesis_give_identical_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freezing saves the weights' gradients and changes nothing else."""

    def unfrozen_images() -> tuple[list[Tensor], nn.Module, nn.Module]:
        loop = inversion(contrastive=contrast(), global_view=CropFlip(1))
        team, student = ensemble().requires_grad_(True), network(9).eval()
        return [loop(team, student, Y, TASK, rng(10 + batch)).x for batch in range(2)], team, student

    class OnlyEval(frozen):
        def __enter__(self) -> None:
            super().__enter__()
            self.model.requires_grad_(True)

    expected = images_of(1, 2, lambda: inversion(contrastive=contrast(), global_view=CropFlip(1)))
    monkeypatch.setattr(inversion_module, "frozen", OnlyEval)
    found, team, student = unfrozen_images()
    assert all(p.grad is not None for p in (*team.parameters(), *student.parameters())), (
        "nothing was unfrozen"
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nobody_gets_weight_gradients() -> None:
    team, student = ensemble(), network(9)
    inversion(contrastive=contrast())(team, student, Y, TASK, rng())
    assert all(p.grad is None for p in (*team.parameters(), *student.parameters()))


@pytest.mark.parametrize("mode", [True, False])
def test_the_student_is_in_eval_mode_meanwhile_and_comes_back_as_it_was(mode: bool) -> None:
    student = network(9).train(mode)
    layers = batch_norm_layers(student)
    layers[1].train(not mode)  # a layer with a mode of its own
    layers[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    modes: list[bool] = []
    flags: list[bool] = []

    def watch(module: nn.Module, *_: Any) -> None:
        modes.extend(m.training for m in module.modules())
        flags.extend(p.requires_grad for p in module.parameters())

    handle = student.register_forward_hook(watch)
    inversion(terms={"adv": Adversarial(1.0)})(ensemble(), student, Y, TASK, rng())
    handle.remove()
    assert modes
    assert not any(modes)
    assert not any(flags)
    assert student.training is mode
    assert [layer.training for layer in layers] == [mode, not mode, mode]
    assert [p.requires_grad for p in (layers[0].weight, layers[1].weight)] == [False, True]
    for name, value in student.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_hooks_are_gone_and_the_teachers_unchanged() -> None:
    team, student = ensemble(), network(9)
    state = {name: value.clone() for name, value in team.state_dict().items()}
    inversion(contrastive=contrast())(team, student, Y, TASK, rng())
    for module in (*team.modules(), *student.modules()):
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    for name, value in team.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not any(module.training for module in team.modules())


def test_inversion_lowers_its_losses() -> None:
    team, student = ensemble(), network(9)
    start = inversion(steps=1)(team, student, Y, TASK, rng())
    end = inversion(steps=60)(team, student, Y, TASK, rng())
    assert end.losses["total"] < start.losses["total"] - 0.2
    assert end.losses["bn"] < start.losses["bn"]
