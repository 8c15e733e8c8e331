"""The methods of pytorch-grad-cam at any layer size, with a sign, keeping the library's interface.

    cam = EigenCAM(model, [layer], reshape_transform)      # as the library's class of the same name
    shown = cam(images, targets)                           # (B, H, W) in [0, 1], cut at zero and scaled
    cam.raw                                                # (B, h, w), signed, on the layer's own grid

The library's singular value decomposition takes time and memory that grow with the square of the number of positions,
and leaves the sign to chance; here a C x C matrix does, and a rule decides.

Source: Gildenblat and contributors, pytorch-grad-cam (https://github.com/jacobgil/pytorch-grad-cam), 1.5.7.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_grad_cam as library
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from scipy.linalg import eigh
from sklearn.decomposition import KernelPCA
from sklearn.metrics.pairwise import pairwise_kernels
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

LIBRARY_POSITIONS = 64 * 64  # sign="library" runs the library's own decomposition, up to so many positions

TARGETS = {  # what is asked of a network that has no classes
    "mean": "the mean of the output: what adds to the average activation (of a denoiser: to brightness)",
    "norm": "the Euclidean length of the output: what makes the features (or the image) strong",
    "residual": "the Euclidean length of image minus output: what the denoiser takes away",
}


class Target:
    """A number for the library to differentiate: ``target(output)`` with one image's output (C, h, w).

    `name` is a key of `TARGETS`, `image` (3, H, W) the network's input. Of a `region`, (H, W) of 0 and 1, only this
    part of the output counts. Raises ValueError for a target that this network cannot have.
    """

    def __init__(self, name: str, image: Tensor, region: Tensor | None = None) -> None:
        self.name, self.image, self.region = name, image, region

    def __call__(self, output: Tensor) -> Tensor:
        image = self.image.to(output)  # its device and precision
        if self.name == "residual" and output.shape != image.shape:
            raise ValueError('target "residual" is image minus output and needs a denoiser: this network answers '
                             f"{tuple(image.shape)} with {tuple(output.shape)}")
        weight = torch.ones_like(output[:1])  # (1, h, w)
        if self.region is not None:  # brought to the output's grid: a ViT answers with 14 x 14 tokens
            weight = adaptive_avg_pool2d(self.region.to(output)[None], output.shape[-2:])
        if self.name == "mean":
            return (weight * output).sum() / (weight.sum() * len(output))
        return torch.linalg.vector_norm(weight.sqrt() * (output if self.name == "norm" else image - output))


def parse_target(target: Any, size: Sequence[int]) -> tuple[str, Tensor | None]:
    """Read a target: a name, a region (H, W) bool (its mean), or (name, region); return name and region or None.

    Raises ValueError for a name that is none, and a region that is empty or of another `size` (H, W) than the images.
    """
    if not isinstance(target, tuple) or len(target) != 2:
        target = (target, None) if isinstance(target, str) else ("mean", target)
    name, region = target
    if name not in TARGETS:
        raise ValueError(f"target must be {', '.join(TARGETS)}, a region (H, W) bool or (name, region), got {name!r}")
    if region is None:
        return name, None
    region = torch.as_tensor(region)
    if region.dtype != torch.bool or tuple(region.shape) != tuple(size) or not region.any():
        raise ValueError(f"a region must be bool {tuple(size)} with at least one pixel, got {region.dtype} "
                         f"{tuple(region.shape)} with {int(region.sum())}")
    return name, region.float()


def centre(maps: Tensor) -> Tensor:
    """Return maps or features (..., h, w) without their mean over the positions."""
    return maps - maps.mean((-2, -1), keepdim=True)


def token_norm(features: Tensor, centred: bool = True) -> Tensor:
    """Length of the feature vector at every position of (B, C, h, w): (B, h, w); centred: how unusual a position is."""
    return (centre(features) if centred else features).norm(dim=1)


def _largest(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return flat.gather(1, flat.abs().argmax(1, keepdim=True))[:, 0]


# A rule's score (B,) of maps (B, h, w) with the features (B, C, h, w) they are made of: where negative, a map is turned
SIGN_RULES = {
    # the entry of largest absolute value is positive (scikit-learn's KernelPCA, SegEigenCAM)
    "largest": lambda maps, features: _largest(maps),
    # third central moment positive: a few positions stand out upwards from the ground
    "skewness": lambda maps, features: (centre(maps) ** 3).mean((-2, -1)),
    # mean above median: fewer positions lie above the mean than below it
    "minority": lambda maps, features: maps.flatten(1).mean(1) - maps.flatten(1).quantile(0.5, dim=1),
    # the map grows with the centred token norm: positions unlike the image's mean are up
    "norm": lambda maps, features: (centre(maps) * token_norm(features)).mean((-2, -1)),
    # the map grows with local contrast: the distance of a feature vector from the mean of its 3 x 3 neighbourhood
    "contrast": lambda maps, features: (centre(maps) * (features - avg_pool2d(
        features, 3, stride=1, padding=1, count_include_pad=False)).norm(dim=1)).mean((-2, -1)),
}
AUTO = "norm"  # the rule behind sign="auto": the best or as good on noisy train tiles, for both decompositions


def sign_rule(sign: str) -> str:
    """Return the name of the rule that `sign` asks for; raise ValueError where there is none of that name."""
    rule = AUTO if sign == "auto" else sign
    if rule not in SIGN_RULES:
        raise ValueError(f'sign must be "auto" or one of {", ".join(SIGN_RULES)}, got {sign!r}')
    return rule


def orient(maps: Tensor, features: Tensor, sign: str = "auto") -> Tensor:
    """Return maps (B, h, w), each times 1 or -1, so that the score of the rule `sign` is not negative.

    `features` (B, C, h, w) are what the maps were made of. Where a rule is undecided (exactly 0), "largest" decides.
    """
    score = SIGN_RULES[sign_rule(sign)](maps, features)
    score = torch.where(score == 0, _largest(maps), score)
    return torch.where(score < 0, -1.0, 1.0)[:, None, None] * maps


def project(features: Tensor) -> Tensor:
    """Return features (B, C, h, w), centred per channel, on their first principal component: (B, h, w).

    What the library's EigenCAM computes, up to the sign. The component is the first right singular vector of the
    (h * w) x C matrix X of an image's features, hence an eigenvector of the C x C matrix X'X; where there are more
    channels than positions, XX' is the smaller one.
    """
    tokens = features.flatten(2).transpose(1, 2).float()  # (B, h * w, C)
    tokens = torch.where(tokens.isnan(), 0, tokens)  # as the library does
    tokens = tokens - tokens.mean(1, keepdim=True)  # a component of what is the same everywhere says nothing
    # gradients times activations can be so small that their squares vanish
    scale = tokens.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(tokens.dtype).tiny)
    tokens = tokens / scale
    if tokens.shape[1] >= tokens.shape[2]:
        projection = tokens @ _top_eigenvector(tokens.mT @ tokens)  # (B, h * w, 1)
    else:  # the eigenvector of XX' is the projection itself, up to its length
        gram = tokens @ tokens.mT
        vector = _top_eigenvector(gram)
        projection = vector * (vector.mT @ gram @ vector).clamp_min(0).sqrt()
    return (projection * scale).reshape(-1, *features.shape[2:])


def _top_eigenvector(gram: Tensor) -> Tensor:
    """Return the eigenvector (B, n, 1) of the largest eigenvalue of symmetric matrices (B, n, n), of unit length."""
    if gram.is_cuda:  # a batch at once
        return torch.linalg.eigh(gram)[1][..., -1:]
    last = [gram.shape[-1] - 1] * 2  # on the CPU LAPACK finds one pair three times as fast as all of them
    pairs = [eigh(matrix, subset_by_index=last, check_finite=False) for matrix in gram.cpu().numpy()]
    return torch.stack([torch.from_numpy(vector) for _, vector in pairs]).to(gram)


@torch.no_grad()
def principal_map(features: Tensor, sign: str = "auto") -> Tensor:
    """First principal component of features (B, C, h, w), else ValueError: EigenCAM without hooks and gradients.

    Returns (B, h, w) float32, oriented by the rule `sign`, mean 0 per image; all 0 where features are the same
    everywhere.

    Source: Muhammad & Yeasin, "Eigen-CAM" (IJCNN 2020, arXiv:2008.00299).

    >>> features = torch.zeros(1, 4, 8, 8)
    >>> features[:, :, 2, 5] = 1
    >>> divmod(principal_map(features).argmax().item(), 8)
    (2, 5)
    """
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
    return orient(project(features), features.float(), sign)


def kernel_projection(features: Tensor, kernel: str = "sigmoid", gamma: float | None = None, landmarks: int = 256,
                      rank: int = 64) -> Tensor:
    """First kernel principal component of one image's features (C, h, w), sign as it falls: (h, w) float32.

    Nystroem: with K the n x n kernel matrix of all positions, K_m its columns at m landmarks and K_mm the block between
    those, K is about K_m K_mm^-1 K_m', in time and memory that grow with n. Of K_mm the `rank` eigenvalues of largest
    size are kept, with their signs, since the sigmoid kernel has negative ones.

    Source: Williams & Seeger, "Using the Nystroem method to speed up kernel machines" (NeurIPS 2000); Schoelkopf, Smola
    & Mueller, "Nonlinear component analysis as a kernel eigenvalue problem" (Neural Computation 1998).
    """
    channels, height, width = features.shape
    tokens = features.reshape(channels, -1).T.double().numpy()
    tokens = tokens - tokens.mean(0)  # (n, C)
    count = len(tokens)
    if not tokens.any():
        return torch.zeros(height, width)
    if count <= landmarks:  # few enough to do without landmarks
        exact = KernelPCA(1, kernel=kernel, gamma=gamma, random_state=0).fit_transform(tokens)
        return torch.from_numpy(exact.reshape(height, width).astype(np.float32))
    # one landmark in each of m equal runs of positions, at random: an even grid alone could beat with a texture
    edges = np.linspace(0, count, landmarks + 1).astype(int)
    marks = tokens[np.random.default_rng(0).integers(edges[:-1], edges[1:])]
    kernels = partial(pairwise_kernels, metric=kernel, filter_params=True, gamma=gamma)  # (p, C), (q, C) to (p, q)

    # K_mm by its eigenvalues, without those that are zero but for rounding
    values, vectors = np.linalg.eigh(kernels(marks))
    kept = np.argsort(-np.abs(values))[:rank]
    kept = kept[np.abs(values[kept]) > 1e-12 * np.abs(values).max()]
    basis = vectors[:, kept] / np.sqrt(np.abs(values[kept]))  # (m, rank)
    # every position in that basis, in parts to save memory: K is about mapped @ diag(signs) @ mapped'
    mapped = np.concatenate([kernels(tokens[i:i + 4096], marks) @ basis for i in range(0, count, 4096)])  # (n, rank)
    mapped -= mapped.mean(0)

    # its first eigenvector, found in the rank x rank space of orthonormal axes
    lengths, axes = np.linalg.eigh(mapped.T @ mapped)
    real = lengths > 1e-12 * lengths[-1]
    lengths, axes = np.sqrt(lengths[real]), axes[:, real]
    half = axes * lengths
    value, vector = (pair[..., -1] for pair in np.linalg.eigh(half.T @ (np.sign(values[kept])[:, None] * half)))
    projection = mapped @ ((axes / lengths) @ vector) * np.sqrt(max(value, 0))
    return torch.from_numpy(projection.reshape(height, width).astype(np.float32))


def _features(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.nan_to_num(np.asarray(array, np.float32), posinf=None, neginf=None))


class _Mapped:
    """What all methods share: they refuse a layer without what they need, and keep the signed map in ``raw``."""

    sign = "defined"  # up is what raises the target

    def get_cam_image(self, input_tensor: Tensor, target_layer: nn.Module, targets: list[Target],
                      activations: np.ndarray | None, grads: np.ndarray | None,
                      eigen_smooth: bool = False) -> np.ndarray:
        """Return the map (B, h, w) of activations and gradients (B, C, h, w); ValueError where there can be none."""
        name = type(self).__name__
        if activations is None:  # the library would fail with words that explain nothing
            raise ValueError(f"{name}: the image does not pass this layer, a {type(target_layer).__name__}")
        if min(grid := activations.shape[2:]) < 2:
            raise ValueError(f"{name}: a map needs a grid of at least 2 x 2, got {grid[0]} x {grid[1]}")
        if self.uses_gradients and (grads is None or not np.any(grads)):
            raise ValueError(f"{name} needs a gradient, and none of this target reaches this layer: it does not depend "
                             "on it, or is computed without gradients; EigenCAM and KPCA_CAM need none")
        self.raw = np.float32(self.signed_map(input_tensor, target_layer, targets, activations, grads, eigen_smooth))
        return self.raw  # which the library cuts at zero and scales

    def signed_map(self, *args: Any) -> np.ndarray:
        """Return the map (B, h, w) before it is cut and scaled: the library's own, unless a subclass knows better."""
        return super().get_cam_image(*args)


