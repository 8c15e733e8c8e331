"""The denoisers: shapes, the sizes they refuse, how they start, and that every weight is used."""

import inspect
import json
import re
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import models
from helpers.models import ConvDAE, Denoiser, DenseDAE, HybridResUNet, HybridViTUNet, UNet
from helpers.vit import open_vit
from lab.judges import CrackSegmenter

EVERY_SIZE = [ConvDAE(width=2), ConvDAE(width=2, predict="noise"), UNet(width=2), UNet(width=2, predict="image"),
              UNet(width=2, upsample="bilinear")]


def name_of(model):
    return f"{type(model).__name__}-{getattr(model, 'predict', '')}"


@pytest.mark.parametrize("model", EVERY_SIZE, ids=name_of)
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 3), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_pictures_keep_their_shape(model, batch, rows, columns):
    noisy = torch.rand(batch, 3, 8 * rows, 8 * columns)
    denoised = model(noisy)
    assert denoised.shape == noisy.shape and denoised.dtype == torch.float32


@pytest.mark.parametrize("model", EVERY_SIZE, ids=name_of)
def test_pictures_of_a_batch_do_not_touch_each_other(model):
    noisy = torch.rand(3, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(noisy)[1:2], model(noisy[1:2]))


@pytest.mark.parametrize("model", EVERY_SIZE, ids=name_of)
def test_size_that_is_no_multiple_of_8_gets_a_clear_error(model):
    with pytest.raises(ValueError, match="^height and width must be multiples of 8, got 250 x 256"):
        model(torch.zeros(1, 3, 250, 256))
    with pytest.raises(ValueError, match="got 256 x 250"):
        model(torch.zeros(1, 3, 256, 250))


ANY = UNet(width=2)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_only_multiples_of_8_pass(height, width):
    if height % 8 == 0 and width % 8 == 0 and height and width:
        ANY.check_size(torch.empty(1, 3, height, width))
    else:
        with pytest.raises(ValueError, match=f"got {height} x {width}"):
            ANY.check_size(torch.empty(1, 3, height, width))


@pytest.mark.parametrize("shape", [(3, 56, 56), (1, 1, 56, 56), (1, 56, 56, 3), (56, 56)], ids=str)
@pytest.mark.parametrize("model", [*EVERY_SIZE[:3], DenseDAE(2)], ids=name_of)
def test_other_shapes_than_batches_of_colour_pictures_are_refused(model, shape):
    with pytest.raises(ValueError, match=re.escape(f"(B, 3, H, W), got {shape}")):
        model(torch.zeros(shape))


@pytest.mark.parametrize("size", [(64, 64), (56, 64), (48, 56), (8, 8)], ids=str)
def test_dense_takes_56_alone(size):
    with pytest.raises(ValueError, match=f"must both be 56, got {size[0]} x {size[1]}"):
        DenseDAE(2)(torch.zeros(1, 3, *size))
    assert DenseDAE(2)(torch.zeros(2, 3, 56, 56)).shape == (2, 3, 56, 56)


@pytest.mark.parametrize("bottleneck", [-1, 0, 257])
def test_bottleneck_outside_its_bounds_is_refused(bottleneck):
    with pytest.raises(ValueError, match=f"bottleneck must be in 1..256, got {bottleneck}"):
        DenseDAE(bottleneck)


@pytest.mark.parametrize("bottleneck", [1, 256])
@pytest.mark.parametrize("skip", [False, True])
def test_whole_picture_goes_through_the_bottleneck(bottleneck, skip):
    model = DenseDAE(bottleneck, skip=skip)
    assert model.encoder(torch.rand(2, 3, 56, 56)).shape == (2, bottleneck)
    pixels = 3 * 56 * 56
    layers = pixels * bottleneck + bottleneck + bottleneck * pixels + pixels
    assert sum(p.numel() for p in model.parameters()) == layers + skip  # and the gate


@pytest.mark.parametrize("kind", [ConvDAE, UNet])
def test_only_pictures_and_noise_are_predicted(kind):
    with pytest.raises(ValueError, match="predict must be one of image, noise, got 'residual'"):
        kind(width=2, predict="residual")


