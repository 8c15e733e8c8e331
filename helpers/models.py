"""The denoisers: called as ``model(noisy)``, (B, 3, H, W) in and out, pictures in [0, 1].

Sources: autoencoders that denoise, Vincent et al., "Extracting and composing robust features with denoising
autoencoders" (ICML 2008); U-Net, Ronneberger et al. (MICCAI 2015, arXiv:1505.04597); predicting the noise instead of
the picture, Zhang et al., "Beyond a Gaussian denoiser" (DnCNN, arXiv:1608.03981).
"""

import inspect
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import interpolate

from helpers.vit import ViT, open_vit, patch_grid, vit_blocks


class Denoiser(nn.Module):
    """What a denoiser is: a network called as ``model(noisy)``, (B, 3, H, W) in [0, 1] in and out."""

    def __new__(cls, *args, **kwargs):
        model = super().__new__(cls)
        model.arguments = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs).arguments
        del model.arguments["self"]
        return model

    @classmethod
    def from_card(cls, card):
        """Return an untrained model as a checkpoint's card describes it; nothing is ever fetched for it."""
        return cls(**card["arguments"])

    def card(self):
        """Return what a checkpoint's card says of the network: "architecture" and "arguments", fit for JSON."""
        return {"architecture": type(self).__name__, "arguments": dict(self.arguments)}

    def check_card(self, card):
        """Raise ValueError where `card` is of a checkpoint that would be wrong in this model: here, never."""

    def start_from(self, other):
        """Take over all weights of a trained network and return the model; raise ValueError where they do not fit."""
        try:
            self.load_state_dict(other.state_dict())
        except RuntimeError as error:
            raise ValueError(f"wanted weights for {type(self).__name__}: {error}") from error
        return self


