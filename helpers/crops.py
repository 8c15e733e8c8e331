"""Training crops: random windows of pooled pictures with noise, sample k the same in every run, process and order."""

import math

import numpy as np
from torch.utils.data import Dataset

from helpers.samples import Item, make_sample, position, sigma_range

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