class Signed(_Mapped):
    """A method that decomposes features, and so has to be told which sign to give its map."""

    auto = AUTO

    def __init__(self, *args: Any, sign: str = "auto") -> None:
        super().__init__(*args)
        self.sign = sign if sign == "library" else sign_rule(self.auto if sign == "auto" else sign)

    def features(self, activations: np.ndarray, grads: np.ndarray | None) -> np.ndarray:
        """Return what is decomposed, (B, C, h, w)."""
        return activations  # as EigenCAM does

    def decompose(self, features: Tensor) -> Tensor:
        """Map features (B, C, h, w) to (B, h, w), the sign as it falls."""
        return project(features)

    def signed_map(self, *args: Any) -> np.ndarray:
        """Return the component (B, h, w) of the features, oriented by the rule `sign`."""
        *_, activations, grads, _ = args  # those of `get_cam_image`
        if self.sign == "library":
            if (positions := np.prod(activations.shape[2:])) > LIBRARY_POSITIONS:
                raise ValueError("sign=\"library\" runs the library's own decomposition, whose memory grows with the "
                                 f"square of the grid: at most {LIBRARY_POSITIONS} positions, got {positions}")
            return super().signed_map(*args)
        features = _features(self.features(activations, grads))
        return orient(self.decompose(features), features, self.sign).numpy()


