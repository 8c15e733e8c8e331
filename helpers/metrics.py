"""What is measured on a denoised picture.

Pictures are numpy (H, W, 3) or torch (3, H, W), one at a time, float in [0, 1]. The **output** (`denoised`, always the
first argument) is clipped to [0, 1] first, because that is what is saved and seen; the clean picture must lie in it.
A mean over a source's pictures is the caller's; figures that are quotients give numerator and denominator too, so that
a source's figure can be the ratio of means. Maps against masks: `helpers.map_metrics`; intervals: `helpers.intervals`.
"""

from typing import NamedTuple

import cv2
import numpy as np
from scipy.fft import dctn, fft2
from scipy.signal.windows import hann
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from helpers.intervals import as_numpy, holm, paired_bootstrap, ratio_of_means
from helpers.map_metrics import as_mask, crack_ap, crack_auc, crack_zone, evaluate_map, legibility_ap

__all__ = [
    "aligned_sharpness", "checkerboard_index", "colour_shift", "crack_ap", "crack_auc", "crack_zone", "evaluate_map",
    "evaluate_picture", "gap_closed", "high_pass", "holm", "legibility_ap", "mse", "orthogonal_residual",
    "paired_bootstrap", "psnr", "ratio_of_means", "sharpness", "ssim", "zone_mse",
]  # fmt: skip

PERIODS = (2, 4, 8, 16, 24, 32)  # pixels; what strides, transposed convolutions and 16 x 16 patches leave behind
OCTAVES = (2, 4, 8, 16, 32)  # lower ends of the octaves' periods in pixels; the last one is open


def as_picture(picture, clip=False):
    """One picture as numpy (H, W, 3) float32, from numpy (H, W, 3) or torch (3, H, W).

    Raises:
        ValueError: not floating point, another shape, NaN or infinity, or (without `clip`) values outside [0, 1].
    """
    array = as_numpy(picture)
    if hasattr(picture, "detach") and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)  # (3, H, W) -> (H, W, 3)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"a picture must be numpy (H, W, 3) or torch (3, H, W), got {tuple(picture.shape)}")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"a picture must be floating point in [0, 1], got {array.dtype}")
    array = np.ascontiguousarray(array, np.float32)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():  # min and max of an array with NaN are NaN
        bad = np.count_nonzero(~np.isfinite(array))
        raise ValueError(f"a picture must be finite, got {bad} NaN or infinite values")
    if clip:
        return np.clip(array, 0, 1)
    if low < 0 or high > 1:
        raise ValueError(f"a clean picture must lie in [0, 1], got {low:.3g} to {high:.3g}")
    return array


def _pair(denoised, clean):
    denoised, clean = as_picture(denoised, clip=True), as_picture(clean)
    if denoised.shape != clean.shape:
        raise ValueError(f"output and clean picture must have one shape, got {denoised.shape} and {clean.shape}")
    return denoised, clean


def _quotient(numerator, denominator):
    return float(numerator / denominator) if denominator else float("nan")


def mse(denoised, clean):
    """Mean squared error per pixel and channel of the output clipped to [0, 1]."""
    denoised, clean = _pair(denoised, clean)
    return float(np.mean((denoised - clean) ** 2, dtype=np.float64))


def psnr(denoised, clean):
    """Peak signal-to-noise ratio in dB, -10 log10 MSE; infinite for equal pictures. Average it over pictures.

    >>> clean = np.full((16, 16, 3), 0.5, np.float32)
    >>> round(psnr(clean + np.float32(0.1), clean), 3)
    20.0
    """
    error = mse(denoised, clean)
    return -10 * float(np.log10(error)) if error else float("inf")


def ssim(denoised, clean):
    """Structural similarity (Wang et al. 2004) by scikit-image, mean over pixels and the three channels.

    Gaussian window of sigma 1.5 (11 x 11), K1 0.01, K2 0.03, population covariances, data range 1. Both sides must be
    at least 11 pixels.
    """
    denoised, clean = _pair(denoised, clean)
    if min(clean.shape[:2]) < 11:
        raise ValueError(f"ssim needs at least 11 x 11 pixels, got {clean.shape[0]} x {clean.shape[1]}")
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=2)
    return float(structural_similarity(clean, denoised, **options))


class ZoneMSE(NamedTuple):
    """MSE in the crack zone and in the rest of the picture; NaN for a zone without pixels."""

    inside: float
    outside: float


