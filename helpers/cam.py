"""Activation maps of the ViT and of the denoisers, thresholds for them, and pictures of them.

``activation_map`` is pytorch-grad-cam on a network without classes: it picks a target, orients the maps that have no
sign of their own (`helpers.cam_methods`), and leaves the network as it found it. Maps do not say what a network *uses*;
only taking things away does.
"""

import contextlib
import warnings
from functools import lru_cache
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from skimage.filters import threshold_otsu
from torch import nn

from helpers.cam_methods import (
    GRADIENT_FREE,
    METHODS,
    Signed,
    Target,
    parse_target,
    principal_map,
    sign_rule,
)
from helpers.vit import patch_grid, vit_blocks

BATCH = 32  # pictures that go through the network at once; more are cut into such parts


class ActivationMap(NamedTuple):
    """A map of one picture.

    `map` is what pytorch-grad-cam shows: (H, W) float32 in [0, 1] at the picture's size, cut at zero and scaled **per
    picture**, so that one threshold means different things in different pictures. `raw` is the signed map on the
    layer's own grid, (h, w) float32, neither cut nor scaled: measure with this one. `sign` is the rule that oriented
    it: a name from `SIGN_RULES`, "defined" for methods whose sign has a meaning, "library" where it stayed as it fell.
    """

    map: np.ndarray
    raw: np.ndarray
    sign: str
    layer: str
    method: str


def layers_of(model):
    """The layers whose maps are of interest, in the order in which a picture passes them.

    Args:
        model: a ViT, a U-Net or a hybrid of both.

    Returns:
        dict from name to module: "block 0", "block 1", ... for the ViT's blocks (counted like ``vit_blocks(vit)[0]``),
        then "encoder 1", ..., "bottleneck", ..., "decoder 1" for the U-Net's; decoder n has the size of encoder n.

    Raises:
        ValueError: the model has neither; pass a module of it as `layer` instead.

    >>> from helpers.models import UNet
    >>> list(layers_of(UNet(4, stages=2)))
    ['encoder 1', 'encoder 2', 'bottleneck', 'decoder 2', 'decoder 1']
    """
    layers = {}
    if (vit := _vit_of(model)) is not None:
        layers |= {f"block {i}": block for i, block in enumerate(vit_blocks(vit))}
    unet = getattr(model, "unet", model)
    if all(isinstance(getattr(unet, part, None), nn.Module) for part in ("encoder", "bottleneck", "decoder")):
        layers |= {f"encoder {i}": stage for i, stage in enumerate(unet.encoder, 1)} | {"bottleneck": unet.bottleneck}
        layers |= {f"decoder {i}": unet.decoder[i - 1] for i in range(len(unet.decoder), 0, -1)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has neither ViT blocks nor encoder, bottleneck and decoder: pass a "
                         "module of it as the layer")
    return layers


