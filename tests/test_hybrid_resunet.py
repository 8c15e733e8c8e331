"""`HybridResUNet`: it starts as its trunk, trains its joins alone, and its output depends on what the ViT saw."""

import pytest
import torch
from torch import nn

from helpers.models import HybridResUNet, ResUNet
from helpers.vit import FiLM, open_vit

WIDTHS, VIT = (8, 12, 16), open_vit()


@pytest.fixture
def trunk():
    model = ResUNet(WIDTHS, 1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in model.parameters():
            weight.normal_(0, 0.1)
    return model


@pytest.fixture
def hybrid(trunk):
    return HybridResUNet(WIDTHS, 1, VIT).start_from(trunk)


def opened(hybrid):
    """Its joins as after a training: no weight is zero."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in [*hybrid.joins.parameters(), *hybrid.again.parameters()]:
            weight.normal_(0, 0.1)
    return hybrid


@pytest.mark.parametrize("size", [(224, 224), (48, 80)])
def test_with_closed_joins_it_is_its_trunk(trunk, hybrid, size):
    noisy = torch.rand(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(hybrid(noisy), trunk(noisy), rtol=0, atol=1e-6)


def test_only_the_joins_are_trained_and_all_of_them(hybrid):
    opened(hybrid)(torch.rand(1, 3, 64, 64)).square().sum().backward()
    trained = {name for name, weight in hybrid.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert trained == {name for name, _ in hybrid.named_parameters() if name.startswith(("joins", "again", "norms"))}


def test_the_trunk_is_trained_too_where_that_is_asked_for(trunk):
    hybrid = opened(HybridResUNet(WIDTHS, 1, VIT, freeze_trunk=False).start_from(trunk))
    hybrid(torch.rand(1, 3, 64, 64)).square().sum().backward()
    assert all(weight.grad is not None for name, weight in hybrid.named_parameters() if not name.startswith("vit."))
    assert not any(weight.requires_grad for weight in hybrid.vit.parameters())


def test_it_is_the_forward_that_it_says(trunk, hybrid):
    noisy = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        first = trunk(noisy)
        tokens = opened(hybrid).token_grid(first.clamp(0, 1))
        assert tokens.shape == (2, 2 * 192, 4, 6)
        joins = [lambda features, join=join: join(features, tokens) for join in hybrid.joins]
        wanted = noisy - hybrid.predict_noise(hybrid.stem(noisy) + hybrid.again(first), joins)
        torch.testing.assert_close(hybrid(noisy), wanted)


def test_other_tokens_give_another_image_and_its_own_the_same(hybrid):
    noisy = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        output = opened(hybrid)(noisy)
        tokens = hybrid.token_grid(ResUNet.forward(hybrid, noisy).clamp(0, 1))
        torch.testing.assert_close(hybrid(noisy, tokens), output)
        assert (hybrid(noisy, tokens.roll(1, 0)) - output).abs().max() > 1e-3


def test_the_vit_sees_an_image_in_its_range(hybrid, monkeypatch):
    seen = []
    monkeypatch.setattr(hybrid, "token_grid", lambda images: seen.append(images) or torch.zeros(1, 384, 4, 4))
    hybrid(3 * torch.randn(1, 3, 64, 64))
    assert seen[0].min() >= 0 and seen[0].max() <= 1


def test_the_state_dict_holds_the_trunk_and_the_joins_and_no_vit(trunk, hybrid):
    keys = set(hybrid.state_dict())
    assert set(trunk.state_dict()) < keys and not any(key.startswith("vit.") for key in keys)
    again = HybridResUNet(WIDTHS, 1, VIT)
    again.load_state_dict(opened(hybrid).state_dict())
    noisy = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(noisy), hybrid(noisy))


def test_another_vit_is_refused(hybrid):
    card = {**hybrid.card(), "vit": {"name": "another", "sha256": 64 * "0", "frozen": True}}
    with pytest.raises(ValueError, match="trained beside the ViT another"):
        hybrid.check_card(card)


def test_a_trunk_of_other_widths_is_refused(hybrid):
    with pytest.raises(ValueError, match="wanted weights for HybridResUNet"):
        hybrid.start_from(ResUNet((8, 8, 16), 1))


def test_film_is_a_factor_and_a_summand_at_each_place():
    join, features, tokens = FiLM(3, 5, hidden=4), torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)
    assert torch.equal(join(features, tokens), features)
    with torch.no_grad():
        join.modulation.bias.copy_(torch.tensor([1.0, 0, -1, 5, 6, 7]))
    wanted = features * torch.tensor([2.0, 1, 0])[:, None, None] + torch.tensor([5.0, 6, 7])[:, None, None]
    torch.testing.assert_close(join(features, tokens), wanted)
    assert isinstance(join.hidden, nn.Conv2d)
