"""The built-in images, so that everything runs offline: which drawings are train, valid and test.

    drawings = list_drawings("test")
    image, mask = draw_built_in(drawings[0])      # (224, 224, 3) float32 in [0, 1] and (224, 224) bool

All are synthetic surfaces (`surfaces.draw`), but for some of test: tiles of real textures (photographs that
scikit-image ships) with a synthetic crack on each.
"""

from typing import NamedTuple

import numpy as np
from skimage import data as skimage_data
from skimage.color import gray2rgb

from surfaces.cracks import put_crack_on
from surfaces.draw import KINDS, draw_surface
from surfaces.tiles import TILE

COUNTS = {"train": 2000, "valid": 64, "test": 96}  # synthetic surfaces in each split
TEXTURES, TEXTURE_TILES = ("gravel", "brick"), 24  # real textures in test, and the number of their tiles
# Where seeds begin; train takes a block of its own for every seed, above the fixed ones.
TEST_SEEDS, VALID_SEEDS, TEXTURE_SEEDS, TRAIN_SEEDS, BLOCK = 0, 100_000, 200_000, 10_000_000, 10_000_000


class Drawing(NamedTuple):
    """What decides about one built-in image, and what it counts as."""

    name: str
    kind: str  # one of `surfaces.draw.KINDS`, or of `TEXTURES`
    seed: int
    photo: str  # the photograph that it is from; a synthetic surface is its own
    source: str


def list_drawings(split: str, seed: int = 0, count: int | None = None) -> list[Drawing]:
    """List the built-in images of a split; kinds take turns.

    Args:
        split: "train", "valid" or "test".
        seed: of train; valid and test are always the same.
        count: how many in train, default 2000; valid and test are always whole.

    Raises:
        ValueError: a negative seed, or a count above five million.

    >>> list_drawings("valid")[6]
    Drawing(name='concrete-100006', kind='concrete', seed=100006, photo='concrete-100006', source='concrete')
    """
    count = count or COUNTS[split] if split == "train" else COUNTS[split]
    first = {"train": train_seed(seed, count - 1) - count + 1, "valid": VALID_SEEDS, "test": TEST_SEEDS}[split]
    plan = [(KINDS[i % len(KINDS)], first + i) for i in range(count)]
    if split == "test":
        plan += [(TEXTURES[i % len(TEXTURES)], TEXTURE_SEEDS + i) for i in range(TEXTURE_TILES)]
    drawings = []
    for kind, number in plan:
        name = f"{kind}-{number:06d}"
        drawings.append(Drawing(name, kind, number, kind, "photo-texture") if kind in TEXTURES
                        else Drawing(name, kind, number, name, kind))
    return drawings


def draw_built_in(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Draw a built-in image, (224, 224, 3) float32 in [0, 1], and the mask of its cracks, (224, 224) bool."""
    if drawing.kind in TEXTURES:
        return draw_cracked_texture(drawing.kind, drawing.seed)
    return draw_surface(drawing.kind, drawing.seed, size=TILE)


def draw_cracked_texture(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Put a synthetic crack on a tile of a real texture, one of scikit-image's photographs.

    Of each photograph there are 12 overlapping tiles, in 3 rows and 4 columns; seeds go through them in turn.

    Args:
        kind: one of `TEXTURES`.
        seed: whole number of at least 0: which tile, and which crack.

    Returns:
        image (224, 224, 3) float32 in [0, 1], grey; mask (224, 224) bool, True on the crack (there always is one).

    Raises:
        ValueError: for an unknown kind.

    >>> image, mask = draw_cracked_texture("gravel", seed=0)
    >>> image.shape, bool(mask.any())
    ((224, 224, 3), True)
    """
    if kind not in TEXTURES:
        raise ValueError(f"kind must be one of {', '.join(TEXTURES)}; got {kind!r}")
    photo = gray2rgb(getattr(skimage_data, kind)())  # (512, 512, 3) uint8
    place = (seed - TEXTURE_SEEDS) // len(TEXTURES) % 12
    y, x = place // 4 * (photo.shape[0] - TILE) // 2, place % 4 * (photo.shape[1] - TILE) // 3
    return put_crack_on(photo[y:y + TILE, x:x + TILE].astype(np.float32) / 255, seed)


def train_seed(seed: int, index: int, sheet: bool = False) -> int:
    """Return the seed of built-in train image `index`: never one of valid, test, another `seed` or a sheet.

    Args:
        seed: of the data set.
        index: of the image in it.
        sheet: for the sheets of `surfaces.training_images.drawn_sheets`, which share no image with a data set.

    Raises:
        ValueError: a negative seed, or an index outside a block of five million.
    """
    if seed < 0 or not 0 <= index < BLOCK // 2:
        raise ValueError(f"wanted a seed of at least 0 and an index below {BLOCK // 2}, got {seed} and {index}")
    return TRAIN_SEEDS + seed * BLOCK + index + sheet * BLOCK // 2