def check_finite_weights(model):
    """Raise ValueError, naming the first tensor, where a weight or a buffer of a network holds NaN or infinity."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.isfinite().all():
            raise ValueError(f"wanted finite weights in {type(model).__name__}, got NaN or infinite values in {name}")


def check_size(noisy, multiple=8, exact=None):
    """Raise ValueError unless `noisy` is (B, 3, H, W) with H and W multiples of `multiple` (or both `exact`)."""
    if noisy.ndim != 4 or noisy.shape[1] != 3:
        raise ValueError(f"a denoiser takes pictures of shape (B, 3, H, W), got {tuple(noisy.shape)}")
    height, width = noisy.shape[-2:]
    if exact and (height, width) != (exact, exact):
        raise ValueError(f"height and width must both be {exact}, got {height} x {width}; "
                         "denoise(model, image) takes any size")
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(f"height and width must be multiples of {multiple}, got {height} x {width}; "
                         "denoise(model, image) takes any size")


def _check_predict(predict):
    if predict not in ("image", "noise"):
        raise ValueError(f'predict must be "image" or "noise", got {predict!r}')


def double_conv(channels, out_channels):
    """Two 3 x 3 convolutions, each followed by a ReLU: the stage of the original U-Net."""
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True),
                         nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True))


class DenseDAE(Denoiser):
    """A fully connected denoising autoencoder for 56 x 56 pictures.

    Args:
        bottleneck: numbers that the whole picture is squeezed through, at most 256.
        skip: mix the noisy picture into the output, (1 - g) of what the layers paint and g of what came in; the
            gate g, one number, is learned. Simply added, the noisy picture would bring all of its noise along.

    Raises:
        ValueError: `bottleneck` outside 1..256; in ``forward`` a size other than 56 x 56.

    Example:
        >>> DenseDAE(bottleneck=8)(torch.zeros(2, 3, 56, 56)).shape
        torch.Size([2, 3, 56, 56])
    """

    size = 56  # the one size it takes; denoise() reads this

    def __init__(self, bottleneck=64, skip=False):
        super().__init__()
        if not 1 <= bottleneck <= 256:
            raise ValueError(f"bottleneck must be in 1..256, got {bottleneck}")
        pixels = 3 * self.size * self.size
        self.skip = skip
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, bottleneck), nn.ReLU(inplace=True))
        self.decoder = nn.Sequential(nn.Linear(bottleneck, pixels), nn.Unflatten(1, (3, self.size, self.size)))
        if skip:
            self.gate = nn.Parameter(torch.tensor(0.5))

    def forward(self, noisy):
        check_size(noisy, exact=self.size)
        output = self.decoder(self.encoder(noisy - 0.5)) + 0.5  # centred, so that zero weights mean mid grey
        return (1 - self.gate) * output + self.gate * noisy if self.skip else output


class ConvDAE(Denoiser):
    """A convolutional denoising autoencoder without skip connections: three stages down, three up.

    Args:
        width: channels of the first stage (then 2 and 4 times as many).
        predict: "image" or "noise" (the output is then the noisy picture minus what the network predicts).

    Raises:
        ValueError: another `predict`; in ``forward`` a height or width that is no multiple of 8.

    Example:
        >>> ConvDAE(width=4)(torch.zeros(1, 3, 24, 40)).shape
        torch.Size([1, 3, 24, 40])
    """

    def __init__(self, width=32, predict="image"):
        super().__init__()
        _check_predict(predict)
        self.predict = predict
        w = width
        self.encoder = nn.Sequential(double_conv(3, w), nn.MaxPool2d(2), double_conv(w, 2 * w), nn.MaxPool2d(2),
                                     double_conv(2 * w, 4 * w), nn.MaxPool2d(2))  # (B, 4w, H/8, W/8)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4 * w, 4 * w, 2, stride=2), double_conv(4 * w, 2 * w),
                                     nn.ConvTranspose2d(2 * w, 2 * w, 2, stride=2), double_conv(2 * w, w),
                                     nn.ConvTranspose2d(w, w, 2, stride=2), double_conv(w, w), nn.Conv2d(w, 3, 1))

    def forward(self, noisy):
        check_size(noisy)
        output = self.decoder(self.encoder(noisy))
        return noisy - output if self.predict == "noise" else output


class UNet(Denoiser):
    """U-Net of the original experiments: stages of w, 2w, 4w channels and a bottleneck of 8w.

    Args:
        width: w, channels of the first stage: 64 in the original, 32 in the shipped checkpoints.
        predict: "noise" (the output is the noisy picture minus the network's) or "image".
        upsample: "transpose" (2 x 2 transposed convolutions, the original) or "bilinear" (then a 1 x 1 convolution).
        stages: number of times the picture is halved, at least 1; H and W must be multiples of 2 ** `stages`.

    Raises:
        ValueError: another `predict` or `upsample`, no stage; in ``forward`` a size that is no such multiple.

    Example:
        >>> UNet(width=4)(torch.zeros(1, 3, 24, 40)).shape
        torch.Size([1, 3, 24, 40])
    """

    def __init__(self, width=64, predict="noise", upsample="transpose", stages=3):
        super().__init__()
        _check_predict(predict)
        if upsample not in ("transpose", "bilinear"):
            raise ValueError(f'upsample must be "transpose" or "bilinear", got {upsample!r}')
        if stages < 1:
            raise ValueError(f"stages must be at least 1, got {stages}")
        self.predict, self.multiple = predict, 2**stages
        widths = [width * 2**stage for stage in range(stages + 1)]  # w, 2w, 4w and the bottleneck's 8w
        self.encoder = nn.ModuleList(double_conv(a, b) for a, b in pairwise([3, *widths[:-1]]))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = double_conv(widths[-2], widths[-1])
        self.up = nn.ModuleList(self._up(b, a, upsample) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(double_conv(2 * channels, channels) for channels in widths[:-1])
        self.head = nn.Conv2d(width, 3, 1)
        if predict == "noise":
            nn.init.zeros_(self.head.weight)  # start as the identity: "there is no noise"
            nn.init.zeros_(self.head.bias)

    @staticmethod
    def _up(channels, out_channels, upsample):
        if upsample == "transpose":
            return nn.ConvTranspose2d(channels, out_channels, 2, stride=2)
        return nn.Sequential(nn.Conv2d(channels, out_channels, 1),
                             nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))

    def encode(self, noisy):
        """Return the skip connections, from fine to coarse, and the pooled last stage (B, 4w, H/8, W/8)."""
        skips, features = [], noisy
        for stage in self.encoder:
            skips.append(stage(features))
            features = self.pool(skips[-1])
        return skips, features

    def decode(self, features, skips):
        """Return the network's output (B, 3, H, W) from the bottleneck's features (B, 8w, H/8, W/8)."""
        for up, stage, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True):
            features = stage(torch.cat([up(features), skip], dim=1))
        return self.head(features)

    def forward(self, noisy):
        check_size(noisy, self.multiple)
        skips, features = self.encode(noisy)
        output = self.decode(self.bottleneck(features), skips)
        return noisy - output if self.predict == "noise" else output


class CrackSegmenter(UNet):
    """A small U-Net that reads cracks, the judge of crack legibility: (B, 3, H, W) to logits (B, 1, H, W) of "crack".

    Trained once on clean train pictures, never on denoised ones; how well it still finds a crack in a denoised
    picture says how much of the crack is left.

    Example:
        >>> CrackSegmenter(width=4)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 1, 32, 32])
    """

    def __init__(self, width=16, stages=3):
        super().__init__(width, predict="image", upsample="bilinear", stages=stages)
        self.head = nn.Conv2d(width, 1, 1)
JOINS = ("concat", "gated", "attention")


class HybridViTUNet(UNet):
    """A U-Net with a ViT's tokens joined to its bottleneck; called as ``model(noisy)`` like the other denoisers.

    The ViT sees the noisy picture, whole and normalised as it wants it. It takes every size: its position embeddings
    are interpolated (`resize="positions"`), so that noise has the same grain at every size; `denoise` works in tiles of
    224 x 224, on which it was trained.

    Args:
        width: w, channels of the U-Net's first stage.
        vit: what `open_vit` takes: None for `DENOISE_VIT` or the built-in one, a folder, a Hub name; or a `ViT`.
        freeze_vit: True: the ViT is not trained and not in the state dict; False: all of it is; a number n: the first
            n blocks and the embeddings are frozen, the rest is trained and in the state dict.
        predict: "noise" (the output is the noisy picture minus the network's) or "image".
        join: "concat" (the original), "gated" (a gate per pixel and channel decides how much of the projected tokens is
            added) or "attention" (every pixel of the pooled stage asks all tokens; the answer is added). The last two
            start as a U-Net that ignores the ViT.
        blocks: numbers of the blocks whose tokens are joined, each normalised on its own; None: the ViT's last tokens.
        resize: "positions" or "picture", see `helpers.vit.ViT`.
        seed: random ViT weights of this seed, a control.
        upsample: as in `UNet`.

    Raises:
        ValueError: another `join`, block, `freeze_vit` or what `UNet` and `open_vit` refuse; in ``forward`` a height or
            width that is no multiple of 8.
        FileNotFoundError: there is no such ViT; says what to do.

    Example:
        >>> model = HybridViTUNet(width=32)                  # doctest: +SKIP
        >>> model(torch.rand(1, 3, 224, 224)).shape          # doctest: +SKIP
        torch.Size([1, 3, 224, 224])
    """

    tile = 224  # the tiles that denoise() cuts

    def __init__(self, width=32, vit=None, freeze_vit=True, predict="noise", join="concat", blocks=None,
                 resize="positions", seed=None, upsample="transpose"):
        super().__init__(width, predict, upsample)
        if join not in JOINS:
            raise ValueError(f"join must be one of {', '.join(JOINS)}, got {join!r}")
        self.vit = vit if isinstance(vit, ViT) else open_vit(vit, resize, seed)
        self.freeze_vit, self.blocks, self.join = freeze_vit, None if blocks is None else tuple(blocks), join
        self._trained = frozenset(self._freeze())  # names of the ViT's weights that are trained and kept
        tokens = self.vit.channels * len(self.blocks or (0,))
        if join == "concat":
            self.project = nn.Sequential(nn.Conv2d(tokens, 8 * width, 1), nn.ReLU(inplace=True),
                                         nn.Conv2d(8 * width, 8 * width, 1))
            self.bottleneck = double_conv(4 * width + 8 * width, 8 * width)
        else:
            self.project = _Gated(4 * width, tokens) if join == "gated" else _Attention(4 * width, tokens)
        if self.blocks is not None:
            self.norms = nn.ModuleList(nn.LayerNorm(self.vit.channels) for _ in self.blocks)
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_post_hook(_miss_no_frozen)
        self.train(self.training)

    def _freeze(self):
        """Freeze the ViT as `freeze_vit` says, and what is not used; return the names of the rest of its weights."""
        blocks, freeze = vit_blocks(self.vit), self.freeze_vit
        if self.blocks is not None and not (self.blocks and all(-len(blocks) <= n < len(blocks) for n in self.blocks)):
            raise ValueError(f"blocks must be numbers in 0..{len(blocks) - 1}, got {list(self.blocks)}")
        if not isinstance(freeze, bool) and not (isinstance(freeze, int) and 0 < freeze < len(blocks)):
            raise ValueError(f"freeze_vit must be True, False or a number in 1..{len(blocks) - 1}, got {freeze!r}")
        self.vit.requires_grad_(freeze is False)
        if not isinstance(freeze, bool):
            blocks[freeze:].requires_grad_(True)
        if self.blocks is not None:
            blocks[max(n % len(blocks) for n in self.blocks) + 1:].requires_grad_(False)
        for name, part in self.vit.model.named_children():
            if "norm" in name:  # the final normalisation, by whatever name
                part.requires_grad_(freeze is not True and self.blocks is None)
        return [name for name, weight in self.vit.named_parameters(prefix="vit") if weight.requires_grad]

    def train(self, mode=True):
        """As in torch, but a ViT with frozen weights stays in eval mode."""
        super().train(mode)
        if self.freeze_vit is not False:
            self.vit.eval()
        return self

    def token_grid(self, noisy):
        """Return the tokens that are joined, as a grid (B, C, h, w); of several blocks one after the other in C."""
        if self.blocks is None:
            return patch_grid(self.vit(noisy), self.vit)
        tokens = self.vit(noisy, self.blocks)
        return torch.cat([patch_grid(norm(t), self.vit) for norm, t in zip(self.norms, tokens, strict=True)], dim=1)

    def forward(self, noisy, tokens=None):
        """Denoise (B, 3, H, W) in [0, 1]; `tokens`, where given, replaces what `token_grid` gives (an intervention)."""
        check_size(noisy, self.multiple)
        skips, features = self.encode(noisy)
        tokens = self.token_grid(noisy) if tokens is None else tokens  # (B, C, h, w)
        if self.join == "attention":
            features = self.project(features, tokens)
        else:
            tokens = interpolate(tokens, features.shape[-2:], mode="bilinear", align_corners=False)
            if self.join == "gated":
                features = self.project(features, tokens)
            else:
                features = torch.cat([features, self.project(tokens)], dim=1)  # (B, 4w + 8w, H/8, W/8)
        output = self.decode(self.bottleneck(features), skips)
        return noisy - output if self.predict == "noise" else output

    def start_from(self, unet):
        """Take the weights of a trained `UNet` of the same width; the ViT has no say until it is trained to have one.

        Raises:
            ValueError: the U-Net's layers have other shapes.
        """
        weights, own = unet.state_dict(), self.state_dict()
        first = "bottleneck.0.weight"
        if self.join == "concat" and first in weights:  # zeros for the tokens' channels
            kernel, joined = weights[first], self.project[-1].out_channels
            weights[first] = torch.cat([kernel, kernel.new_zeros(len(kernel), joined, 3, 3)], dim=1)
        wrong = [key for key, weight in weights.items() if key not in own or own[key].shape != weight.shape]
        if wrong or not weights:
            raise ValueError(f"wanted a UNet with the hybrid's stages, got one with another {', '.join(wrong[:3])}")
        self.load_state_dict(weights, strict=False)
        return self

    @classmethod
    def from_card(cls, card):
        """As in `Denoiser`; a card that names a ViT among its arguments is refused, since it could be fetched."""
        if card["arguments"].get("vit") is not None:
            raise ValueError(f"a card's arguments must not name a ViT, got {card['arguments']['vit']!r}: the ViT is "
                             "the built-in one or that of DENOISE_VIT")
        return super().from_card(card)

    def card(self):
        """As in `Denoiser`, and in "vit" its name, the sha256 of its weights, and what of them is frozen."""
        card = super().card()
        card["arguments"].pop("vit", None)  # a file elsewhere: the card vouches for it, it does not open it
        return {**card, "vit": {"name": self.vit.name, "sha256": self.vit.sha256, "frozen": self.freeze_vit}}

    def check_card(self, card):
        """Raise ValueError where `card`, a checkpoint's, names other weights for the frozen part of the ViT."""
        wanted = card.get("vit") or {}
        if self.freeze_vit is not False and wanted.get("sha256") != self.vit.sha256:
            raise ValueError(f"it was trained beside the ViT {wanted.get('name', 'that its card does not name')} and "
                             f"would be wrong beside {self.vit.name}, whose weights have another sha256: "
                             "set or unset DENOISE_VIT accordingly")


class _Gated(nn.Module):
    """Add projected tokens, through a gate that both halves open."""

    def __init__(self, channels, tokens):
        super().__init__()
        self.tokens = nn.Sequential(nn.Conv2d(tokens, channels, 1), nn.ReLU(inplace=True))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(2 * channels, channels, 1)
        _zero(self.value)

    def forward(self, features, tokens):
        tokens = self.tokens(tokens)
        return features + torch.sigmoid(self.gate(torch.cat([features, tokens], dim=1))) * self.value(tokens)


class _Attention(nn.Module):
    """Add what every pixel of the features reads from all tokens; the token at its own place helps it to ask."""

    def __init__(self, channels, tokens, heads=4):
        super().__init__()
        self.tokens = nn.Conv2d(tokens, channels, 1)
        self.ask = nn.Conv2d(2 * channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        _zero(self.attention.out_proj)

    def forward(self, features, tokens):
        tokens = self.tokens(tokens)
        here = interpolate(tokens, features.shape[-2:], mode="bilinear", align_corners=False)
        asked = self.norm(self.ask(torch.cat([features, here], dim=1)).flatten(2).transpose(1, 2))  # (B, H/8 * W/8, 4w)
        keys = tokens.flatten(2).transpose(1, 2)  # (B, h * w, 4w)
        answer, _ = self.attention(asked, keys, keys, need_weights=False)
        return features + answer.transpose(1, 2).unflatten(2, features.shape[-2:])


def _zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _is_frozen(model, key):
    """Whether `key` of a state dict, with whatever prefix, is of a weight of the ViT that is not kept there."""
    start = f".{key}".find(".vit.")
    return start >= 0 and key[start:] not in model._trained


def _leave_out_frozen(model, state, prefix, _):
    for key in [key for key in state if key.startswith(prefix) and _is_frozen(model, key)]:
        del state[key]


def _miss_no_frozen(model, keys):
    keys.missing_keys[:] = [key for key in keys.missing_keys if not _is_frozen(model, key)]
