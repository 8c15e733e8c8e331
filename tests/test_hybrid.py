"""The hybrid: sizes, joins, what is trained, kept and refused."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from test_vit import KINDS, save_vit
from torch.optim.swa_utils import AveragedModel

import lab.joins  # noqa: F401  adds "gated" to JOINS
from helpers.denoise import denoise
from helpers.models import HybridViTUNet, UNet
from helpers.vit import JOINS, open_vit, vit_blocks


@pytest.fixture
def vit(tmp_path):
    return str(save_vit(tmp_path / "tiny"))


def woken(model):
    """Give the layers that start at zero something to say."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("vit.") and weight.abs().max() == 0:
                weight.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("blocks", [None, (0, 2), (-2,)])
def test_any_size_in_multiples_of_8(vit, join, blocks):
    model = HybridViTUNet(4, vit, join=join, blocks=blocks)
    for height, width in ((32, 32), (24, 40), (8, 8)):
        assert model(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)
    with pytest.raises(ValueError, match="multiples of 8, got 12 x 32"):
        model(torch.rand(1, 3, 12, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_vit(tmp_path, kind):
    model = HybridViTUNet(4, str(save_vit(tmp_path / kind, KINDS[kind][0])), blocks=(1,), join="gated")
    assert model.token_grid(torch.rand(1, 3, 24, 40)).shape == (1, 16, 3, 5)
    assert model(torch.rand(1, 3, 24, 40)).shape == (1, 3, 24, 40)


def test_the_classic_layout_is_the_originals(vit):
    """Bilinear to the pooled stage, two linear layers to 8w, concatenated to its 4w channels before the bottleneck."""
    model, noisy = woken(HybridViTUNet(4, vit)), torch.rand(1, 3, 48, 32)
    assert model.bottleneck[0].in_channels == 4 * 4 + 8 * 4 and model.bottleneck[0].out_channels == 8 * 4
    first, _, second = model.project
    skips, features = model.encode(noisy)
    tokens = model.vit.model(((noisy - model.vit.mean) / model.vit.std), interpolate_pos_encoding=True)
    grid = tokens.last_hidden_state[:, 1:].reshape(1, 6, 4, 16).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (6, 4), mode="bilinear")
    grid = grid.permute(0, 2, 3, 1) @ first.weight[:, :, 0, 0].T + first.bias
    grid = grid.relu() @ second.weight[:, :, 0, 0].T + second.bias
    joined = model.bottleneck(torch.cat([features, grid.permute(0, 3, 1, 2)], 1))
    torch.testing.assert_close(model(noisy), noisy - model.decode(joined, skips))


@pytest.mark.parametrize("join", JOINS)
def test_the_tokens_count_and_can_be_replaced(vit, join):
    model, noisy = woken(HybridViTUNet(4, vit, join=join)).eval(), torch.rand(2, 3, 32, 32)
    tokens = model.token_grid(noisy)
    torch.testing.assert_close(model(noisy, tokens=tokens), model(noisy))
    assert not torch.allclose(model(noisy, tokens=tokens.flip(0)), model(noisy)), "tokens of the other picture"


@pytest.mark.parametrize("join", JOINS)
def test_it_starts_from_a_unet_and_the_vit_can_learn_to_have_a_say(vit, join):
    torch.manual_seed(0)
    unet, noisy = woken(UNet(4)), torch.rand(2, 3, 32, 32)
    model = HybridViTUNet(4, vit, join=join).start_from(unet)
    torch.testing.assert_close(model(noisy), unet(noisy))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1, eps=1e-20)
    model(noisy).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model(noisy, tokens=torch.randn(2, 16, 4, 4)), model(noisy))
    with pytest.raises(ValueError, match=r"wanted weights for HybridViTUNet.*another encoder.0.0.weight"):
        model.start_from(UNet(8))


@pytest.mark.parametrize("freeze, trained_blocks", [(True, ()), (False, (0, 1, 2)), (1, (1, 2)), (2, (2,))])
def test_what_is_frozen_is_neither_trained_nor_kept(vit, freeze, trained_blocks):
    model = HybridViTUNet(4, vit, freeze_vit=freeze).train()
    assert model.vit.training == (freeze is False) and model.encoder.training
    woken(model)(torch.rand(1, 3, 32, 32)).sum().backward()
    kept = {name for name in model.state_dict() if name.startswith("vit.")}
    for number, block in enumerate(vit_blocks(model.vit)):
        own = set(map(id, block.parameters()))
        names = {name for name, parameter in model.named_parameters() if id(parameter) in own}
        assert names <= kept if number in trained_blocks else not names & kept
        assert all((p.grad is not None) == (number in trained_blocks) for p in block.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if name in kept)
    assert any("embeddings" in name for name in kept) == (freeze is False)
    assert any(name.startswith("vit.model.layernorm.") for name in kept) == (freeze is not True)


