"""Draw a cracked surface and its mask from a seed: the built-in data, so that everything runs offline.

A picture is made as a photograph is: a surface (stones, grain, pores; `surfaces.textures`), cracks and dark things
(`surfaces.cracks`), light, and a camera that blurs and sharpens. Each picture draws its own grain, contrast, softness,
colour and light, wider than any one place has them. How near that comes to photographs is measured by
``lab/surface_stats.py``.
"""


import cv2
import numpy as np
from skimage import data as skimage_data
from skimage.color import gray2rgb
from skimage.filters import gaussian

from surfaces.cracks import draw_cracks, draw_distractors
from surfaces.photos import TILE
from surfaces.textures import cast_light, cell_stones, noise, own_stream, polygon_stones, smooth_noise, standardise

LUMA = np.float32([0.299, 0.587, 0.114])
WITHOUT_CRACKS = 0.2  # fraction of the pictures
# Casts as red, green, blue; brought to unit luma before use. Most surfaces are grey, some blue, some brown or olive.
CASTS = {"grey": (1, 1, 1), "brown": (1.15, 0.98, 0.84), "blue": (0.90, 1.0, 1.12), "olive": (1.05, 1.0, 0.76),
         "slate": (0.97, 1.0, 1.04), "sand": (1.12, 1.0, 0.8)}
PAINTS = {"blue": (0.04, 0.62, 1.0), "green": (0.25, 0.8, 0.45), "red": (0.9, 0.3, 0.25), "yellow": (1.0, 0.8, 0.15),
          "white": (1, 1, 0.98), "ochre": (0.9, 0.65, 0.4), "grey": (0.9, 0.95, 1.0)}


def _log_uniform(rng, low, high):
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


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
    return field * np.exp(np.float32(amount) * smooth_noise(rng, size, _log_uniform(rng, 8, 60)))


def _pits(rng, size):
    """Holes from which stones broke out: (size, size) float32, 0 in most places, around 1 in holes."""
    field = noise(rng, size, 2.5, low=1 / rng.uniform(6, 16), high=rng.uniform(0.15, 0.5))
    return np.clip(field - rng.uniform(0.8, 1.8), 0, 2)


def _asphalt(rng, size):
    """Aggregate in a darker binder, in the light of a sun high or low."""
    spacing, worn = _log_uniform(rng, 4, 16), rng.uniform(0, 1)
    gap, present = rng.uniform(0.02, 0.2) * spacing, rng.uniform(0.3, 1.0)
    body, dome, shade = cell_stones(rng, size, spacing, gap, present, rough=0.7, ragged=0.7)
    grain = noise(rng, size, rng.uniform(1.4, 2.8), low=1 / rng.uniform(6, 25))
    height = dome * rng.uniform(0.3, 3.0) + grain * rng.uniform(0.2, 0.9) + 0.3 * dome * shade
    facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.9))
    tex = facing - shadow * rng.uniform(0.3, 2.0) + worn * 0.25 * body * (shade + rng.uniform(-0.6, 1.2))
    tex += rng.uniform(0.05, 0.25) * noise(rng, size, rng.uniform(0.2, 1.2), low=1 / 10)
    tint = body * shade * rng.uniform(0, 0.006)
    if rng.uniform() < 0.8:  # broken stones worn bare: a few, or so many that they make the surface
        many = rng.uniform() < 0.45
        share = rng.uniform(0.4, 1.5) if many else rng.uniform(0.02, 0.3)
        stones, tone = polygon_stones(rng, size, rng.uniform(1.5, 5), 0.5, share, 0.5, apart=True)
        bare = stones * rng.uniform(0.3, 0.8)
        tex = standardise(tex) * (1 - bare) + bare * (rng.uniform(-0.8, 1.2) + rng.uniform(0.4, 1.3) * tone)
        tint = tint + stones * np.abs(tone) * rng.uniform(-0.004, 0.02)
    tex = _patchy(rng, size, standardise(tex), rng.uniform(0.05, 0.35)) + rng.uniform(0, 0.4) * noise(rng, size, 2.2)
    tex -= rng.uniform(0, 2.0) * _pits(rng, size)
    bright = rng.uniform() < 0.7
    return {"tex": tex, "mean": rng.uniform(0.55, 0.72) if bright else rng.uniform(0.15, 0.5),
            "contrast": _log_uniform(rng, 0.05, 0.13) * (1 if bright else 0.8),
            "blur": _log_uniform(rng, 0.3, 0.7) if bright else _log_uniform(rng, 0.4, 1.0),
            "sharpen": rng.uniform(0, 0.8), "tint": tint,
            "colour": _cast(rng, {"grey": 6, "blue": 2, "brown": 1, "slate": 2}),
            "marks": {"joint": 0.12, "shadow": 0.12, "oil": 0.25, "long stain": 0.25, "wet": 0.08}}


