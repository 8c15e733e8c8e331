"""Directions that all pictures share, and the maps along them."""

import numpy as np
import pytest
import torch

from helpers.cam import SharedMap, along, layer_features, layers_of, shared_direction, standardised
from helpers.models import UNet
from lab.intervals import paired_bootstrap, resampled_means


def planted(direction, seed=0, count=6, strength=4.0):
    """Features (N, C, 8, 8): noise, and in a few cells of every picture a push along `direction`."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, len(direction), 8, 8, generator=generator)
    cells = torch.rand(count, 8, 8, generator=generator) < 0.1
    return features + strength * cells[:, None] * direction[None, :, None, None], cells


def test_a_planted_direction_is_found_with_its_sign():
    direction = torch.nn.functional.normalize(torch.randn(12, generator=torch.Generator().manual_seed(1)), dim=0)
    features, cells = planted(direction)
    found = shared_direction(features)
    assert found.norm() == pytest.approx(1, abs=1e-5)
    assert found @ direction > 0.9
    map = along(features, found)
    assert map[cells].mean() > map[~cells].mean() + 2


def test_features_and_their_negative_vote_for_opposite_directions():
    features, _ = planted(torch.eye(12)[3])
    torch.testing.assert_close(shared_direction(-features), -shared_direction(features))


def test_one_picture_s_vote_is_its_own_oriented_component():
    from helpers.cam_methods import principal_map
    features, _ = planted(torch.eye(12)[3], count=1)
    alone = standardised(along(features, shared_direction(features)))
    torch.testing.assert_close(alone, standardised(principal_map(features)), atol=1e-3, rtol=1e-3)


def test_a_picture_without_structure_outvotes_nobody():
    features, _ = planted(torch.eye(12)[3])
    with_blank = torch.cat([features, torch.zeros(2, 12, 8, 8)])
    torch.testing.assert_close(shared_direction(with_blank), shared_direction(features))


def test_maps_of_a_constant_picture_are_zero():
    model = UNet(4).eval()
    shared = SharedMap.fit(model, torch.rand(4, 3, 32, 32), ["encoder 1"])
    middle = shared(torch.full((1, 3, 64, 64), 0.5))[0, 8:-8, 8:-8]
    assert middle.std() < 0.05


def test_features_come_from_the_named_layers_in_one_pass_and_hooks_are_gone():
    model, pictures = UNet(4).eval(), torch.rand(2, 3, 16, 24)
    calls = []
    handle = model.register_forward_hook(lambda *call: calls.append(1))
    found = layer_features(model, pictures)
    handle.remove()
    assert list(found) == list(layers_of(model)) and len(calls) == 1
    torch.testing.assert_close(found["encoder 1"], model.encoder[0](pictures))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="layer must be one of"):
        layer_features(model, pictures, ["block 3"])


def test_resampled_means_are_drawn_alike_for_all_columns():
    rng = np.random.default_rng(0)
    a, source = rng.normal(size=60), np.repeat(["x", "y"], 30)
    found = resampled_means(np.stack([a, a + 1, 2 * a]), source=source, resamples=200)
    assert found.shape == (2, 3, 200)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 1)
    np.testing.assert_allclose(found[:, 2], 2 * found[:, 0])
    spread = np.quantile(found[:, 0].mean(0), [0.025, 0.975])
    interval = paired_bootstrap(a, np.zeros(60), source=source)
    np.testing.assert_allclose(spread, [interval.low, interval.high], atol=0.08)
    assert np.isnan(resampled_means(np.ones((1, 4)), photo=[1, 1, 2, 2], resamples=3)).all()
    with pytest.raises(ValueError, match="finite"):
        resampled_means([[1.0, np.nan]])
