"""How near drawn surfaces come to photographs: python -m lab.surface_stats --photos FOLDER

Measures six statistics that a viewer and a denoiser notice, on drawings of each kind and on the train tiles of each
source in FOLDER (which has a ``manifest.csv`` with path, mask, source, split). A kind passes on a statistic when its
median lies between the 10 % and the 90 % quantile of at least one source.
"""

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.morphology import skeletonize

from lab.measures import sharpness
from surfaces.draw import KINDS, draw_surface

STATISTICS = {
    "contrast": "standard deviation of the luma",
    "sharpness": "mean absolute difference between neighbours, over all pairs and channels",
    "saturation": "mean of (largest - smallest channel) / largest",
    "spectrum_slope": "slope of log power over log frequency, 1/56 to 1/2 cycles per pixel, Hann window",
    "crack_width": "mask's area divided by its skeleton's length, pixels",
    "crack_contrast": "mean luma 4 to 12 pixels beside the crack minus mean luma on it",
}
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
LUMA = np.float32([0.299, 0.587, 0.114])


def spectrum_slope(luma, longest=56):
    """Slope of a straight line through the radially averaged power spectrum in log-log axes.

    Args:
        luma: (H, W) float32.
        longest: longest wavelength that counts, pixels.

    Returns:
        float, dimensionless; 0 for white noise, about -2 for a picture of sharp edges.
    """
    n = min(luma.shape)
    window = np.hanning(n)[:, None] * np.hanning(n)
    power = np.abs(np.fft.fft2((luma[:n, :n] - luma.mean()) * window)) ** 2
    radius = np.rint(n * np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))).astype(int).ravel()
    mean_power = np.bincount(radius, power.ravel()) / np.bincount(radius)
    at = np.arange(max(1, round(n / longest)), n // 2 + 1)
    return float(np.polyfit(np.log(at), np.log(mean_power[at] + 1e-12), 1)[0])


def crack_statistics(luma, mask):
    """Width in pixels and contrast of the cracks in one picture; (NaN, NaN) where fewer than 30 pixels are crack."""
    if mask.sum() < 30:
        return np.nan, np.nan
    width = mask.sum() / max(1, skeletonize(mask).sum())
    distance = ndimage.distance_transform_edt(~mask)
    beside = (distance > 4) & (distance <= 12)
    contrast = luma[beside].mean() - luma[mask].mean() if beside.any() else np.nan
    return float(width), float(contrast)


def picture_statistics(image, mask):
    """The six ``STATISTICS`` of one picture (H, W, 3) float32 in [0, 1] with its mask (H, W) bool, in their order."""
    luma = image @ LUMA
    largest = image.max(axis=2)
    saturation = ((largest - image.min(axis=2)) / np.maximum(largest, 1 / 255)).mean()
    return [float(luma.std()), float(sharpness(image)), float(saturation), spectrum_slope(luma),
            *crack_statistics(luma, mask)]


def photographs(folder):
    """Yield (source, image, mask) of the train tiles that ``manifest.csv`` in a folder lists.

    Raises:
        FileNotFoundError: no manifest, or a tile or mask it names is missing or no picture.
    """
    manifest = Path(folder) / "manifest.csv"
    if not manifest.is_file():
        raise FileNotFoundError(f"wanted a folder with manifest.csv (path, mask, source, split), got {folder}")
    with manifest.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["split"] != "train":
                continue
            image = cv2.imread(str(manifest.parent / row["path"]), cv2.IMREAD_COLOR)
            mask = cv2.imread(str(manifest.parent / row["mask"]), cv2.IMREAD_GRAYSCALE)
            if image is None or mask is None:
                raise FileNotFoundError(f"{manifest} names {row['path']} and {row['mask']}: one of them can't be read")
            yield row["source"], image[..., ::-1].astype(np.float32) / 255, mask > 127


def surface_statistics(photos, drawings=100, first_seed=0):
    """Compare drawn surfaces with photographs.

    Args:
        photos: folder with ``manifest.csv`` and tiles.
        drawings: number of drawings of each kind, 224 x 224 as the tiles.
        first_seed: seed of the first drawing.

    Returns:
        The table `surfaces`: per set ("drawn", "photos"), source (kind or source) and figure of ``STATISTICS`` the
        10 % quantile `low`, the `median` and the 90 % quantile `high`, NaN left out.

    Raises:
        FileNotFoundError: see `photographs`.
    """
    real = [("photos", source, *picture_statistics(image, mask)) for source, image, mask in photographs(photos)]
    drawn = [("drawn", kind, *picture_statistics(*draw_surface(kind, seed)))
             for kind in KINDS for seed in range(first_seed, first_seed + drawings)]
    figures = pd.DataFrame(drawn + real, columns=["set", "source", *STATISTICS]).groupby(["set", "source"], sort=False)
    table = pd.DataFrame({name: figures.quantile(q).stack() for name, q in QUANTILES.items()})
    return table.round(5).rename_axis(["set", "source", "figure"]).reset_index()


def inside(table):
    """Return {(kind, figure): sources of photographs whose low to high holds the kind's median}."""
    both = table[table["set"] == "drawn"].merge(table[table["set"] == "photos"], on="figure", suffixes=("", "_photos"))
    both["inside"] = (both["low_photos"] <= both["median"]) & (both["median"] <= both["high_photos"])
    return {key: list(part.loc[part["inside"], "source_photos"])
            for key, part in both.groupby(["source", "figure"], sort=False)}


def passed(table):
    """Return whether every kind passes on every figure: its median is inside at least one source."""
    return all(inside(table).values())


def print_table(table):
    """Print quantiles per kind and source, and where a kind's median lies inside no source."""
    held = inside(table)
    for name, words in STATISTICS.items():
        print(f"{name}: {words}")
        for row in table[table["figure"] == name].sort_values("set", ascending=False, kind="stable").itertuples():
            verdict = (", ".join(held[row.source, name]) or "OUTSIDE every source") if row.set == "drawn" else ""
            print(f"  {row.set:6} {row.source:12} {row.low:9.3f} {row.median:9.3f} {row.high:9.3f}  {verdict}")
    print(("every" if passed(table) else "NOT every") + " kind's median is inside a source")


def main():
    parser = argparse.ArgumentParser(description="Compare the drawn surfaces' statistics with photographs.")
    parser.add_argument("--photos", required=True, help="folder with manifest.csv")
    parser.add_argument("--drawings", type=int, default=100, help="drawings of each kind (default 100)")
    arguments = parser.parse_args()
    print_table(surface_statistics(arguments.photos, arguments.drawings))


if __name__ == "__main__":
    main()
