"""Images to cut training crops from: synthetic sheets drawn once and kept on disk, and photographs held in memory.

    sheets = drawn_sheets(600, cache="cache", workers=2)     # drawn once, mapped from disk
    photos = photo_pool("my-walls")                          # {source: images}
    everyday = everyday_pool()                               # {"everyday": images}

A pool is what `helpers.data.Crops` cuts from: a sequence of (image (H, W, 3) uint8, mask (H, W) bool or None).
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import skimage
import sklearn
from matplotlib import cbook

from surfaces import cracks, draw, materials, textures
from surfaces.built_in import train_seed
from surfaces.draw import KINDS
from surfaces.files import atomic_path
from surfaces.folders import Photo, list_photos
from surfaces.photos import read_photo_uint8, to_uint8
from surfaces.tiles import check_size, read_pair

Pool = Sequence[tuple[np.ndarray, np.ndarray | None]]

DRAWING = (draw, materials, cracks, textures)  # the modules that decide what a sheet looks like
EVERYDAY = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "moon.png",
            "motorcycle_left.png", "rocket.jpg")
EVERYDAY_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in upper or lower case
LONGEST = 1400  # pixels; larger photographs of everyday things are reduced, which also takes noise and blur away
IN_MEMORY = 2 * 2**30  # bytes of photographs kept decoded; more are decoded at every access
CHUNK = 2**20  # bytes written at once where the system cannot reserve space on a disk


def drawn_sheets(count: int, cache: str | Path, size: int = 512, seed: int = 0, kinds: Sequence[str] | None = None,
                 workers: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw train sheets of built-in surfaces, once: they are kept in `cache` until the drawing code changes.

    A file in the cache that is not whole is drawn anew.

    Args:
        count: how many sheets; kinds take turns.
        cache: the folder that they are kept in; it is made where there is none.
        size: side of a sheet in pixels (32 to 1024).
        seed: which sheets; they share no image with any data set of `helpers.data.open_dataset`.
        kinds: names from `surfaces.draw.KINDS`, default all.
        workers: processes that draw.

    Returns:
        List of ((size, size, 3) uint8, (size, size) bool), read from disk when touched.

    Raises:
        ValueError: a count below 1 or above five million, a negative seed, another size or kind.
        OSError: the cache has no room for the sheets (which is found out before the first is drawn), is no folder or
            cannot be written. The message says what was wanted and what is free.
    """
    kinds = tuple(kinds or KINDS)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    for kind in kinds:  # refused before space is taken
        draw.check_drawing(kind, size)
    jobs = [(kinds[i % len(kinds)], train_seed(seed, i, sheet=True), size) for i in range(count)]
    stem = f"drawn-{size}-{count}-{seed}-{_drawing_code(kinds)}"
    paths = [Path(cache) / f"{stem}-{what}.npy" for what in ("pictures", "masks")]
    if (sheets := _kept_sheets(paths, count, size)) is None:
        try:
            with atomic_path(paths[0]) as first, atomic_path(paths[1]) as second:
                _draw_sheets(jobs, first, second, workers)
        except OSError as error:
            there = next(path for path in (Path(cache), *Path(cache).absolute().parents) if path.exists())
            raise OSError(error.errno, f"{cache}: wanted {count * size * size * 4 / 1e6:.1f} MB for {count} sheets of "
                                       f"{size} x {size} pixels, {shutil.disk_usage(there).free / 1e6:.1f} MB are free "
                                       f"({error.strerror or error})") from error
        sheets = _kept_sheets(paths, count, size)
    return list(zip(*sheets, strict=True))


def photo_pool(folder: str | Path, split: str = "train", smallest: int = 64) -> dict[str, Pool]:
    """Read the photographs of a split, whole, for `helpers.data.Crops`.

    Args:
        folder: of photographs, see `surfaces.folders.list_photos`.
        split: "train", "valid" or "test".
        smallest: photographs must have at least this many pixels in height and width.

    Returns:
        Dict from source to its images; where all are too large to keep in memory, they are decoded at every access.

    Raises:
        FileNotFoundError, ValueError: naming the file and what was wanted.
    """
    listed = list_photos(folder, split)
    sizes = [check_size(photo, smallest) for photo in listed]
    keep = sum(height * width * 4 for height, width in sizes) <= IN_MEMORY
    sources = dict.fromkeys(photo.source for photo in listed)
    pools = {source: _Photographs([photo for photo in listed if photo.source == source]) for source in sources}
    return {source: list(pool) if keep else pool for source, pool in pools.items()}


