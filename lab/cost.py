"""What code and networks cost: seconds, memory, weights, multiply-adds. The one timer of all benchmarks.

    median_seconds(work)                      # of a call without arguments
    milliseconds({"unet": unet, "bm3d": f})   # of several networks, in turn
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.vit import ViT

CPU = torch.device("cpu")


def median_seconds(work: Callable[[], object], device: torch.device = CPU, least: float = 0.2,
                   threads: int = 1) -> float:
    """Return the median seconds of `work()`, after a warm-up, by torch.utils.benchmark.

    On the CPU it is this process's **processor time**, all threads together, on one thread unless `threads` says
    otherwise: another program that takes the CPU away does not count, so that ratios can be compared on a busy machine.
    On a GPU it is the time **on the clock**, taken when the GPU has finished its work.

    Args:
        device: where the work is done.
        least: seconds to measure for in all. What takes longer is called twice, once of it for the warm-up.
    """
    from torch.utils.benchmark import Timer  # warns of a compiler for GPUs that it cannot find, where that is no matter

    timer = {"timer": time.process_time} if device.type == "cpu" else {}
    timing = Timer("work()", globals={"work": work}, num_threads=threads, **timer)
    return timing.blocked_autorange(min_run_time=max(least, 1e-9)).median


def peak_memory(work: Callable[[], object], device: torch.device = CPU) -> int:
    """Return the most bytes that `work()` holds at a time beyond what was there: torch's own count of allocations."""
    if device.type == "cuda":
        work()  # what libraries keep for themselves after the first call is no part of it
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    # the profiler notes each allocation and release; their running sum is what is held
    held, most = 0, 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def weights(model: nn.Module, trained: bool = False) -> int:
    """Return the number of weights; `trained`: of those that need a gradient."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trained)


def multiply_adds(model: nn.Module, size: int = 224) -> int:
    """Return the multiply-adds of one image of `size` x `size`, as torch counts them.

    >>> multiply_adds(torch.nn.Conv2d(3, 8, 3, padding=1), size=16) == 16 * 16 * 3 * 8 * 9
    True
    """
    device = next(model.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() // 2


def milliseconds(models: Mapping[str, nn.Module], size: int = 224, repeats: int = 7) -> dict[str, float]:
    """Return {name: milliseconds per image}, on the clock and on as many threads as torch has, the median of `repeats`.

    What a reader waits for, so threads count as they help. Models take turns, so that what else the machine does falls
    on all of them; compare ratios, not machines.
    """
    from torch.utils.benchmark import Timer

    image, threads = torch.rand(1, 3, size, size), torch.get_num_threads()
    timers = {name: Timer("model(image)", globals={"model": model, "image": image}, num_threads=threads)
              for name, model in models.items()}
    times = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, timer in timers.items():
                times[name].append(1e3 * timer.blocked_autorange(min_run_time=1e-3).median)  # a warm-up comes first
    return {name: statistics.median(values) for name, values in times.items()}


def cost_rows(models: Mapping[str, nn.Module], size: int = 224) -> list[dict]:
    """Return a dict per model: weights in millions, multiply-adds in billions, times.

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
