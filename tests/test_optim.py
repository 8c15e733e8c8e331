"""Does each optimizer do what its name says, and nothing else?"""

import pytest
import torch

from helpers.models import UNet
from helpers.training import OPTIMIZERS, make_optimizer


def moved(name, lr=1e-3):
    """Take one step with random gradients; return {weight: how far it moved}."""
    torch.manual_seed(0)
    model = UNet(8, stages=1)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    optimizer = make_optimizer(name, list(model.parameters()), lr, 0.0)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    return {key: (weight.detach() - before[key]) / lr for key, weight in model.named_parameters()}


def test_muons_step_of_a_layer_is_nearly_orthogonal_and_as_long_as_adamws():
    steps = {key: step.flatten(1) for key, step in moved("muon").items() if step.ndim == 4 and "head" not in key}
    assert len(steps) == 7  # two convolutions in each of three places, and one that goes up
    for key, matrix in steps.items():
        singular = torch.linalg.svdvals(matrix) / (0.2 * max(matrix.shape) ** 0.5)
        assert 0.6 < singular.min() and singular.max() < 1.4, key
        assert matrix.square().mean().sqrt() == pytest.approx(0.2, rel=0.3), key


def test_biases_and_layers_of_few_channels_are_left_to_nadamw():
    found, adamw = moved("muon"), moved("adamw")
    left = [key for key, step in found.items() if step.ndim == 1 or "head" in key]
    assert len(left) > 5
    for key in left:  # the first step of AdamW is the gradient's sign; Nesterov's momentum takes most of a second one
        torch.testing.assert_close(3 * found[key], 1.9 * adamw[key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_downhill(name):
    torch.manual_seed(1)
    layer, picture = torch.nn.Conv2d(4, 4, 3, padding=1), torch.rand(2, 4, 12, 12)
    wanted = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
    optimizer = make_optimizer(name, list(layer.parameters()), 0.03, 0.0)
    losses = []
    for _ in range(60):
        losses.append(torch.nn.functional.mse_loss(layer(picture), wanted))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 10


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="one of adamw, muon, got 'sgd'"):
        make_optimizer("sgd", [torch.nn.Parameter(torch.ones(2))], 0.1, 0.0)