class EigenCAM(Signed, library.EigenCAM):
    """First principal component of the activations (Muhammad & Yeasin, arXiv:2008.00299)."""


class KPCA_CAM(Signed, library.KPCA_CAM):
    """First *kernel* principal component of the activations (Karmani et al., arXiv:2410.00267), by Nystroem.

    The kernel is the library's "sigmoid", tanh(x'y / C + 1), which is not positive semi-definite. Centred as in the
    library, but in double precision: with small activations the centred kernel is lost in single precision.
    """

    def decompose(self, features: Tensor) -> Tensor:
        return torch.stack([kernel_projection(image) for image in features])


class EigenGradCAM(Signed, library.EigenGradCAM):
    """First principal component of activations times gradients."""

    def features(self, activations: np.ndarray, grads: np.ndarray | None) -> np.ndarray:
        return grads * activations


class SegEigenCAM(Signed, library.SegEigenCAM):
    """First principal component of activations times absolute gradients (Chung & Ying, doi:10.3390/app15137562)."""

    auto = "largest"  # part of the method

    def features(self, activations: np.ndarray, grads: np.ndarray | None) -> np.ndarray:
        return np.abs(grads) * activations


class GradCAM(_Mapped, library.GradCAM):
    """Activations weighted by the mean gradient of their channel (Selvaraju et al., arXiv:1610.02391)."""