def zone_mse(denoised, clean, mask, radius=3):
    """MSE inside and outside the crack zone, the mask (H, W) bool dilated by `radius` pixels.

    Without a crack `inside` is NaN and `outside` is the MSE of the whole picture.
    """
    denoised, clean = _pair(denoised, clean)
    mask = as_mask(mask)
    if mask.shape != clean.shape[:2]:
        raise ValueError(f"mask and picture must have one size, got {mask.shape} and {clean.shape[:2]}")
    zone = crack_zone(mask, radius)
    error = ((denoised - clean) ** 2).mean(-1, dtype=np.float64)  # (H, W)
    inside, n = error[zone].sum(), np.count_nonzero(zone)
    return ZoneMSE(_quotient(inside, n), _quotient(error[~zone].sum(), zone.size - n))


def sharpness(picture):
    """Mean absolute difference between neighbours (right, below, both diagonals) over all pairs and channels.

    In units of the picture's range, per picture. What is reported is output over clean, as ratio of means per source
    (`ratio_of_means`). It cannot tell texture from noise: never without `aligned_sharpness`.

    >>> edge = np.tile(np.float32([0, 0.5])[:, None], (2, 1, 3))  # 2 x 2 pixels: 4 of the 6 pairs differ by 0.5
    >>> round(sharpness(edge), 4)
    0.3333
    """
    x = as_picture(picture, clip=True)
    pairs = x[:, 1:] - x[:, :-1], x[1:] - x[:-1], x[1:, 1:] - x[:-1, :-1], x[1:, :-1] - x[:-1, 1:]
    return _quotient(sum(np.abs(pair).sum(dtype=np.float64) for pair in pairs), sum(pair.size for pair in pairs))


def high_pass(picture):
    """HP: the picture (H, W, 3) minus its Gaussian blur of sigma 1 pixel (reflected borders)."""
    picture = np.asarray(picture, np.float32)
    return picture - cv2.GaussianBlur(picture, (9, 9), 1, borderType=cv2.BORDER_REFLECT)


class Aligned(NamedTuple):
    """Aligned sharpness and, for a source's ratio of means, its numerator and denominator (means per value)."""

    ratio: float
    numerator: float
    denominator: float


def aligned_sharpness(denoised, clean):
    """How much of the clean picture's fine detail the output has: <HP d, HP x> / <HP x, HP x>.

    HP is `high_pass`. 1 for the clean picture, 0 for a constant; independent noise does not raise it. NaN where the
    clean picture has no detail. Returns `Aligned`: for a source, ``ratio_of_means`` of numerators and denominators.
    """
    denoised, clean = map(high_pass, _pair(denoised, clean))
    numerator = float(np.mean(denoised * clean, dtype=np.float64))
    denominator = float(np.mean(clean * clean, dtype=np.float64))
    return Aligned(_quotient(numerator, denominator), numerator, denominator)


def gap_closed(r_model, r_mse):
    """Share of the aligned sharpness missing under MSE training that a model restores: 1 - |1 - r_model| / |1 - r_mse|.

    None where `r_mse` is above 0.85 (hardly a gap, so the quotient is noise) or either is NaN.

    >>> gap_closed(0.75, 0.5), gap_closed(0.95, 0.9)
    (0.5, None)
    """
    if r_mse > 0.85 or np.isnan(r_model) or np.isnan(r_mse):
        return None
    return float(1 - abs(1 - r_model) / abs(1 - r_mse))


class OctaveResidual(NamedTuple):
    """Energies (mean squares) per octave, finest first: of the residual across HP x, and of HP x itself.

    Octave k holds the periods from ``OCTAVES[k]`` to twice that in pixels; the first also the finer diagonals, the
    last everything coarser.
    """

    residual: np.ndarray
    reference: np.ndarray

    @property
    def ratio(self):
        """Residual over HP x octave by octave, (5,); NaN where HP x has no energy."""
        return np.divide(self.residual, self.reference, out=np.full(5, np.nan), where=self.reference > 0)

    @property
    def total(self):
        """All residual energy over all energy of HP x."""
        return _quotient(self.residual.sum(), self.reference.sum())


def orthogonal_residual(denoised, clean):
    """The part of HP d that is not along HP x, per octave: invented or leftover detail, however sharp it looks.

    HP d - r HP x with r the picture's aligned sharpness, split by radial frequency. The split is by the orthonormal
    cosine transform, whose energies add up exactly and which has no jump at the picture's border.
    """
    d, x = map(high_pass, _pair(denoised, clean))
    r = aligned_sharpness(denoised, clean).ratio
    residual = d if np.isnan(r) else d - np.float32(r) * x
    fy, fx = (np.arange(n) / (2 * n) for n in x.shape[:2])  # cycles per pixel of a cosine transform's rows and columns
    with np.errstate(divide="ignore"):
        period = 1 / np.hypot(fy[:, None], fx[None])
    octave = np.clip(np.searchsorted(OCTAVES, period, side="right") - 1, 0, None)
    energies = [
        np.bincount(octave.ravel(), (dctn(part, axes=(0, 1), norm="ortho") ** 2).sum(-1).ravel(), 5) / part.size
        for part in (residual, x)
    ]
    return OctaveResidual(*energies)


