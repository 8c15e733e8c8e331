"""What a network costs, against sums by hand."""

import time

import torch

from helpers.models import UNet
from lab.cost import cost_rows, median_seconds, milliseconds, multiply_adds, peak_memory, weights


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


def test_seconds_are_the_processor_s_and_a_slow_call_is_made_twice():
    calls = []

    def wait():
        calls.append(time.sleep(0.05))

    assert median_seconds(wait, least=0) < 0.02 and len(calls) == 2  # another program's turn is not ours

    def count():
        calls.append(sum(i * i for i in range(200_000)))

    began = time.process_time()
    count()
    once = time.process_time() - began
    assert 0.2 * once < median_seconds(count, least=0.05) < 5 * once and len(calls) > 4


def test_threads_are_put_back():
    before = torch.get_num_threads()
    seen = []
    median_seconds(lambda: seen.append(torch.get_num_threads()), least=0)
    assert set(seen) == {1} and torch.get_num_threads() == before


def test_peak_memory_is_what_is_held_at_a_time():
    def work():
        for _ in range(3):  # one at a time, not all three
            torch.ones(1000, 1000).add_(1)

    assert 4e6 <= peak_memory(work) < 5e6


def test_a_row_per_model():
    rows = cost_rows({"unet": UNet(4)}, size=32)
    assert rows[0]["method"] == "unet" and rows[0]["vit share"] == 0.0
    assert rows[0]["weights"] == rows[0]["trained"] == weights(UNet(4)) / 1e6
