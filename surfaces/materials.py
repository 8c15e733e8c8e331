"""What each kind of surface looks like before cracks, light and camera: its grain, its colour, and what lies on it.

Every surface draws its own grain, contrast, softness and colour, wider than any one place has them. How near that comes
to photographs is measured by ``lab/surface_stats.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from surfaces.textures import (
    cast_light,
    cell_stones,
    log_uniform,
    noise,
    polygon_stones,
    smooth_noise,
    standardise,
)

LUMA = np.float32([0.299, 0.587, 0.114])
# Casts as red, green, blue; brought to unit luma before use. Most surfaces are grey, some blue, some brown or olive.
CASTS = {"grey": (1, 1, 1), "brown": (1.15, 0.98, 0.84), "blue": (0.90, 1.0, 1.12), "olive": (1.05, 1.0, 0.76),
         "slate": (0.97, 1.0, 1.04), "sand": (1.12, 1.0, 0.8)}
PAINTS = {"blue": (0.04, 0.62, 1.0), "green": (0.25, 0.8, 0.45), "red": (0.9, 0.3, 0.25), "yellow": (1.0, 0.8, 0.15),
          "white": (1, 1, 0.98), "ochre": (0.9, 0.65, 0.4), "grey": (0.9, 0.95, 1.0)}



@dataclass
class Look:
    """How one surface looks, in even light and without cracks."""

    texture: np.ndarray  # (size, size) float32, about mean 0 and standard deviation 1: lighter and darker places
    mean: float  # brightness in [0, 1]
    contrast: float  # of the texture: standard deviation of the brightness
    blur: float  # of the lens: standard deviation in pixels
    sharpen: float  # by the camera's software, from 0
    tint: np.ndarray | float  # (size, size) float32, from blue (below 0) to red
    colour: np.ndarray  # (3,) or (size, size, 3) float32, RGB of about unit luma
    marks: dict[str, float]  # probability of each of `surfaces.cracks.DISTRACTORS`


def _unit_luma(rgb):
    rgb = np.float32(rgb)
    return rgb / (rgb @ LUMA)


def _cast(rng, weights):
    """A colour cast of unit luma, at a random strength: (3,) float32."""
    names = list(weights)
    name = names[rng.choice(len(names), p=np.array(list(weights.values())) / sum(weights.values()))]
    return _unit_luma(1 + (np.float32(CASTS[name]) - 1) * rng.uniform(0.1, 1.2) + rng.normal(0, 0.006, 3))


def _patchy(rng, size, field, amount):
    """Grain that is stronger in some places than in others, as worn and dusty surfaces have it."""
    return field * np.exp(np.float32(amount) * smooth_noise(rng, size, log_uniform(rng, 8, 60)))


def _pits(rng, size):
    """Holes from which stones broke out: (size, size) float32, 0 in most places, around 1 in holes."""
    field = noise(rng, size, 2.5, low=1 / rng.uniform(6, 16), high=rng.uniform(0.15, 0.5))
    return np.clip(field - rng.uniform(0.8, 1.8), 0, 2)


def _asphalt(rng, size):
    """Aggregate in a darker binder, in the light of a sun high or low."""
    spacing, worn = log_uniform(rng, 4, 16), rng.uniform(0, 1)
    gap, present = rng.uniform(0.02, 0.2) * spacing, rng.uniform(0.3, 1.0)
    body, dome, shade = cell_stones(rng, size, spacing, gap, present, rough=0.7, ragged=0.7)
    grain = noise(rng, size, rng.uniform(1.4, 2.8), low=1 / rng.uniform(6, 25))
    height = dome * rng.uniform(0.3, 3.0) + grain * rng.uniform(0.2, 0.9) + 0.3 * dome * shade
    facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.9))
    texture = facing - shadow * rng.uniform(0.3, 2.0) + worn * 0.25 * body * (shade + rng.uniform(-0.6, 1.2))
    texture += rng.uniform(0.05, 0.25) * noise(rng, size, rng.uniform(0.2, 1.2), low=1 / 10)
    tint = body * shade * rng.uniform(0, 0.006)
    if rng.uniform() < 0.8:  # broken stones worn bare: a few, or so many that they make the surface
        many = rng.uniform() < 0.45
        share = rng.uniform(0.4, 1.5) if many else rng.uniform(0.02, 0.3)
        stones, tone = polygon_stones(rng, size, rng.uniform(1.5, 5), 0.5, share, 0.5, apart=True)
        bare = stones * rng.uniform(0.3, 0.8)
        texture = standardise(texture) * (1 - bare) + bare * (rng.uniform(-0.8, 1.2) + rng.uniform(0.4, 1.3) * tone)
        tint = tint + stones * np.abs(tone) * rng.uniform(-0.004, 0.02)
    texture = _patchy(rng, size, standardise(texture), rng.uniform(0.05, 0.35))
    texture = texture + rng.uniform(0, 0.4) * noise(rng, size, 2.2)
    texture -= rng.uniform(0, 2.0) * _pits(rng, size)
    bright = rng.uniform() < 0.7
    return Look(texture=texture, mean=rng.uniform(0.55, 0.72) if bright else rng.uniform(0.15, 0.5),
                contrast=log_uniform(rng, 0.05, 0.13) * (1 if bright else 0.8),
                blur=log_uniform(rng, 0.3, 0.7) if bright else log_uniform(rng, 0.4, 1.0),
                sharpen=rng.uniform(0, 0.8), tint=tint,
                colour=_cast(rng, {"grey": 6, "blue": 2, "brown": 1, "slate": 2}),
                marks={"joint": 0.12, "shadow": 0.12, "oil": 0.25, "long stain": 0.25, "wet": 0.08})


def _concrete(rng, size):
    """Mottled cement: stains at every scale, pores, bright specks, scratches, marks of the boards it was cast in."""
    stains = noise(rng, size, rng.uniform(2.2, 3.2), low=1 / 150)
    stains = np.exp(rng.uniform(-0.7, 0.9) * stains)  # skewed, either way
    grain = noise(rng, size, rng.uniform(0.4, 1.8), low=1 / 20, high=rng.uniform(0.15, 0.7))
    texture = standardise(stains) + rng.uniform(0.25, 1.1) * _patchy(rng, size, grain, rng.uniform(0.2, 0.7))
    if rng.uniform() < 0.45:  # lime or dirt with a clear ragged edge
        edge = np.clip((noise(rng, size, rng.uniform(2, 2.8), low=1 / 80) - rng.uniform(0.4, 1.6)) * 3, 0, 1)
        texture += rng.uniform(-1.0, 2.2) * edge
    if rng.uniform() < 0.6:  # pores
        pores, tone = polygon_stones(rng, size, rng.uniform(0.7, 2), 0.6, rng.uniform(0.002, 0.03), 0.3)
        texture -= pores * rng.uniform(1, 4) * np.clip(1 + 0.5 * tone, 0, 2)
    if rng.uniform() < 0.6:  # bright specks
        specks, tone = polygon_stones(rng, size, rng.uniform(0.7, 1.5), 0.5, rng.uniform(0.001, 0.015), 0.6)
        texture += specks * rng.uniform(1, 4) * np.clip(1 + 0.5 * tone, 0, 2)
    if rng.uniform() < 0.35:  # scratches and brush strokes
        scratch = noise(rng, size, 1.2, low=1 / 60, stretch=rng.uniform(3, 7), angle=rng.uniform(0, np.pi))
        texture += rng.uniform(0.2, 1.2) * np.clip(scratch - rng.uniform(0, 1.5), 0, 3)
    if rng.uniform() < 0.2:  # board marks
        board = noise(rng, size, 2.0, low=1 / 60, stretch=12, angle=rng.choice([0, np.pi / 2]) + rng.normal(0, 0.05))
        texture += rng.uniform(0.3, 1.0) * board
    sharp = rng.uniform() < 0.25  # near and in the sun: rough relief instead of stains
    if sharp:
        relief = noise(rng, size, rng.uniform(1.5, 3), low=1 / rng.uniform(6, 20))
        facing, shadow = cast_light(relief * rng.uniform(0.5, 1.5), rng.uniform(0, 2 * np.pi), 0.5)
        texture = rng.uniform(0.1, 0.6) * texture + standardise(facing - shadow)
    return Look(texture=standardise(texture),
                mean=rng.uniform(0.3, 0.55) if rng.uniform() < 0.75 else rng.uniform(0.55, 0.8),
                contrast=log_uniform(rng, 0.03, 0.10), blur=log_uniform(rng, 0.35, 0.95),
                sharpen=rng.uniform(0, 1.2),
                tint=stains * rng.uniform(-0.004, 0.012),
                colour=_cast(rng, {"grey": 3, "brown": 4, "slate": 3, "blue": 1, "olive": 1}),
                marks={"joint": 0.2, "shadow": 0.12, "oil": 0.15, "long stain": 0.3, "wet": 0.3})


def _terrazzo(rng, size):
    """Stones of several sizes, cut flat, in cement; light on dark or dark on light."""
    radius = log_uniform(rng, 4, 16)
    body, shade = polygon_stones(rng, size, radius, 0.4, rng.uniform(0.5, 3), 0.45, apart=True)
    if rng.uniform() < 0.8:
        small, tone = polygon_stones(rng, size, rng.uniform(1.2, 3.5), 0.5, rng.uniform(0.05, 0.5), 0.4)
        shade, body = np.where(body > 0.5, shade, tone), np.maximum(body, small)
    step = rng.uniform(0.5, 2.0) * (1 if rng.uniform() < 0.75 else -1)
    binder = noise(rng, size, rng.uniform(0.6, 2.2), low=1 / 30)
    inner = noise(rng, size, rng.uniform(0.8, 2.4), low=1 / 25)
    rim = cv2.GaussianBlur(body, (0, 0), 1.5) - body
    texture = body * (step + rng.uniform(0.1, 0.6) * shade + rng.uniform(0.05, 0.35) * inner)
    texture += (1 - body) * rng.uniform(0.1, 0.7) * binder - np.abs(rim) * rng.uniform(0, 1.5)
    if rng.uniform() < 0.5:  # not polished: edges of stones catch the light
        height = cv2.GaussianBlur(body, (0, 0), 1.0) * rng.uniform(0.5, 2.0) + 0.3 * inner
        facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1))
        texture += rng.uniform(0.5, 2.5) * (facing - shadow)
    if rng.uniform() < 0.4:  # grime that covers stones in places
        cover = np.clip(smooth_noise(rng, size, rng.uniform(30, 90)) * 0.5 + rng.uniform(0, 0.6), 0, 0.9)
        texture = texture * (1 - cover)
    return Look(texture=standardise(texture), mean=rng.uniform(0.3, 0.7), contrast=log_uniform(rng, 0.05, 0.15),
                blur=log_uniform(rng, 0.35, 0.9), sharpen=rng.uniform(0, 1.2),
                tint=body * rng.uniform(-0.02, 0.02) + body * shade * rng.uniform(0, 0.015),
                colour=_cast(rng, {"grey": 3, "olive": 4, "brown": 1, "blue": 2}),
                marks={"joint": 0.15, "shadow": 0.12, "oil": 0.2, "long stain": 0.2, "wet": 0.15})


def _sand(rng, size):
    """Grains, clumps and ripples of a loose or a sprinkled ground."""
    clumps = noise(rng, size, rng.uniform(2, 3), low=1 / rng.uniform(8, 40))
    grain = noise(rng, size, rng.uniform(0.8, 2), low=1 / 8)
    height = clumps * rng.uniform(0.3, 1.5) + grain * rng.uniform(0.15, 0.5)
    if rng.uniform() < 0.3:
        wave = noise(rng, size, 3.0, low=1 / rng.uniform(12, 30), stretch=0.3, angle=rng.uniform(0, np.pi))
        height += rng.uniform(0.5, 1.5) * wave
    facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8), reach=3)
    texture = standardise(facing - rng.uniform(0.2, 1) * shadow)
    texture = texture + rng.uniform(0.1, 0.6) * noise(rng, size, 0.6, low=1 / 8)
    pebbles, tone = polygon_stones(rng, size, rng.uniform(0.8, 3), 0.5, rng.uniform(0.005, 0.15), 0.4)
    texture = texture * (1 - 0.6 * pebbles) + pebbles * (rng.uniform(-1, 1) + tone)
    texture = _patchy(rng, size, texture, rng.uniform(0, 0.3)) + rng.uniform(0.1, 0.4) * noise(rng, size, 2.4)
    texture -= rng.uniform(0, 1.2) * _pits(rng, size)
    return Look(texture=standardise(texture), mean=rng.uniform(0.35, 0.72), contrast=log_uniform(rng, 0.05, 0.12),
                blur=log_uniform(rng, 0.35, 0.8), sharpen=rng.uniform(0, 0.8), tint=pebbles * tone * 0.02,
                colour=_cast(rng, {"grey": 4, "sand": 3, "brown": 2, "slate": 1}),
                marks={"shadow": 0.12, "oil": 0.2, "long stain": 0.25, "wet": 0.15})


def _granules(rng, size):
    """Coarse painted granules, glued side by side, with deep gaps."""
    radius = rng.uniform(3.5, 8)
    under, low = polygon_stones(rng, size, radius * 0.6, 0.3, 1.5, 0.4)
    body, shade = polygon_stones(rng, size, radius, 0.25, rng.uniform(1.5, 3), 0.4, apart=True)
    grain = noise(rng, size, 2.4, low=1 / 12)
    body = np.maximum(body, rng.uniform(0.4, 0.9) * under)
    height = cv2.GaussianBlur(body * (1.5 + 0.4 * shade + 0.3 * low), (0, 0), 0.8) * rng.uniform(0.8, 2.5) + 0.3 * grain
    facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9))
    texture = body * (rng.uniform(0.5, 1.5) + rng.uniform(0.05, 0.25) * shade) + rng.uniform(0.2, 0.7) * facing
    return standardise(texture - shadow * rng.uniform(0.3, 1.2) + 0.1 * grain)


def _painted(rng, size):
    """Paint on ground: glued granules, a coat on a rough wall worn through in places, or a line on the road."""
    names = list(PAINTS)
    paint = _unit_luma(PAINTS[names[rng.integers(len(names))]]) if rng.uniform() < 0.5 else _unit_luma((1, 1, 1))
    marks = {"joint": 0.15, "shadow": 0.12, "oil": 0.2, "long stain": 0.25, "wet": 0.1}
    style = rng.uniform()
    if style < 0.4:  # granules with deep gaps
        texture = _granules(rng, size)
        if rng.uniform() < 0.5:
            paint = _unit_luma(PAINTS["blue"])
        return Look(texture=texture, mean=rng.uniform(0.3, 0.48), contrast=log_uniform(rng, 0.06, 0.17),
                    blur=log_uniform(rng, 0.3, 0.8), sharpen=rng.uniform(0, 1.2), tint=np.float32(0),
                    colour=paint, marks=marks)
    ground = (_asphalt if rng.uniform() < 0.5 else _concrete)(rng, size)
    coat = standardise(noise(rng, size, rng.uniform(2.2, 3), low=1 / 100))
    if style < 0.75:  # worn through where the coat is thin
        covered = np.clip((coat + rng.uniform(0.3, 2.2)) * rng.uniform(2, 12), 0, 1)
    else:  # a broad line with a ragged edge
        angle, width = rng.uniform(0, np.pi), rng.uniform(30, 90)
        yy, xx = np.ogrid[:size, :size]
        far = (xx - size * rng.uniform(0, 1)) * np.cos(angle) + (yy - size * rng.uniform(0, 1)) * np.sin(angle)
        covered = np.clip((width - np.abs(far) + 2 * ground.texture + 3 * coat) * rng.uniform(0.4, 2), 0, 1)
    lift = rng.uniform(-0.05, 0.35) * min(1.0, (0.85 - ground.mean) * 2)
    smooth = cv2.GaussianBlur(ground.texture, (0, 0), rng.uniform(0.4, 0.9))
    texture = ground.texture * (1 - covered) + covered * (smooth * rng.uniform(0.3, 0.9) + lift / ground.contrast)
    colour = ground.colour + covered[..., None] * (paint - ground.colour) * np.float32(rng.uniform(0.2, 1))
    return replace(ground, texture=texture - texture.mean() * 0.7, colour=colour, tint=ground.tint * (1 - covered),
                   marks=marks)


# How each kind of surface is drawn: a function of the random generator and the side in pixels.
MATERIALS: dict[str, Callable[[np.random.Generator, int], Look]] = {
    "asphalt": _asphalt, "concrete": _concrete, "terrazzo": _terrazzo, "sand": _sand, "painted": _painted}
