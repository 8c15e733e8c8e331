"""What a network costs: weights, multiply-adds, milliseconds."""

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.vit import ViT


def weights(model, trained=False):
    """Return the number of weights; `trained`: of those that need a gradient."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trained)


def multiply_adds(model, size=224):
    """Return the multiply-adds of one picture of `size` x `size`, as torch counts them.

    >>> multiply_adds(torch.nn.Conv2d(3, 8, 3, padding=1), size=16) == 16 * 16 * 3 * 8 * 9
    True
    """
    device = next(model.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() // 2


def milliseconds(models, size=224, repeats=7):
    """Return {name: milliseconds per picture}, the median of `repeats` calls of each of `models` (a dict) in turn.

    Taken in turn, so that what else the machine does falls on all of them; compare ratios, not machines.
    """
    picture, times = torch.rand(1, 3, size, size), {name: [] for name in models}
    with torch.inference_mode():
        for model in models.values():
            model(picture)
        for _ in range(repeats):
            for name, model in models.items():
                start = time.perf_counter()
                model(picture)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def cost_rows(models, size=224):
    """Return a dict per model of `models` (a dict from name): weights in millions, multiply-adds in billions, times.

    Keys: "method", "weights", "trained", "gmac", "vit share" (of the multiply-adds, in %), "ms".
    """
    times = milliseconds(models, size)
    rows = []
    for name, model in models.items():
        vit = next((part for part in model.modules() if isinstance(part, ViT)), None)
        total = multiply_adds(model, size)
        rows.append({"method": name, "weights": weights(model) / 1e6, "trained": weights(model, trained=True) / 1e6,
                     "gmac": total / 1e9, "vit share": 100 * multiply_adds(vit, size) / total if vit else 0.0,
                     "ms": times[name]})
    return rows
