"""Samples to train and test on: built-in surfaces by default, photographs where there are some, and Gaussian noise.

    test = open_dataset("test", sigma=50)             # a fixed set; test[0].noisy and test[0].clean, (3, 224, 224)
    crops = Crops({"drawn": drawn_pool(40)}, 10_000)  # random crops to train on

In valid and test the noise is seeded by the seed, the item's name and sigma: every method sees the same noise whatever
the order. In train it is seeded by the seed and the item's number: workers never repeat it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from helpers.noise import Sigma, add_noise, choose_sigma, noise_generator, sigma_range
from helpers.project import data_dir, env_path
from surfaces.built_in import draw_built_in, list_drawings
from surfaces.folders import SPLITS, list_photos
from surfaces.tiles import Tile, list_tiles, read_tile
from surfaces.training_images import Pool, drawn_sheets

TRAIN, CROPS = 1, 2  # first word of a noise seed, so that no two kinds of data set share their noise


class Sample(NamedTuple):
    """A clean and a noisy image, the mask of its cracks, and where they are from. Samples collate to batches."""

    clean: torch.Tensor  # (3, H, W) float32 in [0, 1]
    noisy: torch.Tensor  # (3, H, W) float32 in [0, 1]
    mask: torch.Tensor  # (H, W) bool, True on cracks; all False where there is no mask
    has_mask: bool
    name: str
    photo: str  # the photograph that it is cut from
    group: str  # the place that it shows: one unit of the bootstrap
    source: str  # the data set, or the kind of surface
    sigma: float  # standard deviation of the noise on the 0..255 scale


class Item(NamedTuple):
    """What is known of a `Sample` without reading its pixels."""

    name: str
    photo: str
    group: str
    source: str
    has_mask: bool


def make_sample(item: Item, image: np.ndarray, mask: np.ndarray, sigma: float, rng: np.random.Generator) -> Sample:
    """Make a `Sample` of an image (H, W, 3), float32 in [0, 1] or uint8, and its mask (H, W), with noise from `rng`."""
    clean = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))  # (3, H, W)
    if image.dtype == np.uint8:
        clean /= 255
    mask = torch.from_numpy(np.array(mask, dtype=bool))  # a copy: torch takes no flipped view
    return Sample(clean, add_noise(clean, sigma, rng), mask, sigma=float(sigma), **item._asdict())


def renoised(sample: Sample, sigma: float) -> torch.Tensor:
    """Return a sample's noisy image (3, H, W) at level `sigma`, drawn as in `open_dataset`'s valid and test of seed 0.

    >>> sample = open_dataset("valid", photos=False, sigma=50)[0]
    >>> torch.equal(renoised(sample, 25), open_dataset("valid", photos=False, sigma=25)[0].noisy)
    True
    """
    if sigma == sample.sigma:
        return sample.noisy  # its own, also where it was drawn with another seed
    return add_noise(sample.clean, sigma, noise_generator(sample.name, sigma))


def open_dataset(split: str, photos: str | Path | bool | None = None, sigma: Sigma = 50, seed: int = 0,
                 length: int | None = None) -> "ImageDataset":
    """Open a split of the built-in surfaces, or of a folder of photographs: `Sample`s in a fixed order.

    Args:
        split: "train", "valid" or "test".
        photos: folder of photographs (layouts: `surfaces.folders.list_photos`), which are cut into tiles of 224 x 224;
            default the one in `CRACK_PHOTOS`, where that is set; False for the built-in surfaces even where it is.
        sigma: noise on the 0..255 scale, a number or a (low, high) range, uniform per item.
        seed: of the noise, and of which surfaces are drawn for train. Valid and test surfaces are always the same.
        length: in train the number of samples (default 2000 synthetic ones, no image twice; or every tile once - tiles
            repeat beyond that, their noise never does). In valid and test at most so many, spread over the sources.

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
    if folder:  # neither None nor False
        return PhotographTiles(list_tiles(list_photos(folder, split)), split, sigma, seed, length)
    return BuiltInImages(split, sigma, seed, length)