def _concrete(rng, size):
    """Mottled cement: stains at every scale, pores, bright specks, scratches, marks of the boards it was cast in."""
    stains = noise(rng, size, rng.uniform(2.2, 3.2), low=1 / 150)
    stains = np.exp(rng.uniform(-0.7, 0.9) * stains)  # skewed, either way
    grain = noise(rng, size, rng.uniform(0.4, 1.8), low=1 / 20, high=rng.uniform(0.15, 0.7))
    tex = standardise(stains) + rng.uniform(0.25, 1.1) * _patchy(rng, size, grain, rng.uniform(0.2, 0.7))
    if rng.uniform() < 0.45:  # lime or dirt with a clear ragged edge
        edge = np.clip((noise(rng, size, rng.uniform(2, 2.8), low=1 / 80) - rng.uniform(0.4, 1.6)) * 3, 0, 1)
        tex += rng.uniform(-1.0, 2.2) * edge
    if rng.uniform() < 0.6:  # pores
        pores, tone = polygon_stones(rng, size, rng.uniform(0.7, 2), 0.6, rng.uniform(0.002, 0.03), 0.3)
        tex -= pores * rng.uniform(1, 4) * np.clip(1 + 0.5 * tone, 0, 2)
    if rng.uniform() < 0.6:  # bright specks
        specks, tone = polygon_stones(rng, size, rng.uniform(0.7, 1.5), 0.5, rng.uniform(0.001, 0.015), 0.6)
        tex += specks * rng.uniform(1, 4) * np.clip(1 + 0.5 * tone, 0, 2)
    if rng.uniform() < 0.35:  # scratches and brush strokes
        scratch = noise(rng, size, 1.2, low=1 / 60, stretch=rng.uniform(3, 7), angle=rng.uniform(0, np.pi))
        tex += rng.uniform(0.2, 1.2) * np.clip(scratch - rng.uniform(0, 1.5), 0, 3)
    if rng.uniform() < 0.2:  # board marks
        board = noise(rng, size, 2.0, low=1 / 60, stretch=12, angle=rng.choice([0, np.pi / 2]) + rng.normal(0, 0.05))
        tex += rng.uniform(0.3, 1.0) * board
    sharp = rng.uniform() < 0.25  # near and in the sun: rough relief instead of stains
    if sharp:
        relief = noise(rng, size, rng.uniform(1.5, 3), low=1 / rng.uniform(6, 20))
        facing, shadow = cast_light(relief * rng.uniform(0.5, 1.5), rng.uniform(0, 2 * np.pi), 0.5)
        tex = rng.uniform(0.1, 0.6) * tex + standardise(facing - shadow)
    return {"tex": standardise(tex),
            "mean": rng.uniform(0.3, 0.55) if rng.uniform() < 0.75 else rng.uniform(0.55, 0.8),
            "contrast": _log_uniform(rng, 0.03, 0.10), "blur": _log_uniform(rng, 0.35, 0.95),
            "sharpen": rng.uniform(0, 1.2),
            "tint": stains * rng.uniform(-0.004, 0.012),
            "colour": _cast(rng, {"grey": 3, "brown": 4, "slate": 3, "blue": 1, "olive": 1}),
            "marks": {"joint": 0.2, "shadow": 0.12, "oil": 0.15, "long stain": 0.3, "wet": 0.3}}


