"""The loss terms against slow loops written from their definitions, and at the edges where losses break."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn.functional import interpolate, mse_loss

from helpers import losses
from helpers.cam import activation_map, threshold_cam
from helpers.losses import (
    MATCHED,
    BatchAttention,
    CamWeightedLoss,
    CombinedLoss,
    FrequencyLoss,
    RegionalSharpnessLoss,
    WaveletLoss,
    window_scores,
)
from helpers.models import UNet
from lab import controls, match_losses
from lab.controls import MovedCamLoss
from lab.match_losses import CharbonnierLoss, MSSSIMLoss, matched_constant

MATCHES = ("sorted", "aligned", "pixel")


def stripes(clean):
    """An attention for tests: a map (B, 4, 4) that differs between pictures and rises from left to right."""
    ramp = torch.linspace(0, 1, 4).expand(4, 4)
    return torch.stack([ramp.roll(index, 1) for index in range(len(clean))])


def make_terms(scale="matched"):
    return {
        **{match: RegionalSharpnessLoss(window=8, match=match, scale=scale) for match in MATCHES},
        "frequency": FrequencyLoss(scale=scale),
        "frequency_hf": FrequencyLoss(2.0, scale=scale),
        "frequency_phase": FrequencyLoss(phase=True, scale=scale),
        "wavelet": WaveletLoss(scale=scale),
        "cam": CamWeightedLoss(attention=stripes, scale=scale),
        "cam_random": MovedCamLoss(attention=stripes, control="random", scale=scale),
        "cam_contrast": MovedCamLoss(attention=stripes, control="contrast", scale=scale),
        "charbonnier": CharbonnierLoss(scale=scale),
    }


TERMS = sorted(make_terms())


def textures(batch=2, height=24, width=27, seed=0, sigma=0.7):
    """Smooth random pictures (B, 3, H, W) in [0, 1], something like a surface."""
    noise = np.random.default_rng(seed).standard_normal((batch, 3, height, width))
    smooth = gaussian_filter(noise, (0, 0, sigma, sigma), mode="wrap")
    return torch.from_numpy(np.clip(0.5 + 0.2 * smooth / smooth.std(), 0, 1)).float()


def blurred(pictures, sigma=1.0):
    return torch.from_numpy(gaussian_filter(pictures.numpy(), (0, 0, sigma, sigma), mode="wrap"))


def value_and_gradient(term, denoised, clean, **context):
    leaf = denoised.clone().requires_grad_()
    value = term(leaf, clean, **context)
    value.backward()
    return value.detach(), leaf.grad


def slow_scores(picture, window, step):
    """Sums of the absolute differences in the windows of (3, H, W), channel mean, and the number of pairs in one."""
    height, width = picture.shape[1:]
    tall, wide = min(window, height), min(window, width)
    scores = []
    for top in range(0, height - tall + 1, step):
        for left in range(0, width - wide + 1, step):
            total, pairs = 0.0, 0
            for y in range(top, top + tall):
                for x in range(left, left + wide):
                    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                        if y + down < top + tall and left <= x + right < left + wide:
                            total += float(np.abs(picture[:, y, x] - picture[:, y + down, x + right]).mean())
                            pairs += 1
            scores.append(total)
    return scores, pairs


@pytest.mark.parametrize("match", ["sorted", "aligned"])
@pytest.mark.parametrize(("size", "window", "step"),
                         [((13, 17), 6, 3), ((11, 9), 5, 2), ((12, 14), 5, 3), ((4, 15), 6, 3), ((3, 3), 8, 4)])
def test_regional_equals_a_slow_loop(match, size, window, step):
    denoised, clean = textures(2, *size, seed=1).double(), textures(2, *size, seed=2).double()
    wanted = []
    for output, target in zip(denoised.numpy(), clean.numpy(), strict=True):
        (got, pairs), (aim, _) = slow_scores(output, window, step), slow_scores(target, window, step)
        if match == "sorted":
            got, aim = sorted(got, reverse=True), sorted(aim, reverse=True)
        wanted.append(np.mean([abs(a - b) for a, b in zip(got, aim, strict=True)]))
    given_step = None if step == window // 2 else step
    mean = RegionalSharpnessLoss(window, given_step, match, scale=1.0)(denoised, clean)
    assert float(mean) == pytest.approx(np.mean(wanted) / pairs, rel=1e-9)
    original = RegionalSharpnessLoss(window, step, match, scale="original")(denoised, clean)
    assert float(original) == pytest.approx(np.mean(wanted) / 1000, rel=1e-9)


@pytest.mark.parametrize("size", [(13, 17), (1, 6), (8, 8)])
def test_pixel_match_equals_a_slow_loop(size):
    denoised, clean = textures(2, *size, seed=1).double(), textures(2, *size, seed=2).double()
    d, x = denoised.numpy(), clean.numpy()
    errors = []
    for row in range(size[0]):
        for column in range(size[1]):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                y, z = row + down, column + right
                if y < size[0] and 0 <= z < size[1]:
                    output, target = d[..., y, z] - d[..., row, column], x[..., y, z] - x[..., row, column]
                    errors.append(np.abs(output - target).mean())
    assert float(RegionalSharpnessLoss(match="pixel", scale=1.0)(denoised, clean)) == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11), (1, 5), (1, 1)])
@pytest.mark.parametrize("weight", [0.0, 2.0])
@pytest.mark.parametrize("phase", [False, True])
def test_frequency_equals_the_full_spectrum(size, weight, phase):
    denoised, clean = textures(2, *size, seed=1).double(), textures(2, *size, seed=2).double()
    d, x = np.fft.fft2(denoised.numpy()), np.fft.fft2(clean.numpy())
    rows, columns = np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1])
    weights = np.array([[math.hypot(row, column) for column in columns] for row in rows])
    weights = 1 + weight * weights / max(weights.max(), 1e-12)
    wanted = float((weights * (np.abs(d - x) if phase else np.abs(np.abs(d) - np.abs(x)))).mean())
    assert float(FrequencyLoss(weight, phase, "original")(denoised, clean)) == pytest.approx(wanted / 1000, rel=1e-6)
    ortho = wanted / math.sqrt(size[0] * size[1])
    assert float(FrequencyLoss(weight, phase, 1.0)(denoised, clean)) == pytest.approx(ortho, rel=1e-6)


def test_frequency_weights_follow_the_size():
    loss = FrequencyLoss(2.0)
    for size in ((8, 8), (16, 12), (9, 15), (8, 8)):
        denoised, clean = textures(1, *size, seed=1), textures(1, *size, seed=2)
        assert loss.weights(*size).shape == (size[0], size[1] // 2 + 1)
        assert float(loss.weights(*size).max()) == pytest.approx(3.0)
        torch.testing.assert_close(loss(denoised, clean), FrequencyLoss(2.0)(denoised, clean))
    square = FrequencyLoss(2.0).weights(16, 16)
    assert square[0, 0] == 1 and square[8, 8] == 3 and square[0, 8] == pytest.approx(1 + 2 * math.sqrt(0.5))


def slow_dwt2(picture, low, high):
    """One level of the transform of (H, W) with half-sample symmetric borders: approximation and the three bands."""
    def along(rows, taps):
        n, length = rows.shape[1], len(taps)
        count = (n + length - 1) // 2
        out = np.zeros((len(rows), count))
        for k in range(count):
            for tap in range(length):
                at = (2 * k + 1 - tap) % (2 * n)
                out[:, k] += taps[tap] * rows[:, at if at < n else 2 * n - 1 - at]
        return out
    a, d = along(picture, low), along(picture, high)
    return along(a.T, low).T, (along(a.T, high).T, along(d.T, low).T, along(d.T, high).T)


@pytest.mark.parametrize("size", [(24, 24), (31, 26)])
@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 0.0)])
def test_wavelet_equals_a_slow_transform(size, weights):
    root = math.sqrt(3)
    low = np.array([1 - root, 3 - root, 3 + root, 1 + root]) / (4 * math.sqrt(2))  # db2, Daubechies 1988
    high = np.array([-low[3], low[2], -low[1], low[0]])
    denoised, clean = textures(1, *size, seed=1).double(), textures(1, *size, seed=2).double()
    levels = 3 if min(size) >= 24 else 2
    used = weights or (1.0, 1.0, 1.0)
    wanted = 0.0
    for error in (denoised - clean)[0].numpy():
        for level in range(levels):
            error, bands = slow_dwt2(error, low, high)
            wanted += used[level] * np.abs(np.stack(bands)).mean() / sum(used) / 3
    assert float(WaveletLoss(level_weights=weights, scale=1.0)(denoised, clean)) == pytest.approx(wanted, rel=1e-6)


def test_cam_weighting_equals_its_definition():
    denoised, clean = textures(2, 16, 16, seed=1).double(), textures(2, 16, 16, seed=2).double()
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    wanted = []
    for output, target, cam in zip(denoised.numpy(), clean.numpy(), maps.numpy(), strict=True):
        kept = (cam >= 0.4) & (cam <= 0.9)
        stretched = np.where(kept, (cam - cam[kept].min()) / (cam[kept].max() - cam[kept].min()), 0)
        weights = 1 + 4 * stretched
        wanted.append((((output - target) ** 2).mean(0) * weights / weights.mean()).mean())
    loss = CamWeightedLoss(attention=lambda _: maps, strength=4, scale=1.0)
    assert float(loss(denoised, clean)) == pytest.approx(np.mean(wanted), rel=1e-9)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("scale", ["matched", "original", 2.5])
def test_zero_at_identity_and_positive_elsewhere(name, scale):
    clean = textures()
    term = make_terms(scale)[name]
    value, gradient = value_and_gradient(term, clean, clean)
    assert abs(float(value)) < 1e-7
    assert torch.isfinite(gradient).all()
    assert float(term(blurred(clean), clean)) > 1e-5


@pytest.mark.parametrize("name", TERMS)
def test_a_step_down_the_gradient_lowers_the_loss(name):
    clean = textures()
    denoised, term = blurred(clean), make_terms()[name]
    value, gradient = value_and_gradient(term, denoised, clean)
    assert gradient.norm() > 0
    step = 0.002 * gradient / gradient.abs().max()
    assert float(term(denoised - step, clean)) < float(value)
    if name in MATCHES or name.startswith("frequency") or name == "wavelet":  # and what they ask for is sharpness
        assert window_scores(denoised - step, 8).mean() > window_scores(denoised, 8).mean()


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (7, 30)])
def test_tiny_pictures_and_constant_pictures_are_defined(name, size):
    clean = textures(2, *size)
    black, grey = clean * 0, clean * 0 + 0.5
    for denoised, target in ((clean.flip(0), clean), (grey, clean), (clean, black), (black, black), (grey, black)):
        value, gradient = value_and_gradient(make_terms()[name], denoised, target)
        assert torch.isfinite(value) and value >= 0
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_gives_a_nan_value_and_zero_gradients(name, bad):
    clean = textures()
    broken = clean.clone()
    broken[1, 2, 3, 4] = bad
    for denoised, target in ((broken, clean), (clean, broken)):
        value, gradient = value_and_gradient(make_terms()[name], denoised, target)
        assert torch.isnan(value)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", TERMS)
def test_float32_inside_autocast(name):
    clean, term = textures(), make_terms()[name]
    denoised = blurred(clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = term(denoised, clean)
        half = term(denoised.bfloat16(), clean)
    assert inside.dtype == half.dtype == torch.float32
    torch.testing.assert_close(inside, term(denoised, clean))
    torch.testing.assert_close(half, term(denoised.bfloat16().float(), clean))


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3), channels=st.sampled_from([1, 3]), height=st.integers(1, 40), width=st.integers(1, 40),
       name=st.sampled_from(TERMS), scale=st.sampled_from(["matched", "original"]), seed=st.integers(0, 99))
def test_any_batch_and_size(batch, channels, height, width, name, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    denoised, clean = torch.rand(2, batch, channels, height, width, generator=generator)
    value, gradient = value_and_gradient(make_terms(scale)[name], denoised, clean)
    assert value.ndim == 0 and torch.isfinite(value) and value >= 0
    assert gradient.shape == denoised.shape and torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_is_the_mean_of_its_pictures(name):
    clean, term = textures(3), make_terms()[name]
    denoised = blurred(clean)
    if name.startswith("cam"):
        term.attention = lambda pictures: pictures.mean(1)
    alone = torch.stack([term(denoised[i:i + 1], clean[i:i + 1]) for i in range(3)])
    torch.testing.assert_close(term(denoised, clean), alone.mean())


def test_a_shifted_picture_costs_sorted_nothing_and_pixel_much():
    clean = textures(1, 64, 64)
    shifted = clean.roll((4, -4), (-2, -1))  # the texture has no seam, so all that changes is the place
    value = {match: float(RegionalSharpnessLoss(16, match=match, scale=1.0)(shifted, clean)) for match in MATCHES}
    sharpness = float(window_scores(clean, 16).mean())
    assert value["sorted"] < 0.05 * sharpness
    assert value["pixel"] > 0.5 * sharpness
    assert float(FrequencyLoss(scale=1.0)(shifted, clean)) < 1e-5
    assert float(FrequencyLoss(phase=True, scale=1.0)(shifted, clean)) > 0.05


def test_sorted_and_aligned_are_one_number_while_all_windows_are_blurrier():
    clean = textures(2, 40, 40)
    denoised = blurred(clean)
    (a, ga), (b, gb) = (value_and_gradient(RegionalSharpnessLoss(16, match=m, scale=1.0), denoised, clean)
                        for m in ("sorted", "aligned"))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(ga, gb)


def test_the_empty_map_is_plain_mse():
    clean = textures()
    denoised = blurred(clean)
    for empty in (torch.zeros(2, 3, 3), torch.full((2, 3, 3), 0.2), torch.ones(2, 3, 3)):  # none, below, above the band
        for make in (CamWeightedLoss, *(partial(MovedCamLoss, control=control) for control in controls.CONTROLS)):
            loss = make(attention=lambda _, empty=empty: empty, scale=1.0)
            value, gradient = value_and_gradient(loss, denoised, clean)
            torch.testing.assert_close(value, mse_loss(denoised, clean))
            assert torch.isfinite(gradient).all()
    constant = CamWeightedLoss(attention=lambda _: torch.full((2, 3, 3), 0.5))
    assert torch.equal(constant.maps(clean), torch.ones(2, 24, 27))  # the whole map is in the band: all counts alike


def test_a_map_that_is_not_finite_gives_nan_without_nan_gradients():
    clean = textures()
    loss = CamWeightedLoss(attention=lambda _: torch.full((2, 3, 3), math.nan))
    value, gradient = value_and_gradient(loss, blurred(clean), clean)
    assert torch.isnan(value) and torch.isfinite(gradient).all()


def test_controls_keep_the_histogram_and_move_the_place():
    clean = textures(3, 48, 40)
    made = {control: MovedCamLoss(attention=stripes, control=control).maps(clean) for control in controls.CONTROLS}
    made[None] = CamWeightedLoss(attention=stripes).maps(clean)
    assert torch.equal(made["shuffled"], made[None].roll(1, 0))
    for control in ("random", "contrast"):
        torch.testing.assert_close(made[control].flatten(1).sort().values, made[None].flatten(1).sort().values)
        assert not torch.allclose(made[control], made[None])
    contrast = controls.local_contrast(clean)
    order = contrast[0].flatten().argsort()
    ranked = MovedCamLoss(attention=lambda _: contrast, control="contrast", lower=0, upper=1).maps(clean)
    assert (ranked[0].flatten()[order].diff() >= 0).all()
    loss = MovedCamLoss(attention=stripes, control="random", seed=3)
    assert torch.equal(loss.maps(clean), loss.maps(clean))  # a picture keeps its map, also in a resumed run
    other = MovedCamLoss(attention=stripes, control="random", seed=4)
    assert not torch.equal(loss.maps(clean), other.maps(clean))
    smooth = controls.smooth_noise(clean, 0)
    assert smooth.diff(dim=-1).abs().mean() < 0.2 * smooth.std()
    assert not torch.equal(smooth[0], smooth[1])


def test_attention_gets_the_clean_picture_frozen_and_without_gradients():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = nn.Conv2d(3, 1, 3, padding=1), []

        def forward(self, clean):
            self.seen.append((clean, self.training, torch.is_grad_enabled()))
            return torch.sigmoid(self.conv(clean))[:, 0]

    attention, clean = Attention(), textures()
    loss = CamWeightedLoss(attention=attention, lower=0.0, upper=1.0).train()
    value_and_gradient(loss, blurred(clean), clean)
    (seen, training, gradients), = attention.seen
    assert torch.equal(seen, clean) and not training and not gradients
    assert all(parameter.grad is None for parameter in attention.parameters())


def test_the_vit_is_handed_to_the_cam_module(monkeypatch):
    asked = []
    monkeypatch.setattr(losses, "BatchAttention", lambda *words: asked.append(words) or stripes)
    clean = textures()
    loss = CamWeightedLoss("a vit", 7, "KPCA_CAM")
    assert asked == [("a vit", 7, "KPCA_CAM")]
    torch.testing.assert_close(loss(blurred(clean), clean), CamWeightedLoss(attention=stripes)(blurred(clean), clean))


def test_the_map_is_the_one_of_activation_map_thresholded():
    torch.manual_seed(0)
    model, clean = UNet(4), textures(2, 32, 40)
    maps = CamWeightedLoss(model, "bottleneck", lower=0.3, upper=0.8).maps(clean)
    for index in range(2):
        raw = activation_map(model, clean[index], "bottleneck").raw
        grid = BatchAttention(model, "bottleneck")(clean)[index]
        assert grid.shape == raw.shape
        full = interpolate(grid[None, None], (32, 40), mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(maps[index].numpy(), threshold_cam(full.clamp(0, 1).numpy(), 0.3, 0.8), atol=1e-5)
    assert 0 < (maps > 0).float().mean() < 1


def test_combined_is_the_weighted_sum_and_logs_its_parts():
    clean = textures()
    denoised = blurred(clean)
    regional, wavelet = RegionalSharpnessLoss(8), WaveletLoss()
    loss = CombinedLoss({"regional": (regional, 0.2), "wavelet": (wavelet, 0.3)})
    assert loss.parts == {}
    value, gradient = value_and_gradient(loss, denoised, clean)
    parts = {"mse": mse_loss(denoised, clean), "regional": regional(denoised, clean),
             "wavelet": wavelet(denoised, clean)}
    torch.testing.assert_close(loss.parts, parts)
    torch.testing.assert_close(value, 0.5 * parts["mse"] + 0.2 * parts["regional"] + 0.3 * parts["wavelet"])
    assert gradient.norm() > 0 and not any(part.requires_grad for part in loss.parts.values())
    torch.testing.assert_close(CombinedLoss({})(denoised, clean), mse_loss(denoised, clean))
    assert torch.isnan(value_and_gradient(loss, denoised * math.nan, clean)[0])
    assert torch.isfinite(value_and_gradient(loss, denoised * math.nan, clean)[1]).all()


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_matched_constant_makes_the_gradients_equally_long(scale):
    clean = textures()
    denoised = blurred(clean)
    constant = matched_constant(WaveletLoss(scale=scale), denoised, clean)
    _, wanted = value_and_gradient(mse_loss, denoised, clean)
    _, got = value_and_gradient(WaveletLoss(scale=scale * constant), denoised, clean)
    assert float(got.norm()) == pytest.approx(float(wanted.norm()), rel=1e-4)
    with pytest.raises(ValueError, match="not zero"):
        matched_constant(WaveletLoss(), clean, clean)


def test_every_constant_can_be_measured_and_has_the_size_that_it_has():
    """From two small blurred images, the shipped ones from a checkpoint's outputs: the order of size is theirs."""
    terms, clean = match_losses.make_terms(), textures(2, 48, 48)
    assert set(terms) == set(MATCHED) and all(term.scale == 1.0 for term in terms.values())
    for key, term in terms.items():
        assert 0.1 < matched_constant(term, blurred(clean), clean) / MATCHED[key] < 10, key


