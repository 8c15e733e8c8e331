"""A way to join tokens to features that was tried and not taken: the recipes' `HybridViTUNet` knows it as "gated"."""

import torch
from torch import nn
from torch.nn.functional import interpolate

from helpers.vit import JOINS


class GatedJoin(nn.Module):
    """Add projected tokens, through a gate that both halves open: (B, F, h, w), as the features are."""

    def __init__(self, channels, tokens):
        super().__init__()
        self.tokens = nn.Sequential(nn.Conv2d(tokens, channels, 1), nn.ReLU(inplace=True))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.value.weight)  # nothing is added at the start
        nn.init.zeros_(self.value.bias)

    def forward(self, features, tokens):
        tokens = interpolate(tokens, features.shape[-2:], mode="bilinear", align_corners=False)  # (B, C, h, w)
        tokens = self.tokens(tokens)  # (B, F, h, w)
        gate = torch.sigmoid(self.gate(torch.cat([features, tokens], dim=1)))  # (B, F, h, w) in 0..1
        return features + gate * self.value(tokens)


JOINS["gated"] = GatedJoin