def test_unknown_upsampling_and_no_stage_are_refused():
    with pytest.raises(ValueError, match="upsample must be one of transpose, bilinear, got 'nearest'"):
        UNet(width=2, upsample="nearest")
    with pytest.raises(ValueError, match="stages must be in 1..8, got 0"):
        UNet(width=2, stages=0)


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_unet_that_predicts_noise_starts_as_the_identity(upsample):
    noisy = torch.rand(2, 3, 16, 16)
    assert torch.equal(UNet(width=4, upsample=upsample)(noisy), noisy)
    assert not torch.allclose(UNet(width=4, predict="image", upsample=upsample)(noisy), noisy, atol=0.05)


def test_dense_skip_mixes_the_noisy_picture_in():
    noisy = torch.rand(2, 3, 56, 56)
    model = DenseDAE(8, skip=True)
    painted = model.decoder(model.encoder(noisy - 0.5)) + 0.5
    for gate in (0.0, 0.25, 1.0):
        model.gate.data.fill_(gate)
        torch.testing.assert_close(model(noisy), (1 - gate) * painted + gate * noisy)


def test_noise_is_taken_off_the_picture():
    torch.manual_seed(0)
    noise, image = (UNet(width=2, predict=predict) for predict in ("noise", "image"))
    image.load_state_dict(noise.state_dict())
    for model in (noise, image):
        torch.nn.init.ones_(model.head.weight)
    noisy = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(noise(noisy), noisy - image(noisy))


def convolution(channels, out_channels, side):
    return channels * out_channels * side * side + out_channels


def test_original_unet_has_the_design_s_widths():
    # widths 64, 128, 256, a bottleneck of 512: two 3 x 3 convolutions a stage, 2 x 2 transposed ones, 1 x 1 output
    down = [(3, 64), (64, 128), (128, 256), (256, 512)]
    wanted = sum(convolution(a, b, 3) + convolution(b, b, 3) for a, b in down)
    wanted += sum(convolution(b, a, 2) + convolution(2 * a, a, 3) + convolution(a, a, 3) for a, b in down[1:])
    wanted += convolution(64, 3, 1)
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(width=64).parameters()) == wanted == 7_697_475


def test_features_are_halved_three_times():
    model = UNet(width=2)
    skips, features = model.encode(torch.zeros(1, 3, 32, 64))
    assert [tuple(skip.shape[1:]) for skip in skips] == [(2, 32, 64), (4, 16, 32), (8, 8, 16)]
    assert features.shape == (1, 8, 4, 8)
    assert model.bottleneck(features).shape == (1, 16, 4, 8)
    assert model.decode(model.bottleneck(features), skips).shape == (1, 3, 32, 64)


def test_four_stages_need_multiples_of_16():
    model = UNet(width=2, stages=4)
    assert model(torch.zeros(1, 3, 16, 48)).shape == (1, 3, 16, 48)
    with pytest.raises(ValueError, match="multiples of 16, got 24 x 32"):
        model(torch.zeros(1, 3, 24, 32))


def test_segmenter_gives_one_logit_per_pixel():
    assert CrackSegmenter(width=2)(torch.rand(2, 3, 16, 24)).shape == (2, 1, 16, 24)
    with pytest.raises(ValueError, match="multiples of 8, got 20 x 24"):
        CrackSegmenter(width=2)(torch.rand(2, 3, 20, 24))


@pytest.mark.parametrize("make", [
    lambda: DenseDAE(16), lambda: DenseDAE(16, skip=True), lambda: ConvDAE(4), lambda: ConvDAE(4, predict="noise"),
    lambda: UNet(4), lambda: UNet(4, predict="image"), lambda: UNet(4, upsample="bilinear", stages=2),
    lambda: CrackSegmenter(4)])