class HiResCAM(_Mapped, library.HiResCAM):
    """Activations times gradients, summed over channels (Draelos & Carin, arXiv:2011.08891)."""


class LayerCAM(_Mapped, library.LayerCAM):
    """Activations times positive gradients, summed over channels (Jiang et al., doi:10.1109/TIP.2021.3089943)."""


class _Rectified(_Mapped):
    """A method derived for activations that are never negative: it divides by a channel's sum of them."""

    def signed_map(self, *args: Any) -> np.ndarray:
        if (args[-3] < 0).any():
            raise ValueError(f"{type(self).__name__} divides by a channel's sum of activations and needs a layer where "
                             "none is negative (after a ReLU), so no ViT block; GradCAM and HiResCAM do without")
        return super().signed_map(*args)


class GradCAMPlusPlus(_Rectified, library.GradCAMPlusPlus):
    """GradCAM with weights per position, from powers of the gradient (Chattopadhay et al., arXiv:1710.11063)."""


class XGradCAM(_Rectified, library.XGradCAM):
    """GradCAM with gradients weighted by their share of the activation (Fu et al., arXiv:2008.02312)."""


class TokenNorm(_Mapped, BaseCAM):
    """Null method, no decomposition: the length of the vector of activations at each position."""

    centred = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, uses_gradients=False)

    def signed_map(self, *args: Any) -> np.ndarray:
        return token_norm(_features(args[-3]), self.centred).numpy()


class CentredTokenNorm(TokenNorm):
    """Null method, no decomposition: the distance of each position's activations from their mean over the image."""

    centred = True


METHODS = {cls.__name__: cls for cls in (EigenCAM, KPCA_CAM, GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM,
                                         EigenGradCAM, SegEigenCAM, TokenNorm, CentredTokenNorm)}
GRADIENT_FREE = ("EigenCAM", "KPCA_CAM", "TokenNorm", "CentredTokenNorm")  # the target cannot change their maps
