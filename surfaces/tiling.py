"""Lay overlapping tiles over an image of any size, with weights that fade each into its neighbours.

    rows, columns = lay_tiles(image.shape[:2], tile=768, overlap=None, multiple=8, margin=52)
    rows.starts, rows.size, rows.weights      # the first pixels, one size for all, (tiles, size) float32

Tiles start at multiples of `multiple`, so that their pooling grids are the image's. Of an overlap each of the two
neighbours gives up its outer margin, where it lacks surroundings; between the margins they cross-fade by a raised
cosine. All weights sum to 1, and a tile enters with a weight far below 1/255: whatever is made of the tiles, the border
of one is never a step above 1/255.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RAMP = 32  # pixels of cross-fade; the weight at its first pixel, (pi / 4 / 32) ** 2 = 0.0006, is far below 1/255


class Tiles(NamedTuple):
    """How tiles lie along one side of an image."""

    starts: list[int]  # their first pixels
    size: int  # in pixels, the same for all
    weights: np.ndarray  # (tiles, size) float32; at every pixel they sum to 1


def lay_tiles(shape: Sequence[int], tile: int, overlap: int | None, multiple: int, margin: float,
              fixed: bool = False, least: int = 1) -> list[Tiles]:
    """Return the `Tiles` of rows and of columns for an image of `shape` (H, W), which may reach beyond its end.

    Args:
        tile: side of the tiles in pixels at most.
        overlap: pixels that neighbours share at least; None: both margins and `RAMP`, for small tiles less.
        multiple: of which sides and starts are.
        margin: pixels at a tile's border that are wrong for want of surroundings; infinite: all of them.
        fixed: whether tiles are never smaller than `tile` where there is more than one.
        least: a tile's side in pixels at least.

    Raises:
        ValueError: a tile or overlap that cannot be.
    """
    if tile != int(tile) or tile < multiple or tile % multiple:
        raise ValueError(f"tile must be a multiple of {multiple} pixels, got {tile!r}")
    # rounded up: two margins are a multiple of 8
    margin = margin if margin == math.inf else math.ceil(margin / 4) * 4
    if overlap is None:
        half = tile // 2 // multiple * multiple  # so that no three tiles meet in a row
        overlap = int(min(2 * margin + RAMP, max(3 * tile // 10, min(half, RAMP)), tile - multiple))
    if overlap != int(overlap) or not 0 <= overlap <= tile - multiple:
        raise ValueError(f"overlap must be in 0..{tile - multiple} pixels for tiles of {tile}, got {overlap!r}")
    whole = [max(-(-length // multiple) * multiple, least) for length in shape]  # with what is mirrored
    # where there is little room, the cross-fade comes first
    margin = min(max((overlap - RAMP) // 2, 0), margin)
    return [_lay_line(length, tile, overlap, margin, multiple, not fixed) for length in whole]


def _lay_line(length, tile, overlap, margin, multiple, shrink):
    """Spread tiles evenly over `length` pixels; with `shrink` no larger than their number and the overlap ask for."""
    if length <= tile:
        return Tiles([0], length, np.ones((1, length), np.float32))
    units, whole = tile // multiple, length // multiple
    step = (tile - overlap) // multiple  # rounded down, so that neighbours share at least `overlap`
    count = -(-(whole - units) // step) + 1
    if shrink:
        units = -(-(whole + (count - 1) * (units - step)) // count)
    starts = [i * (whole - units) // (count - 1) * multiple for i in range(count)]  # evenly, on the pooling grid
    size = units * multiple
    # the margins of an overlap count for nothing; the rest is the cross-fade
    ramp = max(overlap - 2 * margin, 1)
    middles = [(a + size + b) / 2 for a, b in zip(starts, starts[1:], strict=False)]  # of the overlaps
    pixels = np.array(starts)[:, None] + np.arange(size) + 0.5  # (tiles, size)

    def past(middle):  # 0 before the cross-fade around `middle`, 1 after it
        place = (pixels - np.array(middle)[:, None]) / ramp + 0.5
        return np.sin(math.pi / 2 * place.clip(0, 1)) ** 2

    # a difference of steps: sums to 1 however many tiles meet at a pixel
    weights = past([-math.inf, *middles]) - past([*middles, math.inf])
    return Tiles(starts, size, weights.astype(np.float32))


def mirror(start: int, count: int, length: int) -> np.ndarray:
    """Return `count` indices from `start` on into `length` pixels, mirrored beyond their end.

    >>> mirror(1, 6, 4).tolist()
    [1, 2, 3, 2, 1, 0]
    """
    turn = max(2 * (length - 1), 1)  # there and back, as often as it takes
    index = np.arange(start, start + count) % turn
    return np.minimum(index, turn - index)
