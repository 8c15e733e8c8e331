"""A map from directions that all pictures share, instead of a first component of every picture's own.

EigenCAM asks each picture anew along which direction its tokens vary most. On a picture of a shadow that is the shadow.
Here every picture of a collection casts a vote, its own oriented component, and the mean of the votes is the direction
for all. No mask takes part. A direction has a sign once for all pictures, so that nothing is left to orient.
"""

import torch

from helpers.cam import layer_features
from helpers.principal import principal_map

LAYERS = ("block 3", "block 5")  # chosen on train tiles: scripts/report_cams.py


def _centred(features):
    return features - features.mean((-2, -1), keepdim=True)


def shared_direction(features, sign="auto"):
    """The mean over pictures of the oriented first components of their features.

    Args:
        features: (N, C, h, w), of N pictures at one layer.
        sign: the rule that orients each picture's component, "auto" or a name from `helpers.principal.SIGN_RULES`.

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
