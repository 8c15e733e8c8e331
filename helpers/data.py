"""Samples to train and test on: built-in surfaces by default, photographs where there are some, and Gaussian noise.

Noise is Gaussian with standard deviation `sigma` on the 0..255 scale, added to the picture in [0, 1] and clipped to
[0, 1]. In valid and test it is seeded by the seed, the item's name and sigma, so that every method sees the same noise
whatever the order; in train by the seed and the item's number, so that workers never repeat it.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from helpers.noise import add_noise, noise_generator, sigma_range
from helpers.project import data_dir, env_path
from surfaces.draw import (
    KINDS,
    TEST_SEEDS,
    TEXTURE_SEEDS,
    TEXTURE_TILES,
    TEXTURES,
    VALID_SEEDS,
    draw_cracked_texture,
    draw_surface,
    train_seed,
)
from surfaces.folders import SPLITS, list_photos
from surfaces.tiles import TILE, list_tiles, read_tile
from surfaces.training_images import drawn_sheets


class Sample(NamedTuple):
    """A clean and a noisy picture, (3, H, W) float32 in [0, 1], with the crack mask (H, W) bool and where it is from.

    `mask` is all False where there is none (`has_mask` False); `photo` is the photograph, `group` the place it shows
    (one unit of the bootstrap), `source` the data set or the kind of surface, `sigma` the noise on the 0..255 scale.
    """

    clean: torch.Tensor
    noisy: torch.Tensor
    mask: torch.Tensor
    has_mask: bool
    name: str
    photo: str
    group: str
    source: str
    sigma: float


class Item(NamedTuple):
    """What is known of a sample without reading its pixels."""

    name: str
    photo: str
    group: str
    source: str
    has_mask: bool


def make_sample(item, picture, mask, sigma, rng):
    """Make a Sample of a picture (H, W, 3), float32 in [0, 1] or uint8, drawing sigma and noise from `rng`."""
    low, high = sigma
    level = low if low == high else rng.uniform(low, high)
    clean = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32))  # (3, H, W)
    if picture.dtype == np.uint8:
        clean /= 255
    mask = torch.from_numpy(np.array(mask, dtype=bool))
    noisy = add_noise(clean, level, rng)
    return Sample(clean, noisy, mask, item.has_mask, item.name, item.photo, item.group, item.source, level)


def position(index, length):
    if not -length <= index < length:
        raise IndexError(f"index {index} is outside of {length} samples")
    return int(index) % length
CROPS = 2  # first word of a noise seed, so that no two kinds of data set share their noise


class Crops(Dataset):
    """Random crops with noise: what is trained on. Sample k is the same in every run, process and order.

    Sample k chooses, from a generator seeded by (seed, k) alone: a source, a picture, a crop, one of the eight flips
    and rotations, sigma and the noise. A training resumed at k, or split among processes, sees the same samples.

    Args:
        pools: dict from source to a sequence of ((H, W, 3) uint8, (H, W) bool or None) (`drawn_pool`, `photo_pool`).
        length: number of samples.
        size: side of a crop in pixels.
        sigma: noise on the 0..255 scale, a number or a (low, high) range, uniform per sample.
        seed: whole number of at least 0.
        weights: dict from source to its share, default equal shares whatever the number of pictures.
        colour: share of the samples whose channels change places and whose saturation changes (0.4 to 3 times), for
            surfaces of colours that no training picture has.

    Raises:
        ValueError: no pictures, a length below 1, weights of other sources; a picture smaller than the crop (when
            opened or, for pools that are no lists, when read).

    >>> pool = [(np.zeros((80, 90, 3), np.uint8), np.zeros((80, 90), bool))]
    >>> sample = Crops({"grey": pool}, length=10, size=64)[3]
    >>> sample.clean.shape, sample.source
    (torch.Size([3, 64, 64]), 'grey')
    """

    def __init__(self, pools, length, size=64, sigma=(5, 60), seed=0, weights=None, colour=0.0):
        if not pools or not all(len(pool) for pool in pools.values()):
            counts = {source: len(pool) for source, pool in pools.items()}
            raise ValueError(f"pools must hold pictures for every source, got {counts}")
        if length < 1 or size < 1 or seed < 0:
            raise ValueError("wanted length and size above 0 and a seed of at least 0, "
                             f"got {length}, {size} and {seed}")
        weights = weights or dict.fromkeys(pools, 1)
        if set(weights) != set(pools) or min(weights.values()) < 0 or not 0 < sum(weights.values()) < math.inf:
            raise ValueError(f"weights must be one number from 0 for each of {', '.join(pools)}, got {weights}")
        self.pools, self.length, self.size, self.sigma, self.seed = pools, length, size, sigma_range(sigma), seed
        if not 0 <= colour <= 1:
            raise ValueError(f"colour must be a share in 0..1, got {colour}")
        self.colour = colour
        self.sources = [source for source in pools if weights[source] > 0]
        shares = np.array([weights[source] for source in self.sources], float)
        self._upto = np.cumsum(shares / shares.sum())[:-1]
        for source in self.sources:
            for number, (picture, _) in enumerate(pools[source] if isinstance(pools[source], list) else ()):
                self._check(picture, source, number)

    def _check(self, picture, source, number):
        if min(picture.shape[:2]) < self.size:
            raise ValueError(f"picture {number} of {source}: wanted at least {self.size} x {self.size} pixels "
                             f"for a crop, got {picture.shape[0]} x {picture.shape[1]}")

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        index = position(index, self.length)
        rng = np.random.default_rng([CROPS, self.seed, index])
        source = self.sources[int(np.searchsorted(self._upto, rng.random(), side="right"))]
        number = int(rng.integers(len(self.pools[source])))
        picture, mask = self.pools[source][number]
        self._check(picture, source, number)
        height, width = picture.shape[:2]
        y, x = int(rng.integers(height - self.size + 1)), int(rng.integers(width - self.size + 1))
        turn = int(rng.integers(8))
        window = np.s_[y:y + self.size, x:x + self.size]
        crop = _turned(picture[window], turn)
        cut = np.zeros(crop.shape[:2], bool) if mask is None else _turned(mask[window], turn)
        if self.colour and rng.random() < self.colour:
            crop = _recoloured(crop, rng)
        photo = f"{source}-{number:05d}"
        return make_sample(Item(f"{photo}-{index}", photo, photo, source, mask is not None), crop, cut, self.sigma, rng)


def _turned(array, turn):
    """Return one of the eight flips and rotations of the first two axes, `turn` in 0..7."""
    array = array[::-1 if turn & 1 else 1, ::-1 if turn & 2 else 1]
    return array.swapaxes(0, 1) if turn & 4 else array


def _recoloured(crop, rng):
    """Return a crop (h, w, 3) uint8 with its channels in another order and another saturation."""
    crop = crop[..., rng.permutation(3)].astype(np.float32)
    grey = crop.mean(-1, keepdims=True)
    crop = grey + np.exp(rng.uniform(np.log(0.4), np.log(3))) * (crop - grey)
    return np.clip(np.rint(crop), 0, 255).astype(np.uint8)
DRAWN = {"train": 2000, "valid": 64, "test": 96}  # pictures in the built-in splits
TRAIN = 1  # first word of a noise seed, so that no two kinds of data set share their noise (crops: 2)


def open_dataset(split, photos=None, sigma=50, seed=0, length=None):
    """Open a split of the built-in surfaces, or of a folder of photographs.

    Args:
        split: "train", "valid" or "test".
        photos: folder of photographs (layouts: `surfaces.folders.list_photos`); default the one in `CRACK_PHOTOS`, and
            the built-in surfaces where that is not set; False for the built-in ones even where it is. Photographs are
            cut into tiles of 224 x 224.
        sigma: noise on the 0..255 scale, a number or a (low, high) range, uniform per item.
        seed: of the noise, and of which surfaces are drawn for train. Valid and test surfaces are always the same.
        length: in train the number of samples (default 2000 drawn ones, no picture twice; or every tile once - tiles
            repeat beyond that, their noise never does). In valid and test at most so many, spread over the sources.

    Returns:
        A map-style data set of `Sample` in a fixed order. `dataset.items` lists name, photo, group, source and
        has_mask without reading pixels; `dataset.clean(i)` is picture i without noise, (H, W, 3) float32 in [0, 1],
        and its mask, (H, W) bool.

    Raises:
        ValueError: unknown split, impossible sigma, length or seed, a photograph that cannot be used (naming it).
        FileNotFoundError: no such folder or file, or an empty folder.

    >>> dataset = open_dataset("test", photos=False, length=10)
    >>> dataset[0].noisy.shape, dataset.items[0].source, dataset.items[-1].source
    (torch.Size([3, 224, 224]), 'asphalt', 'photo-texture')
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if length is not None and (int(length) != length or length < 1):
        raise ValueError(f"length must be a whole number of at least 1, got {length!r}")
    if int(seed) != seed or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    folder = env_path("CRACK_PHOTOS") if photos is None else photos
    if folder:
        return Photographs(list_tiles(list_photos(folder, split)), split, sigma, seed, length)
    return Surfaces(split, sigma, seed, length)


