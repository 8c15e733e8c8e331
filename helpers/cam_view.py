"""Activation maps to look at: thresholds, overlays, figures. Functions on arrays, for any map in [0, 1]."""

from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from skimage.filters import threshold_otsu


def _as_map(cam):
    cam = np.asarray(getattr(cam, "map", cam), np.float32)
    if cam.ndim != 2 or cam.size == 0 or not np.isfinite(cam).all():
        raise ValueError(f"a map must be (H, W), finite and not empty, got {cam.shape}"
                         + (" with values that are not finite" if cam.size and cam.ndim == 2 else ""))
    return cam


def threshold_cam(cam, lower=0.4, upper=0.9, rescale=True, by="value"):
    """Keep what lies inside a band of a map, set the rest to 0, stretch what was kept to 0..1.

    Args:
        cam: (H, W) in [0, 1], or an `ActivationMap`.
        lower, upper: the band, both ends included, 0 <= lower <= upper <= 1. A 0 in the map is kept only if lower is 0.
        rescale: stretch the kept values from 0 (the smallest kept) to 1 (the largest); False leaves them as they are.
        by: "value": the band is of the map's values; "quantile": of its quantiles (0.9 to 1: the highest tenth), which
            can be compared between pictures where values cannot; "otsu": all above Otsu's threshold, `lower` and
            `upper` unused.

    Returns:
        (H, W) float32. An empty band gives zeros everywhere. A constant one (all kept values equal) cannot be
        stretched: the kept values become 1. A constant map has no Otsu threshold: zeros.

    Raises:
        ValueError: no such band or `by`; a map that is not (H, W) or has values that are not finite.

    Source of Otsu's threshold: scikit-image.

    >>> threshold_cam(np.array([[0.2, 0.4, 0.65, 0.9, 1.0]])).round(3).tolist()
    [[0.0, 0.0, 0.5, 1.0, 0.0]]
    """
    return keep(cam, in_band(cam, lower, upper, by), rescale)


def in_band(cam, lower=0.4, upper=0.9, by="value"):
    """Where a map (H, W) lies inside a band, (H, W) bool: the first half of `threshold_cam`, same arguments."""
    cam = _as_map(cam)
    if not 0 <= lower <= upper <= 1:
        raise ValueError(f"thresholds must be 0 <= lower <= upper <= 1, got {lower} and {upper}")
    if by == "otsu":
        fine = cam.astype(np.float64)  # in float32 the bins of a map of hardly any contrast would fall together
        return fine > threshold_otsu(fine) if cam.min() < cam.max() else np.zeros(cam.shape, bool)
    if by not in ("value", "quantile"):
        raise ValueError(f'by must be "value", "quantile" or "otsu", got {by!r}')
    low, high = np.float32((lower, upper)) if by == "value" else np.quantile(cam, (lower, upper))
    return (cam >= low) & (cam <= high) & ((cam != 0) | (lower == 0))


def keep(cam, kept, rescale=True):
    """A map (H, W) with zeros where `kept` (H, W) bool is False, the rest stretched: `threshold_cam`'s second half."""
    cam = _as_map(cam)
    result = np.where(kept, cam, np.float32(0))
    if rescale and kept.any():
        values = cam[kept]
        low, high = values.min(), values.max()
        result[kept] = (values - low) / (high - low) if low < high else 1
    return result


@lru_cache
def _colours(cmap):
    return np.float32(colormaps[cmap](np.arange(256))[:, :3] * 255)  # (256, 3)


def overlay(image, cam, alpha=0.5, cmap="inferno"):
    """Lay a (thresholded) map over a picture where it is above 0.

    Args:
        image: numpy (H, W, 3) or torch (3, H, W), in [0, 1]; values outside, which a denoiser's output can have, are
            clipped like on a screen, so the brightness of the others does not change. uint8 counts as 0..255.
        cam: (H, W) in [0, 1], or an `ActivationMap`.
        alpha: opacity of the map, 0 to 1.
        cmap: a matplotlib colour map's name.

    Returns:
        (H, W, 3) uint8. Where the map is 0 these are the picture's own values.

    Raises:
        ValueError: shapes that do not fit, an opacity outside [0, 1], an unknown colour map.

    >>> overlay(np.full((1, 2, 3), 1.2), np.array([[0.0, 1.0]]), alpha=1).tolist()
    [[[255, 255, 255], [252, 255, 164]]]
    """
    cam, picture = np.clip(_as_map(cam), 0, 1), _as_uint8(image)
    if picture.shape != (*cam.shape, 3):
        raise ValueError(f"picture and map must have one size, got {picture.shape} and {cam.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if cmap not in colormaps:
        raise ValueError(f"cmap must be the name of a matplotlib colour map, got {cmap!r}")
    seen = cam > 0
    colours = _colours(cmap)[np.uint8(cam[seen] * 255 + 0.5)]
    picture[seen] = np.uint8((1 - alpha) * picture[seen] + alpha * colours + 0.5)
    return picture


def _as_uint8(image):
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().movedim(-3, -1).numpy()
    image = np.array(image)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"a picture must be numpy (H, W, 3) or torch (3, H, W), got {image.shape}")
    return image if image.dtype == np.uint8 else np.uint8(np.clip(np.nan_to_num(image), 0, 1) * 255 + 0.5)


def show_cam(image, cam, mask=None, lower=0.4, upper=0.9, by="value", alpha=0.5, cmap="inferno"):
    """Draw picture, map with its colour bar, and the thresholded map over the picture, with the crack's outline.

    Args:
        image: as in `overlay`.
        cam: an `ActivationMap`, or (H, W) in [0, 1].
        mask: (H, W) bool or None: the crack, outlined over map and overlay.
        lower, upper, by: as in `threshold_cam`. alpha, cmap: as in `overlay`.

    Returns:
        The matplotlib figure.
    """
    values = _as_map(cam)
    band = "Otsu" if by == "otsu" else f"{by} {lower:.2f} to {upper:.2f}"
    name = f"{cam.method}, {cam.layer}" if hasattr(cam, "method") else "map"
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
    axes[0].imshow(_as_uint8(image))
    bar = figure.colorbar(axes[1].imshow(values, cmap=cmap, vmin=0, vmax=1), ax=axes[1], fraction=0.046)
    bar.set_label("scaled per picture")
    axes[2].imshow(overlay(image, threshold_cam(values, lower, upper, by=by), alpha, cmap))
    for axis, title in zip(axes, ("picture", name, f"kept: {band}"), strict=True):
        axis.set_title(title, fontsize=9)
        axis.axis("off")
        if mask is not None and np.any(mask) and axis is not axes[0]:
            axis.contour(np.asarray(mask, float), levels=[0.5], colors="cyan", linewidths=0.8)
    return figure
