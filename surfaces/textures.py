"""Parts that synthetic surfaces are made of: noise fields, stones, light on relief.

Lengths are in pixels and frequencies in cycles per pixel everywhere, so that a larger image shows more of the same
surface instead of the same surface magnified. Everything random comes from the generator handed in.

The spectra follow the common finding that textures have power spectra near ``f ** -slope`` (Field 1987,
doi:10.1364/JOSAA.4.002379); stones are cells of a Voronoi diagram or random convex polygons.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from scipy import fft

SHIFT = 4  # OpenCV draws with fixed-point coordinates: 4 bits after the point


def own_stream(rng: np.random.Generator) -> np.random.Generator:
    """A generator of its own for one field, at the price of one draw.

    What is drawn next from `rng` then does not depend on the image's size: a seed gives the same material and
    light at 1024 pixels as at 32.
    """
    return np.random.default_rng(int(rng.integers(2**63)))


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A random number between `low` and `high`, both above 0, whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def standardise(field: np.ndarray) -> np.ndarray:
    """Field of any shape shifted and scaled to mean 0 and standard deviation 1 (float32)."""
    field = field - field.mean()
    return (field / max(float(field.std()), 1e-6)).astype(np.float32)


@lru_cache(maxsize=4)
def _radius_index(n):
    """Distance from the zero frequency in quarters of a bin: (n, n // 2 + 1) int."""
    return np.rint(4 * n * np.hypot(fft.fftfreq(n)[:, None], fft.rfftfreq(n))).astype(np.int32)


def noise(rng: np.random.Generator, size: int, slope: float, low: float = 1 / 128, high: float = 2.0,
          stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """Gaussian noise with a power-law spectrum.

    Args:
        rng: numpy Generator.
        size: side of the field in pixels.
        slope: the power spectrum falls as ``f ** -slope`` between ``low`` and ``high``; 0 is white.
        low: frequency below which the spectrum is flat, cycles per pixel.
        high: frequency of a Gaussian roll-off, cycles per pixel; above 1 there is next to none.
        stretch: > 1 draws the grain out along ``angle`` (radians).

    Returns:
        (size, size) float32, mean about 0, standard deviation about 1.
    """
    rng = own_stream(rng)
    n = fft.next_fast_len(max(256, size + size // 8), real=True)  # room, so that opposite sides do not match
    if stretch == 1:
        f = np.arange(n * 3) / (4 * n)  # a table by radius, in quarters of a bin, is quicker than the whole plane
        f2 = f**2
    else:
        fy, fx = fft.fftfreq(n)[:, None], fft.rfftfreq(n)
        along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
        f2 = (along * stretch) ** 2 + (across / stretch) ** 2
    amplitude = (f2 + low**2) ** (-slope / 4) * np.exp(-0.5 / high**2 * f2)
    amplitude = amplitude.astype(np.float32)
    if stretch == 1:
        amplitude = amplitude[_radius_index(n)]
    amplitude[0, 0] = 0
    amplitude /= np.sqrt((amplitude**2).mean())
    white = rng.standard_normal((n, n), dtype=np.float32)
    return np.ascontiguousarray(fft.irfft2(fft.rfft2(white) * amplitude, s=(n, n))[:size, :size])


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Smooth noise with features of about ``scale`` pixels: (size, size) float32, standard deviation about 1."""
    rng = own_stream(rng)
    n = int(np.ceil(size / scale)) + 4
    coarse = rng.standard_normal((n, n), dtype=np.float32)
    field, gain = coarse, 1.0
    for _ in range(2):  # rows, then columns
        at = np.arange(size) / scale + rng.uniform(1, 2)
        first = at.astype(int)
        t = (at - first).astype(np.float32)[:, None]
        if scale < 6:  # too small for the corners of linear interpolation to show
            field = (field[first] * (1 - t) + field[first + 1] * t).T
            gain *= np.sqrt(3 / 2)  # averaging takes variance away, here a third
        else:  # cubic B-spline
            taps = np.hstack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
            weights = np.zeros((size, n), np.float32)
            np.put_along_axis(weights, first[:, None] + np.arange(-1, 3), taps, axis=1)
            field = (weights @ field).T
            gain *= np.sqrt(315 / 151)
    return np.ascontiguousarray(field * np.float32(gain))


def displace(image: np.ndarray, shifts: Sequence[np.ndarray]) -> np.ndarray:
    """Image (n, n) with every pixel taken from where two fields (n, n) of shifts, in pixels, point (nearest)."""
    n = np.arange(image.shape[0], dtype=np.int32)
    rows = np.clip(np.rint(shifts[0]).astype(np.int32) + n[:, None], 0, n[-1])
    columns = np.clip(np.rint(shifts[1]).astype(np.int32) + n, 0, n[-1])
    return image[rows, columns]


def cell_stones(rng: np.random.Generator, size: int, spacing: float, gap: float, present: float = 1.0,
                rough: float = 0.3, ragged: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stones lying cell by cell: a Voronoi diagram on a jittered grid, each cell shrunk by a gap.

    Args:
        rng: numpy Generator.
        size: side in pixels.
        spacing: mean distance of the stones' centres, pixels.
        gap: width of the binder left around each stone, pixels.
        present: fraction of the cells that hold a stone.
        rough: 0..1, how much outlines are bent.
        ragged: 0..1, how much the gap differs from stone to stone.

    Returns:
        body (size, size) float32 in [0, 1]: how much of a pixel is stone;
        dome (size, size) float32 in [0, 1]: height of a rounded stone; and
        shade (size, size) float32: one normal random number per stone.
    """
    rng = own_stream(rng)
    scale = 2 if spacing < 7 else 1  # drawn at twice the size where single pixels show
    n, cell = size * scale, spacing * scale
    count = int(np.ceil(n / cell)) + 2
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1) - 1.0
    points = (grid + rng.uniform(0, 1, grid.shape)) * cell
    points = np.round(points).astype(int).reshape(-1, 2)
    inside = ((points >= 0) & (points < n)).all(1)
    seeds = np.ones((n, n), np.uint8)
    seeds[points[inside, 1], points[inside, 0]] = 0
    seeds[0, 0] = 0
    _, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    if rough > 0:
        bend = np.float32(rough * cell * 0.25)
        label = displace(label, [smooth_noise(rng, n, max(cell * 0.35, 2.0)) * bend for _ in range(2)])
    border = np.zeros((n, n), bool)
    border[:, 1:] |= label[:, 1:] != label[:, :-1]
    border[1:] |= label[1:] != label[:-1]
    depth = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, 3)
    total = int(label.max()) + 1
    table = rng.standard_normal(total, dtype=np.float32)
    holds = rng.uniform(0, 1, total) < present
    gaps = np.float32(gap * scale / 2) * np.exp(np.float32(ragged) * rng.standard_normal(total, dtype=np.float32))
    body = np.clip(depth - gaps[label] + 0.5, 0, 1) * holds[label]
    dome = np.sqrt(np.clip((depth - gaps[label]) / (0.35 * cell), 0, 1)) * holds[label]
    shade = table[label]
    if scale > 1:
        body, dome, shade = (cv2.resize(a.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
                             for a in (body, dome, shade))
    return body.astype(np.float32), dome.astype(np.float32), shade.astype(np.float32)


def polygon_stones(rng: np.random.Generator, size: int, radius: float, spread: float, cover: float,
                   elongation: float = 0.5, apart: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Broken stones strewn at random, larger ones first: convex polygons.

    Args:
        rng: numpy Generator.
        size: side in pixels.
        radius: median radius, pixels.
        spread: standard deviation of the radius' logarithm.
        cover: summed area of the stones relative to the image's.
        elongation: 0..1, how far stones are from round.
        apart: leave out stones of which a corner would fall on an earlier one, so that stones hardly overlap.

    Returns:
        body (size, size) float32 in [0, 1] and shade (size, size) float32, one normal random number per stone.
    """
    rng = own_stream(rng)
    area = np.pi * (radius * np.exp(spread**2)) ** 2 * 0.75
    count = max(1, int(cover * (size + 2 * radius) ** 2 / area))
    radii = np.sort(np.clip(radius * np.exp(spread * rng.standard_normal(count)), 0.7, 4 * radius))[::-1]
    centres = rng.uniform(-radius, size + radius, (count, 1, 2))
    corners = 8
    angles = np.sort(rng.uniform(0, 2 * np.pi, (count, corners)), axis=1)
    aspect = np.exp(-elongation * np.abs(rng.standard_normal((count, 1))))
    turn = rng.uniform(0, np.pi, (count, 1))
    x, y = np.cos(angles), np.sin(angles) * aspect
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1)
    points = np.round((centres + points * radii[:, None, None]) * 2**SHIFT).astype(np.int32)
    tone = rng.standard_normal(count)
    body, shade = np.zeros((size, size), np.uint8), np.full((size, size), 128, np.uint8)
    tones = np.clip(128 + 40 * tone, 0, 255).astype(int).tolist()
    probes = np.clip(points[:, ::2] >> SHIFT, 0, size - 1)
    for polygon, value, probe in zip(points, tones, probes, strict=True):
        if apart and body[probe[:, 1], probe[:, 0]].any():
            continue
        cv2.fillConvexPoly(body, polygon, 255, cv2.LINE_AA, SHIFT)
        cv2.fillConvexPoly(shade, polygon, value, cv2.LINE_AA, SHIFT)
    return body.astype(np.float32) / 255, (shade.astype(np.float32) - 128) / 40


def cast_light(height: np.ndarray, angle: float, slope: float, reach: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Light from one side on a relief.

    Args:
        height: (H, W) float32, pixels.
        angle: direction from which the light comes, radians.
        slope: tangent of the light's height above the ground; small is a low sun with long shadows.
        reach: length of the longest shadow looked for, pixels.

    Returns:
        facing (H, W) float32: the slope towards the light, in -1..1; shadow (H, W) float32 in [0, 1].
    """
    dx, dy = float(np.cos(angle)), float(np.sin(angle))
    # differences of neighbours: a Sobel filter would be blind to the finest grain
    gx = np.diff(height, axis=1, append=height[:, -2:-1])
    gy = np.diff(height, axis=0, append=height[-2:-1])
    facing = -(gx * dx + gy * dy)
    shadow = np.zeros_like(height)
    for step in range(1, reach + 1):
        # at the border the relief of the opposite side throws the shadow
        nearer = np.roll(height, (-round(dy * step), -round(dx * step)), axis=(0, 1))
        np.maximum(shadow, nearer - height - np.float32(slope * step), out=shadow)
    return facing / np.sqrt(1 + facing**2), np.clip(shadow, 0, 1)
