"""The first principal component of a layer's features as a map, and rules for the sign that it does not have.

A principal component is a line, not a direction: if ``v`` is an eigenvector, so is ``-v``, and which of the two a
solver returns means nothing. Each rule below says, without looking at any mask, which end of the line is "up". A rule
is an odd function of the map, so that features and their negative give the same oriented map.
"""

import torch
from scipy.linalg import eigh
from torch.nn import functional as F


def _centred(map):
    return map - map.mean((-2, -1), keepdim=True)


def token_norm(features, centred=True):
    """The length of the feature vector at every position of features (B, C, h, w): (B, h, w), never negative.

    Centred (the default) means the distance from the picture's mean feature vector: how unusual a position is.
    """
    return (_centred(features) if centred else features).norm(dim=1)


def _largest(map, features):
    """The entry of largest absolute value is positive (scikit-learn's KernelPCA, SegEigenCAM)."""
    flat = map.flatten(1)
    return flat.gather(1, flat.abs().argmax(1, keepdim=True))[:, 0]


def _skewness(map, features):
    """Third central moment positive: a few positions stand out upwards from the ground."""
    return (_centred(map) ** 3).mean((-2, -1))


def _minority(map, features):
    """Mean above median: fewer positions lie above the mean than below it."""
    flat = map.flatten(1)
    return flat.mean(1) - flat.quantile(0.5, dim=1)


def _norm(map, features):
    """The map grows with the centred token norm: positions unlike the picture's mean are up."""
    return (_centred(map) * token_norm(features)).mean((-2, -1))


def _contrast(map, features):
    """The map grows with local contrast: the distance of a feature vector from the mean of its 3 x 3 neighbourhood."""
    blurred = F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
    return (_centred(map) * (features - blurred).norm(dim=1)).mean((-2, -1))


# name -> score of a map (B, h, w) with the features (B, C, h, w) it is made of; where it is negative the map is turned
SIGN_RULES = {"largest": _largest, "skewness": _skewness, "minority": _minority, "norm": _norm, "contrast": _contrast}
AUTO = "norm"  # the rule behind sign="auto": the best or as good on noisy train tiles, for both decompositions


def sign_rule(sign):
    """The name of the rule that `sign` asks for ("auto" is the default rule).

    Raises:
        ValueError: there is no such rule.
    """
    rule = AUTO if sign == "auto" else sign
    if rule not in SIGN_RULES:
        raise ValueError(f'sign must be "auto" or one of {", ".join(SIGN_RULES)}, got {sign!r}')
    return rule


def orient(map, features, sign="auto"):
    """Turn each map so that the sign rule's score is not negative.

    Args:
        map: (B, h, w), signed.
        features: (B, C, h, w), what the maps were made of.
        sign: "auto" or a name from `SIGN_RULES`.

    Returns:
        (B, h, w): the maps, each times 1 or -1. Where a rule is undecided (a score of exactly 0), "largest" decides.

    >>> map = torch.tensor([[[3.0, -1.0, -2.0]]])
    >>> orient(-map, map[:, None], "skewness")
    tensor([[[ 3., -1., -2.]]])
    """
    score = SIGN_RULES[sign_rule(sign)](map, features)
    score = torch.where(score == 0, _largest(map, features), score)
    return torch.where(score < 0, -1.0, 1.0)[:, None, None] * map


def _top_eigenvector(gram):
    """The eigenvector (B, n, 1) of the largest eigenvalue of symmetric matrices (B, n, n), of unit length."""
    if gram.is_cuda:
        return torch.linalg.eigh(gram)[1][..., -1:]
    last = [gram.shape[-1] - 1] * 2  # on the CPU LAPACK finds one pair three times as fast as all of them
    pairs = [eigh(matrix, subset_by_index=last, check_finite=False) for matrix in gram.cpu().numpy()]
    return torch.stack([torch.from_numpy(vector) for _, vector in pairs]).to(gram)


def project(features):
    """Projection of features (B, C, h, w), centred per channel, on their first principal component: (B, h, w).

    What the library's EigenCAM computes, up to the sign, which is arbitrary. The component is the first right singular
    vector of the (h * w) x C matrix X of a picture's features, hence an eigenvector of the C x C matrix X'X; where
    there are more channels than positions, XX' is the smaller one. Neither grows with the square of h * w.
    """
    _, _, height, width = features.shape
    tokens = features.flatten(2).transpose(1, 2).float()  # (B, h * w, C)
    tokens = torch.where(tokens.isnan(), 0, tokens)  # as the library does
    tokens = tokens - tokens.mean(1, keepdim=True)
    scale = tokens.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(tokens.dtype).tiny)
    tokens = tokens / scale  # gradients times activations can be so small that their squares vanish
    if tokens.shape[1] >= tokens.shape[2]:
        projection = tokens @ _top_eigenvector(tokens.mT @ tokens)  # (B, h * w, 1)
    else:
        gram = tokens @ tokens.mT
        vector = _top_eigenvector(gram)
        projection = vector * (vector.mT @ gram @ vector).clamp_min(0).sqrt()
    return (projection * scale).reshape(-1, height, width)


@torch.no_grad()
def principal_map(features, sign="auto"):
    """First principal component of features as a map: EigenCAM for a whole batch, without hooks and without gradients.

    Args:
        features: (B, C, h, w), of any scale, any device.
        sign: "auto" or a name from `SIGN_RULES`.

    Returns:
        (B, h, w) float32, signed, mean 0 per picture; all 0 where the features are the same everywhere.

    Raises:
        ValueError: features of another shape, no such rule.

    Source: Muhammad & Yeasin, "Eigen-CAM" (IJCNN 2020, arXiv:2008.00299).

    >>> features = torch.zeros(1, 4, 8, 8)
    >>> features[:, :, 2, 5] = 1
    >>> divmod(principal_map(features).argmax().item(), 8)
    (2, 5)
    """
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
    return orient(project(features), features.float(), sign)