def everyday_pool(folder: str | Path | None = None) -> dict[str, Pool]:
    """Read photographs of everyday things that scikit-image, scikit-learn and matplotlib ship, for variety in training.

    None of them is in a test set; scikit-image's `gravel` and `brick` are, and stay out.

    Args:
        folder: of more photographs (jpg, jpeg, png, webp), read too, with its subfolders, reduced to `LONGEST` pixels.

    Returns:
        Dict "everyday" -> images without masks.

    Raises:
        FileNotFoundError: there is no such photograph in the folder.
    """
    shipped = [Path(skimage.__file__).parent / "data" / name for name in EVERYDAY]
    shipped += sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))
    shipped += [Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))]
    images = [read_photo_uint8(path) for path in shipped if path.is_file()]
    if folder:
        more = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in EVERYDAY_SUFFIXES)
        if not more:
            raise FileNotFoundError(f"wanted a folder with photographs ({', '.join(EVERYDAY_SUFFIXES)}), got {folder}")
        images += [_reduced(read_photo_uint8(path)) for path in more]
    return {"everyday": [(image, None) for image in images]}


class _Photographs(Sequence):
    """Photographs decoded at every access."""

    def __init__(self, photos: list[Photo]):
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        pixels, mask = read_pair(self.photos[index])
        return to_uint8(pixels), mask if self.photos[index].mask else None


def _kept_sheets(paths, count, size):
    """Return images and masks, mapped from disk, or None where the two files are not there or not whole."""
    try:
        # plain views of the mapped files: np.memmap objects are slow to slice
        images, masks = (np.asarray(np.load(path, mmap_mode="r")) for path in paths)
    except (FileNotFoundError, NotADirectoryError, EOFError, ValueError):  # the last two where a file breaks off
        return None
    whole = images.shape == (count, size, size, 3) and masks.shape == (count, size, size)
    return (images, masks) if whole and (images.dtype, masks.dtype) == (np.uint8, bool) else None


def _draw_sheets(jobs, image_path, mask_path, workers):
    """Draw into two new files, mapped only while this runs: Windows renames no file that is mapped."""
    size = jobs[0][2]
    images = _new_array(image_path, np.uint8, (len(jobs), size, size, 3))
    masks = _new_array(mask_path, bool, (len(jobs), size, size))
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        drawn = pool.map(_draw_sheet, jobs, chunksize=4) if pool else map(_draw_sheet, jobs)
        for i, (image, mask) in enumerate(drawn):
            images[i], masks[i] = image, mask
    images.flush()
    masks.flush()


def _draw_sheet(job):
    image, mask = draw.draw_surface(*job)
    # rounded half to even, unlike `to_uint8`: networks were trained on these bytes, of which five in a million differ
    return np.round(image * 255).astype(np.uint8), mask


def _new_array(path, dtype, shape):
    """Return a new .npy file as a writable map, with all of its space on the disk taken.

    A file that is merely as long as it should be takes space as it is written; through a map, a full disk would then
    end the process without a word (SIGBUS).
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with open(path, "wb") as file:
        description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, description)
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), file.tell(), size)
        except (AttributeError, OSError) as error:  # macOS and Windows have no such call, some file systems refuse it
            if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            for start in range(0, size, CHUNK):
                file.write(bytes(min(CHUNK, size - start)))
    return np.load(path, mmap_mode="r+")


def _drawing_code(kinds):
    """Hash what decides about the drawings besides the seed: the kinds and the source of the drawing modules."""
    sources = [Path(module.__file__).read_bytes() for module in DRAWING]
    return hashlib.sha256(b"".join([*sources, repr(kinds).encode()])).hexdigest()[:12]


def _reduced(image):
    """Return an image (H, W, 3) uint8 with at most `LONGEST` pixels along its longer side."""
    scale = LONGEST / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
