"""Metrics of images: each against its definition written out slowly, known values, and what must not pass."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.data import brick

from helpers import metrics as M
from lab import intervals, measures

IMAGE_PAIR = (M.mse, M.psnr, M.ssim, M.aligned_sharpness, M.coherence, measures.orthogonal_residual,
                measures.colour_shift, measures.evaluate_image)


def random_image(seed, height=32, width=32, low=0.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, (height, width, 3)).astype(np.float32)


def texture(size=224):
    """A real photograph with values well inside [0, 1], so that adding something does not clip."""
    grey = brick()[:size, :size].astype(np.float32) / 255 * 0.5 + 0.2
    return np.repeat(grey[..., None], 3, axis=-1)


def slow_sharpness(x):
    height, width, channels = x.shape
    total, n = 0.0, 0
    for i in range(height):
        for j in range(width):
            for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if 0 <= i + di < height and 0 <= j + dj < width:
                    for c in range(channels):
                        total, n = total + abs(float(x[i + di, j + dj, c]) - float(x[i, j, c])), n + 1
    return total / n


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999), st.integers(2, 9), st.integers(2, 9))
def test_mse_and_sharpness_equal_slow_loops(seed, height, width):
    clean, output = random_image(seed, height, width), random_image(seed + 1, height, width, -0.3, 1.3)
    squares = [(min(max(float(d), 0), 1) - float(c)) ** 2 for d, c in zip(output.flat, clean.flat, strict=True)]
    assert M.mse(output, clean) == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert measures.sharpness(clean) == pytest.approx(slow_sharpness(clean), rel=1e-5)


def test_identity():
    x = random_image(0, 64, 64)
    assert M.mse(x, x) == 0 and M.psnr(x, x) == math.inf
    assert M.ssim(x, x) == pytest.approx(1)
    assert M.aligned_sharpness(x, x).ratio == 1 and M.coherence(x, x) == pytest.approx(1)
    assert measures.orthogonal_residual(x, x).total == pytest.approx(0, abs=1e-9)
    assert measures.colour_shift(x, x) == pytest.approx((0, 0, 0), abs=1e-6)
    index = measures.checkerboard_index(x, x)
    assert list(index) == [2, 4, 8, 16, 24, 32] and set(list(index.values())[:4]) == {0.0}


@pytest.mark.parametrize("offset, decibels", [(0.1, 20.0), (0.01, 40.0), (-0.1, 20.0)])
def test_psnr_of_a_constant_offset(offset, decibels):
    clean = np.full((16, 16, 3), 0.5, np.float32)
    assert M.psnr(clean + np.float32(offset), clean) == pytest.approx(decibels, abs=1e-3)


def test_outputs_are_clipped_first():
    clean = np.ones((16, 16, 3), np.float32)
    assert M.mse(clean + 5, clean) == 0
    assert measures.sharpness(clean + random_image(0, 16, 16)) == 0


def test_ssim_is_the_published_formula_on_a_constant_pair():
    a, b = np.full((16, 16, 3), 0.2, np.float32), np.full((16, 16, 3), 0.6, np.float32)
    assert M.ssim(b, a) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), rel=1e-4)


def test_ssim_equals_the_published_formula():
    a, b = random_image(0).astype(float), random_image(1).astype(float)

    def blur(x):
        return ndimage.gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)  # 11 x 11

    variances = blur(a * a) - blur(a) ** 2 + blur(b * b) - blur(b) ** 2
    covariance = blur(a * b) - blur(a) * blur(b)
    ratio = (2 * blur(a) * blur(b) + 1e-4) * (2 * covariance + 9e-4)
    ratio /= (blur(a) ** 2 + blur(b) ** 2 + 1e-4) * (variances + 9e-4)
    assert M.ssim(b, a) == pytest.approx(ratio[5:-5, 5:-5].mean(), abs=1e-5)


def test_torch_and_numpy_give_the_same():
    clean, output = random_image(0, 32, 40), random_image(1, 32, 40)
    mask = np.zeros((32, 40), bool)
    mask[5:9] = True
    as_torch = [torch.from_numpy(x).permute(2, 0, 1) for x in (output, clean)]
    of_torch = measures.evaluate_image(*as_torch, torch.from_numpy(mask))
    assert of_torch == measures.evaluate_image(output, clean, mask)


def test_high_pass_is_the_image_minus_its_blur():
    x = random_image(0)
    np.testing.assert_allclose(M.high_pass(x), x - ndimage.gaussian_filter(x, (1, 1, 0)), atol=1e-6)


def test_aligned_sharpness_tells_detail_from_noise():
    clean = texture()
    noise = np.random.default_rng(0).normal(0, 0.03, clean.shape).astype(np.float32)
    blurred = ndimage.gaussian_filter(clean, (1.5, 1.5, 0))
    assert M.aligned_sharpness(blurred, clean).ratio < 0.5
    assert M.aligned_sharpness(clean + noise, clean).ratio == pytest.approx(1, abs=0.02)
    assert measures.sharpness(clean + noise) > 1.3 * measures.sharpness(clean)
    assert M.aligned_sharpness(np.full_like(clean, 0.5), clean).ratio == pytest.approx(0, abs=1e-6)
    half = 0.5 * clean + 0.2  # half the contrast, exactly half the detail
    assert M.aligned_sharpness(half, clean).ratio == pytest.approx(0.5, abs=1e-4)


def test_aligned_sharpness_gives_the_parts_of_a_source_ratio():
    pairs = [(random_image(i), random_image(i + 10)) for i in range(3)]
    rows = [M.aligned_sharpness(d, x) for d, x in pairs]
    d, x = (np.concatenate([M.high_pass(p).ravel() for p in side]) for side in zip(*pairs, strict=True))
    ratio = intervals.ratio_of_means([row.numerator for row in rows], [row.denominator for row in rows])
    assert ratio == pytest.approx(float(d @ x) / float(x @ x), rel=1e-4)


def slow_coherence(denoised, clean):
    """The cosine of the angle between both high-passed images, value by value."""
    d, x = (p.astype(float) - ndimage.gaussian_filter(p.astype(float), (1, 1, 0)) for p in (denoised, clean))
    product = output = target = 0.0
    for a, b in zip(d.flat, x.flat, strict=True):
        product, output, target = product + a * b, output + a * a, target + b * b
    return product / math.sqrt(output * target)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999), st.integers(5, 12), st.integers(5, 12), st.floats(0, 1))
def test_coherence_equals_a_slow_loop(seed, height, width, share):
    clean = random_image(seed, height, width)
    output = np.float32(share) * clean + np.float32(1 - share) * random_image(seed + 1, height, width)
    assert M.coherence(output, clean) == pytest.approx(slow_coherence(output, clean), abs=1e-5)
    assert -1 <= M.coherence(1 - output, clean) <= 1 + 1e-12


def test_coherence_is_how_much_is_right_where_aligned_sharpness_is_a_gain():
    clean = texture()
    detail = M.high_pass(clean)
    for gain in (0.5, 1.5):  # any gain is seen by the one and not by the other
        output = clean + np.float32(gain - 1) * detail
        np.testing.assert_array_equal(output, output.clip(0, 1))
        assert M.coherence(clean * np.float32(gain) + np.float32(0.5 * (1 - gain)), clean) == pytest.approx(1, abs=1e-4)
        assert np.sign(M.aligned_sharpness(output, clean).ratio - 1) == np.sign(gain - 1)
    noise = np.random.default_rng(0).normal(0, 0.03, clean.shape).astype(np.float32)
    assert M.aligned_sharpness(clean + noise, clean).ratio == pytest.approx(1, abs=0.02)
    assert M.coherence(clean + noise, clean) < 0.95  # noise is detail that is wrong
    assert M.coherence(1 - clean, clean) == pytest.approx(-1, abs=1e-4)
    flat = np.full_like(clean, 0.5)
    assert math.isnan(M.coherence(flat, clean)) and math.isnan(M.coherence(clean, flat))


def test_gap_closed():
    assert measures.gap_closed(1.0, 0.4) == 1 and measures.gap_closed(0.4, 0.4) == 0
    assert measures.gap_closed(0.1, 0.4) < 0
    assert measures.gap_closed(1.3, 0.4) == pytest.approx(0.5)  # too sharp is as far away as too soft
    assert measures.gap_closed(0.9, 0.85) is not None
    assert measures.gap_closed(0.9, 0.86) is None
    assert measures.gap_closed(math.nan, 0.4) is None and measures.gap_closed(0.5, math.nan) is None


def test_orthogonal_residual_adds_up_and_is_orthogonal():
    clean, output = random_image(0, 40, 64), random_image(1, 40, 64)
    hp_d, hp_x = M.high_pass(output).astype(float), M.high_pass(clean).astype(float)
    residual = hp_d - (hp_d * hp_x).sum() / (hp_x**2).sum() * hp_x
    octaves = measures.orthogonal_residual(output, clean)
    assert octaves.residual.sum() == pytest.approx((residual**2).mean(), rel=1e-4)
    assert octaves.reference.sum() == pytest.approx((hp_x**2).mean(), rel=1e-4)
    assert octaves.total == pytest.approx((residual**2).sum() / (hp_x**2).sum(), rel=1e-4)
    assert octaves.ratio.shape == (5,)


@pytest.mark.parametrize("octave, period", [(0, 3), (1, 4), (1, 6), (2, 12), (3, 24)])
def test_orthogonal_residual_finds_the_octave(octave, period):
    clean = texture(192)
    ripple = 0.1 * np.cos(2 * np.pi * (np.arange(192) + 0.5) / period).astype(np.float32)
    energies = measures.orthogonal_residual(clean + ripple[None, :, None], clean).residual
    assert energies.argmax() == octave and energies[octave] > 0.95 * energies.sum()


def test_orthogonal_residual_of_a_constant_clean_image_has_no_ratio():
    octaves = measures.orthogonal_residual(random_image(0), np.full((32, 32, 3), 0.5, np.float32))
    assert np.isnan(octaves.total) or octaves.total > 1e6


@pytest.mark.parametrize("period", [2, 4, 8, 16, 24, 32])
@pytest.mark.parametrize("kind", ["checkerboard", "stripes", "modulated"])
def test_checkerboard_index_rises_at_its_own_period_only(period, kind):
    clean = texture()
    wave = 0.1 * np.cos(2 * np.pi * np.arange(224) / period)
    across = {"checkerboard": 10 * wave, "stripes": np.ones(224), "modulated": 10 * (clean[100, :, 0] - 0.4)}[kind]
    pattern = (wave[:, None] * across)[..., None].astype(np.float32)
    index = measures.checkerboard_index(clean + pattern, clean)
    assert index[period] > 0.5
    # a modulated pattern carries the image's own frequencies to the other axis, so there a little rises everywhere
    spill = 0.5 if kind == "modulated" else 0.1
    assert all(value < spill * index[period] for other, value in index.items() if other != period)


def slow_lattice(image, period):
    """The index of one square image whose side is a multiple of the period, bin by bin."""
    side, total = len(image), 0.0
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(side) / side)
    energy = np.zeros((side, side))
    for channel in np.moveaxis(image.astype(float), -1, 0):
        energy += np.abs(np.fft.fft2((channel - channel.mean()) * np.outer(hann, hann))) ** 2
    for axis in (energy, energy.T):
        line = [math.log(sum(axis[k, 1:])) for k in range(side)]
        k = side // period
        total += line[k] - sum(line[(k + step) % side] for step in (-3, -2, 2, 3)) / 4
    return total / 2


@pytest.mark.parametrize("period", [2, 4, 8])
def test_checkerboard_index_equals_its_definition(period):
    clean, output = texture(48), np.clip(texture(48) + 0.1 * random_image(0, 48, 48), 0, 1)
    wanted = slow_lattice(output, period) - slow_lattice(clean, period)
    assert measures.checkerboard_index(output, clean)[period] == pytest.approx(wanted, abs=1e-3)


def test_checkerboard_index_needs_room():
    index = measures.checkerboard_index(random_image(0, 64, 100), random_image(1, 64, 100))
    assert [p for p, value in index.items() if math.isnan(value)] == [24, 32]


def test_colour_shift():
    clean = texture(96)
    tinted = clean + np.float32([0.05, 0, 0])
    assert measures.colour_shift(tinted, clean).delta_e > 2
    noise = np.random.default_rng(0).normal(0, 0.05, clean.shape).astype(np.float32)
    assert measures.colour_shift(clean + noise, clean).delta_e < 0.5  # grain is not a shift of colour
    ramp = np.repeat(np.linspace(0, 1, 101, dtype=np.float32)[None, :, None], 3, axis=-1).repeat(20, axis=0)
    noisy = ramp + np.random.default_rng(0).normal(0, 0.2, ramp.shape).astype(np.float32)
    shift = measures.colour_shift(noisy, ramp)  # clipping lifts the dark and lowers the bright
    assert shift.dark_bias > 0.03 and shift.bright_bias < -0.03
    assert np.isnan(measures.colour_shift(np.full_like(clean, 0.5), np.full_like(clean, 0.5))[1:]).all()


def test_zone_mse_equals_a_slow_loop():
    clean, output = random_image(0, 20, 24), random_image(1, 20, 24)
    mask = np.random.default_rng(2).random((20, 24)) > 0.985
    inside, outside = [], []
    cracks = np.argwhere(mask)
    for i in range(20):
        for j in range(24):
            near = min((i - y) ** 2 + (j - x) ** 2 for y, x in cracks) <= 9
            (inside if near else outside).extend((output[i, j].astype(float) - clean[i, j]) ** 2)
    assert inside and outside
    assert measures.zone_mse(output, clean, mask) == pytest.approx((np.mean(inside), np.mean(outside)), rel=1e-5)


def test_zone_mse_without_a_crack_and_with_nothing_else():
    clean, output = random_image(0), random_image(1)
    none = measures.zone_mse(output, clean, np.zeros((32, 32), bool))
    assert math.isnan(none.inside) and none.outside == pytest.approx(M.mse(output, clean))
    everywhere = measures.zone_mse(output, clean, np.ones((32, 32), bool))
    assert math.isnan(everywhere.outside) and everywhere.inside == pytest.approx(M.mse(output, clean))


def test_evaluate_image_agrees_with_the_single_figures():
    clean, output = texture(128), random_image(1, 128, 128)
    mask = np.zeros((128, 128), bool)
    mask[60:63] = True
    row = measures.evaluate_image(output, clean, mask, full=True)
    assert all(type(value) is float for value in row.values())
    for metric in (M.mse, M.psnr, M.ssim):
        assert row[metric.__name__] == metric(output, clean)
    assert (row["mse_crack"], row["mse_rest"]) == measures.zone_mse(output, clean, mask)
    assert row["aligned_numerator"] / row["aligned_denominator"] == pytest.approx(row["aligned_sharpness"])
    assert row["checkerboard_2"] == measures.checkerboard_index(output, clean)[2]
    assert row["residual_32"] == measures.orthogonal_residual(output, clean).ratio[-1]
    assert row["delta_e"] == measures.colour_shift(output, clean).delta_e
    assert "mse_crack" not in measures.evaluate_image(output, clean)


@pytest.mark.parametrize("metric", IMAGE_PAIR)
def test_clear_errors(metric):
    clean = random_image(0)
    with pytest.raises(ValueError, match=r"one shape, got \(32, 30, 3\) and \(32, 32, 3\)"):
        metric(random_image(0, 32, 30), clean)
    broken = clean.copy()
    broken[3, 4, 1] = np.nan
    with pytest.raises(ValueError, match="finite, got 1 NaN"):
        metric(broken, clean)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got uint8"):
        metric((clean * 255).astype(np.uint8), clean)
    with pytest.raises(ValueError, match=r"clean image must lie in \[0, 1\], got"):
        metric(clean, clean * 255)
    with pytest.raises(ValueError, match=r"numpy \(H, W, 3\) or torch \(3, H, W\), got \(2, 3, 32, 32\)"):
        metric(torch.zeros(2, 3, 32, 32), clean)


def test_masks_and_small_images_give_clear_errors():
    clean = random_image(0)
    with pytest.raises(ValueError, match="must be bool"):
        measures.zone_mse(clean, clean, np.zeros((32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"one size, got \(16, 16\) and \(32, 32\)"):
        measures.zone_mse(clean, clean, np.zeros((16, 16), bool))
    with pytest.raises(ValueError, match="11 x 11 pixels, got 8 x 9"):
        M.ssim(random_image(0, 8, 9), random_image(1, 8, 9))


def test_ratio_of_means_is_not_the_mean_of_ratios():
    assert intervals.ratio_of_means([1, 3], [1, 6]) == pytest.approx(4 / 7)
    assert math.isnan(intervals.ratio_of_means([1.0], [0.0]))
    with pytest.raises(ValueError, match="two arrays"):
        intervals.ratio_of_means([1, 2], [1])
