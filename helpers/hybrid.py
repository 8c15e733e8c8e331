"""The hybrid: a U-Net that is told, before its bottleneck, what a Vision Transformer makes of the whole picture.

The ViT's tokens, a grid (B, C, h, w), are joined to the U-Net's pooled last stage (B, 4w, H/8, W/8). The original
brings them there bilinearly, through two linear layers, and concatenates; `join` offers two other ways.
"""

import torch
from torch import nn
from torch.nn.functional import interpolate

from helpers.models import UNet, check_size, double_conv
from helpers.vit import ViT, open_vit, patch_grid, vit_blocks

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

    def vit_card(self):
        """Return what a checkpoint's card says of the ViT: its name, the sha256 of its weights, what is frozen."""
        return {"name": self.vit.name, "sha256": self.vit.sha256, "frozen": self.freeze_vit}

    def check_vit(self, card):
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
