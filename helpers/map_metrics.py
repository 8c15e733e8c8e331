"""Maps against crack masks, and the controls they must beat.

A map is a float array (h, w) on any grid, **signed and unscaled**: larger means "more crack". It is brought to the
mask's size bilinearly (half-pixel centres, what torch calls ``align_corners=False``), so one function serves a 14 x 14
token grid and a full-size filter response. Figures of ranking need pixels of both kinds: without them they are NaN,
and cracked tiles are to be chosen (and counted) by the caller.
"""

import cv2
import numpy as np
from skimage.filters import sato
from skimage.morphology import disk

from helpers.intervals import as_numpy


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


def pool_to_grid(raw, grid):
    """Map or mask (H, W) averaged over the cells of a coarser `grid` (h, w), by area; float32."""
    raw = as_map(as_numpy(raw).astype(np.float32))
    (height, width), (rows, columns) = raw.shape, grid
    if rows > height or columns > width:
        raise ValueError(f"pooling needs a grid no finer than the map, got {rows} x {columns} for {height} x {width}")
    return cv2.resize(raw, (columns, rows), interpolation=cv2.INTER_AREA)


def _ranking(raw, mask):
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
    return _ranking(raw, mask)[0]


def crack_ap(raw, mask):
    """Average precision of a signed map (h, w) for the crack pixels of `mask` (H, W); chance is the prevalence.

    NaN when the mask is empty or full. As scikit-learn's ``average_precision_score``.
    """
    return _ranking(raw, mask)[1]


def oracle_ap(mask, grid):
    """The average precision of the best map a `grid` (h, w) can hold: the mask pooled to it and brought back."""
    return crack_ap(pool_to_grid(mask, grid), mask)


def patch_ap(raw, mask, grid=None, positive=0.05):
    """Average precision per patch: a patch is positive from a share `positive` of crack pixels on.

    `raw` is on the grid already, or is pooled to `grid` (h, w). NaN when all patches are of one kind.
    """
    raw = as_map(raw) if grid is None else pool_to_grid(raw, grid)
    share = pool_to_grid(as_mask(mask), raw.shape)
    return crack_ap(raw, share >= positive - 1e-6)  # a share of exactly 5 % may be a little less in float32


def crack_iou(raw, mask, threshold):
    """Intersection over union of ``map > threshold`` (at the mask's size) and `mask`; NaN when both are empty."""
    mask = as_mask(mask)
    above = to_size(raw, mask.shape) > threshold
    union = np.count_nonzero(above | mask)
    return np.count_nonzero(above & mask) / union if union else float("nan")


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


def fit_threshold(raws, masks, candidates=50):
    """The threshold with the best mean IoU on *train* tiles, to be used unchanged on others.

    Candidates are evenly spaced quantiles of the tiles' values together, so the maps' scale does not matter.
    """
    if len(raws) != len(masks) or not len(raws):
        raise ValueError(f"as many maps as masks are wanted and at least one, got {len(raws)} and {len(masks)}")
    values = np.concatenate([as_map(raw).ravel() for raw in raws])
    thresholds = np.unique(np.quantile(values, np.linspace(0.5, 1, candidates, endpoint=False)))
    scores = [np.nanmean([crack_iou(raw, mask, t) for raw, mask in zip(raws, masks, strict=True)]) for t in thresholds]
    return float(thresholds[int(np.argmax(scores))])


def evaluate_map(raw, mask, grid=None):
    """All figures of one map on one cracked tile, as a dict of floats.

    `auc_either` and `ap_either` take the better sign per tile, which needs the mask: an **oracle**, only to be shown
    beside the same figure for maps shuffled between tiles (`other_tile`). `prevalence` is the chance level of `ap`.

    Args:
        raw: (h, w), signed. mask: (H, W) bool.
        grid: (h, w) of the patches for `patch_ap` and the oracle; the map's own shape by default.
    """
    mask, raw = as_mask(mask), as_map(raw)
    grid = raw.shape if grid is None else grid
    (auc, ap), oracle = _ranking(raw, mask), oracle_ap(mask, grid)
    return {
        "auc": auc, "auc_either": max(auc, 1 - auc), "ap": ap, "ap_either": float(np.maximum(ap, crack_ap(-raw, mask))),
        "oracle_ap": oracle, "ap_over_oracle": ap / oracle, "patch_ap": patch_ap(raw, mask, grid),
        "prevalence": float(mask.mean()),
    }  # fmt: skip


# Controls: what finds cracks without any network --------------------------------------------------------------------


def grey(picture):
    """The mean of the channels of a picture (H, W, 3), (H, W): of all weightings the one with least noise left."""
    picture = as_numpy(picture)
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"a picture must be (H, W, 3), got {picture.shape}")
    return as_map(picture.mean(-1))


def sato_map(picture, sigmas=(3, 5, 8)):
    """Dark ridges of a picture (H, W, 3) in [0, 1]: scikit-image's `sato` at the given scales in pixels; (H, W)."""
    return sato(grey(picture), sigmas=sigmas, black_ridges=True).astype(np.float32)


def darkness_map(picture, wide=20, narrow=3):
    """Local darkness of a picture (H, W, 3): grey blurred with sigma `wide` minus `narrow` (px); dark is positive."""
    wide, narrow = (
        cv2.GaussianBlur(grey(picture), (0, 0), sigma, borderType=cv2.BORDER_REFLECT) for sigma in (wide, narrow)
    )
    return wide - narrow


def centre_blob(size):
    """A Gaussian blob in the middle of `size` (H, W), standard deviation a quarter of each side."""
    rows, columns = (np.exp(-8 * (np.arange(n) / max(n - 1, 1) - 0.5) ** 2) for n in size)
    return np.outer(rows, columns).astype(np.float32)


def mean_map(raws):
    """The mean of maps (h, w) of one grid, each centred and scaled by its own standard deviation first."""
    raws = np.stack([as_map(raw) for raw in raws])
    raws = raws - raws.mean((1, 2), keepdims=True)
    return (raws / np.maximum(raws.std((1, 2), keepdims=True), 1e-12)).mean(0)


def other_tile(n, seed=0):
    """For each of `n` tiles the index of another one, each used once: the maps shuffled between pictures.

    >>> bool((other_tile(9) == np.arange(9)).any())
    False
    """
    if n < 2:
        raise ValueError(f"shuffling needs at least 2 tiles, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, int)
    other[order] = np.roll(order, 1)
    return other


def legibility_ap(prob, mask, margin=3, side="both"):
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


def ridge_ap(picture, mask, sigmas=(1, 2, 3, 5, 8), **options):
    """`legibility_ap` of a ridge filter on a picture (H, W, 3).

    Ridge filters like blur: report only its paired difference to the same figure for a Gaussian blur of the noisy
    picture, and nothing for a source where even the clean picture does not beat that.
    """
    return legibility_ap(sato_map(picture, sigmas), mask, **options)
