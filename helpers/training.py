"""The training loop of every network of the series: `fit`, one loop from top to bottom.

    crops = Crops({"drawn": drawn_pool(600)}, length=16 * 1000, size=64)
    history = fit(model, crops, open_dataset("valid"), batch_size=16, lr=1e-3)

`fit` alone runs here, in one process, and keeps nothing on disk. A `Run` says where and how else: `lab.runs` has one
that several processes share and that goes on, after a kill, with the very next image.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from helpers.denoise import denoise
from helpers.metrics import psnr
from helpers.project import bfloat16_is_fast, pick_device, set_seed

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "constant")


class TrainingError(RuntimeError):
    """Training had to stop: the message says at which step and why."""


class Run:
    """Where and how `fit` runs. This one: in one process, on `pick_device()`, with nothing kept."""

    processes: int = 1  # that share a batch
    is_main: bool = True  # whether this process is the one that scores, shows the bar and writes
    kept: str = ""  # what a TrainingError adds to its message: where the last good state is

    def __init__(self) -> None:
        self.device = pick_device()  # where the network and the batches go

    def restore(self, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer,
                settings: dict) -> tuple[int, list[dict]]:
        """Load an earlier state into the three, if there is one of these `settings`; return its step and history."""
        return 0, []

    def prepare(self, model: nn.Module, batches: DataLoader) -> tuple[nn.Module, Iterable]:
        """Return the network as it is called in training, and this process's share of every batch."""
        return model, batches

    def backward(self, loss: torch.Tensor) -> None:
        """Fill the gradients of the trained weights; with several processes their mean."""
        loss.backward()

    def mean(self, value: torch.Tensor) -> float:
        """Return the mean of a number over all processes."""
        return float(value)

    def keep(self, step: int, history: list[dict]) -> None:
        """Write the state after `step`: with every line of the history, in the main process alone."""

    def finish(self) -> None:
        """Wait until all processes are here, and let go of the network."""