def test_blocks_that_are_not_used_are_not_trained(vit):
    model = HybridViTUNet(4, vit, freeze_vit=False, blocks=(1,))
    woken(model)(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert not any("layers.2" in name or "vit.model.layernorm" in name for name in model.state_dict())


@pytest.mark.parametrize("freeze", [True, 2, False])
def test_a_strict_round_trip(vit, freeze):
    model = woken(HybridViTUNet(4, vit, freeze_vit=freeze)).eval()
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.add_(torch.randn_like(weight), alpha=0.05)
    noisy, state = torch.rand(1, 3, 32, 32), deepcopy(model.state_dict())
    other = HybridViTUNet(4, vit, freeze_vit=freeze).eval()
    assert other.load_state_dict(state).missing_keys == []
    torch.testing.assert_close(other(noisy), model(noisy))
    state.pop("head.weight")
    with pytest.raises(RuntimeError, match="head.weight"):
        other.load_state_dict(state)


def test_averages_and_copies_leave_the_vit_out_too(vit):
    """`fit` keeps a moving average, whose state dict has a prefix."""
    model = HybridViTUNet(4, vit)
    average = AveragedModel(model)
    average.update_parameters(model)
    state = average.state_dict()
    assert not any(".vit." in name for name in state) and "module.head.weight" in state
    AveragedModel(HybridViTUNet(4, vit)).load_state_dict(state)
    model.load_state_dict(average.module.state_dict())
    assert not any(name.startswith("vit.") for name in deepcopy(model).state_dict())


def test_the_frozen_vit_stays_as_it_is(vit):
    model = woken(HybridViTUNet(4, vit)).train()
    before, noisy = deepcopy(dict(model.vit.named_parameters())), torch.rand(2, 3, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=1)
    assert not model.token_grid(noisy).requires_grad, "no graph is kept for it"
    model(noisy).square().mean().backward()
    optimizer.step()
    assert not model.vit.training and not model.eval().train().vit.training
    assert all(torch.equal(before[name], weight) for name, weight in model.vit.named_parameters())


def test_gradients_pass_through_the_frozen_vit_to_the_picture(vit):
    """Activation maps need them."""
    model, noisy, seen = woken(HybridViTUNet(4, vit)).eval(), torch.rand(1, 3, 32, 32, requires_grad=True), []
    vit_blocks(model.vit)[1].register_forward_hook(lambda *call: seen.append(call[-1]))
    (gradient,) = torch.autograd.grad(model(noisy).mean(), seen)
    assert gradient.shape == (1, 17, 16) and gradient.abs().sum() > 0


def test_the_card_names_the_vit_and_another_one_is_refused(vit, tmp_path):
    model = HybridViTUNet(4, vit)
    card = json.loads(json.dumps(model.card()))
    assert card["vit"] == {"name": "tiny", "sha256": open_vit(vit).sha256, "frozen": True}
    model.check_card(card)
    other = str(save_vit(tmp_path / "other", seed=5))
    with pytest.raises(ValueError, match="beside the ViT tiny and would be wrong beside other.*DENOISE_VIT"):
        HybridViTUNet(4, other).check_card(card)
    with pytest.raises(ValueError, match="another sha256"):
        HybridViTUNet(4, vit, seed=0).check_card(card)
    with pytest.raises(ValueError, match="its card does not name"):
        model.check_card({})
    HybridViTUNet(4, other, freeze_vit=False).check_card(card)


def test_none_is_the_environments_vit(vit, monkeypatch):
    monkeypatch.setenv("DENOISE_VIT", vit)
    assert HybridViTUNet(4).vit.name == "tiny"
    assert HybridViTUNet(4, seed=3).card()["vit"]["name"] == "tiny with random weights 3"


def test_an_opened_vit_is_taken_as_it_is(vit):
    opened = open_vit(vit, resize="picture")
    model = HybridViTUNet(4, opened)
    assert model.vit is opened and model(torch.rand(1, 3, 24, 40)).shape == (1, 3, 24, 40)
    assert model.token_grid(torch.rand(1, 3, 24, 40)).shape == (1, 16, 4, 4)


def test_any_picture_through_denoise(vit):
    model = woken(HybridViTUNet(4, vit)).train()
    picture = np.random.default_rng(0).random((250, 61, 3), dtype=np.float32)
    assert denoise(model, picture).shape == picture.shape
    assert model.training and not model.vit.training, "modes are put back"


@pytest.mark.parametrize("arguments, complaint", [
    ({"join": "sum"}, "join must be one of concat, attention, gated, got 'sum'"),
    ({"blocks": (1, 3)}, r"blocks must be numbers in 0..2, got \[1, 3\]"),
    ({"blocks": ()}, "blocks must be numbers"),
    ({"freeze_vit": 3}, "freeze_vit must be True, False or a number in 1..2, got 3"),
    ({"freeze_vit": "yes"}, "freeze_vit must be True"),
    ({"predict": "colour"}, "predict must be"),
])
def test_what_cannot_be_is_refused(vit, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        HybridViTUNet(4, vit, **arguments)