def activation_map(model, image, layer, method="EigenCAM", target="mean", sign="auto"):
    """Map what a layer of a network responds to, through pytorch-grad-cam.

    Args:
        model: a ViT of `open_vit`, a U-Net or a hybrid, in any mode, on any device; left as it was, whatever happens.
        image: torch (3, H, W) or (B, 3, H, W), or numpy (H, W, 3) or (B, H, W, 3), in [0, 1].
        layer: a name from `layers_of(model)`, or a module of the model that gives (B, C, h, w) or the ViT's tokens.
        method: a name from `METHODS`, the library's classes; "TokenNorm" and "CentredTokenNorm", without any
            decomposition, are the null methods.
        target: what the gradient is taken of: a name from `TARGETS`, a region (H, W) bool (its mean), or a tuple
            (name, region). Methods in `GRADIENT_FREE` use no gradient: there the target has no effect, and any but
            the default gives a UserWarning that says so.
        sign: for methods that decompose: "auto", a name from `SIGN_RULES`, or "library" for the library's own
            computation with the sign as it falls (grids up to 64 x 64). Others have a sign that means something.

    Returns:
        An `ActivationMap`; a list of them, one per picture, for a batch.

    Raises:
        ValueError: what was asked for does not exist or makes no sense (no gradient reaches the layer, the layer gives
            no grid, ...); the message says which and why.

    >>> from helpers.models import UNet
    >>> activation_map(UNet(4), np.zeros((16, 24, 3), np.float32), "encoder 2").raw.shape
    (8, 12)
    """
    pictures, single = _as_batch(image)
    if bad := int((~pictures.isfinite()).sum()):
        raise ValueError(f"the picture has {bad} NaN or infinite values, so its map is not finite; wanted [0, 1]")
    name, module = find_layer(model, layer)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if sign != "library":
        sign_rule(sign)
    target, region = parse_target(target, pictures.shape[-2:])
    if method in GRADIENT_FREE and (target, region) != ("mean", None):
        warnings.warn(f"{method} uses no gradient: the target has no effect on its map", UserWarning, stacklevel=2)
    maps = []
    for part in pictures.split(BATCH):
        targets = [Target(target, picture, region) for picture in part]
        cam, raw, rule = _library_maps(model, module, METHODS[method], part, targets, sign)
        maps += [ActivationMap(*pair, rule, name, method) for pair in zip(cam, raw, strict=True)]
    return maps[0] if single else maps


def _library_maps(model, module, method, pictures, targets, sign):
    """Run one method of the library; return its maps (B, H, W), the raw ones (B, h, w) and the sign rule's name."""
    options = {"sign": sign} if issubclass(method, Signed) else {}
    with _as_it_was(model), torch.inference_mode(False):
        wrapped = _Output(model)
        cam = method(wrapped, [module], lambda output: _grid(model, output), **options)
        cam.compute_input_gradient = cam.uses_gradients  # frozen weights alone would let no gradient through
        try:
            with torch.set_grad_enabled(cam.uses_gradients):
                result = cam(pictures.detach().clone(), targets)
        finally:
            cam.activations_and_grads.release()
            cam.outputs = None  # holds the graph
    if not np.isfinite(cam.raw).all():
        raise ValueError("the map has values that are not finite: so have the picture, the weights or the gradients")
    return result, cam.raw, cam.sign


class _Output(nn.Module):
    """A model as the library wants it: one tensor out, and nothing done to the gradients that its owner may hold."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pictures):
        return _grid(self.model, self.model(pictures))

    def zero_grad(self, set_to_none=True):
        """Do nothing: no gradient of a weight is computed, and those that are there are not ours."""


@contextlib.contextmanager
def _as_it_was(model):
    """Freeze the weights for the time of a map; put back which were trained and which modules were in training mode."""
    training = [(module, module.training) for module in model.modules()]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for weight in trained:
            weight.requires_grad_(True)


def _vit_of(model):
    """The ViT that a model is or holds, or None: the outermost part with a configuration that has patches."""
    return next((part for part in model.modules() if hasattr(getattr(part, "config", None), "patch_size")), None)


def _grid(model, output):
    """Bring what a layer gives to (B, C, h, w): feature maps as they are, a ViT's tokens without the extra ones."""
    output = getattr(output, "last_hidden_state", output)
    output = output[0] if isinstance(output, tuple) else output
    if output.ndim == 4:
        return output.clone()  # a ReLU in place must not change what was saved
    if output.ndim == 3 and (vit := _vit_of(model)) is not None:
        return patch_grid(output, vit)
    raise ValueError("a map needs a layer that gives (B, C, h, w) or a ViT's tokens (B, N, C), got "
                     f"{tuple(output.shape)}")


