"""Draw a cracked surface and its mask from a seed: the built-in data, so that everything runs offline.

    image, mask = draw_surface("asphalt", seed=0)        # all of it synthetic
    image, mask = draw_cracked_texture("gravel", seed=0) # a synthetic crack on a photograph that scikit-image ships

An image is made as a photograph is: a surface (stones, grain, pores; `surfaces.materials`), cracks and dark things
(`surfaces.cracks`), light, and a camera that blurs and sharpens.
"""

import cv2
import numpy as np
from skimage import data as skimage_data
from skimage.color import gray2rgb

from surfaces.cracks import draw_cracks, draw_distractors, put_crack_on
from surfaces.materials import MATERIALS
from surfaces.textures import cast_light, log_uniform, own_stream, polygon_stones, smooth_noise
from surfaces.tiles import TILE

KINDS = tuple(MATERIALS)
SMALLEST, LARGEST = 32, 1024  # sides of a drawing in pixels
WITHOUT_CRACKS = 0.2  # fraction of the images
TEXTURES, TEXTURE_TILES = ("gravel", "brick"), 24  # scikit-image's photographs in the built-in test set
# Where the seeds of the built-in images begin; train takes a block of its own for every seed, above the fixed ones.
TEST_SEEDS, VALID_SEEDS, TEXTURE_SEEDS, TRAIN_SEEDS, BLOCK = 0, 100_000, 200_000, 10_000_000, 10_000_000


def draw_surface(kind: str, seed: int, size: int = TILE) -> tuple[np.ndarray, np.ndarray]:
    """Draw one surface and the mask of its cracks.

    Args:
        kind: one of `KINDS`.
        seed: whole number of at least 0; the same seed gives the same image.
        size: side in pixels, 32 to 1024. A larger image shows more surface at the same scale of grain.

    Returns:
        image (size, size, 3) float32 in [0, 1], sRGB; mask (size, size) bool, True on cracks (all False in about
        one image of five).

    Raises:
        ValueError: for an unknown kind or a size out of range.

    >>> image, mask = draw_surface("asphalt", seed=0, size=64)
    >>> image.shape, image.dtype.name, mask.shape, mask.dtype.name
    ((64, 64, 3), 'float32', (64, 64), 'bool')
    """
    check_drawing(kind, size)
    rng = np.random.default_rng((KINDS.index(kind), seed))
    look = MATERIALS[kind](rng, size)
    # light: dark things that are no cracks, a slow change from side to side, and what cracks swallow
    light = draw_distractors(own_stream(rng), size, look.marks)
    light *= np.exp(np.float32(rng.uniform(0.01, 0.09)) * smooth_noise(rng, size, rng.uniform(100, 250)))
    mask = np.zeros((size, size), bool)
    if rng.uniform() >= WITHOUT_CRACKS:
        light, mask = _open_cracks(own_stream(rng), size, light, look.contrast / look.mean)
    mean, contrast = look.mean, look.contrast
    if rng.uniform() < 0.06:  # some are nearly black
        mean, contrast = mean * 0.4, contrast * 0.5
    luma = np.float32(mean) + np.float32(contrast) * look.texture
    luma = np.maximum(luma, 0.25 * mean) * light
    # colour: the surface's own, and a hue that wanders a little
    image = luma[..., None] * look.colour
    hue = smooth_noise(rng, size, rng.uniform(40, 120)) * np.float32(log_uniform(rng, 0.001, 0.01))
    hue += look.tint * np.float32(mean)
    image[..., 0] += hue
    image[..., 2] -= np.float32(1.4) * hue
    if rng.uniform() < 0.1:
        image = _litter(rng, size, image)
    return _photograph(rng, image, look.blur, look.sharpen), mask


def check_drawing(kind: str, size: int) -> None:
    """Raise ValueError where there is no such kind of surface, or it cannot be drawn at `size` pixels."""
    if kind not in MATERIALS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size must be from {SMALLEST} to {LARGEST} pixels, got {size}")


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


def _open_cracks(rng, size, light, grain):
    """Darken the light where cracks are, more than the relative contrast of the grain: (light, mask)."""
    cover, mask = draw_cracks(rng, size)
    inside = cv2.GaussianBlur(cover, (0, 0), 1.2)
    dark = log_uniform(rng, min(max(0.22, 1.4 * grain), 0.6), 0.85)
    dark = dark + (0.95 - dark) * rng.uniform(0, 0.9) * cv2.GaussianBlur(cover, (0, 0), 2.0) ** 2  # wide is deep
    rubble = np.clip(1 - rng.uniform(0, 0.25) * np.abs(smooth_noise(rng, size, rng.uniform(2, 6))), 0.2, 1)
    light = light * (1 - dark * cover * (0.6 + 0.4 * inside) * rubble)
    if rng.uniform() < 0.45:  # a rim, worn light or dirty dark
        rim = np.clip(cv2.GaussianBlur(cover, (0, 0), rng.uniform(1, 3)) - 0.7 * cover, 0, 1)
        light = light * (1 + rng.uniform(-0.5, 0.5) * rim)
    if rng.uniform() < 0.4:  # one edge faces the sun
        facing, _ = cast_light(-cover, rng.uniform(0, 2 * np.pi), 1.0, reach=0)
        light = light * (1 + rng.uniform(0.2, 0.8) * np.clip(facing, 0, 1) * (1 - cover))
    return light, mask


def _litter(rng, size, image):
    """A few leaves, straws and tufts in their own colours."""
    body, tone = polygon_stones(rng, size, rng.uniform(0.8, 3.5), 0.5, log_uniform(rng, 0.0004, 0.003), 1.0)
    leaf = np.float32([[0.36, 0.4, 0.2], [0.55, 0.42, 0.26], [0.72, 0.67, 0.54], [0.25, 0.17, 0.12]])[rng.integers(4)]
    return image + body[..., None] * (leaf * (1 + 0.25 * tone[..., None]) - image)


def _photograph(rng, image, blur, sharpen):
    """The camera: a lens that blurs, software that sharpens, a little noise left, values cut at black and white."""
    image = cv2.GaussianBlur(image, (0, 0), blur)
    if sharpen > 0:
        image += np.float32(sharpen) * (image - cv2.GaussianBlur(image, (0, 0), 1.0))
    size = image.shape[0]
    image += (smooth_noise(rng, size, 1.5) * np.float32(rng.uniform(0.001, 0.006)))[..., None]
    for channel in (0, 2):  # what is left of colour noise is weak and coarse
        image[..., channel] += smooth_noise(rng, size, rng.uniform(1.2, 4)) * np.float32(log_uniform(rng, 5e-4, 6e-3))
    return np.clip(image, 0, 1).astype(np.float32)
