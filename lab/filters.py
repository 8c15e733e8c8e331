"""Classical denoising filters, each told the noise level, with the grids their parameters are chosen from."""

import warnings
from itertools import product

import cv2
import numpy as np
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from helpers.metrics import mse


def gaussian_blur(noisy, sigma, kernel=5, blur=1.2):
    """Gaussian blur with a `kernel` x `kernel` window (odd, pixels) and standard deviation `blur` in pixels."""
    return cv2.GaussianBlur(noisy, (kernel, kernel), blur, borderType=cv2.BORDER_REFLECT)


def bilateral(noisy, sigma, radius=4, colour=2.0, space=2.0):
    """Bilateral filter (Tomasi and Manduchi 1998): `colour` in units of the noise, `space` and `radius` in pixels."""
    return cv2.bilateralFilter(noisy, 2 * radius + 1, colour * sigma / 255, space)


def non_local_means(noisy, sigma, strength=0.6, patch=5, distance=8):
    """Non-local means (Buades et al. 2005): cut-off `strength` in units of the noise, patch side, search radius."""
    return denoise_nl_means(noisy, patch_size=patch, patch_distance=distance, h=strength * sigma / 255,
                            sigma=sigma / 255, fast_mode=True, channel_axis=-1)


def total_variation(noisy, sigma, weight=1.0):
    """Total variation (Chambolle 2004): `weight` in units of the noise."""
    return denoise_tv_chambolle(noisy, weight=weight * sigma / 255, channel_axis=-1)


def wavelet(noisy, sigma, wavelet="db2", method="BayesShrink", levels=None):
    """Wavelet shrinkage (Chang et al. 2000) in YCbCr, soft thresholds."""
    with warnings.catch_warnings():  # the deepest level may reach over the border: validation chose it all the same
        warnings.filterwarnings("ignore", "Level value of .* is too high", UserWarning)
        return denoise_wavelet(noisy, sigma=sigma / 255, wavelet=wavelet, method=method, wavelet_levels=levels,
                               mode="soft", convert2ycbcr=True, channel_axis=-1, rescale_sigma=True)


def bm3d(noisy, sigma):
    """BM3D for colour (Dabov et al. 2007). Needs the optional package `bm3d`, free for non-commercial use only."""
    try:
        import bm3d as package
    except ImportError as error:
        raise ImportError("BM3D is an optional extra, free for non-commercial use only: "
                          "pip install '.[bm3d]'") from error
    return package.bm3d_rgb(noisy, sigma / 255)


def _grid(**values):
    return [dict(zip(values, choice, strict=True)) for choice in product(*values.values())]
FILTERS = {"gaussian": gaussian_blur, "bilateral": bilateral, "nlm": non_local_means, "tv": total_variation,
           "wavelet": wavelet, "bm3d": bm3d}
GRIDS = {
    "gaussian": _grid(kernel=(3, 5, 7, 9, 11, 15), blur=(0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0)),
    "bilateral": _grid(radius=(6,), colour=(2.0, 3.0, 4.0, 6.0), space=(1.5, 2.0, 2.5)),
    "nlm": _grid(strength=(0.25, 0.4, 0.6), patch=(3, 5), distance=(7,)),
    "tv": _grid(weight=(0.4, 0.5, 0.6, 0.7, 0.8, 1.0)),
    "wavelet": _grid(wavelet=("db2", "sym4", "sym8"), method=("BayesShrink", "VisuShrink"), levels=(3, 4)),
    "bm3d": [{}],
}


def search(name, samples, sigma):
    """Try every parameter of filter `name` on Samples; return [(MSE, parameters)], best first.

    The MSE is the mean of the sources' means, so that a source with many pictures does not choose alone.
    """
    pictures = [(s.noisy.permute(1, 2, 0).numpy(), s.clean.permute(1, 2, 0).numpy(), s.source) for s in samples]
    sources = sorted({source for *_, source in pictures})
    tried = []
    for parameters in GRIDS[name]:
        errors = {source: [] for source in sources}
        for noisy, clean, source in pictures:
            errors[source].append(mse(FILTERS[name](noisy, sigma, **parameters).astype(np.float32), clean))
        tried.append((float(np.mean([np.mean(values) for values in errors.values()])), parameters))
    return sorted(tried, key=lambda pair: pair[0])
