"""What a sample is, and the noise: Gaussian, clipped, of a known standard deviation.

Noise is Gaussian with standard deviation `sigma` on the 0..255 scale, added to the picture in [0, 1] and clipped to
[0, 1].
"""

import hashlib
import math

import numpy as np
import torch


def add_noise(clean, sigma, generator=None):
    """Add Gaussian noise and clip to [0, 1].

    Args:
        clean: torch tensor of any shape, values in [0, 1].
        sigma: standard deviation on the 0..255 scale, 0 to 255.
        generator: `torch.Generator` on the device of `clean`, or numpy `Generator`; default torch's global one.

    Returns:
        Tensor like `clean`.

    Raises:
        TypeError: `clean` is no floating-point tensor.
        ValueError: sigma is negative, not finite or above 255.

    >>> noisy = add_noise(torch.full((3, 64, 64), 0.5), sigma=20, generator=torch.Generator().manual_seed(0))
    >>> round(255 * noisy.std().item())
    20
    """
    if not torch.is_tensor(clean) or not clean.is_floating_point():
        raise TypeError(f"clean must be a floating-point tensor in [0, 1], got {getattr(clean, 'dtype', type(clean))}")
    if np.ndim(sigma) != 0:
        _refuse_sigma(sigma)
    sigma, _ = sigma_range(sigma)
    if isinstance(generator, np.random.Generator):
        noise = torch.from_numpy(generator.standard_normal(clean.shape, np.float32)).to(clean)
    else:
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    return noise.mul_(sigma / 255).add_(clean).clamp_(0, 1)


def _refuse_sigma(sigma):
    raise ValueError(f"sigma must be a number or a (low, high) range with 0 <= low <= high <= 255, got {sigma!r}")


def sigma_range(sigma):
    """Return sigma as (low, high), both the same for a number."""
    try:
        low, high = (sigma, sigma) if np.ndim(sigma) == 0 else sigma
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        _refuse_sigma(sigma)
    if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high <= 255):
        _refuse_sigma(sigma)
    return low, high


def noise_generator(name, sigma, seed=0):
    """The generator of an item's noise in valid and test: seeded by the seed, its name and sigma (number or range).

    >>> grey = torch.full((3, 8, 8), 0.5)
    >>> torch.equal(*(add_noise(grey, 25, noise_generator("wall", 25)) for _ in range(2)))
    True
    """
    low, high = sigma_range(sigma)
    text = f"{seed}|{name}|{low:.6g}|{high:.6g}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))
