"""Activation maps of the ViT and of the denoisers, thresholds for them, and figures of them.

    found = activation_map(model, image, "bottleneck")        # found.map: (H, W) in [0, 1], as the library shows it
    kept = threshold_cam(found, 0.4, 1.0)                      # the strongest responses alone, stretched to 0..1
    shown = overlay(image, kept)                               # (H, W, 3) uint8

``activation_map`` is pytorch-grad-cam on a network without classes: it picks a target, orients the maps that have no
sign of their own (`helpers.cam_methods`), and leaves the network as it found it. Maps do not say what a network *uses*;
only taking things away does.
"""

import contextlib
import math
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from skimage.filters import threshold_otsu
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from helpers.cam_methods import GRADIENT_FREE, METHODS, Signed, Target, centre, parse_target, principal_map, sign_rule
from helpers.denoise import evaluating
from helpers.vit import ViT, patch_grid, vit_blocks
from surfaces.photos import to_uint8

BATCH = 32  # images that go through the network at once; more are cut into such parts
LAYERS = ("block 3", "block 5")  # of the shared map; chosen on train tiles: lab/report_cams.py
BEYOND = 0.5  # how far outside [0, 1] an image may lie: a denoiser's output does a little, one in 0..255 does a lot


class ActivationMap(NamedTuple):
    """A map of one image: `map` is to be looked at, `raw` to be measured."""

    map: np.ndarray  # (H, W) float32 in [0, 1] at the image's size, cut at zero and scaled **per image**
    raw: np.ndarray  # (h, w) float32 on the layer's own grid, signed, neither cut nor scaled
    sign: str  # the rule of `SIGN_RULES` that oriented it; "defined": it has a meaning; "library": it stayed as it fell
    layer: str
    method: str


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose maps are of interest by their names, in the order in which an image passes them.

    These are the blocks of a ViT of `open_vit` or of transformers, "block 0" first, and what a network has in
    `encoder`, `bottleneck` and `decoder`, where decoder n has the size of encoder n. A hybrid has both; a model with
    neither raises ValueError.

    >>> from helpers.models import UNet
    >>> list(layers_of(UNet(4, stages=2)))
    ['encoder 1', 'encoder 2', 'bottleneck', 'decoder 2', 'decoder 1']
    """
    vit, parts = _vit_of(model), dict(model.named_children())
    # a hybrid's ViT sees the image before anything is joined
    layers = {} if vit is None else {f"block {i}": block for i, block in enumerate(vit_blocks(vit))}
    if parts.keys() >= {"encoder", "bottleneck", "decoder"}:
        layers |= {f"encoder {i}": stage for i, stage in enumerate(parts["encoder"], 1)}
        layers["bottleneck"] = parts["bottleneck"]
        # stages are listed from fine to coarse; the decoder goes the other way
        layers |= {f"decoder {i}": parts["decoder"][i - 1] for i in range(len(parts["decoder"]), 0, -1)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has neither a ViT nor encoder, bottleneck and decoder: pass a module")
    return layers


def _vit_of(model: nn.Module) -> nn.Module | None:
    """The ViT that a network is or holds: of `open_vit`, or one of transformers, whose configuration has patches."""
    return next((part for part in model.modules() if isinstance(part, ViT)
                 or hasattr(getattr(part, "config", None), "patch_size")), None)


def find_layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """Return name and module of a layer, a name from `layers_of(model)` or a module of the model, else ValueError."""
    if isinstance(layer, nn.Module):
        names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
        if id(layer) not in names:  # the image would not pass it
            raise ValueError(f"the layer, a {type(layer).__name__}, is no part of the {type(model).__name__}")
        with contextlib.suppress(ValueError):  # where it has a name in `layers_of`, it goes by that
            names |= {id(module): name for name, module in layers_of(model).items()}
        return names[id(layer)], layer
    if layer not in (layers := layers_of(model)):
        raise ValueError(f"layer must be one of {', '.join(layers)}, or a module, got {layer!r}")
    return layer, layers[layer]


def activation_map(model: nn.Module, image: Any, layer: str | nn.Module, method: str = "EigenCAM",
                   target: Any = "mean", sign: str = "auto") -> ActivationMap | list[ActivationMap]:
    """Map what a layer of a network responds to: an `ActivationMap`, or for a batch a list with one per image.

    Args:
        model: a ViT, a U-Net or a hybrid; left as it was, and no other thread may use it meanwhile.
        image: torch (3, H, W) or (B, 3, H, W), or numpy (H, W, 3) or (B, H, W, 3), in [0, 1], where a denoiser's output
            may lie up to `BEYOND` outside; or uint8, or a PIL image, which are brought to [0, 1].
        layer: a name from `layers_of(model)`, or a module of the model that gives (B, C, h, w) or the ViT's tokens.
        method: a name from `METHODS`.
        target: what the gradient is taken of: a name from `TARGETS`, a region (H, W) bool (its mean), or a tuple
            (name, region). Methods in `GRADIENT_FREE` use no gradient: any target but the default is warned of.
        sign: for methods that decompose: "auto", a name from `SIGN_RULES`, or "library" for the library's own
            computation with the sign as it falls (grids up to 64 x 64). Others have a sign that means something.

    An image of another kind, and what does not exist or makes no sense, raises TypeError or ValueError.

    >>> from helpers.models import UNet
    >>> activation_map(UNet(4), np.zeros((16, 24, 3), np.float32), "encoder 2").raw.shape
    (8, 12)
    """
    images, single = _as_batch(image)  # (B, 3, H, W)
    name, module = find_layer(model, layer)
    # what cannot be is refused before anything is computed
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if sign != "library":  # which needs no rule
        sign_rule(sign)
    target, region = parse_target(target, size := images.shape[-2:])
    if method in GRADIENT_FREE and (target, region) != ("mean", None):
        warnings.warn(f"{method} uses no gradient: the target has no effect on its map", UserWarning, stacklevel=2)
    options = {"sign": sign} if issubclass(METHODS[method], Signed) else {}
    vit, maps = _vit_of(model), []
    # frozen, so that no gradient of a weight is computed; gradients of activations pass through all the same
    with evaluating(model, freeze=True), torch.inference_mode(False):
        cam = METHODS[method](_Output(model), [module], lambda output: _grid(output, vit, size), **options)
        cam.compute_input_gradient = cam.uses_gradients  # frozen weights alone would let no gradient through
        try:
            for part in images.split(BATCH):  # so that memory does not grow with the batch
                targets = [Target(target, one, region) for one in part]  # "residual" is of each image's own
                with torch.set_grad_enabled(cam.uses_gradients):  # a caller's mode must not matter
                    shown = cam(part.detach().clone(), targets)  # (B, H, W), cut at zero and scaled
                cam.outputs = None  # holds the graph
                if not np.isfinite(cam.raw).all():
                    raise ValueError("the map has values that are not finite: so have image, weights or gradients")
                maps += [ActivationMap(*pair, cam.sign, name, method) for pair in zip(shown, cam.raw, strict=True)]
        finally:
            cam.activations_and_grads.release()  # its hooks
    return maps[0] if single else maps


class _Output(nn.Module):
    """A model as the library wants it: one tensor out, and nothing done to the gradients that its owner may hold."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return _grid(self.model(images), _vit_of(self.model), images.shape[-2:])

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass  # no gradient of a weight is computed, and those that are there are not ours


