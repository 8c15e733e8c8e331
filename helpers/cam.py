"""Activation maps of the ViT and of the denoisers, thresholds for them, and pictures of them.

``activation_map`` is pytorch-grad-cam on a network without classes: it picks a target, orients the maps that have no
sign of their own (`helpers.principal`), and leaves the network as it found it. Maps do not say what a network *uses*;
only taking things away does.
"""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from helpers.cam_methods import GRADIENT_FREE, METHODS, TARGETS, Signed, Target, parse_target
from helpers.cam_view import overlay, show_cam, threshold_cam
from helpers.principal import SIGN_RULES, principal_map, sign_rule, token_norm
from helpers.vit import patch_grid, vit_blocks

__all__ = ["ActivationMap", "GRADIENT_FREE", "METHODS", "SIGN_RULES", "TARGETS", "activation_map", "batch_attention",
           "layer_features", "layers_of", "overlay", "principal_map", "show_cam", "threshold_cam"]

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
    name, module = _find_layer(model, layer)
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


def _find_layer(model, layer):
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
    named = dict(_find_layer(model, layer) for layer in (layers_of(model) if layers is None else layers))
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


IN_A_LOSS = {
    "EigenCAM": principal_map,
    "TokenNorm": lambda features, sign: token_norm(features, centred=False),
    "CentredTokenNorm": lambda features, sign: token_norm(features),
}


class batch_attention(nn.Module):
    """Maps for a whole batch on its own device, for use inside a loss: pictures (B, 3, H, W) to (B, h, w) in [0, 1].

    Without gradients. The same maps as ``activation_map(...)``, on the layer's grid: oriented, cut at zero, scaled per
    picture.

    Args:
        model: as in `activation_map`. Frozen: it is put in eval mode and its weights are never trained.
        layer: a name from `layers_of(model)` or a module; default the block two thirds of the way through the ViT.
        method: "EigenCAM", "TokenNorm" or "CentredTokenNorm".
        sign: "auto" or a name from `SIGN_RULES`.

    >>> from helpers.models import UNet
    >>> batch_attention(UNet(4), "bottleneck")(torch.rand(2, 3, 16, 24)).shape
    torch.Size([2, 2, 3])
    """

    def __init__(self, model, layer=None, method="EigenCAM", sign="auto"):
        super().__init__()
        if method not in IN_A_LOSS:
            raise ValueError(f"inside a loss the method must be one of {', '.join(IN_A_LOSS)}, got {method!r}")
        if layer is None:
            names = list(layers_of(model))
            layer = names[2 * len(names) // 3]
        self.model, self.method, self.sign = model.eval().requires_grad_(False), method, sign
        _, self.layer = _find_layer(model, layer)

    @torch.no_grad()
    def forward(self, pictures):
        features, = layer_features(self.model, pictures, [self.layer]).values()
        maps = IN_A_LOSS[self.method](features, self.sign).clamp_min(0)
        maps = maps - maps.amin((-2, -1), keepdim=True)
        return maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-12)
