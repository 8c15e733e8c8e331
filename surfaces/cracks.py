"""Lines and patches on a surface: cracks with their mask, and the things that are taken for cracks.

A crack is a polygon around a wandering line: its two edges crumble independently, its width tapers and varies. Joints,
shadows' edges, oil stains and long stains change the light of the image but never the mask, so that
darkness alone does not give a crack away.

    cover, mask = draw_cracks(np.random.default_rng(0), size=224)
    image, mask = put_crack_on(tile_without_cracks, seed=0)
"""

import cv2
import numpy as np
from skimage.filters import gaussian

from surfaces.textures import SHIFT, displace, noise, own_stream, smooth_noise

LEAST_CRACK = 0.003  # share of an image's pixels that a crack put on it covers at least


def put_crack_on(image: np.ndarray, seed: int, darkness: tuple[float, float] = (0.5, 0.95)
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Put a synthetic crack, or a network of them, on an image that has none.

    The crack takes away light and is softened as a lens softens; the rest of the image stays as it is.

    Args:
        image: (size, size, 3) floating point in [0, 1], 32 pixels or more a side.
        seed: whole number of at least 0: which crack.
        darkness: shares of the light that a crack takes away at least and at most, each in [0, 1].

    Returns:
        image (size, size, 3) float32 in [0, 1]; mask (size, size) bool, True on the crack, which covers at least
        0.3 % of the pixels.

    Raises:
        TypeError: an image that is no floating point.
        ValueError: an image of another shape, a darkness outside [0, 1].

    >>> wall = np.full((64, 64, 3), 0.5, np.float32)
    >>> cracked, mask = put_crack_on(wall, seed=0)
    >>> bool(cracked[mask].mean() < 0.4), float(np.median(cracked[~mask]))
    (True, 0.5)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or len(image) < 32:
        raise ValueError(f"wanted a square image of shape (size, size, 3), 32 pixels or more, got {image.shape}")
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"wanted an image of floating point in [0, 1], got {image.dtype}")
    if not 0 <= darkness[0] <= darkness[1] <= 1:
        raise ValueError(f"wanted two shares of light in 0..1, the smaller first, got {darkness}")
    rng = np.random.default_rng(seed)
    cover, mask = draw_cracks(rng, len(image))
    while mask.mean() < LEAST_CRACK:
        cover, mask = draw_cracks(rng, len(image))
    # a crack takes away most of the light, and the lens softens it as it softened the rest of the image
    light = 1 - rng.uniform(*darkness) * gaussian(cover, 0.7)
    return np.clip(image * light[..., None], 0, 1).astype(np.float32), mask


def wander(rng: np.random.Generator, length: float, rough: float, smallest: float = 3.0, step: float = 1.5
           ) -> np.ndarray:
    """Fractal wandering along a line.

    Args:
        rng: numpy Generator.
        length: length of the line, pixels.
        rough: size of the wandering relative to its wavelength.
        smallest: shortest wavelength, pixels.
        step: distance of the samples, pixels.

    Returns:
        (N,) float64, sideways displacement in pixels at every step.
    """
    t = np.arange(0, length + step, step)
    total = np.zeros_like(t)
    wave = 96.0
    while wave >= smallest:
        knots = rng.standard_normal(int(length / wave) + 3)
        total += 0.25 * rough * wave**0.9 * np.interp(t / wave + rng.uniform(), np.arange(len(knots)), knots)
        wave /= 2
    return total


def _path(rng, size, start, angle, length, rough, smallest):
    """(N, 2) points from ``start`` in direction ``angle``, wandering."""
    side = wander(rng, length, rough, smallest)
    side = side - side[0]
    t = np.arange(len(side)) * 1.5
    direction, normal = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    return start + t[:, None] * direction + side[:, None] * normal


