"""Noise: Gaussian, of a standard deviation `sigma` on the 0..255 scale, added to an image in [0, 1] and clipped to it.

    noisy = add_noise(clean, sigma=50)
    noisy = add_noise(clean, sigma=50, generator=noise_generator("wall-7", sigma=50))   # the same at every call
"""

import hashlib
import math

import numpy as np
import torch

Sigma = float | tuple[float, float]  # one standard deviation on the 0..255 scale, or a (low, high) range of them


def add_noise(clean: torch.Tensor, sigma: float, generator: torch.Generator | np.random.Generator | None = None
              ) -> torch.Tensor:
    """Add Gaussian noise and clip to [0, 1]; the result is a tensor like `clean`.

    Args:
        clean: tensor of any shape, floating point in [0, 1].
        sigma: standard deviation on the 0..255 scale, 0 to 255.
        generator: torch's, on the device of `clean`, or numpy's; default torch's global one.

    Raises:
        TypeError: `clean` is no floating-point tensor.
        ValueError: sigma is negative, not finite or above 255.

    >>> noisy = add_noise(torch.full((3, 64, 64), 0.5), sigma=20, generator=torch.Generator().manual_seed(0))
    >>> round(255 * noisy.std().item())
    20
    """
    if not torch.is_tensor(clean) or not clean.is_floating_point():
        raise TypeError(f"clean must be a floating-point tensor in [0, 1], got {getattr(clean, 'dtype', type(clean))}")
    if np.ndim(sigma) != 0:  # a range is for `choose_sigma`: one image has one level
        raise ValueError(f"sigma must be a number with 0 <= sigma <= 255, got {sigma!r}")
    sigma, _ = sigma_range(sigma)
    if isinstance(generator, np.random.Generator):  # numpy's noise is the same on every device
        noise = torch.from_numpy(generator.standard_normal(clean.shape, np.float32)).to(clean)
    else:
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    # in place: a batch is large, and the noise is nobody else's
    return noise.mul_(sigma / 255).add_(clean).clamp_(0, 1)


def sigma_range(sigma: Sigma) -> tuple[float, float]:
    """Return sigma as (low, high), both the same for a number; ValueError where not 0 <= low <= high <= 255.

    >>> sigma_range(50), sigma_range((5, 60))
    ((50.0, 50.0), (5.0, 60.0))
    """
    try:
        low, high = (sigma, sigma) if np.ndim(sigma) == 0 else sigma
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        low = high = math.nan  # refused below, with all that are no levels
    if not 0 <= low <= high <= 255:  # also where one is NaN
        raise ValueError(f"sigma must be a number or a (low, high) range with 0 <= low <= high <= 255, got {sigma!r}")
    return low, high


def choose_sigma(sigma: Sigma, rng: np.random.Generator, power: float = 1.0) -> float:
    """Return a sample's level: `sigma`, or of its range low + (high - low) * u ** power with u uniform from `rng`."""
    low, high = sigma_range(sigma)
    return low if low == high else low + (high - low) * rng.random() ** power


def noise_generator(name: str, sigma: Sigma, seed: int = 0) -> np.random.Generator:
    """Return the generator of an item's noise in valid and test: seeded by the data set's seed, its name and sigma.

    >>> grey = torch.full((3, 8, 8), 0.5)
    >>> torch.equal(*(add_noise(grey, 25, noise_generator("wall", 25)) for _ in range(2)))
    True
    """
    low, high = sigma_range(sigma)
    # hash() differs from run to run; a digest of the text is the same on every machine
    text = f"{seed}|{name}|{low:.6g}|{high:.6g}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))
