"""Pools of pictures to cut training crops from: sheets drawn once and kept, and photographs held in memory."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import skimage
import sklearn
from matplotlib import cbook

from surfaces import cracks, draw, textures
from surfaces.draw import KINDS, train_seed
from surfaces.files import atomic_path
from surfaces.folders import list_photos
from surfaces.photos import check_size, read_pair, read_photo, to_uint8

EVERYDAY = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "moon.png",
            "motorcycle_left.png", "rocket.jpg")
LONGEST = 1400  # pixels; larger photographs of everyday things are reduced, which also takes noise and blur away
IN_MEMORY = 2 * 2**30  # bytes of photographs kept decoded; more are decoded at every access


def drawn_sheets(count, cache, size=512, seed=0, kinds=None, workers=1):
    """Draw train sheets of built-in surfaces, once: they are kept in `cache` until the drawing code changes.

    Args:
        count: how many sheets; kinds take turns.
        cache: the folder that they are kept in.
        size: side of a sheet in pixels (32 to 1024).
        seed: which sheets; they share no picture with any data set of `open_dataset`.
        kinds: names from `surfaces.draw.KINDS`, default all.
        workers: processes that draw.

    Returns:
        List of ((size, size, 3) uint8, (size, size) bool), read from disk when touched.

    Raises:
        ValueError: a count below 1 or above five million, a negative seed.
    """
    kinds = tuple(kinds or KINDS)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    jobs = [(kinds[i % len(kinds)], train_seed(seed, i, sheet=True), size) for i in range(count)]
    stem = f"drawn-{size}-{count}-{seed}-{_drawing_code(kinds)}"
    paths = [Path(cache) / f"{stem}-{what}.npy" for what in ("pictures", "masks")]
    if not all(path.is_file() for path in paths):
        _draw_sheets(jobs, paths, size, workers)
    # plain views of the mapped files: np.memmap objects are slow to slice
    pictures, masks = (np.asarray(np.load(path, mmap_mode="r")) for path in paths)
    return list(zip(pictures, masks, strict=True))


def photo_pool(folder, split="train", smallest=64):
    """Read the photographs of a split, whole, for `Crops`.

    Args:
        folder: of photographs, see `surfaces.folders.list_photos`.
        split: "train", "valid" or "test".
        smallest: photographs must have at least this many pixels in height and width.

    Returns:
        Dict from source to a sequence of ((H, W, 3) uint8, (H, W) bool, or None without a mask).

    Raises:
        FileNotFoundError, ValueError: naming the file and what was wanted.
    """
    listed = list_photos(folder, split)
    sizes = [check_size(photo, smallest) for photo in listed]
    keep = sum(height * width * 4 for height, width in sizes) <= IN_MEMORY
    sources = dict.fromkeys(photo.source for photo in listed)
    pools = {source: _Photographs([photo for photo in listed if photo.source == source]) for source in sources}
    return {source: list(pool) if keep else pool for source, pool in pools.items()}


class _Photographs(Sequence):
    """Photographs decoded at every access."""

    def __init__(self, photos):
        self.photos = photos

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        pixels, mask = read_pair(self.photos[index])
        return to_uint8(pixels), mask if self.photos[index].mask else None


def _draw_sheets(jobs, paths, size, workers):
    with atomic_path(paths[0]) as first, atomic_path(paths[1]) as second:
        pictures = np.lib.format.open_memmap(first, "w+", np.uint8, (len(jobs), size, size, 3))
        masks = np.lib.format.open_memmap(second, "w+", bool, (len(jobs), size, size))
        with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
            drawn = pool.map(_draw_sheet, jobs, chunksize=4) if pool else map(_draw_sheet, jobs)
            for i, (picture, mask) in enumerate(drawn):
                pictures[i], masks[i] = picture, mask
        pictures.flush()
        masks.flush()


def _draw_sheet(job):
    picture, mask = draw.draw_surface(job[0], job[1], size=job[2])
    # rounded half to even, unlike `to_uint8`: networks were trained on these bytes, of which five in a million differ
    return np.round(picture * 255).astype(np.uint8), mask


def _drawing_code(kinds):
    """Hash what decides about the drawings besides the seed: the kinds and the source of the drawing modules."""
    sources = [Path(module.__file__).read_bytes() for module in (draw, cracks, textures)]
    return hashlib.sha256(b"".join([*sources, repr(kinds).encode()])).hexdigest()[:12]


def everyday_pool(folder=None):
    """Read photographs of everyday things that scikit-image, scikit-learn and matplotlib ship, for variety in training.

    None of them is in a test set; scikit-image's `gravel` and `brick` are, and stay out.

    Args:
        folder: of more photographs (jpg), read too, reduced to `LONGEST` pixels.

    Returns:
        Dict "everyday" -> list of ((H, W, 3) uint8, None).

    Raises:
        FileNotFoundError: there is no jpg in the folder.
    """
    shipped = [Path(skimage.__file__).parent / "data" / name for name in EVERYDAY]
    shipped += sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))
    shipped += [Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))]
    pictures = [to_uint8(read_photo(path)) for path in shipped if path.is_file()]
    if folder:
        more = sorted(Path(folder).rglob("*.jpg"))
        if not more:
            raise FileNotFoundError(f"wanted a folder with photographs (jpg), got {folder}")
        pictures += [_reduced(to_uint8(read_photo(path))) for path in more]
    return {"everyday": [(picture, None) for picture in pictures]}


def _reduced(picture):
    """Return a picture (H, W, 3) uint8 with at most `LONGEST` pixels along its longer side."""
    scale = LONGEST / max(picture.shape[:2])
    return picture if scale >= 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