def _grid(output: Any, vit: nn.Module | None, size: Sequence[int]) -> Tensor:
    """Bring what a layer gives for images of `size` to (B, C, h, w); a ViT's tokens lose the extra ones."""
    if isinstance(output, (dict, tuple)):  # as parts of transformers answer
        output = next(iter(output.values() if isinstance(output, dict) else output))
    if output.ndim == 4:
        return output.clone()  # a ReLU in place must not change what was saved
    if output.ndim == 3 and vit is not None:
        return patch_grid(output, vit, size)  # by the image's size: tokens do not tell their grid
    raise ValueError(f"a map needs a layer that gives (B, C, h, w) or a ViT's (B, N, C), got {tuple(output.shape)}")


def _as_batch(image: Any) -> tuple[Tensor, bool]:
    """Return images as (B, 3, H, W) float32 within `BEYOND` of [0, 1], and whether a single one came."""
    axis = -3 if isinstance(image, Tensor) else -1  # where the colours are
    images = image.detach() if isinstance(image, Tensor) else torch.from_numpy(np.array(
        image.convert("RGB") if isinstance(image, Image.Image) else image))
    if images.ndim not in (3, 4) or images.shape[axis] != 3 or 0 in images.shape:
        raise ValueError(f"an image must be torch (3, H, W) or numpy (H, W, 3), or a batch, got {tuple(images.shape)}")
    images, single = (images[None], True) if images.ndim == 3 else (images, False)
    images = images.movedim(axis, 1)  # (B, 3, H, W)
    if images.dtype == torch.uint8:  # the one other kind that says where its white is
        return images / 255, single
    if not images.is_floating_point():
        raise TypeError(f"an image must be floating point in [0, 1] or uint8, got {images.dtype}")
    if bad := int((~images.isfinite()).sum()):
        raise ValueError(f"the image has {bad} values that are not finite, NaN or infinite; wanted [0, 1]")
    low, high = images.aminmax()
    if low < -BEYOND or high > 1 + BEYOND:
        raise ValueError(f"an image must lie in [0, 1], a denoiser's output up to {BEYOND} outside, got {low:.3g} to "
                         f"{high:.3g}; values of 0 to 255 must be uint8, or divided by 255")
    return images.float(), single


