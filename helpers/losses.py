"""All loss terms under one name: those of `helpers.terms`, weights from an activation map, references, and their sum.

How a term is called, what a NaN does and what `scale` means: see `helpers.terms`. References from the literature:
Charbonnier (Charbonnier et al., ICIP 1994; epsilon as in Lai et al., arXiv:1704.03915) and MS-SSIM (Wang et al.,
Asilomar 2003) by torchmetrics. Focal frequency loss (arXiv:2012.12821) is left out: no maintained package has it.
"""

import math

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from helpers.terms import (
    MATCHED,
    FrequencyLoss,
    RegionalSharpnessLoss,
    Term,
    WaveletLoss,
    neighbour_difference,
    window_scores,
)

__all__ = ["MATCHED", "CamWeightedLoss", "CharbonnierLoss", "CombinedLoss", "FrequencyLoss", "MSSSIMLoss",
           "RegionalSharpnessLoss", "WaveletLoss", "local_contrast", "matched_constant", "neighbour_difference",
           "window_scores"]  # fmt: skip

CONTROLS = (None, "shuffled", "random", "contrast")
RESERVED = ("mse", "loss", "step", "lr", "seconds", "psnr")  # columns of fit's history


def local_contrast(pictures, window=17):
    """Return each picture's local contrast (B, H, W), [0, 1]: standard deviation of grey in a window, largest = 1."""
    grey = pictures.mean(1, keepdim=True)
    grey = grey - grey.mean((-2, -1), keepdim=True)  # small numbers: their squares lose less
    options = dict(kernel_size=window, stride=1, padding=window // 2, count_include_pad=False)
    variance = avg_pool2d(grey**2, **options) - avg_pool2d(grey, **options) ** 2
    contrast = variance.clamp(min=0).sqrt()[:, 0]
    return contrast / contrast.amax((-2, -1), keepdim=True).clamp(min=1e-6)


def _smooth_noise(pictures, seed, patch=16):
    """Return random smooth maps (B, H, W); a picture always gets the same one, so that a resumed run repeats itself."""
    grid = [math.ceil(side / patch) + 1 for side in pictures.shape[-2:]]
    draws = []
    for total in pictures.double().sum((1, 2, 3)).tolist():
        generator = torch.Generator().manual_seed(hash((seed, total)) % 2**63)
        draws.append(torch.randn(1, *grid, generator=generator))
    noise = torch.stack(draws).to(pictures)  # (B, 1, h, w)
    return interpolate(noise, pictures.shape[-2:], mode="bicubic", align_corners=False)[:, 0]


def _same_histogram(places, values):
    """Return `values` (B, H, W) put where `places` ranks them: the largest value at the largest place."""
    order = places.flatten(1).argsort(dim=1, stable=True)
    return torch.zeros_like(values.flatten(1)).scatter(1, order, values.flatten(1).sort(dim=1).values).view_as(values)


def _in_band(maps, lower, upper):
    """Keep the values of (B, H, W) inside [lower, upper] and stretch them to 0..1 per map, all else 0.

    A band that holds one value only keeps it as 1; an empty band gives zeros.
    """
    kept = ~((maps < lower) | (maps > upper))  # NaN stays, to be found by who asks for it
    low = maps.masked_fill(~kept, math.inf).amin((-2, -1), keepdim=True)
    high = maps.masked_fill(~kept, -math.inf).amax((-2, -1), keepdim=True)
    constant = high - low <= 1e-5  # as good as: interpolation rounds
    stretched = torch.where(constant, 1.0, (maps - low) / (high - low).clamp(min=1e-5))
    return torch.where(kept, stretched, 0.0)


def _vit_attention(vit, layer, method):
    try:
        from helpers.cam import batch_attention  # a ViT is opened only by those who want its maps
    except ImportError as error:
        raise ImportError("CamWeightedLoss(vit, ...) needs helpers.cam.batch_attention; without it give "
                          "attention=..., a function from pictures (B, 3, H, W) to maps (B, h, w)") from error
    return batch_attention(vit, layer, method)


class CamWeightedLoss(Term):
    """MSE weighted by 1 + strength * m, m the thresholded activation map of the **clean** picture, divided by its mean.

    The map is made in the batch, without gradients, by a frozen network; its values outside [lower, upper] become 0,
    the rest is stretched to 0..1. An empty map leaves plain MSE. The controls say whether the *place* matters: they put
    the values of the same maps elsewhere.

    Args:
        vit, layer, method: a ViT and what `helpers.cam.batch_attention` makes maps of; or
        attention: instead of the three, a function (or module) from clean pictures (B, C, H, W) to maps (B, h, w) in
            [0, 1] on any grid; they are brought to the picture's size bilinearly.
        lower, upper: the band of the map that is kept, 0 <= lower <= upper <= 1.
        strength: k >= 0, how much more a pixel with m = 1 counts.
        control: None; "shuffled": the map of the batch's next picture; "random": a smooth random map with the map's
            histogram; "contrast": the map's histogram put where the local contrast is highest.
        seed: of "random".
        scale: see `helpers.terms`; on the original scale the weights are not divided by their mean.

    Raises:
        ValueError: maps of another shape; "shuffled" with fewer than two pictures in the batch.

    Example:
        >>> clean, denoised = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
        >>> empty = CamWeightedLoss(attention=lambda clean: torch.zeros(2, 2, 2), scale=1.0)
        >>> bool(torch.isclose(empty(denoised, clean), nn.functional.mse_loss(denoised, clean)))
        True
    """

    key = "cam"

    def __init__(self, vit=None, layer=None, method="EigenCAM", lower=0.4, upper=0.9, strength=4.0, control=None, *,
                 attention=None, seed=0, scale="matched"):
        super().__init__(scale)
        if (vit is None) == (attention is None):
            raise ValueError("CamWeightedLoss takes either vit (with layer and method) or attention")
        if not 0 <= lower <= upper <= 1 or not 0 <= strength < math.inf:
            raise ValueError("thresholds must be 0 <= lower <= upper <= 1 and strength 0 or more, "
                             f"got {lower}, {upper} and {strength}")
        if control not in CONTROLS:
            raise ValueError(f"control must be one of {CONTROLS}, got {control!r}")
        self.lower, self.upper, self.strength, self.control, self.seed = lower, upper, strength, control, seed
        self.attention = attention or _vit_attention(vit, layer, method)

    @torch.no_grad()
    def maps(self, clean):
        """Return the thresholded maps (B, H, W) in [0, 1] of clean pictures (B, C, H, W), after the control's move."""
        if isinstance(self.attention, nn.Module):
            self.attention.to(clean.device).eval()
        maps = self.attention(clean)
        if maps.ndim != 3 or len(maps) != len(clean):
            raise ValueError(f"attention must give maps (B, h, w) for {len(clean)} pictures, got {tuple(maps.shape)}")
        maps = interpolate(maps.to(clean)[:, None], clean.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        if self.control == "shuffled":
            if len(maps) < 2:
                raise ValueError("the shuffled control needs at least 2 pictures in a batch, got 1")
            maps = maps.roll(1, 0)
        elif self.control == "random":
            maps = _same_histogram(_smooth_noise(clean, self.seed), maps)
        elif self.control == "contrast":
            maps = _same_histogram(local_contrast(clean), maps)
        return _in_band(maps, self.lower, self.upper)

    def value(self, denoised, clean):
        maps = self.maps(clean)  # (B, H, W)
        finite = torch.isfinite(maps.sum())
        weights = 1 + self.strength * torch.where(finite, maps, 0.0)
        if not self.original:
            weights = weights / weights.mean((-2, -1), keepdim=True)
        value = (weights * ((denoised - clean) ** 2).mean(1)).mean()
        return torch.where(finite, value, math.nan)


class CharbonnierLoss(Term):
    """The mean of sqrt(e^2 + epsilon^2) - epsilon over the errors e: absolute error, smooth at zero."""

    key = "charbonnier"

    def __init__(self, epsilon=1e-3, scale="matched"):
        super().__init__(scale)
        self.epsilon = epsilon

    def value(self, denoised, clean):
        return (torch.hypot(denoised - clean, denoised.new_tensor(self.epsilon)) - self.epsilon).mean()


class MSSSIMLoss(Term):
    """1 - MS-SSIM by torchmetrics, 11 x 11 Gaussian windows: five scales from 176 pixels on, else those that fit.

    Pictures under 11 pixels are refused. Its (x + 1) / 2 normalisation keeps gradients finite.
    """

    key, betas = "ms_ssim", (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al.'s weights of the scales

    def value(self, denoised, clean):
        from torchmetrics.functional import image  # seconds to import, and only a reference

        side = min(denoised.shape[-2:])
        scales = [n for n in range(1, 6) if side // max(2 ** (n - 1), (n - 1) ** 2) >= 11]
        if not scales:
            raise ValueError(f"MS-SSIM needs at least 11 x 11 pixels, got {denoised.shape[-2]} x {denoised.shape[-1]}")
        betas = [beta / sum(self.betas[:scales[-1]]) for beta in self.betas[:scales[-1]]]
        ms_ssim = image.multiscale_structural_similarity_index_measure
        return 1 - ms_ssim(denoised, clean, data_range=1.0, betas=tuple(betas), normalize="simple")


class _MSE(Term):
    factor = 1.0

    def value(self, denoised, clean):
        return ((denoised - clean) ** 2).mean()


class CombinedLoss(nn.Module):
    """(1 - sum of the weights) * MSE + the weighted terms.

    Args:
        terms: ``{"name": (term, weight), ...}``, weights in [0, 1], together at most 1.

    After each call `parts` holds the unweighted values, detached, of "mse" and of every name; `helpers.training.fit`
    logs them. Keyword arguments of the call go to every term.

    Example:
        >>> loss = CombinedLoss({"regional": (RegionalSharpnessLoss(), 0.2)})
        >>> value = loss(torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40))
        >>> sorted(loss.parts)
        ['mse', 'regional']
    """

    def __init__(self, terms):
        super().__init__()
        weights = {name: float(weight) for name, (_, weight) in terms.items()}
        taken = sorted(set(weights) & set(RESERVED))
        if taken or any(not name or "." in name for name in weights):
            raise ValueError(f"names of terms must have no dot and be none of {', '.join(RESERVED)}, "
                             f"got {', '.join(weights)}")
        if not all(0 <= weight <= 1 for weight in weights.values()) or sum(weights.values()) > 1 + 1e-9:
            raise ValueError(f"weights must lie in [0, 1] and sum to at most 1 (MSE takes the rest), got {weights}")
        self.terms = nn.ModuleDict({"mse": _MSE(), **{name: term for name, (term, _) in terms.items()}})
        self.weights = {"mse": max(0.0, 1 - sum(weights.values())), **weights}
        self.parts = {}

    def forward(self, denoised, clean, **context):
        values = {name: term(denoised, clean, **context) for name, term in self.terms.items()}
        self.parts = {name: value.detach() for name, value in values.items()}
        return sum(self.weights[name] * value for name, value in values.items())


def matched_constant(term, denoised, clean):
    """Return the factor that makes `term`'s gradient as long as MSE's, both with respect to `denoised`, over the batch.

    For a constant of `MATCHED` the term must have ``scale=1.0``.

    Raises:
        ValueError: the term's or MSE's gradient is zero or not finite (equal pictures, NaN).

    Example:
        >>> clean, denoised = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
        >>> four = lambda denoised, clean: 4 * nn.functional.mse_loss(denoised, clean)
        >>> round(matched_constant(four, denoised, clean), 4)
        0.25
    """
    def length(loss):
        leaf = denoised.detach().clone().requires_grad_()
        return float(torch.autograd.grad(loss(leaf, clean), leaf)[0].double().norm())
    wanted, got = length(nn.functional.mse_loss), length(term)
    if not (0 < wanted < math.inf and 0 < got < math.inf):
        raise ValueError("gradients must be finite and not zero to be matched, "
                         f"got norms {wanted} (MSE) and {got} (term)")
    return wanted / got