class ImageDataset(Dataset):
    """Images in a fixed order, with noise; `items` lists what is known of them without reading pixels.

    A subclass hands in all items that there are, and defines `clean`: image `index` is item ``chosen[index]`` of them.
    """

    def __init__(self, items: Sequence[Item], split: str, sigma: Sigma, seed: int, length: int | None = None):
        count = len(items)
        if length is None or (length > count and split != "train"):
            length = count
        if length > count:  # in train again and again
            self.chosen = [i % count for i in range(length)]
        else:  # a share of every source, not the first ones of the list
            by_source = sorted(range(count), key=lambda i: (items[i].source, items[i].photo))
            self.chosen = sorted(by_source[i * count // length] for i in range(length))
        self.items = [items[i] for i in self.chosen]
        self.split, self.sigma, self.seed = split, sigma_range(sigma), seed

    def clean(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image `index` without noise, (H, W, 3) float32 in [0, 1], and its mask, (H, W) bool."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        index = _position(index, len(self))
        if self.split == "train":
            rng = np.random.default_rng([TRAIN, self.seed, index])  # by number: a tile that repeats gets new noise
        else:
            rng = noise_generator(self.items[index].name, self.sigma, self.seed)  # by name, whatever the order
        sigma = choose_sigma(self.sigma, rng)  # before the noise, from the same generator
        return make_sample(self.items[index], *self.clean(index), sigma, rng)


class BuiltInImages(ImageDataset):
    """Synthetic surfaces of 224 x 224; test also has synthetic cracks on tiles of real textures (`photo-texture`)."""

    def __init__(self, split: str, sigma: Sigma = 50, seed: int = 0, length: int | None = None):
        self.drawings = list_drawings(split, seed, length)
        items = [Item(drawing.name, drawing.photo, drawing.photo, drawing.source, True) for drawing in self.drawings]
        super().__init__(items, split, sigma, seed, length)

    def clean(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw image `index` and its mask; shapes as in the base class."""
        return draw_built_in(self.drawings[self.chosen[index]])


class PhotographTiles(ImageDataset):
    """Tiles of photographs on disk."""

    def __init__(self, tiles: Sequence[Tile], split: str, sigma: Sigma = 50, seed: int = 0, length: int | None = None):
        items = [Item(tile.name, tile.photo.photo, tile.photo.group, tile.photo.source, tile.photo.mask is not None)
                 for tile in tiles]
        self.tiles, self._last = tiles, {}  # the photograph that was read last: its tiles in a row decode it once
        super().__init__(items, split, sigma, seed, length)

    def clean(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read tile `index` and its mask, all False without one; shapes as in the base class."""
        return read_tile(self.tiles[self.chosen[index]], self._last)


class Crops(Dataset):
    """Random crops with noise: what is trained on.

    Sample k chooses, from a generator seeded by (seed, k) alone: a source, an image, a crop, one of the eight flips
    and rotations, sigma and the noise. A training resumed at k, or split among processes, sees the same samples.

    Args:
        pools: dict from a source's name to its images, a sequence of ((H, W, 3) uint8, (H, W) bool or None)
            (`drawn_pool`, `surfaces.training_images.photo_pool`).
        length, size: number of samples, and the side of a crop in pixels.
        sigma, sigma_power: noise on the 0..255 scale, a number or a (low, high) range, and `choose_sigma`'s power.
        weights: dict from source to its share, default equal shares whatever the number of images.
        colour: share of the samples whose channels change places and whose saturation changes (0.4 to 3 times), for
            surfaces of colours that no training image has.

    Raises:
        ValueError: no images, a length below 1, weights of other sources; an image smaller than the crop.

    >>> images = [(np.zeros((80, 90, 3), np.uint8), np.zeros((80, 90), bool))]
    >>> sample = Crops({"grey": images}, length=10, size=64)[3]
    >>> sample.clean.shape, sample.source
    (torch.Size([3, 64, 64]), 'grey')
    """

    def __init__(self, pools: dict[str, Pool], length: int, size: int = 64, sigma: Sigma = (5, 60), seed: int = 0,
                 weights: dict[str, float] | None = None, colour: float = 0.0, sigma_power: float = 1.0):
        counts = {source: len(pool) for source, pool in pools.items()}
        if not counts or not all(counts.values()):
            raise ValueError(f"pools must hold images for every source, got {counts}")
        if length < 1 or size < 1 or seed < 0:
            raise ValueError(f"wanted length and size above 0 and a seed of at least 0, got {length}, {size}, {seed}")
        weights = weights or dict.fromkeys(pools, 1)
        if set(weights) != set(pools) or min(weights.values()) < 0 or not 0 < sum(weights.values()) < math.inf:
            raise ValueError(f"weights must be one number from 0 for each of {', '.join(pools)}, got {weights}")
        if not 0 <= colour <= 1 or not 0 < sigma_power < math.inf:
            raise ValueError(f"colour must be a share in 0..1, got {colour}; sigma_power above 0, got {sigma_power}")
        self.pools, self.length, self.size = pools, length, size
        self.sigma, self.seed, self.colour, self.sigma_power = sigma_range(sigma), seed, colour, sigma_power
        self.sources = [source for source in pools if weights[source] > 0]  # a share of 0 leaves a source out
        shares = np.array([weights[source] for source in self.sources], float)
        self._upto = np.cumsum(shares / shares.sum())[:-1]  # a random number in [0, 1) falls into one source's part
        for source in self.sources:  # what is no list may be slow to read: it is checked crop by crop
            for number, (image, _) in enumerate(pools[source] if isinstance(pools[source], list) else ()):
                self._check(image, source, number)

    def _check(self, image, source, number):
        if min(image.shape[:2]) < self.size:
            raise ValueError(f"image {number} of {source}: wanted at least {self.size} x {self.size} pixels "
                             f"for a crop, got {image.shape[0]} x {image.shape[1]}")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        index = _position(index, self.length)
        # the order of what is drawn from this generator is fixed: checkpoints were trained on these crops
        rng = np.random.default_rng([CROPS, self.seed, index])
        source = self.sources[int(np.searchsorted(self._upto, rng.random(), side="right"))]
        number = int(rng.integers(len(self.pools[source])))
        image, mask = self.pools[source][number]
        self._check(image, source, number)
        # a window anywhere in the image, in one of the eight ways to flip and turn it; no mask is a mask without cracks
        y, x = (int(rng.integers(side - self.size + 1)) for side in image.shape[:2])
        turn = int(rng.integers(8))
        window = np.s_[y:y + self.size, x:x + self.size]
        crop = _turned(image[window], turn)
        crack = np.zeros(crop.shape[:2], bool) if mask is None else _turned(mask[window], turn)
        if self.colour and rng.random() < self.colour:
            # channels in another order, and more or less far from their grey
            crop = crop[..., rng.permutation(3)].astype(np.float32)
            grey = crop.mean(-1, keepdims=True)
            crop = grey + np.exp(rng.uniform(np.log(0.4), np.log(3))) * (crop - grey)
            crop = np.clip(np.rint(crop), 0, 255).astype(np.uint8)
        sigma, photo = choose_sigma(self.sigma, rng, self.sigma_power), f"{source}-{number:05d}"
        item = Item(f"{photo}-{index}", photo, photo, source, mask is not None)
        return make_sample(item, crop, crack, sigma, rng)


def drawn_pool(count: int, size: int = 512, seed: int = 0, kinds: Sequence[str] | None = None, workers: int = 1
               ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw train sheets for `Crops`, once: `surfaces.training_images.drawn_sheets` with ``data/cache`` as cache."""
    return drawn_sheets(count, data_dir() / "cache", size, seed, kinds, workers)


def _position(index, length):
    """Return an index from 0, as lists take it; DataLoader and iteration rely on the IndexError."""
    if not -length <= index < length:  # as a list has them, from its end too
        raise IndexError(f"index {index} is outside of {length} samples")
    return int(index) % length


def _turned(array, turn):
    """Return one of the eight flips and rotations of the first two axes, `turn` in 0..7."""
    array = array[::-1 if turn & 1 else 1, ::-1 if turn & 2 else 1]
    return array.swapaxes(0, 1) if turn & 4 else array