@torch.no_grad()
def layer_features(model: nn.Module, images: Tensor,
                   layers: Sequence[str | nn.Module] | None = None) -> dict[str, Tensor]:
    """Return what layers of a network give for images (B, 3, H, W), by name, in one pass and without gradients.

    Each is (B, C, h, w) float32: feature maps as they are, tokens as the grid of patches. `layers` are names from
    `layers_of(model)`, by default all of them, or modules.

    >>> from helpers.models import UNet
    >>> layer_features(UNet(4), torch.rand(2, 3, 16, 24), ["bottleneck"])["bottleneck"].shape
    torch.Size([2, 32, 2, 3])
    """
    named = dict(find_layer(model, layer) for layer in (layers_of(model) if layers is None else layers))
    vit, found, handles, here = _vit_of(model), {}, [], threading.get_ident()
    try:
        for name, module in named.items():
            def listen(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if threading.get_ident() == here:  # images of another thread may pass meanwhile
                    found[name] = _grid(output, vit, images.shape[-2:]).float()
            handles.append(module.register_forward_hook(listen))
        model(images)  # one pass for all layers
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in named}  # in the order asked for, not that in which they were passed


def _as_map(cam: Any) -> np.ndarray:
    """Return an `ActivationMap`'s map, or (H, W) as it is, as float32; raise ValueError for what is no map."""
    cam = np.asarray(cam.map if isinstance(cam, ActivationMap) else cam, np.float32)
    if cam.ndim != 2 or cam.size == 0:
        raise ValueError(f"a map must be (H, W) and not empty, got {cam.shape}")
    if not np.isfinite(cam).all():  # a band would keep NaN or not by chance
        raise ValueError("a map must be finite, got one with values that are not finite")
    return cam


