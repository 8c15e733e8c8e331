"""Measures of images and maps that experiments need and no notebook explains.

Arguments are as in `helpers.metrics`, which has the figures that notebooks show: images (H, W, 3) or torch (3, H, W) in
[0, 1], the output first; masks (H, W) bool; signed maps (h, w). `evaluate_image` and `evaluate_map` gather the figures
of one image and of one map; what follows each is what they are made of.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.fft import dctn, fft2
from scipy.signal.windows import hann
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.filters import sato

from helpers.metrics import (
    Image,
    Map,
    Mask,
    aligned_sharpness,
    as_image,
    as_map,
    as_mask,
    as_numpy,
    auc_and_ap,
    crack_zone,
    grey,
    high_pass,
    image_pair,
    mse,
    psnr,
    resize_map,
    ssim,
)

PERIODS = (2, 4, 8, 16, 24, 32)  # pixels; what strides, transposed convolutions and 16 x 16 patches leave behind
OCTAVES = (2, 4, 8, 16, 32)  # lower ends of the octaves' periods in pixels; the last one is open


def quotient(numerator, denominator) -> float:
    """`numerator` over `denominator`, NaN where that is 0: no such pixels, no such energy."""
    return float(numerator / denominator) if denominator else float("nan")


# Images ---------------------------------------------------------------------------------------------------------------


class ZoneMSE(NamedTuple):
    """MSE in the crack zone and in the rest of the image; NaN for a zone without pixels."""

    inside: float
    outside: float


def zone_mse(denoised: Image, clean: Image, mask: Mask, radius: int = 3) -> ZoneMSE:
    """MSE inside and outside the crack zone, the mask (H, W) bool dilated by `radius` pixels.

    Without a crack `inside` is NaN and `outside` is the MSE of the whole image.
    """
    denoised, clean = image_pair(denoised, clean)
    mask = as_mask(mask)
    if mask.shape != clean.shape[:2]:
        raise ValueError(f"mask and image must have one size, got {mask.shape} and {clean.shape[:2]}")
    zone = crack_zone(mask, radius)
    error = ((denoised - clean) ** 2).mean(-1, dtype=np.float64)  # (H, W)
    inside, n = error[zone].sum(), np.count_nonzero(zone)
    return ZoneMSE(quotient(inside, n), quotient(error[~zone].sum(), zone.size - n))


def sharpness(image: Image) -> float:
    """Mean absolute difference between neighbours (right, below, both diagonals) over all pairs and channels.

    In units of the image's range, per image. What is reported is output over clean, as ratio of means per source
    (`ratio_of_means`). It cannot tell texture from noise: never without `aligned_sharpness`.

    >>> edge = np.tile(np.float32([0, 0.5])[:, None], (2, 1, 3))  # 2 x 2 pixels: 4 of the 6 pairs differ by 0.5
    >>> round(sharpness(edge), 4)
    0.3333
    """
    x = as_image(image, clip=True)
    pairs = x[:, 1:] - x[:, :-1], x[1:] - x[:-1], x[1:, 1:] - x[:-1, :-1], x[1:, :-1] - x[:-1, 1:]
    return quotient(sum(np.abs(pair).sum(dtype=np.float64) for pair in pairs), sum(pair.size for pair in pairs))


def gap_closed(r_model: float, r_mse: float) -> float | None:
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
    def ratio(self) -> np.ndarray:
        """Residual over HP x octave by octave, (5,); NaN where HP x has no energy."""
        return np.divide(self.residual, self.reference, out=np.full(5, np.nan), where=self.reference > 0)

    @property
    def total(self) -> float:
        """All residual energy over all energy of HP x."""
        return quotient(self.residual.sum(), self.reference.sum())


def orthogonal_residual(denoised: Image, clean: Image) -> OctaveResidual:
    """The part of HP d that is not along HP x, per octave: invented or leftover detail, however sharp it looks.

    HP d - r HP x with r the image's aligned sharpness, split by radial frequency. The split is by the orthonormal
    cosine transform, whose energies add up exactly and which has no jump at the image's border.
    """
    d, x = map(high_pass, image_pair(denoised, clean))
    r = aligned_sharpness(denoised, clean).ratio
    residual = d if np.isnan(r) else d - np.float32(r) * x
    # which octave each coefficient of the cosine transform belongs to, by its radial frequency
    fy, fx = (np.arange(n) / (2 * n) for n in x.shape[:2])  # cycles per pixel of a cosine transform's rows and columns
    with np.errstate(divide="ignore"):
        period = 1 / np.hypot(fy[:, None], fx[None])
    octave = np.clip(np.searchsorted(OCTAVES, period, side="right") - 1, 0, None)
    energies = [
        np.bincount(octave.ravel(), (dctn(part, axes=(0, 1), norm="ortho") ** 2).sum(-1).ravel(), 5) / part.size
        for part in (residual, x)
    ]
    return OctaveResidual(*energies)


def _log_lattice(image, size):
    """Log energies of the rows (H,) and columns (W,) of the spectrum of an image cut to `size`, Hann window."""
    height, width = size
    x = image[:height, :width] - image[:height, :width].mean((0, 1))
    x = x * hann(height, sym=False)[:, None, None] * hann(width, sym=False)[None, :, None]
    energy = (np.abs(fft2(x, axes=(0, 1))) ** 2).sum(-1) / x.size  # (H, W)
    return [np.log(line + 1e-12) for line in (energy[:, 1:].sum(1), energy[1:].sum(0))]  # without their zero bins


def checkerboard_index(denoised: Image, clean: Image, periods: Sequence[int] = PERIODS) -> dict[int, float]:
    """Regular patterns the output has and the clean image has not, as a dict period in pixels -> index.

    The index is the (natural) log energy of the whole row or column of the spectrum at frequency 1/period, its own
    zero-frequency bin left out, minus the mean log energy of the rows or columns at +-2 and +-3 bins, mean of both
    axes; Hann window; output minus clean, so 0 means "no more than the clean image". The image is cut to whole
    periods, so that the frequency is a bin. NaN for a period of which fewer than 4 fit into a side.
    """
    images, index, logs = image_pair(denoised, clean), {}, {}
    for period in periods:
        bins = [n // period for n in images[1].shape[:2]]
        if min(bins) < 4:
            index[period] = float("nan")
            continue
        size = tuple(k * period for k in bins)
        if size not in logs:  # (output - clean) of the log energies, rows and columns; periods share their sizes
            logs[size] = [d - x for d, x in zip(*(_log_lattice(p, size) for p in images), strict=True)]
        # a line stands out above the lines around it; its next neighbours are left out, the window spreads it there
        neighbours = np.array([-3, -2, 2, 3])
        above = [log[k] - log[(k + neighbours) % len(log)].mean() for log, k in zip(logs[size], bins, strict=True)]
        index[period] = float(np.mean(above))
    return index


class ColourShift(NamedTuple):
    """Mean CIEDE2000 of the blurred images, and mean output minus clean of dark (< 0.1) and bright (> 0.9) values."""

    delta_e: float
    dark_bias: float
    bright_bias: float


def colour_shift(denoised: Image, clean: Image) -> ColourShift:
    """Shift of the colour of areas, and the bias where clipping makes the noise's mean wrong.

    sRGB blurred with sigma 16, to CIELAB (D65), mean CIEDE2000 (about 1 is just visible). The biases are per pixel and
    channel of the *clean* image, because that is where clipping happens; NaN where there is no such value.
    """
    denoised, clean = image_pair(denoised, clean)
    # blurred until only areas are left: the colour of single pixels is noise
    blurred = [rgb2lab(cv2.GaussianBlur(x, (129, 129), 16, borderType=cv2.BORDER_REFLECT)) for x in (clean, denoised)]
    difference = (denoised - clean).astype(np.float64)
    dark, bright = clean < 0.1, clean > 0.9
    biases = (quotient(difference[zone].sum(), np.count_nonzero(zone)) for zone in (dark, bright))
    return ColourShift(float(deltaE_ciede2000(*blurred).mean()), *biases)


def evaluate_image(denoised: Image, clean: Image, mask: Mask | None = None, full: bool = False) -> dict[str, float]:
    """All figures of one output as a dict of floats; about 20 ms for 224 x 224, 60 ms with `full`.

    Keys: mse, psnr, ssim, sharpness, sharpness_clean, aligned_sharpness, aligned_numerator, aligned_denominator; with
    `mask` mse_crack (NaN without a crack) and mse_rest; with `full` delta_e, dark_bias, bright_bias, residual,
    residual_<period>, checkerboard_<period>.
    """
    denoised, clean = image_pair(denoised, clean)
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


# Maps -----------------------------------------------------------------------------------------------------------------


def pool_to_grid(raw: Map, grid: tuple[int, int]) -> np.ndarray:
    """Map or mask (H, W) averaged over the cells of a coarser `grid` (h, w), by area; float32."""
    raw = as_map(as_numpy(raw).astype(np.float32))
    (height, width), (rows, columns) = raw.shape, grid
    if rows > height or columns > width:
        raise ValueError(f"pooling needs a grid no finer than the map, got {rows} x {columns} for {height} x {width}")
    return cv2.resize(raw, (columns, rows), interpolation=cv2.INTER_AREA)


def crack_ap(raw: Map, mask: Mask) -> float:
    """Average precision of a signed map (h, w) for the crack pixels of `mask` (H, W); chance is the prevalence."""
    return auc_and_ap(raw, mask)[1]


def oracle_ap(mask: Mask, grid: tuple[int, int]) -> float:
    """The average precision of the best map a `grid` (h, w) can hold: the mask pooled to it and brought back."""
    return crack_ap(pool_to_grid(mask, grid), mask)


def patch_ap(raw: Map, mask: Mask, grid: tuple[int, int] | None = None, positive: float = 0.05) -> float:
    """Average precision per patch: a patch is positive from a share `positive` of crack pixels on.

    `raw` is on the grid already, or is pooled to `grid` (h, w). NaN when all patches are of one kind.
    """
    raw = as_map(raw) if grid is None else pool_to_grid(raw, grid)
    share = pool_to_grid(as_mask(mask), raw.shape)
    return crack_ap(raw, share >= positive - 1e-6)  # a share of exactly 5 % may be a little less in float32


def crack_iou(raw: Map, mask: Mask, threshold: float) -> float:
    """Intersection over union of ``map > threshold`` (at the mask's size) and `mask`; NaN when both are empty."""
    mask = as_mask(mask)
    above = resize_map(raw, mask.shape) > threshold
    union = np.count_nonzero(above | mask)
    return np.count_nonzero(above & mask) / union if union else float("nan")


def fit_threshold(raws: Sequence[Map], masks: Sequence[Mask], candidates: int = 50) -> float:
    """The threshold with the best mean IoU on *train* tiles, to be used unchanged on others.

    Candidates are evenly spaced quantiles of the tiles' values together, so the maps' scale does not matter.
    """
    if len(raws) != len(masks) or not len(raws):
        raise ValueError(f"as many maps as masks are wanted and at least one, got {len(raws)} and {len(masks)}")
    values = np.concatenate([as_map(raw).ravel() for raw in raws])
    thresholds = np.unique(np.quantile(values, np.linspace(0.5, 1, candidates, endpoint=False)))
    scores = [np.nanmean([crack_iou(raw, mask, t) for raw, mask in zip(raws, masks, strict=True)]) for t in thresholds]
    return float(thresholds[int(np.argmax(scores))])


def evaluate_map(raw: Map, mask: Mask, grid: tuple[int, int] | None = None) -> dict[str, float]:
    """All figures of one map on one cracked tile, as a dict of floats.

    `auc_either` and `ap_either` take the better sign per tile, which needs the mask: an **oracle**, only to be shown
    beside the same figure for maps shuffled between tiles (`other_tile`). `prevalence` is the chance level of `ap`.

    Args:
        raw: (h, w), signed. mask: (H, W) bool.
        grid: (h, w) of the patches for `patch_ap` and the oracle; the map's own shape by default.
    """
    mask, raw = as_mask(mask), as_map(raw)
    grid = raw.shape if grid is None else grid
    (auc, ap), oracle = auc_and_ap(raw, mask), oracle_ap(mask, grid)
    return {
        "auc": auc, "auc_either": max(auc, 1 - auc), "ap": ap, "ap_either": float(np.maximum(ap, crack_ap(-raw, mask))),
        "oracle_ap": oracle, "ap_over_oracle": ap / oracle, "patch_ap": patch_ap(raw, mask, grid),
        "prevalence": float(mask.mean()),
    }  # fmt: skip


# Controls and what is shuffled ----------------------------------------------------------------------------------------


def sato_map(image: Image, sigmas: Sequence[float] = (3, 5, 8)) -> np.ndarray:
    """Dark ridges of an image (H, W, 3) in [0, 1]: scikit-image's `sato` at the given scales in pixels; (H, W)."""
    return sato(grey(image), sigmas=sigmas, black_ridges=True).astype(np.float32)


def centre_blob(size: tuple[int, int]) -> np.ndarray:
    """A Gaussian blob in the middle of `size` (H, W), standard deviation a quarter of each side."""
    rows, columns = (np.exp(-8 * (np.arange(n) / max(n - 1, 1) - 0.5) ** 2) for n in size)
    return np.outer(rows, columns).astype(np.float32)


def mean_map(raws: Sequence[Map]) -> np.ndarray:
    """The mean of maps (h, w) of one grid, each centred and scaled by its own standard deviation first."""
    raws = np.stack([as_map(raw) for raw in raws])
    raws = raws - raws.mean((1, 2), keepdims=True)
    return (raws / np.maximum(raws.std((1, 2), keepdims=True), 1e-12)).mean(0)


def other_tile(n: int, seed: int = 0) -> np.ndarray:
    """For each of `n` tiles the index of another one, each used once: the maps shuffled between images.

    >>> bool((other_tile(9) == np.arange(9)).any())
    False
    """
    if n < 2:
        raise ValueError(f"shuffling needs at least 2 tiles, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, int)
    other[order] = np.roll(order, 1)
    return other


# Crack legibility -----------------------------------------------------------------------------------------------------


def legibility_ap(prob: Map, mask: Mask, margin: int = 3, side: str = "both") -> float:
    """Average precision of crack probabilities (H, W) against `mask`, pixels within `margin` of its edge left out.

    The edge runs between crack and ground, so cracks narrower than 2 * `margin` are left out entirely; when nothing of
    one kind is left the result is NaN. ``side="outside"`` leaves out only ground, and keeps narrow cracks.
    """
    if side not in ("both", "outside"):
        raise ValueError(f"side must be 'both' or 'outside', got {side!r}")
    mask, prob = as_mask(mask), as_map(prob)
    if prob.shape != mask.shape:
        raise ValueError(f"probabilities and mask must have one shape, got {prob.shape} and {mask.shape}")
    ignored = crack_zone(mask, margin) & (crack_zone(~mask, margin) if side == "both" else ~mask)
    return crack_ap(prob[~ignored][None], mask[~ignored][None])


def ridge_ap(image: Image, mask: Mask, sigmas: Sequence[float] = (1, 2, 3, 5, 8), **options) -> float:
    """`legibility_ap` of a ridge filter on an image (H, W, 3).

    Ridge filters like blur: report only its paired difference to the same figure for a Gaussian blur of the noisy
    image, and nothing for a source where even the clean image does not beat that.
    """
    return legibility_ap(sato_map(image, sigmas), mask, **options)
