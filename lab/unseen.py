"""What no network was trained on: other noise than Gaussian of known range, and pictures unlike all others."""

import io

import numpy as np
import torch
from PIL import Image

from helpers.cam import layer_features
from helpers.noise import add_noise, noise_generator

GAIN, READ = 0.03, 10 / 255  # a phone's sensor in the dark: variance is GAIN * brightness + READ ** 2
LAYER = "block 5"
TILE = 224


def stronger_noise(clean, name):
    """`clean` (3, H, W) in [0, 1] with Gaussian noise of sigma 75; trained was up to 60."""
    return add_noise(clean, 75, noise_generator(name, 75))


def camera_noise(clean, name):
    """`clean` (3, H, W) in [0, 1] with Poisson-Gaussian noise: shot noise grows with light, read noise does not.

    Model: A. Foi et al., IEEE TIP 17, 2008. Seeded by the picture's name, as `noise_generator` does.
    """
    rng = noise_generator(name, 0, seed=1)
    photons = torch.from_numpy(rng.poisson(clean.numpy() / GAIN).astype(np.float32))
    read = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32))
    return (GAIN * photons + READ * read).clamp(0, 1)


def jpeg_noise(clean, name, quality=60):
    """`clean` (3, H, W) in [0, 1] with Gaussian noise of sigma 25, stored as JPEG: blocks, and noise in clumps."""
    noisy = add_noise(clean, 25, noise_generator(name, 25))
    file = io.BytesIO()
    Image.fromarray(np.uint8(noisy.permute(1, 2, 0).numpy() * 255 + 0.5)).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
UNSEEN = {"Gaussian, σ = 75": stronger_noise, "camera": camera_noise, "σ = 25, then JPEG": jpeg_noise}


def mean_tokens(vit, pictures, layer=LAYER):
    """One vector per picture: its mean token after a block of a ViT.

    Args:
        pictures: list of (3, H, W) in [0, 1], H and W at least 16; of a larger one up to nine tiles count.

    Returns:
        (N, C) float32.
    """
    return torch.stack([torch.cat([layer_features(vit, tile[None], [layer])[layer] for tile in _tiles(picture)])
                        .mean((0, 2, 3)) for picture in pictures])


def _tiles(picture):
    """Up to nine tiles (3, h, w) spread over a picture, sides multiples of 16 and at most 224."""
    height, width = picture.shape[-2:]
    if min(height, width) < 16:
        raise ValueError(f"a picture of at least 16 x 16 pixels is wanted, got {height} x {width}")
    h, w = (min(TILE, side) // 16 * 16 for side in (height, width))
    rows, columns = (sorted({round(i * (side - part) / 2) for i in range(3)}) if side > part else [0]
                     for side, part in ((height, h), (width, w)))
    return [picture[:, y:y + h, x:x + w] for y in rows for x in columns]


class Familiar:
    """How far a picture is from those known, in a ViT's token space.

    The distance to the nearest known picture (channels divided by their deviation), in units of what 95 % of the known
    pictures keep from *their* nearest: above 1 is unlike them. It says nothing about how well a picture is denoised.

    Args:
        known: (N, C) vectors of `mean_tokens`, N at least 3.
    """

    def __init__(self, known):
        known = torch.as_tensor(np.asarray(known), dtype=torch.float32)
        if known.ndim != 2 or len(known) < 3:
            raise ValueError(f"known must be (N, C) with N at least 3, got {tuple(known.shape)}")
        self._deviation = known.std(0).clamp_min(1e-6)
        self._known = known / self._deviation
        apart = self._distances(self._known).fill_diagonal_(float("inf"))
        self._usual = torch.quantile(apart.min(1).values, 0.95)

    def __call__(self, vectors):
        """Distances (M,) of vectors (M, C)."""
        vectors = torch.as_tensor(vectors, dtype=torch.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self._known.shape[1]:
            raise ValueError(f"vectors must be (M, {self._known.shape[1]}), got {tuple(vectors.shape)}")
        return self._distances(vectors / self._deviation).min(1).values / self._usual

    def _distances(self, vectors):
        return torch.cdist(vectors, self._known, compute_mode="donot_use_mm_for_euclid_dist")