def threshold_cam(cam: ActivationMap | np.ndarray, lower: float = 0.4, upper: float = 0.9, rescale: bool = True,
                  by: str = "value") -> np.ndarray:
    """Keep what lies inside a band of a map, set the rest to 0, stretch what was kept to 0..1.

    Args:
        cam: (H, W) in [0, 1], or an `ActivationMap`.
        lower, upper: the band, both ends included, 0 <= lower <= upper <= 1. A 0 in the map is kept only if lower is 0.
        rescale: stretch the kept values from 0 (the smallest kept) to 1 (the largest); equal ones all become 1.
        by: "value": the band is of the map's values; "quantile": of its quantiles (0.9 to 1: the highest tenth), which
            can be compared between images where values cannot; "otsu": all above Otsu's threshold (nothing of a
            constant map), `lower` and `upper` unused. Anything else, as a map that is none, raises ValueError.

    Returns (H, W) float32, zeros everywhere where the band is empty.

    >>> threshold_cam(np.array([[0.2, 0.4, 0.65, 0.9, 1.0]])).round(3).tolist()
    [[0.0, 0.0, 0.5, 1.0, 0.0]]
    """
    return keep(cam, in_band(cam, lower, upper, by), rescale)


def in_band(cam: ActivationMap | np.ndarray, lower: float = 0.4, upper: float = 0.9, by: str = "value") -> np.ndarray:
    """Where a map (H, W) lies inside a band, (H, W) bool: the first half of `threshold_cam`, same arguments."""
    cam = _as_map(cam)
    if not 0 <= lower <= upper <= 1:
        raise ValueError(f"thresholds must be 0 <= lower <= upper <= 1, got {lower} and {upper}")
    if by not in ("value", "quantile", "otsu"):
        raise ValueError(f'by must be "value", "quantile" or "otsu", got {by!r}')
    if by == "otsu":
        fine = cam.astype(np.float64)  # in float32 the bins of a map of hardly any contrast would fall together
        return fine > threshold_otsu(fine) if cam.min() < cam.max() else np.zeros(cam.shape, bool)
    low, high = np.float32((lower, upper)) if by == "value" else np.quantile(cam, (lower, upper))
    # the library's cut makes most of a map 0; a quantile of 0 would keep all of that
    return (cam >= low) & (cam <= high) & ((cam != 0) | (lower == 0))


def keep(cam: ActivationMap | np.ndarray, kept: np.ndarray, rescale: bool = True) -> np.ndarray:
    """A map (H, W) with zeros where `kept` (H, W) bool is False, the rest stretched: `threshold_cam`'s second half."""
    cam = _as_map(cam)
    result = np.where(kept, cam, np.float32(0))
    if rescale and kept.any():
        values = cam[kept]
        low, high = values.min(), values.max()
        result[kept] = (values - low) / (high - low) if low < high else 1  # one value cannot be stretched
    return result