def find_layer(model, layer):
    if isinstance(layer, nn.Module):
        names = {id(module): name for name, module in model.named_modules()}
        if id(layer) not in names:
            raise ValueError(f"the layer, a {type(layer).__name__}, is no part of the {type(model).__name__}")
        known = {} if names[id(layer)] == "" else {id(m): n for n, m in _layers_or_none(model).items()}
        return known.get(id(layer), names[id(layer)] or type(model).__name__), layer
    layers = layers_of(model)
    if layer not in layers:
        raise ValueError(f"layer must be one of {', '.join(layers)}, or a module, got {layer!r}")
    return layer, layers[layer]


def _layers_or_none(model):
    try:
        return layers_of(model)
    except ValueError:
        return {}


def _as_batch(image):
    """Return pictures as (B, 3, H, W) float32 and whether a single one came."""
    if isinstance(image, torch.Tensor):
        pictures, layout = image.detach(), "torch (3, H, W) or (B, 3, H, W)"
    else:
        pictures, layout = torch.from_numpy(np.array(image, np.float32)), "numpy (H, W, 3) or (B, H, W, 3)"
        pictures = pictures.movedim(-1, -3) if pictures.ndim in (3, 4) else pictures
    single = pictures.ndim == 3
    pictures = pictures[None] if single else pictures
    if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise ValueError(f"pictures must be {layout}, got {tuple(image.shape)}")
    return pictures.float(), single


@torch.no_grad()
def layer_features(model, pictures, layers=None):
    """What layers of a network give for pictures, in one pass and without gradients.

    Args:
        model: as in `activation_map`.
        pictures: (B, 3, H, W) in [0, 1], on the model's device.
        layers: names from `layers_of(model)` or modules; default all of `layers_of(model)`.

    Returns:
        dict from the layer's name to (B, C, h, w) float32: feature maps as they are, tokens as the grid of patches.

    >>> from helpers.models import UNet
    >>> layer_features(UNet(4), torch.rand(2, 3, 16, 24), ["bottleneck"])["bottleneck"].shape
    torch.Size([2, 32, 2, 3])
    """
    named = dict(find_layer(model, layer) for layer in (layers_of(model) if layers is None else layers))
    found, handles = {}, []
    try:
        for name, module in named.items():
            handles.append(module.register_forward_hook(
                lambda *call, name=name: found.update({name: _grid(model, call[-1]).float()})))
        model(pictures)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in named}


def _as_map(cam):
    cam = np.asarray(getattr(cam, "map", cam), np.float32)
    if cam.ndim != 2 or cam.size == 0 or not np.isfinite(cam).all():
        raise ValueError(f"a map must be (H, W), finite and not empty, got {cam.shape}"
                         + (" with values that are not finite" if cam.size and cam.ndim == 2 else ""))
    return cam


def threshold_cam(cam, lower=0.4, upper=0.9, rescale=True, by="value"):
    """Keep what lies inside a band of a map, set the rest to 0, stretch what was kept to 0..1.

    Args:
        cam: (H, W) in [0, 1], or an `ActivationMap`.
        lower, upper: the band, both ends included, 0 <= lower <= upper <= 1. A 0 in the map is kept only if lower is 0.
        rescale: stretch the kept values from 0 (the smallest kept) to 1 (the largest); False leaves them as they are.
        by: "value": the band is of the map's values; "quantile": of its quantiles (0.9 to 1: the highest tenth), which
            can be compared between pictures where values cannot; "otsu": all above Otsu's threshold, `lower` and
            `upper` unused.

    Returns:
        (H, W) float32. An empty band gives zeros everywhere. A constant one (all kept values equal) cannot be
        stretched: the kept values become 1. A constant map has no Otsu threshold: zeros.

    Raises:
        ValueError: no such band or `by`; a map that is not (H, W) or has values that are not finite.

    Source of Otsu's threshold: scikit-image.

    >>> threshold_cam(np.array([[0.2, 0.4, 0.65, 0.9, 1.0]])).round(3).tolist()
    [[0.0, 0.0, 0.5, 1.0, 0.0]]
    """
    return keep(cam, in_band(cam, lower, upper, by), rescale)


