"""Draw a cracked surface and its mask from a seed.

    image, mask = draw_surface("asphalt", seed=0)

An image is made as a photograph is: a surface (stones, grain, pores; `surfaces.materials`), cracks and dark things
(`surfaces.cracks`), light, and a camera that blurs and sharpens.
"""

import cv2
import numpy as np

from surfaces.cracks import draw_cracks, draw_distractors
from surfaces.materials import MATERIALS
from surfaces.textures import cast_light, log_uniform, own_stream, polygon_stones, smooth_noise

KINDS = tuple(MATERIALS)
SMALLEST, LARGEST = 32, 1024  # sides of a drawing in pixels
WITHOUT_CRACKS = 0.2  # fraction of the images


def draw_surface(kind: str, seed: int, size: int = 224) -> tuple[np.ndarray, np.ndarray]:
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
