"""What a network costs, against sums by hand."""

import torch

from helpers.models import UNet
from lab.cost import cost_rows, milliseconds, multiply_adds, weights


def test_multiply_adds_grow_with_the_area_and_equal_the_sum_by_hand():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 1))
    assert multiply_adds(layer, 32) == 32 * 32 * (3 * 8 * 9 + 8 * 4)
    assert multiply_adds(UNet(4), 64) == 4 * multiply_adds(UNet(4), 32)


def test_frozen_weights_are_weights_but_not_trained():
    model = UNet(4)
    model.encoder.requires_grad_(False)
    assert 0 < weights(model, trained=True) < weights(model) == sum(w.numel() for w in model.parameters())


def test_times_are_taken_of_every_model():
    times = milliseconds({"small": UNet(2), "large": UNet(24)}, size=64, repeats=3)
    assert 0 < times["small"] < times["large"]


def test_a_row_per_model():
    rows = cost_rows({"unet": UNet(4)}, size=32)
    assert rows[0]["method"] == "unet" and rows[0]["vit share"] == 0.0
    assert rows[0]["weights"] == rows[0]["trained"] == weights(UNet(4)) / 1e6