def _terrazzo(rng, size):
    """Stones of several sizes, cut flat, in cement; light on dark or dark on light."""
    radius = _log_uniform(rng, 4, 16)
    body, shade = polygon_stones(rng, size, radius, 0.4, rng.uniform(0.5, 3), 0.45, apart=True)
    if rng.uniform() < 0.8:
        small, tone = polygon_stones(rng, size, rng.uniform(1.2, 3.5), 0.5, rng.uniform(0.05, 0.5), 0.4)
        shade, body = np.where(body > 0.5, shade, tone), np.maximum(body, small)
    step = rng.uniform(0.5, 2.0) * (1 if rng.uniform() < 0.75 else -1)
    binder = noise(rng, size, rng.uniform(0.6, 2.2), low=1 / 30)
    inner = noise(rng, size, rng.uniform(0.8, 2.4), low=1 / 25)
    rim = cv2.GaussianBlur(body, (0, 0), 1.5) - body
    tex = body * (step + rng.uniform(0.1, 0.6) * shade + rng.uniform(0.05, 0.35) * inner)
    tex += (1 - body) * rng.uniform(0.1, 0.7) * binder - np.abs(rim) * rng.uniform(0, 1.5)
    if rng.uniform() < 0.5:  # not polished: edges of stones catch the light
        height = cv2.GaussianBlur(body, (0, 0), 1.0) * rng.uniform(0.5, 2.0) + 0.3 * inner
        facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1))
        tex += rng.uniform(0.5, 2.5) * (facing - shadow)
    if rng.uniform() < 0.4:  # grime that covers stones in places
        cover = np.clip(smooth_noise(rng, size, rng.uniform(30, 90)) * 0.5 + rng.uniform(0, 0.6), 0, 0.9)
        tex = tex * (1 - cover)
    return {"tex": standardise(tex), "mean": rng.uniform(0.3, 0.7), "contrast": _log_uniform(rng, 0.05, 0.15),
            "blur": _log_uniform(rng, 0.35, 0.9), "sharpen": rng.uniform(0, 1.2),
            "tint": body * rng.uniform(-0.02, 0.02) + body * shade * rng.uniform(0, 0.015),
            "colour": _cast(rng, {"grey": 3, "olive": 4, "brown": 1, "blue": 2}),
            "marks": {"joint": 0.15, "shadow": 0.12, "oil": 0.2, "long stain": 0.2, "wet": 0.15}}


def _sand(rng, size):
    """Grains, clumps and ripples of a loose or a sprinkled ground."""
    clumps = noise(rng, size, rng.uniform(2, 3), low=1 / rng.uniform(8, 40))
    grain = noise(rng, size, rng.uniform(0.8, 2), low=1 / 8)
    height = clumps * rng.uniform(0.3, 1.5) + grain * rng.uniform(0.15, 0.5)
    if rng.uniform() < 0.3:
        wave = noise(rng, size, 3.0, low=1 / rng.uniform(12, 30), stretch=0.3, angle=rng.uniform(0, np.pi))
        height += rng.uniform(0.5, 1.5) * wave
    facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8), reach=3)
    tex = standardise(facing - rng.uniform(0.2, 1) * shadow) + rng.uniform(0.1, 0.6) * noise(rng, size, 0.6, low=1 / 8)
    pebbles, tone = polygon_stones(rng, size, rng.uniform(0.8, 3), 0.5, rng.uniform(0.005, 0.15), 0.4)
    tex = tex * (1 - 0.6 * pebbles) + pebbles * (rng.uniform(-1, 1) + tone)
    tex = _patchy(rng, size, tex, rng.uniform(0, 0.3)) + rng.uniform(0.1, 0.4) * noise(rng, size, 2.4)
    tex -= rng.uniform(0, 1.2) * _pits(rng, size)
    return {"tex": standardise(tex), "mean": rng.uniform(0.35, 0.72), "contrast": _log_uniform(rng, 0.05, 0.12),
            "blur": _log_uniform(rng, 0.35, 0.8), "sharpen": rng.uniform(0, 0.8), "tint": pebbles * tone * 0.02,
            "colour": _cast(rng, {"grey": 4, "sand": 3, "brown": 2, "slate": 1}),
            "marks": {"shadow": 0.12, "oil": 0.2, "long stain": 0.25, "wet": 0.15}}