def in_band(cam, lower=0.4, upper=0.9, by="value"):
    """Where a map (H, W) lies inside a band, (H, W) bool: the first half of `threshold_cam`, same arguments."""
    cam = _as_map(cam)
    if not 0 <= lower <= upper <= 1:
        raise ValueError(f"thresholds must be 0 <= lower <= upper <= 1, got {lower} and {upper}")
    if by == "otsu":
        fine = cam.astype(np.float64)  # in float32 the bins of a map of hardly any contrast would fall together
        return fine > threshold_otsu(fine) if cam.min() < cam.max() else np.zeros(cam.shape, bool)
    if by not in ("value", "quantile"):
        raise ValueError(f'by must be "value", "quantile" or "otsu", got {by!r}')
    low, high = np.float32((lower, upper)) if by == "value" else np.quantile(cam, (lower, upper))
    return (cam >= low) & (cam <= high) & ((cam != 0) | (lower == 0))


def keep(cam, kept, rescale=True):
    """A map (H, W) with zeros where `kept` (H, W) bool is False, the rest stretched: `threshold_cam`'s second half."""
    cam = _as_map(cam)
    result = np.where(kept, cam, np.float32(0))
    if rescale and kept.any():
        values = cam[kept]
        low, high = values.min(), values.max()
        result[kept] = (values - low) / (high - low) if low < high else 1
    return result


@lru_cache
def _colours(cmap):
    return np.float32(colormaps[cmap](np.arange(256))[:, :3] * 255)  # (256, 3)


def overlay(image, cam, alpha=0.5, cmap="inferno"):
    """Lay a (thresholded) map over a picture where it is above 0.

    Args:
        image: numpy (H, W, 3) or torch (3, H, W), in [0, 1]; values outside, which a denoiser's output can have, are
            clipped like on a screen, so the brightness of the others does not change. uint8 counts as 0..255.
        cam: (H, W) in [0, 1], or an `ActivationMap`.
        alpha: opacity of the map, 0 to 1.
        cmap: a matplotlib colour map's name.

    Returns:
        (H, W, 3) uint8. Where the map is 0 these are the picture's own values.

    Raises:
        ValueError: shapes that do not fit, an opacity outside [0, 1], an unknown colour map.

    >>> overlay(np.full((1, 2, 3), 1.2), np.array([[0.0, 1.0]]), alpha=1).tolist()
    [[[255, 255, 255], [252, 255, 164]]]
    """
    cam, picture = np.clip(_as_map(cam), 0, 1), _as_uint8(image)
    if picture.shape != (*cam.shape, 3):
        raise ValueError(f"picture and map must have one size, got {picture.shape} and {cam.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if cmap not in colormaps:
        raise ValueError(f"cmap must be the name of a matplotlib colour map, got {cmap!r}")
    seen = cam > 0
    colours = _colours(cmap)[np.uint8(cam[seen] * 255 + 0.5)]
    picture[seen] = np.uint8((1 - alpha) * picture[seen] + alpha * colours + 0.5)
    return picture


def _as_uint8(image):
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().movedim(-3, -1).numpy()
    image = np.array(image)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"a picture must be numpy (H, W, 3) or torch (3, H, W), got {image.shape}")
    return image if image.dtype == np.uint8 else np.uint8(np.clip(np.nan_to_num(image), 0, 1) * 255 + 0.5)