def make_optimizer(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return the optimizer `name` of `parameters`.

    "adamw" (Loshchilov and Hutter, 2019), or "muon" (Jordan et al., kellerjordan.github.io/posts/muon, 2024; timm's):
    it makes the step of each layer's weights, as a matrix (first axis, all others), orthogonal, so that its weak
    directions move as far as its strong ones; scaled to be as long as AdamW's (Liu et al., arXiv:2502.16982). Biases
    and matrices with fewer than four rows or more than 128 times as many columns are left to AdamW with Nesterov's
    momentum, at a third of the rate. Raise ValueError at another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if name == "muon":
        from timm.optim import Muon  # timm is slow to import, and only this optimizer needs it
        return Muon(parameters, lr=lr, weight_decay=weight_decay, nesterov=True, fallback_lr_scale=1 / 3)
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")


def learning_rate(progress: float, peak: float, warmup: float = 0.05, schedule: str = "cosine") -> float:
    """Return the rate at `progress` (0..1) of the run: linear warm-up, then what `schedule` says, or ValueError.

    "cosine" goes down to a hundredth of `peak`. "constant" stays at `peak`: for a run that a later one goes on from.

    >>> [round(learning_rate(p, 1.0), 3) for p in (0, 0.05, 0.525, 1)]
    [0.0, 1.0, 0.505, 0.01]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if progress < warmup:  # the first gradients are the largest and the moments are not yet reliable
        return peak * progress / warmup
    if schedule == "constant":
        return peak
    # Half a wave of a cosine: slow at first, steep in the middle, and a last stretch of small steps.
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))))


def ema_update(decay: float) -> Callable:
    """Return the update of an exponential moving average whose decay grows as (1 + n) / (10 + n) up to `decay`."""
    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))  # at first short: the random start must not stay in it
        torch._foreach_lerp_(averaged, current, 1 - keep)
    return update


def validate(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Return the mean PSNR in dB of `model` over the Samples of `dataset`: per source, and their mean as "psnr"."""
    scores = defaultdict(list)  # per source, so that the one with most images does not decide alone
    for sample in (dataset[i] for i in range(len(dataset))):
        scores[sample.source].append(psnr(denoise(model, sample.noisy), sample.clean))
    means = {source: sum(values) / len(values) for source, values in scores.items()}
    return {"psnr": sum(means.values()) / len(means), **means}


def fit(model: nn.Module, train: Dataset, valid: Dataset | None = None, *, steps: int | None = None,
        seconds: float | None = None, batch_size: int = 16, loss: Callable | None = None, lr: float = 1e-3,
        weight_decay: float = 1e-4, clip: float = 1.0, ema: float = 0.999, every: int | None = None,
        score: Callable = validate, forward: Callable | None = None, workers: int = 0, precision: str = "auto",
        optimizer: str = "adamw", schedule: str = "cosine", seed: int = 0, progress: bool = True,
        run: Run | None = None) -> list[dict]:
    """Train `model` in place: warm-up and a schedule, gradient clipping, a moving average of the weights.

    Args:
        model: a network called as ``model(noisy)``; only parameters that require a gradient are trained.
        train: map-style data set of Samples, item k fixed by k; step s takes items s * batch_size ... (global batch).
        valid: data set of Samples for `score`, or None.
        steps: number of steps; `len(train) // batch_size` where None.
        seconds: stop after so many and let the schedule follow the clock (live trainings; cannot resume).
        batch_size: images per step over all processes together; a multiple of their number.
        loss: ``loss(denoised, clean)``, mean squared error where None; its ``parts``, a dict of floats, are logged.
        lr, weight_decay: of the optimizer; `lr` is the peak of the schedule.
        clip, ema: largest norm of a gradient (0: any), decay of the average of the weights (0: no average).
        every: steps per line of the history (a twentieth of the run where None).
        score: ``score(model, valid) -> dict`` with "psnr" or "score", to be maximised.
        forward: ``forward(model, sample) -> loss tensor``, instead of `loss`, for networks that are no denoisers.
        workers: processes that prepare batches (0: none).
        precision: of the training step: "bf16" (autocast), "no", or "auto": bf16 where the hardware has it.
        optimizer, schedule: names, see `make_optimizer` and `learning_rate`.
        seed: of torch's, numpy's and Python's global generators; the images' order is `train`'s own.
        run: where and how it runs; here, and with nothing kept, where None.

    Returns:
        The history: dicts of ``step, loss, lr, seconds`` and, in the main process, the scores of the averaged weights.
        `model` is left on its device with these weights, in eval mode.

    Raises:
        TrainingError: the loss or its gradient is not finite; says at which step.
        ValueError: a batch that the processes cannot share, too few images for the steps, an unknown name.
    """
    # Refuse what cannot work.
    run = run or Run()
    steps = len(train) // max(batch_size, 1) if steps is None else steps
    if min(steps, batch_size) < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if batch_size % run.processes:
        raise ValueError(f"batch_size must be a multiple of the {run.processes} processes, got {batch_size}")
    if len(train) < steps * batch_size:
        raise ValueError(f"{steps} steps of {batch_size} take {steps * batch_size} images, the set has {len(train)}")
    if seconds is not None and seconds <= 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    if precision not in ("auto", "no", "bf16"):
        raise ValueError(f'precision must be "auto", "no" or "bf16", got {precision!r}')
    # Half the bits are faster only where the hardware has them.
    bfloat16 = precision == "bf16" or (precision == "auto" and bfloat16_is_fast(run.device))
    loss, every = loss or nn.MSELoss(), every or max(1, steps // 20)

    # The network on its device; channels_last is the layout in which convolutions are fastest.
    set_seed(seed)
    model.to(run.device, memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]  # not those of a frozen ViT
    stepper = make_optimizer(optimizer, parameters, lr, weight_decay)
    average = AveragedModel(model, multi_avg_fn=ema_update(ema), use_buffers=False) if ema else None

    # Go on where an earlier run stopped: item k of the data is fixed by k, so that the next image is the right one.
    settings = {"steps": steps, "seconds": seconds, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
                "clip": clip, "ema": ema, "optimizer": optimizer, "schedule": schedule, "seed": seed}
    start, history = run.restore(model, average, stepper, settings)
    loader = DataLoader(Subset(train, range(start * batch_size, steps * batch_size)), batch_size=batch_size,
                        num_workers=workers, pin_memory=run.device.type == "cuda")
    network, batches = run.prepare(model, loader)
    network.train()
    began = time.perf_counter() - (history[-1]["seconds"] if history else 0)  # earlier runs count
    total, parts, counted = 0.0, defaultdict(float), 0  # since the last line of the history
    bar = tqdm(total=steps, initial=start, disable=not (progress and run.is_main), leave=False, mininterval=1)

    for step, sample in enumerate(batches, start + 1):
        # The rate follows how much of the run is done, by steps or by the clock.
        elapsed = time.perf_counter() - began
        if seconds:  # one clock, or one process would stop and the others wait for it
            elapsed = run.mean(torch.tensor(elapsed, device=run.device))
        for group in stepper.param_groups:
            group["lr"] = learning_rate(min(elapsed / seconds if seconds else step / steps, 1.0), lr, schedule=schedule)

        # How wrong is the network on this batch? Weights stay float32, autocast chooses where bfloat16 is enough.
        sample = sample._replace(**{name: getattr(sample, name).to(run.device) for name in ("clean", "noisy", "mask")})
        with torch.autocast(run.device.type, torch.bfloat16, enabled=bfloat16):
            value = forward(network, sample) if forward else loss(network(sample.noisy).float(), sample.clean)
        mean = run.mean(value.detach())  # over the processes, so that all stop or none
        if not math.isfinite(mean):
            raise TrainingError(f"the loss is {mean} at step {step} of {steps}{run.kept}")

        # Which way is downhill? A rare batch with a huge gradient must not throw the weights far away: it is clipped.
        run.backward(value)
        norm = float(nn.utils.clip_grad_norm_(parameters, clip or math.inf))
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient's norm is {norm} at step {step} of {steps}{run.kept}")
        stepper.step()
        stepper.zero_grad(set_to_none=True)  # or the next gradient would be added to this one

        # The average of the latest weights is better than any of them: it is what is scored and left in the end.
        if average:
            average.update_parameters(model)

        # Now and then a line of the history, with the scores of the average, and the state on disk.
        bar.update()
        total, counted = total + mean, counted + 1
        for name, part in getattr(loss, "parts", {}).items():  # a loss of several terms says how much each is
            parts[name] += float(part)
        last = step == steps or bool(seconds and elapsed >= seconds)
        if step % every == 0 or last:
            line = {"step": step, "loss": total / counted, "lr": stepper.param_groups[0]["lr"],
                    "seconds": round(elapsed, 1), **{name: part / counted for name, part in parts.items()}}
            if valid is not None and run.is_main:
                line.update(score(average.module if average else model, valid))
            history.append(line)
            bar.set_postfix({key: f"{number:.4g}" for key, number in line.items() if key in ("loss", "psnr")})
            if run.is_main:  # with its line, or after a kill the history would miss one
                run.keep(step, history)
            total, parts, counted = 0.0, defaultdict(float), 0
        if last:
            break

    # Leave the average in the network.
    bar.close()
    run.finish()
    if average:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return history
