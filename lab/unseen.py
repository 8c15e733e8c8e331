"""What no network was trained on: other noise than Gaussian of known range, and images unlike all others.

    noisy = UNSEEN["camera"](clean, "wall-7")
    familiar = Familiar(mean_tokens(vit, train_images))
    familiar(mean_tokens(vit, [image]))             # above 1: unlike what it was trained on
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from helpers.cam import layer_features
from helpers.noise import add_noise, noise_generator
from surfaces.photos import to_uint8

GAIN, READ = 0.03, 10 / 255  # a phone's sensor in the dark: variance is GAIN * brightness + READ ** 2
LAYER = "block 5"
TILE = 224

# Noise ----------------------------------------------------------------------------------------------------------------


def stronger_noise(clean: Tensor, name: str) -> Tensor:
    """`clean` (3, H, W) in [0, 1] with Gaussian noise of sigma 75; trained was up to 60."""
    return add_noise(clean, 75, noise_generator(name, 75))


def camera_noise(clean: Tensor, name: str) -> Tensor:
    """`clean` (3, H, W) in [0, 1] with Poisson-Gaussian noise: shot noise grows with light, read noise does not.

    Model: A. Foi et al., IEEE TIP 17, 2008. Seeded by the image's name, as `noise_generator` does.
    """
    rng = noise_generator(name, 0, seed=1)
    photons = torch.from_numpy(rng.poisson(clean.numpy() / GAIN).astype(np.float32))
    read = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32))
    return (GAIN * photons + READ * read).clamp(0, 1)


def jpeg_noise(clean: Tensor, name: str, quality: int = 60) -> Tensor:
    """`clean` (3, H, W) in [0, 1] with Gaussian noise of sigma 25, stored as JPEG: blocks, and noise in clumps."""
    noisy = add_noise(clean, 25, noise_generator(name, 25))
    file = io.BytesIO()
    Image.fromarray(to_uint8(noisy.permute(1, 2, 0).numpy())).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


UNSEEN = {"Gaussian, σ = 75": stronger_noise, "camera": camera_noise, "σ = 25, then JPEG": jpeg_noise}


# Images ---------------------------------------------------------------------------------------------------------------


def mean_tokens(vit: nn.Module, images: Sequence[Tensor], layer: str = LAYER) -> Tensor:
    """One vector per image: its mean token after a block of a ViT.

    Args:
        images: list of (3, H, W) in [0, 1], H and W at least 16; of a larger one up to nine tiles count.

    Returns:
        (N, C) float32.
    """
    return torch.stack([torch.cat([layer_features(vit, tile[None], [layer])[layer] for tile in spread_tiles(image)])
                        .mean((0, 2, 3)) for image in images])


def spread_tiles(image: Tensor) -> list[Tensor]:
    """Up to nine tiles (3, h, w) spread over an image, sides multiples of 16 and at most 224."""
    height, width = image.shape[-2:]
    if min(height, width) < 16:
        raise ValueError(f"an image of at least 16 x 16 pixels is wanted, got {height} x {width}")
    h, w = (min(TILE, side) // 16 * 16 for side in (height, width))
    rows, columns = (sorted({round(i * (side - part) / 2) for i in range(3)}) if side > part else [0]
                     for side, part in ((height, h), (width, w)))
    return [image[:, y:y + h, x:x + w] for y in rows for x in columns]


class Familiar:
    """How far an image is from those known, in a ViT's token space.

    The distance to the nearest known image (channels divided by their deviation), in units of what 95 % of the known
    images keep from *their* nearest: above 1 is unlike them. It says nothing about how well an image is denoised.

    Args:
        known: (N, C) vectors of `mean_tokens`, N at least 3.
    """

    def __init__(self, known: Tensor | np.ndarray) -> None:
        known = np.asarray(known, np.float32)
        if known.ndim != 2 or len(known) < 3:
            raise ValueError(f"known must be (N, C) with N at least 3, got {tuple(known.shape)}")
        self._deviation = known.std(0, ddof=1).clip(1e-6)
        # a tree measures each distance itself; brute force would take it from products, and be a little above 0 at 0
        self._known = NearestNeighbors(n_neighbors=1, algorithm="ball_tree").fit(known / self._deviation)
        apart, _ = self._known.kneighbors()  # of the known themselves, none being its own neighbour
        self._usual = np.quantile(apart, 0.95)

    def __call__(self, vectors: Tensor | np.ndarray) -> Tensor:
        """Distances (M,) float32 of vectors (M, C)."""
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != len(self._deviation):
            raise ValueError(f"vectors must be (M, {len(self._deviation)}), got {tuple(vectors.shape)}")
        distances, _ = self._known.kneighbors(vectors / self._deviation)
        return torch.from_numpy((distances[:, 0] / self._usual).astype(np.float32))
