"""Test metrics."""

import pytest
import torch
from tiny import ensemble, images, network
from torch import Tensor

from fl_cmi.evaluate import accuracy, predict
from fl_cmi.types import Images

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_logits_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    model, test = network(), images(10)
    expected = model.eval()(test.pixels())
    torch.testing.assert_close(predict(model, test, CPU, batch_size), expected)


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_used_in_eval_mode_and_put_back(mode: bool) -> None:
    model = network().train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = predict(model, images(6), CPU)
    assert model.training is mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not found.requires_grad


def test_the_mode_is_put_back_after_an_error() -> None:
    model = network().train()
    wrong = Images(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), 4)
    with pytest.raises(RuntimeError):
        predict(model, wrong, CPU)
    assert all(module.training for module in model.modules())


def test_any_function_of_images_can_be_tested() -> None:
    def brightness(x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3))[:, None] * torch.tensor([[-1.0, 1.0]])

    test = Images(torch.ones(3, 1, 2, 2), torch.tensor([1, 1, 0]), 2)
    assert accuracy(predict(brightness, test, CPU), test) == pytest.approx(2 / 3)


def test_the_ensemble_stays_in_eval_mode() -> None:
    team = ensemble()
    predict(team, images(4), CPU)
    assert not any(module.training for module in team.modules())
