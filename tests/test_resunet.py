"""`ResUNet`: where it starts, what it refuses, how far a pixel sees, and what having no biases means."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.cam import layers_of
from helpers.checkpoints import load, read_card
from helpers.models import ResidualBlock, ResUNet
from lab.recipes import RECIPES

SMALL = {"widths": (8, 12, 16), "blocks": 1}


def random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Replace every weight, also those that start at zero, by a random one that keeps the features' size."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        scale = (2 / weight[0].numel()) ** 0.5
        weight.data = scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


@pytest.mark.parametrize("options", [{}, SMALL, {"widths": (8, 8), "blocks": 3}], ids=str)
def test_untrained_network_says_that_there_is_no_noise(options):
    noisy = torch.rand(2, 3, 16, 24)
    assert torch.equal(ResUNet(**options)(noisy), noisy)


def test_gradient_reaches_every_weight():
    model = random_weights(ResUNet(**SMALL))
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_weights_of_zero_are_left_step_by_step():
    """The first step opens the head, the next one the blocks' second convolutions, then their first ones."""
    torch.manual_seed(0)
    model, clean = ResUNet(**SMALL), torch.rand(2, 3, 32, 32)
    noisy = clean + 0.2 * torch.randn_like(clean)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (model(noisy) - clean).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]


def test_block_adds_to_what_comes_in():
    block, features = random_weights(ResidualBlock(4)), torch.randn(1, 4, 8, 8)
    added = nn.functional.conv2d(nn.functional.conv2d(features, block.first.weight, padding=1).clamp(min=0),
                                 block.second.weight, padding=1)
    torch.testing.assert_close(block(features), features + added)


@pytest.mark.parametrize("options", [{"widths": (4, 4, 4), "blocks": 2}, {"widths": (4, 4, 4), "blocks": 1},
                                     {"widths": (4, 4), "blocks": 2}, {"widths": (4, 4, 4, 4), "blocks": 1}], ids=str)
def test_radius_is_exact(options):
    """With positive weights no ReLU closes, so that every input pixel in reach has a gradient."""
    model = ResUNet(**options).double()
    for weight in model.parameters():
        nn.init.uniform_(weight, 0.5, 1.0)
    middle = -(-model.radius // model.multiple) * model.multiple + model.multiple
    wide = torch.ones(1, 3, model.multiple, 2 * middle, dtype=torch.double, requires_grad=True)
    farthest = 0
    for column in range(middle, middle + model.multiple):  # every place in a cell of the coarsest grid
        noise = model(wide) - wide
        gradient, = torch.autograd.grad(noise[..., column].sum(), wide)
        reached = torch.nonzero(gradient.abs().sum((0, 1, 2)))[:, 0] - column
        farthest = max(farthest, -int(reached.min()), int(reached.max()))
    assert farthest == model.radius


def test_radius_of_the_default_network():
    assert ResUNet().radius == ResUNet(widths=(64, 112, 160)).radius == 91


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_network_without_biases_is_homogeneous(scale):
    model, noisy = random_weights(ResUNet(**SMALL)).double(), torch.rand(1, 3, 32, 32, dtype=torch.double)
    torch.testing.assert_close(model(scale * noisy), scale * model(noisy))
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_jacobian_times_the_input_is_the_output():
    model, noisy = random_weights(ResUNet((4, 4), 1)).double(), torch.rand(1, 3, 8, 8, dtype=torch.double)
    output, product = torch.autograd.functional.jvp(model, noisy, noisy)
    torch.testing.assert_close(product, output)


def test_layers_are_found_and_have_the_sizes_that_they_say():
    model, sizes = ResUNet(**SMALL), {}
    layers = layers_of(model)
    assert list(layers) == ["encoder 1", "encoder 2", "bottleneck", "decoder 2", "decoder 1"]
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, inputs, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    model(torch.rand(1, 3, 32, 48))
    assert sizes["encoder 1"] == sizes["decoder 1"] == (8, 16, 24)
    assert sizes["encoder 2"] == sizes["decoder 2"] == (12, 8, 12)
    assert sizes["bottleneck"] == (16, 4, 6)


@pytest.mark.parametrize("size", [(20, 24), (24, 20), (8, 9), (0, 8)], ids=str)
def test_sizes_that_are_no_multiple_are_refused(size):
    with pytest.raises(ValueError, match=f"multiples of 8, got {size[0]} x {size[1]}"):
        ResUNet(**SMALL)(torch.zeros(1, 3, *size))


def test_multiple_follows_the_number_of_scales():
    assert [ResUNet((4,) * scales, 1).multiple for scales in (2, 3, 4)] == [4, 8, 16]
    assert ResUNet((4, 4), 1)(torch.zeros(2, 3, 12, 20)).shape == (2, 3, 12, 20)
    with pytest.raises(ValueError, match="multiples of 16, got 24 x 32"):
        ResUNet((4, 4, 4, 4), 1)(torch.zeros(1, 3, 24, 32))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 16, 16, 3)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="takes images of shape"):
        ResUNet(**SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("options, said", [
    ({"widths": (64,)}, "widths must be at least two"), ({"widths": (6, 8)}, "first a multiple of 4"),
    ({"widths": (8, 0)}, "positive"), ({"widths": ()}, "got "), ({"blocks": 0}, "blocks must be at least 1, got 0")])
def test_impossible_networks_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ResUNet(**options)


@pytest.mark.parametrize("size", [(8, 8), (40, 24)], ids=str)
def test_images_of_a_batch_do_not_touch_each_other(size):
    model, noisy = random_weights(ResUNet(**SMALL)), torch.rand(3, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(noisy)[1:2], model(noisy[1:2]), rtol=1e-4, atol=1e-4)


def test_mixed_precision_gives_nearly_the_same():
    model, noisy = random_weights(ResUNet(**SMALL)), torch.rand(1, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = model(noisy)
    assert mixed.dtype == torch.float32  # the noise alone is rounded, not the image that it is taken from
    noise = (model(noisy) - noisy).detach()
    assert (mixed - noisy - noise).norm() < 0.03 * noise.norm()


def test_checkpoint_in_half_precision_is_small(tmp_path):
    model = ResUNet(widths=(64, 112, 160))
    save_file({name: weight.half() for name, weight in model.state_dict().items()}, tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 5_000_000
    assert sum(weight.numel() for weight in model.parameters()) == 2_325_856


def test_first_leg_of_the_trunk_is_there_and_says_how_far_it_is():
    model, card = load("trunk_leg1"), read_card("trunk_leg1")
    assert isinstance(model, ResUNet) and card["recipe"]["architecture"] == RECIPES["trunk_leg1"].architecture
    assert card["arguments"] == RECIPES["trunk_leg1"].arguments and 0 < card["steps"] <= RECIPES["trunk_leg1"].steps
    clean = torch.full((1, 3, 64, 64), 0.5)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert (model(noisy) - clean).square().mean() < 0.1 * (noisy - clean).square().mean()