def overlay(image: Any, cam: ActivationMap | np.ndarray, alpha: float = 0.5, cmap: str = "inferno") -> np.ndarray:
    """Lay a (thresholded) map over an image where it is above 0: (H, W, 3) uint8, the image's own values where it is 0.

    `image` is one as in `activation_map`, clipped to [0, 1] like on a screen; `cam` (H, W) in [0, 1], or an
    `ActivationMap`, of its size; `alpha` the map's opacity, 0 to 1; `cmap` a matplotlib colour map's name. Anything
    else raises ValueError.

    >>> overlay(np.full((1, 2, 3), 1.2), np.array([[0.0, 1.0]]), alpha=1).tolist()
    [[[255, 255, 255], [252, 255, 164]]]
    """
    cam, (images, single) = np.clip(_as_map(cam), 0, 1), _as_batch(image)
    if not single:
        raise ValueError(f"wanted one image, got a batch of {len(images)}")
    shown = to_uint8(images[0].movedim(0, -1).cpu().numpy())  # (H, W, 3)
    if shown.shape != (*cam.shape, 3):
        raise ValueError(f"image and map must have one size, got {shown.shape} and {cam.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if cmap not in colormaps:
        raise ValueError(f"cmap must be the name of a matplotlib colour map, got {cmap!r}")
    seen = cam > 0  # elsewhere the image stays as it is
    colours = np.float32(colormaps[cmap](to_uint8(cam[seen]))[:, :3] * 255)  # (pixels, 3)
    shown[seen] = np.uint8((1 - alpha) * shown[seen] + alpha * colours + 0.5)  # both in 0..255
    return shown


def show_cam(image: Any, cam: ActivationMap | np.ndarray, mask: np.ndarray | None = None, lower: float = 0.4,
             upper: float = 0.9, by: str = "value", alpha: float = 0.5, cmap: str = "inferno") -> Figure:
    """Draw image, map with its colour bar, and the thresholded map over the image; return the matplotlib figure.

    The outline of `mask`, the crack, (H, W) bool, is drawn over the maps; the rest as in `threshold_cam` and `overlay`.
    """
    values = _as_map(cam)
    titles = ("image", f"{cam.method}, {cam.layer}" if isinstance(cam, ActivationMap) else "map",
              "kept: Otsu" if by == "otsu" else f"kept: {by} {lower:.2f} to {upper:.2f}")
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
    axes[0].imshow(overlay(image, np.zeros_like(values)))  # a map of zeros leaves the image as it is
    drawn = axes[1].imshow(values, cmap=cmap, vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes[1], fraction=0.046, label="scaled per image")
    axes[2].imshow(overlay(image, threshold_cam(values, lower, upper, by=by), alpha, cmap))
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.axis("off")
        if mask is not None and np.any(mask) and axis is not axes[0]:  # the image is shown as it is
            axis.contour(np.asarray(mask, float), levels=[0.5], colors="cyan", linewidths=0.8)
    return figure


def shared_direction(features: Tensor, sign: str = "auto") -> Tensor:
    """Return the mean over images of the oriented first components of their features (N, C, h, w): (C,), length 1."""
    # an image's component is, up to its length, the sum of its feature vectors weighted by the map
    votes = (principal_map(features, sign)[:, None] * centre(features)).sum((-2, -1))  # (N, C)
    return normalize(normalize(votes, dim=1).mean(0), dim=0)  # every image has one vote, a loud one too


def along(features: Tensor, direction: Tensor) -> Tensor:
    """Projection of features (N, C, h, w), centred per image, on a direction (C,): (N, h, w)."""
    return torch.einsum("nchw,c->nhw", centre(features), direction.to(features))


def standardised(maps: Tensor) -> Tensor:
    """Maps (N, h, w), each with mean 0 and standard deviation 1 (all 0 where it is constant)."""
    return centre(maps) / maps.std((-2, -1), correction=0, keepdim=True).clamp_min(1e-9)


class SharedMap:
    """The mean of several layers' maps of a model, each along that layer's shared direction (C,) in `directions`.

    >>> from helpers.models import UNet
    >>> shared = SharedMap.fit(UNet(4), torch.rand(5, 3, 32, 32), ["encoder 3", "bottleneck"])
    >>> shared(torch.rand(2, 3, 32, 48)).shape
    torch.Size([2, 8, 12])
    """

    def __init__(self, model: nn.Module, directions: dict[str, Tensor]) -> None:
        self.model, self.directions = model, directions

    @classmethod
    def fit(cls, model: nn.Module, images: Tensor, layers: Sequence[str] = LAYERS, sign: str = "auto",
            batch: int = 16) -> Self:
        """Find the directions on `images` (N, 3, H, W) in [0, 1], without any mask; a few dozen will do."""
        # in parts, so that memory does not grow with the images
        parts = [layer_features(model, part, layers) for part in images.split(batch)]
        return cls(model, {name: shared_direction(torch.cat([part[name] for part in parts]), sign)
                           for name in parts[0]})

    def __call__(self, images: Tensor) -> Tensor:
        """Return maps (N, h, w) of images (N, 3, H, W), signed, on the finest of the layers' grids."""
        return self.of(layer_features(self.model, images, list(self.directions)))

    def of(self, features: dict[str, Tensor]) -> Tensor:
        """Return maps (N, h, w) from what `layer_features` gave."""
        maps = [standardised(along(features[name], direction)) for name, direction in self.directions.items()]
        finest = max((map.shape[-2:] for map in maps), key=math.prod)  # a U-Net's layers have several grids
        maps = [interpolate(map[None], finest, mode="bilinear", align_corners=False)[0] for map in maps]
        return torch.stack(maps).mean(0)
