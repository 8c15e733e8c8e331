"""Square tiles of photographs, and photographs with their masks.

Cutting looks at headers only; pixels are decoded when a tile is read.

    tiles = list_tiles(list_photos(folder, "test"))
    image, mask = read_tile(tiles[0])         # (224, 224, 3) float32 in [0, 1] and (224, 224) bool
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surfaces.folders import Photo, refuse_twice
from surfaces.photos import read_mask, read_photo, read_size

TILE = 224  # side of a tile in pixels, and of the built-in images


class Tile(NamedTuple):
    """A square of `size` pixels at row `y`, column `x` of a photograph: NAME_r0c1, or NAME where it is all of it."""

    name: str
    photo: Photo
    y: int
    x: int
    size: int


def list_tiles(photos: Iterable[Photo], size: int = TILE) -> list[Tile]:
    """Cut photographs into tiles: as many as fit side by side without overlap, spread evenly from edge to edge.

    Reads headers: a missing file, one that is no image, a mask of another size and a photograph smaller than `size`
    are found here.

    Args:
        photos: from `surfaces.folders.list_photos`.
        size: side of a tile in pixels.

    Returns:
        The tiles in the order of `photos`, row by row.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    tiles = []
    for photo in photos:
        height, width = check_size(photo, size)
        rows, columns = _starts(height, size), _starts(width, size)
        whole = (height, width) == (size, size)
        tiles += [Tile(photo.name if whole else f"{photo.name}_r{r}c{c}", photo, y, x, size)
                  for r, y in enumerate(rows) for c, x in enumerate(columns)]
    refuse_twice([(tile.name, tile.photo.path) for tile in tiles])
    return tiles


def read_tile(tile: Tile, cache: dict[Path, tuple[np.ndarray, np.ndarray]] | None = None
              ) -> tuple[np.ndarray, np.ndarray]:
    """Read a tile's pixels and mask.

    Args:
        tile: from `list_tiles`.
        cache: a dict that keeps the last photograph, so that its tiles in a row decode it once.

    Returns:
        (size, size, 3) float32 in [0, 1] and (size, size) bool; the mask is all False where the photograph has none.

    Raises:
        FileNotFoundError, ValueError: as `surfaces.photos.read_photo`.
    """
    cache = {} if cache is None else cache
    if tile.photo.path not in cache:
        cache.clear()
        cache[tile.photo.path] = read_pair(tile.photo)
    pixels, mask = cache[tile.photo.path]
    window = np.s_[tile.y:tile.y + tile.size, tile.x:tile.x + tile.size]
    return pixels[window], mask[window]


def read_pair(photo: Photo) -> tuple[np.ndarray, np.ndarray]:
    """Read a photograph and its mask (all False without one): (H, W, 3) float32 in [0, 1] and (H, W) bool.

    Raises:
        FileNotFoundError, ValueError: as `surfaces.photos.read_photo`; a mask of another size.
    """
    pixels = read_photo(photo.path)
    mask = read_mask(photo.mask) if photo.mask else np.zeros(pixels.shape[:2], bool)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(_other_size(photo, mask.shape, pixels.shape))
    return pixels, mask


def check_size(photo: Photo, smallest: int) -> tuple[int, int]:
    """Return a photograph's (height, width) from its header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: less than `smallest` pixels a side, or another size than its mask's.
    """
    size = read_size(photo.path)
    if min(size) < smallest:
        raise ValueError(f"{photo.path}: wanted a photograph of at least {smallest} x {smallest} pixels, "
                         f"got {size[0]} x {size[1]}")
    if photo.mask and (mask := read_size(photo.mask)) != size:
        raise ValueError(_other_size(photo, mask, size))
    return size


def _starts(length, size):
    count = length // size
    return [(length - size) // 2] if count == 1 else [round(i * (length - size) / (count - 1)) for i in range(count)]


def _other_size(photo, mask, size):
    return (f"{photo.mask}: wanted a mask of its photograph's size, {size[0]} x {size[1]} ({photo.path.name}), "
            f"got {mask[0]} x {mask[1]}")