def _granules(rng, size):
    """Coarse painted granules, glued side by side, with deep gaps."""
    radius = rng.uniform(3.5, 8)
    under, low = polygon_stones(rng, size, radius * 0.6, 0.3, 1.5, 0.4)
    body, shade = polygon_stones(rng, size, radius, 0.25, rng.uniform(1.5, 3), 0.4, apart=True)
    grain = noise(rng, size, 2.4, low=1 / 12)
    body = np.maximum(body, rng.uniform(0.4, 0.9) * under)
    height = cv2.GaussianBlur(body * (1.5 + 0.4 * shade + 0.3 * low), (0, 0), 0.8) * rng.uniform(0.8, 2.5) + 0.3 * grain
    facing, shadow = cast_light(height, rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9))
    tex = body * (rng.uniform(0.5, 1.5) + rng.uniform(0.05, 0.25) * shade) + rng.uniform(0.2, 0.7) * facing
    return standardise(tex - shadow * rng.uniform(0.3, 1.2) + 0.1 * grain)


def _painted(rng, size):
    """Paint on ground: glued granules, a coat on a rough wall worn through in places, or a line on the road."""
    names = list(PAINTS)
    paint = _unit_luma(PAINTS[names[rng.integers(len(names))]]) if rng.uniform() < 0.5 else _unit_luma((1, 1, 1))
    marks = {"joint": 0.15, "shadow": 0.12, "oil": 0.2, "long stain": 0.25, "wet": 0.1}
    style = rng.uniform()
    if style < 0.4:  # granules with deep gaps
        tex = _granules(rng, size)
        if rng.uniform() < 0.5:
            paint = _unit_luma(PAINTS["blue"])
        return {"tex": tex, "mean": rng.uniform(0.3, 0.48), "contrast": _log_uniform(rng, 0.06, 0.17),
                "blur": _log_uniform(rng, 0.3, 0.8), "sharpen": rng.uniform(0, 1.2), "tint": np.float32(0),
                "colour": paint, "marks": marks}
    ground = (_asphalt if rng.uniform() < 0.5 else _concrete)(rng, size)
    coat = standardise(noise(rng, size, rng.uniform(2.2, 3), low=1 / 100))
    if style < 0.75:  # worn through where the coat is thin
        covered = np.clip((coat + rng.uniform(0.3, 2.2)) * rng.uniform(2, 12), 0, 1)
    else:  # a broad line with a ragged edge
        angle, width = rng.uniform(0, np.pi), rng.uniform(30, 90)
        yy, xx = np.ogrid[:size, :size]
        far = (xx - size * rng.uniform(0, 1)) * np.cos(angle) + (yy - size * rng.uniform(0, 1)) * np.sin(angle)
        covered = np.clip((width - np.abs(far) + 2 * ground["tex"] + 3 * coat) * rng.uniform(0.4, 2), 0, 1)
    lift = rng.uniform(-0.05, 0.35) * min(1.0, (0.85 - ground["mean"]) * 2)
    smooth = cv2.GaussianBlur(ground["tex"], (0, 0), rng.uniform(0.4, 0.9))
    tex = ground["tex"] * (1 - covered) + covered * (smooth * rng.uniform(0.3, 0.9) + lift / ground["contrast"])
    colour = ground["colour"] + covered[..., None] * (paint - ground["colour"]) * np.float32(rng.uniform(0.2, 1))
    return {**ground, "tex": tex - tex.mean() * 0.7, "colour": colour, "tint": ground["tint"] * (1 - covered),
            "marks": marks}
RECIPES = {"asphalt": _asphalt, "concrete": _concrete, "terrazzo": _terrazzo, "sand": _sand, "painted": _painted}
KINDS = tuple(RECIPES)


def _open_cracks(rng, size, light, grain):
    """Darken the light where cracks are, more than the relative contrast of the grain: (light, mask)."""
    cover, mask = draw_cracks(rng, size)
    inside = cv2.GaussianBlur(cover, (0, 0), 1.2)
    dark = _log_uniform(rng, min(max(0.22, 1.4 * grain), 0.6), 0.85)
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