def show_cam(image, cam, mask=None, lower=0.4, upper=0.9, by="value", alpha=0.5, cmap="inferno"):
    """Draw picture, map with its colour bar, and the thresholded map over the picture, with the crack's outline.

    Args:
        image: as in `overlay`.
        cam: an `ActivationMap`, or (H, W) in [0, 1].
        mask: (H, W) bool or None: the crack, outlined over map and overlay.
        lower, upper, by: as in `threshold_cam`. alpha, cmap: as in `overlay`.

    Returns:
        The matplotlib figure.
    """
    values = _as_map(cam)
    band = "Otsu" if by == "otsu" else f"{by} {lower:.2f} to {upper:.2f}"
    name = f"{cam.method}, {cam.layer}" if hasattr(cam, "method") else "map"
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
    axes[0].imshow(_as_uint8(image))
    bar = figure.colorbar(axes[1].imshow(values, cmap=cmap, vmin=0, vmax=1), ax=axes[1], fraction=0.046)
    bar.set_label("scaled per picture")
    axes[2].imshow(overlay(image, threshold_cam(values, lower, upper, by=by), alpha, cmap))
    for axis, title in zip(axes, ("picture", name, f"kept: {band}"), strict=True):
        axis.set_title(title, fontsize=9)
        axis.axis("off")
        if mask is not None and np.any(mask) and axis is not axes[0]:
            axis.contour(np.asarray(mask, float), levels=[0.5], colors="cyan", linewidths=0.8)
    return figure
LAYERS = ("block 3", "block 5")  # chosen on train tiles: lab/report_cams.py


def _centred(features):
    return features - features.mean((-2, -1), keepdim=True)


def shared_direction(features, sign="auto"):
    """The mean over pictures of the oriented first components of their features.

    Args:
        features: (N, C, h, w), of N pictures at one layer.
        sign: the rule that orients each picture's component, "auto" or a name from `helpers.cam_methods.SIGN_RULES`.

    Returns:
        (C,) float32 of unit length.

    >>> features = torch.zeros(1, 3, 4, 4)
    >>> features[0, 1, 2, 2] = 5
    >>> shared_direction(features).tolist()
    [0.0, 1.0, 0.0]
    """
    votes = (principal_map(features, sign)[:, None] * _centred(features)).sum((-2, -1))  # (N, C)
    return torch.nn.functional.normalize(torch.nn.functional.normalize(votes, dim=1).mean(0), dim=0)


def along(features, direction):
    """Projection of features (N, C, h, w), centred per picture, on a direction (C,): (N, h, w)."""
    return torch.einsum("nchw,c->nhw", _centred(features), direction.to(features))


def standardised(maps):
    """Maps (N, h, w), each with mean 0 and standard deviation 1 (all 0 where it is constant)."""
    return _centred(maps) / maps.std((-2, -1), correction=0, keepdim=True).clamp_min(1e-9)


class SharedMap:
    """The mean of several layers' maps, each along that layer's shared direction.

    Args:
        model: a ViT, a U-Net or a hybrid.
        directions: dict from a layer's name to its direction (C,); see `fit`.

    >>> from helpers.models import UNet
    >>> shared = SharedMap.fit(UNet(4), torch.rand(5, 3, 32, 32), ["encoder 3", "bottleneck"])
    >>> shared(torch.rand(2, 3, 32, 48)).shape
    torch.Size([2, 8, 12])
    """

    def __init__(self, model, directions):
        self.model, self.directions = model, directions

    @classmethod
    def fit(cls, model, pictures, layers=LAYERS, sign="auto", batch=16):
        """Find the directions on `pictures` (N, 3, H, W) in [0, 1], without any mask; a few dozen will do."""
        parts = [layer_features(model, part, layers) for part in pictures.split(batch)]
        return cls(model, {name: shared_direction(torch.cat([part[name] for part in parts]), sign)
                           for name in parts[0]})

    def __call__(self, pictures):
        """Return maps (N, h, w) of pictures (N, 3, H, W), signed, on the finest of the layers' grids."""
        return self.of(layer_features(self.model, pictures, list(self.directions)))

    def of(self, features):
        """Return maps (N, h, w) from what `layer_features` gave."""
        maps = [standardised(along(features[name], direction)) for name, direction in self.directions.items()]
        size = max((map.shape[-2:] for map in maps), key=lambda size: size[0] * size[1])
        maps = [map if map.shape[-2:] == size else torch.nn.functional.interpolate(
            map[None], size, mode="bilinear", align_corners=False)[0] for map in maps]
        return torch.stack(maps).mean(0)
