"""How the weights move in `helpers.training.fit`: the optimizers, the learning rate's schedule, the moving average."""

import math

import torch

OPTIMIZERS = ("adamw", "muon")


def make_optimizer(name, parameters, lr, weight_decay):
    """Return the optimizer `name` of `parameters`, a list of tensors.

    "adamw" is AdamW (Loshchilov and Hutter, 2019). "muon" (Jordan et al., kellerjordan.github.io/posts/muon, 2024; here
    timm's) makes the step of each layer's weights, as a matrix (first axis, all others), orthogonal, so that its weak
    directions move as far as its strong ones; scaled to be as long as AdamW's (Liu et al., arXiv:2502.16982). Biases
    and matrices with fewer than four rows or more than 128 times as many columns are left to AdamW with Nesterov's
    momentum, at a third of the rate.

    Raises:
        ValueError: another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if name == "muon":
        from timm.optim import Muon  # timm is slow to import
        return Muon(parameters, lr=lr, weight_decay=weight_decay, nesterov=True, fallback_lr_scale=1 / 3)
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")


def learning_rate(progress, peak, warmup=0.05):
    """Return the rate at `progress` (0..1) of the run: linear warm-up, then a cosine down to a hundredth of `peak`.

    Example:
        >>> [round(learning_rate(p, 1.0), 3) for p in (0, 0.05, 0.525, 1)]
        [0.0, 1.0, 0.505, 0.01]
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))))


def ema_update(decay):
    """Return the update of an exponential moving average whose decay grows as (1 + n) / (10 + n) up to `decay`."""
    @torch.no_grad()
    def update(averaged, current, count):
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - keep)
    return update
