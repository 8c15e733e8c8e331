"""Samples to train and test on: built-in surfaces by default, photographs where there are some, and Gaussian noise.

Noise is Gaussian with standard deviation `sigma` on the 0..255 scale, added to the picture in [0, 1] and clipped to
[0, 1]. In valid and test it is seeded by the seed, the item's name and sigma, so that every method sees the same noise
whatever the order; in train by the seed and the item's number, so that workers never repeat it.
"""

import numpy as np
from skimage import data as skimage_data
from skimage.color import gray2rgb
from skimage.filters import gaussian
from torch.utils.data import Dataset

from helpers import surfaces
from helpers.cracks import draw_cracks
from helpers.crops import Crops
from helpers.folders import SPLITS, list_photos
from helpers.photos import TILE, list_tiles, read_photo, read_tile
from helpers.pools import TEST_SEEDS, TEXTURE_SEEDS, VALID_SEEDS, drawn_pool, everyday_pool, photo_pool, train_seed
from helpers.project import env_path
from helpers.samples import Item, Sample, add_noise, make_sample, noise_generator, position, sigma_range

__all__ = ["Crops", "Item", "Sample", "add_noise", "drawn_pool", "everyday_pool", "open_dataset", "photo_pool",
           "read_photo"]

DRAWN = {"train": 2000, "valid": 64, "test": 96}  # pictures in the built-in splits
TEXTURES, TEXTURE_TILES = ("gravel", "brick"), 24  # scikit-image's photographs in the built-in test set
LEAST_CRACK = 0.003  # share of a texture tile's pixels that its drawn crack covers at least
TRAIN = 1  # first word of a noise seed, so that no two kinds of data set share their noise (crops: 2)


def open_dataset(split, photos=None, sigma=50, seed=0, length=None):
    """Open a split of the built-in surfaces, or of a folder of photographs.

    Args:
        split: "train", "valid" or "test".
        photos: folder of photographs (layouts: `helpers.folders.list_photos`); default the one in `CRACK_PHOTOS`, and
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
        kinds = surfaces.KINDS
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
        return _cracked_texture(kind, seed) if kind in TEXTURES else surfaces.draw_surface(kind, seed, size=TILE)


def _drawn_item(kind, seed):
    name = f"{kind}-{seed:06d}"
    if kind in TEXTURES:  # every tile of one photograph is of one group
        return Item(name, kind, kind, "photo-texture", True)
    return Item(name, name, name, kind, True)


def _cracked_texture(kind, seed):
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


class Photographs(_Pictures):
    """Tiles of photographs on disk."""

    def __init__(self, tiles, split, sigma=50, seed=0, length=None):
        items = [Item(tile.name, tile.image.photo, tile.image.group, tile.image.source, tile.image.mask is not None)
                 for tile in tiles]
        chosen = _choose(items, length, split)
        self.tiles, self._last = [tiles[i] for i in chosen], {}
        super().__init__([items[i] for i in chosen], split, sigma, seed)

    def clean(self, index):
        """Read tile `index`, (224, 224, 3) float32 in [0, 1], and its mask, (224, 224) bool, all False without one."""
        return read_tile(self.tiles[position(index, len(self))], self._last)