def test_gradient_reaches_every_weight(make):
    torch.manual_seed(0)
    model = make()
    for head in (getattr(model, "head", None), model.decoder[0] if isinstance(model, DenseDAE) else None):
        if head is not None:
            torch.nn.init.normal_(head.weight)  # a head of zeros lets no gradient through before its first step
    model(torch.rand(4, 3, 56, 56)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_weights_of_zero_are_left_by_the_first_gradient():
    torch.manual_seed(0)
    model = UNet(4)
    zeros = [p for p in model.parameters() if not p.any()]
    assert zeros
    (model(torch.rand(4, 3, 56, 56)) - 0.5).square().mean().backward()
    assert all(p.grad.any() for p in zeros)


DENOISERS = [lambda: DenseDAE(4), lambda: DenseDAE(4, skip=True), lambda: ConvDAE(2), lambda: UNet(2)]


@pytest.mark.parametrize("make", DENOISERS)
def test_mixed_precision_gives_nearly_the_same(make):
    torch.manual_seed(0)
    model, noisy = make(), torch.rand(1, 3, 56, 56)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(noisy)
    torch.testing.assert_close(mixed.float(), model(noisy), rtol=0, atol=0.05)


def test_public_denoisers_have_examples():
    for name, kind in inspect.getmembers(models, inspect.isclass):
        if issubclass(kind, torch.nn.Module) and not name.startswith("_") and kind.__module__ == models.__name__:
            assert ">>>" in kind.__doc__


def test_the_arguments_of_the_constructor_are_remembered_by_every_class():
    assert UNet(4, stages=2).arguments == {"width": 4, "stages": 2} and UNet().arguments == {}
    assert CrackSegmenter(2).arguments == {"width": 2} and DenseDAE(skip=True).arguments == {"skip": True}
    hybrid = HybridViTUNet(4, None, join="attention", blocks=(1,))
    assert hybrid.arguments == {"width": 4, "vit": None, "join": "attention", "blocks": (1,)}
    assert deepcopy(hybrid).arguments == hybrid.arguments


@pytest.mark.parametrize("make", [
    lambda: DenseDAE(3, skip=True), lambda: ConvDAE(2, "noise"), lambda: CrackSegmenter(2),
    lambda: UNet(2, upsample="bilinear"), lambda: HybridViTUNet(2, open_vit(), blocks=[3]),
    lambda: HybridResUNet((4, 8), 1, open_vit())])
def test_a_card_makes_the_same_network_again(make):
    model = make()
    card = json.loads(json.dumps(model.card()))
    assert card["architecture"] == type(model).__name__ and "vit" not in card["arguments"]
    again = type(model).from_card(card)
    again.check_card(card)
    again.start_from(model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["nobody/no-vit", "/some/where", ""])
def test_a_card_that_names_a_vit_is_refused_and_nobody_is_asked_for_it(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(ValueError, match="a card's arguments must not name a ViT, got"):
        HybridViTUNet.from_card({"arguments": {"width": 4, "vit": name}})


@pytest.mark.parametrize("other", [lambda: UNet(8), lambda: UNet(4, stages=2), lambda: ConvDAE(4), lambda: DenseDAE(4),
                                   lambda: torch.nn.Identity(), lambda: CrackSegmenter(4)])
@pytest.mark.parametrize("make", [lambda: UNet(4), lambda: HybridViTUNet(4),
                                  lambda: HybridViTUNet(4, join="attention")])
def test_a_start_that_does_not_fit_is_refused(make, other):
    model = make()
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"wanted weights for {type(model).__name__}.*got a network with another "):
        model.start_from(other())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items()), "nothing was taken"


@pytest.mark.parametrize("call, words", [
    (lambda: UNet(-4), "width must be in 1..4096, got -4"), (lambda: UNet(0), "got 0"),
    (lambda: ConvDAE(1.5), "got 1.5"),
    (lambda: UNet(True), "got True"), (lambda: UNet("4"), "got '4'"), (lambda: ConvDAE(10**9), "got 1000000000"),
    (lambda: UNet(4, stages=40), "stages must be in 1..8, got 40"), (lambda: UNet(4, predict=None), "got None"),
    (lambda: HybridViTUNet(4, join=["concat"]), r"join must be one of concat, attention.*, got \['concat'\]")])
def test_arguments_that_cannot_be_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_every_network_of_the_module_is_a_denoiser():
    kinds = [kind for _, kind in inspect.getmembers(models, inspect.isclass) if kind.__module__ == models.__name__]
    assert {DenseDAE, ConvDAE, UNet, HybridViTUNet} <= set(kinds)
    assert Denoiser.kinds["CrackSegmenter"] is CrackSegmenter
    for kind in set(kinds) - {models.ResidualBlock}:
        assert issubclass(kind, Denoiser) and kind.multiple == 8 and (kind.size, kind.tile) in (
            (None, None), (56, None), (None, 224))