def draw_line(canvas: np.ndarray, path: np.ndarray, width: np.ndarray, left: np.ndarray | float = 0.0,
              right: np.ndarray | float = 0.0, value: int = 255) -> None:
    """Fill the polygon around a path, in place.

    Args:
        canvas: (H, W) uint8, drawn on.
        path: (N, 2) points x, y in pixels.
        width: (N,) pixels; half of it lies on each side of the path.
        left, right: (N,) or one number, pixels more on that side.
        value: what the polygon is filled with, 0 to 255.
    """
    tangent = np.gradient(path, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    normal /= np.maximum(np.hypot(*normal.T)[:, None], 1e-6)
    # a smoothed normal keeps the edges of a wide crack from crossing where the path bends sharply
    kernel = np.ones(5) / 5
    normal = np.stack([np.convolve(np.pad(c, 2, mode="edge"), kernel, "valid") for c in normal.T], 1)
    half = np.asarray(width)[:, None] / 2
    edge_a = path + normal * (half + np.asarray(left).reshape(-1, 1))
    edge_b = path - normal * (half + np.asarray(right).reshape(-1, 1))
    a, b = (np.clip(np.round(e * 2**SHIFT), -(2**18), 2**18).astype(np.int32) for e in (edge_a, edge_b))
    # quadrilaterals one by one: a single polygon would leave holes where it crosses itself
    quads = np.stack([a[:-1], a[1:], b[1:], b[:-1]], 1)
    for quad in quads:
        cv2.fillConvexPoly(canvas, quad, value, cv2.LINE_8, SHIFT)


def _one_crack(rng, canvas, path, width, crumble, ends, scale):
    """Draw one crack (all in pixels of the canvas, which is ``scale`` times the image)."""
    n = len(path)
    if n < 3:
        return
    t = np.linspace(0, 1, n)
    taper = np.ones(n)
    if ends[0]:
        taper *= np.clip(t / rng.uniform(0.2, 0.6), 0, 1) ** 0.7
    if ends[1]:
        taper *= np.clip((1 - t) / rng.uniform(0.2, 0.8), 0, 1) ** 0.7
    length = (n - 1) * 1.5
    swell = np.exp(np.clip(0.9 * wander(rng, length, 0.12, 6.0)[:n], -1.2, 0.8))
    w = np.minimum(width * taper * swell, 8.0)
    edges = [crumble * w * np.clip(wander(rng, length, 0.45, 1.5)[:n] * 0.5, -1, 1) for _ in range(2)]
    draw_line(canvas, path * scale, np.maximum(w, 0.7) * scale, edges[0] * scale, edges[1] * scale)


def draw_cracks(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A network of cracks.

    Args:
        rng: numpy Generator.
        size: side in pixels.

    Returns:
        cover (size, size) float32 in [0, 1]: how much of a pixel is crack; mask (size, size) bool.
    """
    rng = own_stream(rng)
    scale = 2  # drawn at twice the size, for smooth edges and hairlines
    canvas = np.zeros((size * scale, size * scale), np.uint8)
    widest = float(np.exp(rng.uniform(np.log(1.6), np.log(8.0))))
    rough, crumble = float(rng.uniform(0.3, 1.2)), float(rng.uniform(0.2, 0.9))
    smallest = float(rng.uniform(3, 9))
    branchy = rng.uniform(0, 1)
    count = 1 + int(rng.poisson(0.5 * max(1.0, size / 224)))
    main = rng.uniform(0, np.pi)
    for index in range(count):
        angle = main + rng.normal(0, 0.35) + (np.pi / 2) * (rng.uniform() < 0.25)
        width = widest if index == 0 else widest * rng.uniform(0.25, 0.9)
        middle = size * rng.uniform(0.2, 0.8, 2)
        through = rng.uniform() < 0.6
        length = 2.0 * size if through else size * rng.uniform(0.5, 1.1)
        start = middle - np.array([np.cos(angle), np.sin(angle)]) * length * (0.5 if through else rng.uniform(0.3, 0.7))
        path = _path(rng, size, start, angle, length, rough, smallest)
        keep = ((path > -12) & (path < size + 12)).all(1)
        first, last = np.flatnonzero(keep)[[0, -1]]
        _one_crack(rng, canvas, path[first : last + 1], width, crumble, (not through, not through), scale)
        for _ in range(int(rng.poisson(2.5 * branchy * max(0.5, size / 224)))):
            root = path[rng.integers(first, last + 1)]
            turn = rng.choice([-1, 1]) * rng.uniform(0.4, 1.3)
            twig = _path(rng, size, root, angle + turn, size * rng.uniform(0.12, 0.6), rough, smallest)
            _one_crack(rng, canvas, twig, width * rng.uniform(0.3, 0.8), crumble, (False, True), scale)
    # grains that broke out of the edges: the drawing of the crack is bent by fine noise
    bend = np.float32(scale * rng.uniform(0.2, 1.0))
    fine = [smooth_noise(rng, size, rng.uniform(1.5, 4)) * bend for _ in range(2)]
    canvas = displace(canvas, [field.repeat(scale, 0).repeat(scale, 1) for field in fine])
    cover = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return cover, cover > 0.45


def _blob(rng, size, radius):
    """Soft irregular patch: (size, size) float32, positive inside, in units of its radius."""
    yy, xx = np.ogrid[:size, :size]
    cy, cx = rng.uniform(0, size, 2)
    stretch = np.exp(rng.normal(0, 0.35))
    r = np.hypot(np.float32((xx - cx) * stretch), np.float32((yy - cy) / stretch)) / np.float32(radius)
    return 1 - r + 0.3 * smooth_noise(rng, size, max(radius * 0.6, 2)) + 0.12 * smooth_noise(rng, size, 5)


def _joint(rng, size, light):
    """A straight joint, sometimes two that cross, with sharp edges; dark, rarely light."""
    angle = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.08)
    width = rng.uniform(1.5, 7)
    depth = rng.uniform(0.15, 0.7)
    canvas = np.zeros((size, size), np.uint8)
    for turn in (0.0, np.pi / 2) if rng.uniform() < 0.25 else (0.0,):
        direction = np.array([np.cos(angle + turn), np.sin(angle + turn)])
        middle = size * rng.uniform(0.1, 0.9, 2)
        n = int(3 * size / 1.5)
        path = middle + (np.arange(n) - n / 2)[:, None] * 1.5 * direction
        draw_line(canvas, path, np.full(n, width), 0.3 * rng.standard_normal(n), 0.3 * rng.standard_normal(n))
    soft = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 1.5)).astype(np.float32) / 255
    return light * (1 - depth * soft)


def _shadow(rng, size, light):
    """A shadow that covers one side of the image; its edge wanders and is sharp or soft."""
    yy, xx = np.ogrid[:size, :size]
    angle = rng.uniform(0, 2 * np.pi)
    far = (xx - size * rng.uniform(0.2, 0.8)) * np.cos(angle) + (yy - size * rng.uniform(0.2, 0.8)) * np.sin(angle)
    far = np.float32(far) + rng.uniform(0, 10) * smooth_noise(rng, size, rng.uniform(25, 80))
    soft = rng.uniform(1, 14)
    return light * (1 - rng.uniform(0.2, 0.55) / (1 + np.exp(np.clip(-far / soft * 2, -30, 30))))


def _oil(rng, size, light):
    """One to three dark blots with a soft or a clear edge."""
    for _ in range(rng.integers(1, 4)):
        blob = _blob(rng, size, rng.uniform(5, 40))
        light = light * (1 - rng.uniform(0.15, 0.55) * np.clip(blob * rng.uniform(1, 8), 0, 1))
    return light


def _long_stain(rng, size, light):
    """Dark runs as long and as dark as cracks, but with soft sides: drips, tyre marks, filled seams."""
    angle = rng.uniform(0, np.pi)
    for _ in range(rng.integers(1, 4)):
        canvas = np.zeros((size, size), np.uint8)
        length = size * rng.uniform(0.4, 1.8)
        start = size * rng.uniform(0.1, 0.9, 2) - np.array([np.cos(angle), np.sin(angle)]) * length / 2
        path = _path(rng, size, start, angle + rng.normal(0, 0.1), length, rng.uniform(0.02, 0.5), 12.0)
        width = rng.uniform(2, 14) * np.exp(np.clip(wander(rng, length, 0.2, 10.0), -0.7, 0.7))
        draw_line(canvas, path, width[: len(path)])
        soft = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(1.2, 5)).astype(np.float32) / 255
        light = light * (1 - rng.uniform(0.15, 0.5) * soft * np.clip(0.9 + 0.3 * smooth_noise(rng, size, 9), 0, 1.2))
    return light


def _wet(rng, size, light):
    """A wet or overgrown area with a ragged edge, and a darker or lighter line along it."""
    field = noise(rng, size, 3.2, low=1 / 200)
    yy, xx = np.ogrid[:size, :size]
    angle = rng.uniform(0, 2 * np.pi)
    far = ((xx / size - 0.5) * np.cos(angle) + (yy / size - 0.5) * np.sin(angle)) * 3 + rng.uniform(-0.8, 0.8)
    inside = np.clip((far + rng.uniform(0.1, 0.8) * field) * rng.uniform(3, 25), -1, 1)
    light = light * (1 - rng.uniform(0.1, 0.4) * (inside + 1) / 2)
    return light * (1 + rng.uniform(-0.25, 0.25) * (1 - inside**2) ** 4)


DISTRACTORS = {"joint": _joint, "shadow": _shadow, "oil": _oil, "long stain": _long_stain, "wet": _wet}


def draw_distractors(rng: np.random.Generator, size: int, weights: dict[str, float]) -> np.ndarray:
    """What is dark and no crack, as a factor on the light.

    Args:
        rng: numpy Generator.
        size: side in pixels.
        weights: probability of each of `DISTRACTORS`, by name.

    Returns:
        (size, size) float32, factor on the image's light (1 where there is nothing).
    """
    light = np.ones((size, size), np.float32)
    for name, draw in DISTRACTORS.items():
        stream = own_stream(rng)
        if stream.uniform() < weights.get(name, 0.0):
            light = draw(stream, size, light)
    return light.astype(np.float32)