@pytest.mark.parametrize("name", TERMS)
def test_the_scales_differ_by_the_constant(name):
    clean = textures()
    denoised, term = blurred(clean), make_terms()[name]
    assert 0 < MATCHED[term.key] < 10
    plain = make_terms(1.0)[name](denoised, clean)
    torch.testing.assert_close(term(denoised, clean), MATCHED[term.key] * plain)


def test_charbonnier_and_ms_ssim():
    clean = textures(1, 176, 180)
    denoised = blurred(clean)
    wanted = np.mean([math.sqrt(error**2 + 1e-6) - 1e-3 for error in (denoised - clean)[0, 0].flatten().tolist()])
    assert float(CharbonnierLoss(scale=1.0)(denoised[:, :1], clean[:, :1])) == pytest.approx(wanted, rel=1e-3)
    for pictures in (clean, clean[..., :40, :40], clean[..., :11, :11]):
        value, gradient = value_and_gradient(MSSSIMLoss(scale=1.0), blurred(pictures), pictures)
        assert 0 < value < 1 and torch.isfinite(gradient).all()
        assert abs(float(MSSSIMLoss()(pictures, pictures))) < 1e-5
    assert torch.isfinite(value_and_gradient(MSSSIMLoss(), clean * 0, clean * 0 + 1)[1]).all()
    with pytest.raises(ValueError, match="11 x 11"):
        MSSSIMLoss()(clean[..., :10, :], clean[..., :10, :])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: RegionalSharpnessLoss(match="best"), "match must be"),
    (lambda: RegionalSharpnessLoss(window=1), "window"),
    (lambda: RegionalSharpnessLoss(step=0), "step"),
    (lambda: FrequencyLoss(-1.0), "high_freq_weight"),
    (lambda: FrequencyLoss(scale="other"), "scale must be"),
    (lambda: FrequencyLoss(scale=True), "scale must be"),
    (lambda: WaveletLoss(scale=-1.0), "scale must be"),
    (lambda: WaveletLoss(levels=2, level_weights=[1]), "one weight each"),
    (lambda: CamWeightedLoss(), "either vit"),
    (lambda: CamWeightedLoss(attention=stripes, lower=0.9, upper=0.4), "lower <= upper"),
    (lambda: MovedCamLoss(attention=stripes, control="none"), "control"),
    (lambda: MovedCamLoss(attention=stripes, control="shuffled")(textures(1), textures(1)), "at least 2"),
    (lambda: CamWeightedLoss(attention=lambda clean: clean)(textures(), textures()), "maps"),
    (lambda: CombinedLoss({"mse": (WaveletLoss(), 0.1)}), "names"),
    (lambda: CombinedLoss({"a": (WaveletLoss(), 0.7), "b": (FrequencyLoss(), 0.7)}), "at most 1"),
    (lambda: CombinedLoss({"a": (WaveletLoss(), -0.1)}), "weights"),
    (lambda: WaveletLoss()(textures(), textures()[:1]), "one shape"),
    (lambda: WaveletLoss()(textures()[0], textures()[0]), "one shape"),
])  # fmt: skip
def test_errors_say_what_was_wanted(make, words):
    with pytest.raises(ValueError, match=words):
        make()
