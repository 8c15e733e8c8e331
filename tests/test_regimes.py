"""The experiment of notebook 02: what an arm is told, what replaces it, the noise, and the interval over trunks."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.models import HybridResUNet, ResUNet
from helpers.vit import open_vit
from lab.regimes import EncoderResUNet, brightness, gain, percent_of_trunk, run_arm, unclipped

NOISY, CLEAN = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def trained(kind):
    """A network of the kind with an ordinary value in every weight that is not the ViT's."""
    model = kind((8, 12), 1, open_vit()).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if not name.startswith("vit."):
                weight.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def hybrid():
    return trained(HybridResUNet)


@torch.no_grad()
def test_an_arm_is_told_its_own_tokens_unless_they_are_replaced(hybrid):
    own, mean, swapped = (run_arm(hybrid, "two_pass", NOISY, CLEAN, swap) for swap in ("none", "mean", "swapped"))
    torch.testing.assert_close(own, hybrid(NOISY))
    torch.testing.assert_close(run_arm(hybrid, "two_pass", NOISY, CLEAN), own)
    tokens = hybrid.token_grid(ResUNet.forward(hybrid, NOISY).clamp(0, 1))
    torch.testing.assert_close(swapped, hybrid(NOISY, tokens.flip(0)))
    torch.testing.assert_close(mean, hybrid(NOISY, tokens.mean((2, 3), keepdim=True).expand_as(tokens)))
    assert min((own - other).abs().max() for other in (mean, swapped)) > 1e-4


@torch.no_grad()
def test_each_arm_looks_at_what_it_says(hybrid):
    torch.testing.assert_close(run_arm(hybrid, "oracle", NOISY, CLEAN), hybrid(NOISY, hybrid.token_grid(CLEAN)))
    torch.testing.assert_close(run_arm(hybrid, "noisy_teacher", NOISY, CLEAN), hybrid(NOISY, hybrid.token_grid(NOISY)))
    blind = run_arm(hybrid, "twice", NOISY, CLEAN)
    torch.testing.assert_close(blind, hybrid(NOISY, torch.zeros(2, 384, 4, 4)))
    for arm in ("two_pass", "random", "noisy_student", "brightness", "twice"):  # the oracle alone sees the clean image
        torch.testing.assert_close(run_arm(hybrid, arm, NOISY, CLEAN), run_arm(hybrid, arm, NOISY, 1 - CLEAN))


@torch.no_grad()
def test_the_encoder_has_the_grid_of_the_vit():
    assert trained(EncoderResUNet).token_grid(torch.rand(1, 3, 64, 96)).shape == (1, 384, 4, 6)
    grey = brightness(torch.full((1, 3, 32, 32), 0.25), 384)
    assert grey.shape == (1, 384, 2, 2) and grey[:, :3].eq(0.25).all() and grey[:, 3:].abs().max() < 1e-3


def test_noise_is_not_clipped():
    noisy = unclipped(torch.full((3, 200, 200), 0.5), 150, np.random.default_rng(0))
    assert noisy.min() < -1 and noisy.max() > 2 and abs(float(noisy.std()) - 150 / 255) < 0.01


def test_a_gain_is_the_mean_over_trunks_with_their_interval():
    errors = {("trunk", 0, 0): 1.0, ("trunk", 1, 0): 2.0, ("two_pass", 0, 0): 0.98, ("two_pass", 0, 1): 0.96,
              ("two_pass", 1, 0): 1.98, ("two_pass", 1, 1): 1.98}
    items = pd.DataFrame([{"arm": arm, "trunk": trunk, "seed": seed, "regime": "noise", "sigma": 150, "hole": 0,
                           "set": "photos", "source": "a", "name": "a1", "swap": "none", "mse": mse}
                          for (arm, trunk, seed), mse in errors.items()])
    rows = percent_of_trunk(items)
    assert rows.query("arm == 'two_pass'")["percent"].round(6).tolist() == [-2, -4, -1, -1]
    found = gain(rows, "two_pass", "trunk")
    assert found["trunks"] == 2 and found["gain"] == pytest.approx((3 + 1) / 2)
    assert found["low"] == pytest.approx(2 - 12.706 * 1, abs=1e-2) and found["high"] > 2  # t of one degree of freedom
    # one image more without swapped tokens: what is compared must be paired
    swapped = items.query("arm == 'two_pass'").assign(swap="swapped", mse=1.0)
    more = pd.concat([items, items.assign(name="a2", mse=9 * items["mse"]), swapped])
    with pytest.raises(ValueError, match=r"two_pass and two_pass \(swapped\) must be .* same images, got \[2, 1\]"):
        gain(percent_of_trunk(more), "two_pass", "two_pass", "swapped")
    assert gain(percent_of_trunk(pd.concat([items, swapped])), "two_pass", "two_pass", "swapped")["trunks"] == 2