class _Pictures(Dataset):
    """Clean pictures in a fixed order, with noise. A subclass fills `items` and gives `clean(index)`."""

    def __init__(self, items, split, sigma, seed):
        self.items, self.split, self.sigma, self.seed = items, split, sigma_range(sigma), seed

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        index = position(index, len(self))
        if self.split == "train":
            rng = np.random.default_rng([TRAIN, self.seed, index])
        else:
            rng = noise_generator(self.items[index].name, self.sigma, self.seed)
        return make_sample(self.items[index], *self.clean(index), self.sigma, rng)


def _choose(items, length, split):
    """Return which pictures are taken for `length` samples: spread over the sources, in train again and again."""
    count = len(items)
    if length is None or length == count or (length > count and split != "train"):
        return range(count)
    if length > count:
        return [i % count for i in range(length)]
    by_source = sorted(range(count), key=lambda i: (items[i].source, items[i].photo))
    return sorted(by_source[i * count // length] for i in range(length))


class Surfaces(_Pictures):
    """Built-in surfaces of 224 x 224; test also has tiles of real textures with drawn cracks (`photo-texture`)."""

    def __init__(self, split, sigma=50, seed=0, length=None):
        count = length or DRAWN[split] if split == "train" else DRAWN[split]
        last = {"train": train_seed(seed, count - 1), "valid": VALID_SEEDS + count - 1, "test": TEST_SEEDS + count - 1}
        kinds = KINDS
        drawings = [(kinds[i % len(kinds)], last[split] - (count - 1) + i) for i in range(count)]
        if split == "test":
            drawings += [(TEXTURES[i % len(TEXTURES)], TEXTURE_SEEDS + i) for i in range(TEXTURE_TILES)]
        items = [_drawn_item(*drawing) for drawing in drawings]
        chosen = _choose(items, length, split)
        self.drawings = [drawings[i] for i in chosen]
        super().__init__([items[i] for i in chosen], split, sigma, seed)

    def clean(self, index):
        """Draw picture `index` and its mask: (224, 224, 3) float32 in [0, 1] and (224, 224) bool."""
        kind, seed = self.drawings[position(index, len(self))]
        return draw_cracked_texture(kind, seed) if kind in TEXTURES else draw_surface(kind, seed, size=TILE)


def _drawn_item(kind, seed):
    name = f"{kind}-{seed:06d}"
    if kind in TEXTURES:  # every tile of one photograph is of one group
        return Item(name, kind, kind, "photo-texture", True)
    return Item(name, name, name, kind, True)


class Photographs(_Pictures):
    """Tiles of photographs on disk."""

    def __init__(self, tiles, split, sigma=50, seed=0, length=None):
        items = [Item(tile.name, tile.photo.photo, tile.photo.group, tile.photo.source, tile.photo.mask is not None)
                 for tile in tiles]
        chosen = _choose(items, length, split)
        self.tiles, self._last = [tiles[i] for i in chosen], {}
        super().__init__([items[i] for i in chosen], split, sigma, seed)

    def clean(self, index):
        """Read tile `index`, (224, 224, 3) float32 in [0, 1], and its mask, (224, 224) bool, all False without one."""
        return read_tile(self.tiles[position(index, len(self))], self._last)


def drawn_pool(count, size=512, seed=0, kinds=None, workers=1):
    """Draw train sheets of built-in surfaces for `Crops`, once: they are kept in ``data/cache``.

    Arguments, result and errors: `surfaces.pools.drawn_sheets`.
    """
    return drawn_sheets(count, data_dir() / "cache", size, seed, kinds, workers)
