"""What is measured on a denoised picture.

Pictures are numpy (H, W, 3) or torch (3, H, W), one at a time, float in [0, 1]. The **output** (`denoised`, always the
first argument) is clipped to [0, 1] first, because that is what is saved and seen; the clean picture must lie in it.
A mean over a source's pictures is the caller's; figures that are quotients give numerator and denominator too, so that
a source's figure can be the ratio of means. Maps against masks: `helpers.metrics`; intervals: `lab.intervals`.
"""

from typing import NamedTuple

import cv2
import numpy as np
from skimage.metrics import structural_similarity
from skimage.morphology import disk


def as_numpy(array):
    """The array itself, or a torch tensor's values on the CPU, without importing torch."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


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


def image_pair(denoised, clean):
    denoised, clean = as_picture(denoised, clip=True), as_picture(clean)
    if denoised.shape != clean.shape:
        raise ValueError(f"output and clean picture must have one shape, got {denoised.shape} and {clean.shape}")
    return denoised, clean


def quotient(numerator, denominator):
    return float(numerator / denominator) if denominator else float("nan")


def mse(denoised, clean):
    """Mean squared error per pixel and channel of the output clipped to [0, 1]."""
    denoised, clean = image_pair(denoised, clean)
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
    denoised, clean = image_pair(denoised, clean)
    if min(clean.shape[:2]) < 11:
        raise ValueError(f"ssim needs at least 11 x 11 pixels, got {clean.shape[0]} x {clean.shape[1]}")
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=2)
    return float(structural_similarity(clean, denoised, **options))


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
    denoised, clean = map(high_pass, image_pair(denoised, clean))
    numerator = float(np.mean(denoised * clean, dtype=np.float64))
    denominator = float(np.mean(clean * clean, dtype=np.float64))
    return Aligned(quotient(numerator, denominator), numerator, denominator)


def as_mask(mask):
    """Check a crack mask: (H, W) bool, numpy or torch."""
    mask = as_numpy(mask)
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"a mask must be bool (H, W), got {mask.dtype} {mask.shape}")
    return mask


def as_map(raw):
    """Check a map: (h, w), finite; returned as float32."""
    raw = as_numpy(raw)
    if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.number):
        raise ValueError(f"a map must be numbers (h, w), got {raw.dtype} {raw.shape}")
    if not np.isfinite(raw).all():
        raise ValueError(f"a map must be finite, got {np.count_nonzero(~np.isfinite(raw))} NaN or infinite values")
    return raw.astype(np.float32)


def crack_zone(mask, radius=3):
    """The mask (H, W) bool dilated by `radius` pixels (a disk; the picture's border adds nothing).

    >>> mask = np.zeros((9, 9), bool); mask[4, 4] = True
    >>> int(crack_zone(mask, 3).sum())
    29
    """
    return cv2.dilate(as_mask(mask).astype(np.uint8), disk(radius)).astype(bool)


# Maps against masks -------------------------------------------------------------------------------------------------


def to_size(raw, size):
    """Map (h, w) to `size` (H, W) bilinearly, as torch's interpolate does with align_corners=False."""
    raw = as_map(raw)
    height, width = size
    return raw if raw.shape == (height, width) else cv2.resize(raw, (width, height), interpolation=cv2.INTER_LINEAR)


def ranking(raw, mask):
    """Return AUC and average precision, both NaN without pixels of both kinds.

    scikit-learn's figures, ties included (a test compares them), at a twentieth of its time: crack pixels are few, and
    only their places among the others are looked up.
    """
    mask = as_mask(mask)
    values = to_size(raw, mask.shape)
    ground, crack = np.sort(values[~mask]), np.sort(values[mask])
    if not len(ground) or not len(crack):
        return float("nan"), float("nan")
    below, up_to = (np.searchsorted(ground, crack, side) for side in ("left", "right"))
    true, false = len(crack) - np.searchsorted(crack, crack, "left"), len(ground) - below  # at least as high
    return float((below + up_to).mean() / (2 * len(ground))), float((true / (true + false)).mean())


def crack_auc(raw, mask):
    """Area under the ROC curve of a signed map (h, w) for the crack pixels of `mask` (H, W); 0.5 is chance.

    NaN when the mask is empty or full. As scikit-learn's ``roc_auc_score``.

    >>> mask = np.eye(4, dtype=bool)
    >>> crack_auc(mask.astype(float), mask), crack_auc(np.zeros((2, 2)), mask)
    (1.0, 0.5)
    """
    return ranking(raw, mask)[0]


def crack_ap(raw, mask):
    """Average precision of a signed map (h, w) for the crack pixels of `mask` (H, W); chance is the prevalence.

    NaN when the mask is empty or full. As scikit-learn's ``average_precision_score``.
    """
    return ranking(raw, mask)[1]


def band_scores(kept, mask=None):
    """What a thresholded map keeps, as a dict of floats in [0, 1], NaN where nothing can be said.

    Args:
        kept: (H, W) bool. mask: (H, W) bool, or None where there is none.

    Returns:
        `kept`: share of the picture's pixels; `covered`: share of the crack's pixels that are kept (recall);
        `precision`: share of the kept pixels that are crack; `iou`: intersection over union.

    >>> band_scores(np.array([[True, True], [False, False]]), np.eye(2, dtype=bool))["covered"]
    0.5
    """
    kept, nan = as_mask(kept), float("nan")
    count = int(np.count_nonzero(kept))
    scores = {"kept": count / kept.size, "covered": nan, "precision": nan, "iou": nan}
    if mask is not None and (crack := int(np.count_nonzero(as_mask(mask)))):
        hits = int(np.count_nonzero(kept & as_mask(mask)))
        scores |= {"covered": hits / crack, "precision": hits / count if count else nan,
                   "iou": hits / (count + crack - hits)}
    return scores


# Controls: what finds cracks without any network --------------------------------------------------------------------


def grey(picture):
    """The mean of the channels of a picture (H, W, 3), (H, W): of all weightings the one with least noise left."""
    picture = as_numpy(picture)
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"a picture must be (H, W, 3), got {picture.shape}")
    return as_map(picture.mean(-1))


def darkness_map(picture, wide=20, narrow=3):
    """Local darkness of a picture (H, W, 3): grey blurred with sigma `wide` minus `narrow` (px); dark is positive."""
    wide, narrow = (
        cv2.GaussianBlur(grey(picture), (0, 0), sigma, borderType=cv2.BORDER_REFLECT) for sigma in (wide, narrow)
    )
    return wide - narrow