def _log_lattice(picture, size):
    """Log energies of the rows (H,) and columns (W,) of the spectrum of a picture cut to `size`, Hann window."""
    height, width = size
    x = picture[:height, :width] - picture[:height, :width].mean((0, 1))
    x = x * hann(height, sym=False)[:, None, None] * hann(width, sym=False)[None, :, None]
    energy = (np.abs(fft2(x, axes=(0, 1))) ** 2).sum(-1) / x.size  # (H, W)
    return [np.log(line + 1e-12) for line in (energy[:, 1:].sum(1), energy[1:].sum(0))]  # without their zero bins


def checkerboard_index(denoised, clean, periods=PERIODS):
    """Regular patterns the output has and the clean picture has not, as a dict period in pixels -> index.

    The index is the (natural) log energy of the whole row or column of the spectrum at frequency 1/period, its own
    zero-frequency bin left out, minus the mean log energy of the rows or columns at +-2 and +-3 bins, mean of both
    axes; Hann window; output minus clean, so 0 means "no more than the clean picture". The picture is cut to whole
    periods, so that the frequency is a bin. NaN for a period of which fewer than 4 fit into a side.
    """
    pictures, index, logs = _pair(denoised, clean), {}, {}
    for period in periods:
        bins = [n // period for n in pictures[1].shape[:2]]
        if min(bins) < 4:
            index[period] = float("nan")
            continue
        size = tuple(k * period for k in bins)
        if size not in logs:  # (output - clean) of the log energies, rows and columns
            logs[size] = [d - x for d, x in zip(*(_log_lattice(p, size) for p in pictures), strict=True)]
        neighbours = np.array([-3, -2, 2, 3])
        above = [log[k] - log[(k + neighbours) % len(log)].mean() for log, k in zip(logs[size], bins, strict=True)]
        index[period] = float(np.mean(above))
    return index


class ColourShift(NamedTuple):
    """Mean CIEDE2000 of the blurred pictures, and mean output minus clean of dark (< 0.1) and bright (> 0.9) values."""

    delta_e: float
    dark_bias: float
    bright_bias: float


def colour_shift(denoised, clean):
    """Shift of the colour of areas, and the bias where clipping makes the noise's mean wrong.

    sRGB blurred with sigma 16, to CIELAB (D65), mean CIEDE2000 (about 1 is just visible). The biases are per pixel and
    channel of the *clean* picture, because that is where clipping happens; NaN where there is no such value.
    """
    denoised, clean = _pair(denoised, clean)
    blurred = [rgb2lab(cv2.GaussianBlur(x, (129, 129), 16, borderType=cv2.BORDER_REFLECT)) for x in (clean, denoised)]
    difference = (denoised - clean).astype(np.float64)
    dark, bright = clean < 0.1, clean > 0.9
    biases = (_quotient(difference[zone].sum(), np.count_nonzero(zone)) for zone in (dark, bright))
    return ColourShift(float(deltaE_ciede2000(*blurred).mean()), *biases)


def evaluate_picture(denoised, clean, mask=None, full=False):
    """All figures of one output as a dict of floats; about 20 ms for 224 x 224, 60 ms with `full`.

    Keys: mse, psnr, ssim, sharpness, sharpness_clean, aligned_sharpness, aligned_numerator, aligned_denominator; with
    `mask` mse_crack (NaN without a crack) and mse_rest; with `full` delta_e, dark_bias, bright_bias, residual,
    residual_<period>, checkerboard_<period>.
    """
    denoised, clean = _pair(denoised, clean)
    aligned = aligned_sharpness(denoised, clean)
    row = {
        "mse": mse(denoised, clean), "psnr": psnr(denoised, clean), "ssim": ssim(denoised, clean),
        "sharpness": sharpness(denoised), "sharpness_clean": sharpness(clean), "aligned_sharpness": aligned.ratio,
        "aligned_numerator": aligned.numerator, "aligned_denominator": aligned.denominator,
    }  # fmt: skip
    if mask is not None:
        row["mse_crack"], row["mse_rest"] = zone_mse(denoised, clean, mask)
    if full:
        row.update(colour_shift(denoised, clean)._asdict())
        octaves = orthogonal_residual(denoised, clean)
        row["residual"] = octaves.total
        row.update({f"residual_{period}": float(v) for period, v in zip(OCTAVES, octaves.ratio, strict=True)})
        row.update({f"checkerboard_{p}": v for p, v in checkerboard_index(denoised, clean).items()})
    return row