def draw_surface(kind, seed, size=224):
    """Draw one surface and the mask of its cracks.

    Args:
        kind: one of ``KINDS``.
        seed: int >= 0; the same seed gives the same picture.
        size: side in pixels, 32 to 1024. A larger picture shows more surface at the same scale of grain.

    Returns:
        image (size, size, 3) float32 in [0, 1], sRGB; mask (size, size) bool, True on cracks (all False in about
        one picture of five).

    Raises:
        ValueError: for an unknown kind or a size out of range.

    >>> image, mask = draw_surface("asphalt", seed=0, size=64)
    >>> image.shape, image.dtype.name, mask.shape, mask.dtype.name
    ((64, 64, 3), 'float32', (64, 64), 'bool')
    """
    if kind not in RECIPES:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if not 32 <= size <= 1024:
        raise ValueError(f"size must be from 32 to 1024 pixels, got {size}")
    rng = np.random.default_rng((KINDS.index(kind), seed))
    look = RECIPES[kind](rng, size)
    light = draw_distractors(own_stream(rng), size, look["marks"])
    light *= np.exp(np.float32(rng.uniform(0.01, 0.09)) * smooth_noise(rng, size, rng.uniform(100, 250)))
    mask = np.zeros((size, size), bool)
    if rng.uniform() >= WITHOUT_CRACKS:
        light, mask = _open_cracks(own_stream(rng), size, light, look["contrast"] / look["mean"])
    if rng.uniform() < 0.06:  # some are nearly black
        look["mean"] *= 0.4
        look["contrast"] *= 0.5
    luma = np.float32(look["mean"]) + np.float32(look["contrast"]) * look["tex"]
    luma = np.maximum(luma, 0.25 * look["mean"]) * light
    image = luma[..., None] * look["colour"]
    hue = smooth_noise(rng, size, rng.uniform(40, 120)) * np.float32(_log_uniform(rng, 0.001, 0.01))
    hue += look["tint"] * np.float32(look["mean"])
    image[..., 0] += hue
    image[..., 2] -= np.float32(1.4) * hue
    if rng.uniform() < 0.1:
        image = _litter(rng, size, image)
    return _photograph(rng, image, look["blur"], look["sharpen"]), mask


def _litter(rng, size, image):
    """A few leaves, straws and tufts in their own colours."""
    body, tone = polygon_stones(rng, size, rng.uniform(0.8, 3.5), 0.5, _log_uniform(rng, 0.0004, 0.003), 1.0)
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
        image[..., channel] += smooth_noise(rng, size, rng.uniform(1.2, 4)) * np.float32(_log_uniform(rng, 5e-4, 6e-3))
    return np.clip(image, 0, 1).astype(np.float32)
# where the seeds of drawn pictures begin; train takes a block of its own for every seed, above the fixed ones
TEST_SEEDS, VALID_SEEDS, TEXTURE_SEEDS, TRAIN_SEEDS, BLOCK = 0, 100_000, 200_000, 10_000_000, 10_000_000


def train_seed(seed, index, sheet=False):
    """Return the seed of drawn train picture `index`: never one of valid, test, another `seed` or a sheet.

    Raises:
        ValueError: a negative seed, or an index outside a block of five million.
    """
    if seed < 0 or not 0 <= index < BLOCK // 2:
        raise ValueError(f"wanted a seed of at least 0 and an index below {BLOCK // 2}, got {seed} and {index}")
    return TRAIN_SEEDS + seed * BLOCK + index + sheet * BLOCK // 2
TEXTURES, TEXTURE_TILES = ("gravel", "brick"), 24  # scikit-image's photographs in the built-in test set
LEAST_CRACK = 0.003  # share of a texture tile's pixels that its drawn crack covers at least


def draw_cracked_texture(kind, seed):
    """Draw a crack on a tile of scikit-image's photograph `kind`, (512, 512) uint8 grey; the seed says where."""
    photo = gray2rgb(getattr(skimage_data, kind)())
    place = (seed - TEXTURE_SEEDS) // len(TEXTURES)  # 12 overlapping tiles in 3 rows and 4 columns
    y, x = place // 4 * (photo.shape[0] - TILE) // 2, place % 4 * (photo.shape[1] - TILE) // 3
    tile = photo[y:y + TILE, x:x + TILE].astype(np.float32) / 255
    rng = np.random.default_rng(seed)
    cover, mask = draw_cracks(rng, TILE)
    while mask.mean() < LEAST_CRACK:
        cover, mask = draw_cracks(rng, TILE)
    # a crack takes away most of the light, and the lens softens it as it softened the rest of the photograph
    light = 1 - rng.uniform(0.5, 0.95) * gaussian(cover, 0.7)
    return np.clip(tile * light[..., None], 0, 1).astype(np.float32), mask
