"""The walk between weights and the divider between outputs: pictures, numbers, refusals."""

import cv2
import numpy as np
import pytest
import torch

from app.sliders import Divider, WeightWalk, interpolated
from helpers.data import open_dataset
from helpers.models import ConvDAE, UNet


@pytest.fixture(scope="module")
def samples():
    dataset = open_dataset("test", photos=False, length=2)
    return [dataset[i] for i in range(2)]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    models = UNet(4).eval(), UNet(4).eval()
    for model in models:
        torch.nn.init.normal_(model.head.weight, std=0.3)
    return models


def shown(widget):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(widget.image.value, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_interpolation_ends_at_both_networks_and_halves_in_between(networks):
    start, end = networks
    for share, wanted in ((0, start), (1, end)):
        found = interpolated(start, end, share).state_dict()
        assert all(torch.allclose(found[key], value) for key, value in wanted.state_dict().items())
    half = interpolated(start, end, 0.5).head.weight
    torch.testing.assert_close(half, (start.head.weight + end.head.weight) / 2)


@pytest.mark.parametrize("arguments, message", [
    ((UNet(4), ConvDAE(4), 0.5), "one architecture"), ((UNet(4), UNet(8), 0.5), "one architecture"),
    ((UNet(4), UNet(4), 1.5), r"\[0, 1\], got 1.5")])
def test_interpolation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        interpolated(*arguments)


def test_the_walk_shows_the_network_s_own_output(samples, networks):
    walk = WeightWalk(*networks, samples)
    assert walk.message.value == "" and "PSNR" in walk.line.value
    first = shown(walk)
    with torch.inference_mode():
        output = networks[1](samples[0].noisy[None])[0]
    walk.slider.value = 1.0
    wanted = np.uint8(output.clamp(0, 1).permute(1, 2, 0).numpy() * 255 + 0.5)
    assert np.abs(shown(walk)[:224, 230:454].astype(int) - wanted).max() <= 1
    assert not np.array_equal(first, shown(walk))
    line = walk.line.value
    walk.picture.value = 1
    assert walk.line.value != line


def test_the_divider_shows_left_and_right(samples, networks):
    divider = Divider(dict(zip("ab", networks, strict=True)), samples)
    outputs = []
    for place in (1.0, 0.0):
        divider.slider.value = place
        outputs.append(shown(divider)[:, 230:454])
    divider.slider.value = 0.5
    both = shown(divider)[:, 230:454]
    assert np.array_equal(both[:, :110], outputs[0][:, :110]) and np.array_equal(both[:, 114:], outputs[1][:, 114:])
    line = divider.line.value
    divider.sigma.value = 15
    assert divider.line.value != line and divider.message.value == ""


def test_a_network_that_fails_is_named_and_the_picture_stays(samples, networks):
    class Broken(UNet):
        def forward(self, noisy):
            raise RuntimeError("no memory <left>")
    divider = Divider({"a": networks[0], "b": Broken(4)}, samples, right="a")
    before = divider.image.value
    divider.right.value = "b"
    assert "no memory &lt;left&gt;" in divider.message.value and divider.image.value == before
    divider.right.value = "a"
    assert divider.message.value == ""


def test_the_twin_on_paper(samples, networks):
    figure = WeightWalk(*networks, samples).grid((0, 1))
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == ["0", "1"]


def test_refusals(samples, networks):
    with pytest.raises(ValueError, match="at least two networks, got a"):
        Divider({"a": networks[0]}, samples)
    with pytest.raises(ValueError, match="at least one sample"):
        WeightWalk(*networks, [])
