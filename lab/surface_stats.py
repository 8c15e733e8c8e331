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
QUANTILES = (0.1, 0.5, 0.9)
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


def quantiles(rows):
    """Quantiles of each statistic, NaN left out: dict name -> [10 %, 50 %, 90 %]."""
    columns = np.asarray(rows, float).T
    return {name: [round(float(q), 5) for q in np.nanquantile(column, QUANTILES)]
            for name, column in zip(STATISTICS, columns, strict=True)}


def surface_statistics(photos, drawings=100, first_seed=0):
    """Compare drawn surfaces with photographs.

    Args:
        photos: folder with ``manifest.csv`` and tiles.
        drawings: number of drawings of each kind, 224 x 224 as the tiles.
        first_seed: seed of the first drawing.

    Returns:
        dict with ``definitions`` (statistic -> words), ``drawn`` (kind -> statistic -> [10, 50, 90 %]), ``photos``
        (source -> the same), ``inside`` (kind -> statistic -> sources whose 10..90 % range holds the kind's median)
        and ``passed`` (bool: no such list is empty).

    Raises:
        FileNotFoundError: see `photographs`.
    """
    by_source = {}
    for source, image, mask in photographs(photos):
        by_source.setdefault(source, []).append(picture_statistics(image, mask))
    real = {source: quantiles(rows) for source, rows in by_source.items()}
    seeds = range(first_seed, first_seed + drawings)
    drawn = {kind: quantiles([picture_statistics(*draw_surface(kind, seed)) for seed in seeds]) for kind in KINDS}
    inside = {kind: {name: [source for source in real if real[source][name][0] <= drawn[kind][name][1]
                            <= real[source][name][2]] for name in STATISTICS} for kind in KINDS}
    return {"definitions": STATISTICS, "drawings": drawings, "first_seed": first_seed, "drawn": drawn, "photos": real,
            "inside": inside, "passed": all(all(names.values()) for names in inside.values())}


def print_table(result):
    """Print quantiles per kind and source, and where a kind's median lies inside no source."""
    for name, words in result["definitions"].items():
        print(f"{name}: {words}")
        for origin in ("photos", "drawn"):
            for key, table in result[origin].items():
                low, middle, high = table[name]
                verdict = ""
                if origin == "drawn":
                    verdict = ", ".join(result["inside"][key][name]) or "OUTSIDE every source"
                print(f"  {origin:6} {key:12} {low:9.3f} {middle:9.3f} {high:9.3f}  {verdict}")
    print(("every" if result["passed"] else "NOT every") + " kind's median is inside a source")


def main():
    parser = argparse.ArgumentParser(description="Compare the drawn surfaces' statistics with photographs.")
    parser.add_argument("--photos", required=True, help="folder with manifest.csv")
    parser.add_argument("--drawings", type=int, default=100, help="drawings of each kind (default 100)")
    arguments = parser.parse_args()
    print_table(surface_statistics(arguments.photos, arguments.drawings))


if __name__ == "__main__":
    main()
