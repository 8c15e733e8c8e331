"""One training loop for every network of the series: resumable to the exact step, on one device or several.

`accelerate` moves the work to the GPU and splits it over processes; batches come from a data set whose item k is fixed
by (seed, k), so that a run that was killed goes on with the very next picture.
"""

import json
import math
import time
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import broadcast
from safetensors import safe_open
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from helpers.checkpoints import CheckpointError, read_tensors, save_tensors
from helpers.denoise import denoise
from helpers.metrics import psnr
from helpers.project import pick_device, set_seed

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


class RunState:
    """A run on disk: weights, their average, the optimizer's moments and the history in one safetensors file.

    `settings` is a dict of what a run cannot change on its way (its steps, batch size, rate, optimizer and seed).
    """

    def __init__(self, folder, model, average, optimizer, settings):
        self.folder, self.model, self.average, self.optimizer = Path(folder), model, average, optimizer
        self.settings = settings
        self.path = self.folder / "state.safetensors"

    def save(self, step, history, best):
        """Write the state, and `best.safetensors` where the newest score is the best; return the best score."""
        weights = self.average.module if self.average else self.model
        score = history[-1].get("psnr", history[-1].get("score"))
        if score is not None and score > best:
            best = score
            save_tensors(weights.state_dict(), self.folder / "best.safetensors", {"step": str(step)})
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
        save_tensors(tensors, self.path, {"step": str(step), "best": repr(best), "history": json.dumps(history),
                                          "settings": json.dumps(self.settings)})
        return best

    def restore(self):
        """Load the state if there is one; return the step it stands at, its history and the best score so far.

        Raises:
            CheckpointError: the file is broken, or of a run with another network or other settings.
        """
        if not self.path.is_file():
            return 0, [], -math.inf
        tensors = read_tensors(self.path)
        with safe_open(self.path, "pt") as file:
            notes = file.metadata()
        settings = json.loads(notes.get("settings", "null"))
        if settings is not None and {"optimizer": "adamw", **settings} != self.settings:  # once there was only that
            raise CheckpointError(f"{self.folder} holds a run with {settings}, wanted {self.settings}: "
                                  "go on with those, or remove the folder")

        def pick(prefix):
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        try:
            self.model.load_state_dict(pick("model."))
            if self.average:
                self.average.load_state_dict(pick("average."))
        except RuntimeError as error:
            raise CheckpointError(f"{self.folder} holds a run of another network: {error}") from error
        entries = defaultdict(dict)
        for key, value in pick("optimizer.").items():
            index, name = key.split(".")
            entries[int(index)][name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": dict(entries)})
        return int(notes["step"]), json.loads(notes["history"]), float(notes["best"])


class TrainingError(RuntimeError):
    """Training had to stop: the message says at which step and why."""


def bfloat16_is_fast(device):
    """Return whether `device` multiplies bfloat16 in hardware; without it mixed precision is slower than none."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
        return any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def wants_bfloat16(precision, device):
    """Return whether `precision` ("auto", "no" or "bf16") means bfloat16 on `device`."""
    if precision not in ("auto", "no", "bf16"):
        raise ValueError(f'precision must be "auto", "no" or "bf16", got {precision!r}')
    return precision == "bf16" or (precision == "auto" and bfloat16_is_fast(device))


def make_accelerator():
    """Return accelerate's `Accelerator` on `pick_device()`; a batch of the loader is shared among the processes.

    It is told "no" mixed precision because accelerate fixes that once per process and leaves its autocast in the
    model's ``forward``; `fit` wraps the training step alone, so that each call may choose.
    """
    device = pick_device()
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    return Accelerator(mixed_precision="no", cpu=device.type == "cpu",
                       dataloader_config=DataLoaderConfiguration(split_batches=True))


def validate(model, dataset):
    """Return the mean PSNR in dB of `model` over the Samples of `dataset`: per source, and their mean as "psnr"."""
    scores = defaultdict(list)
    for sample in (dataset[i] for i in range(len(dataset))):
        scores[sample.source].append(psnr(denoise(model, sample.noisy), sample.clean))
    means = {source: sum(values) / len(values) for source, values in scores.items()}
    return {"psnr": sum(means.values()) / len(means), **means}


def fit(model, train, valid=None, *, steps=None, seconds=None, batch_size=16, loss=None, lr=1e-3, weight_decay=1e-4,
        clip=1.0, ema=0.999, every=None, folder=None, score=validate, forward=None, workers=0, precision="auto",
        optimizer="adamw", seed=0, progress=True):
    """Train `model` in place: warm-up and cosine, gradient clipping, a moving average of the weights.

    Args:
        model: a network called as ``model(noisy)``; only parameters that require a gradient are trained.
        train: map-style data set of Samples, item k fixed by k; step s takes items s * batch_size ... (global batch).
        valid: data set of Samples for `score`, or None.
        steps: number of steps; `len(train) // batch_size` where None.
        seconds: stop after so many seconds and let the schedule follow the clock (live trainings; cannot resume).
        batch_size: pictures per step over all processes together; a multiple of their number.
        loss: ``loss(denoised, clean)``, mean squared error where None; its ``parts`` (dict of floats), where it has
            them, are logged.
        lr, weight_decay, clip, ema: the optimizer's peak rate and decay, largest gradient norm, decay of the average
            (0: none).
        every: steps per line of the history (a twentieth of the run where None).
        folder: where the run is kept (state.safetensors, best.safetensors), written with every line of the history; a
            run found there goes on where it stopped.
        score: ``score(model, valid) -> dict`` with "psnr" or "score", to be maximised; by the main process alone.
        forward: ``forward(model, sample) -> loss tensor`` for networks that are no denoisers; `loss` is then unused.
        workers: processes that prepare batches (0: none).
        precision: of the training step: "bf16" (autocast), "no", or "auto": bf16 where the hardware has it.
        optimizer: "adamw" or "muon", see `helpers.training.make_optimizer`.
        seed: of torch's, numpy's and Python's global generators; the pictures' order is `train`'s own.
        progress: show a bar when a person watches.

    Returns:
        The history: a list of dicts ``step, loss, lr, seconds`` and the scores of the averaged weights (in the main
        process). `model` is left on its device with the averaged weights, in eval mode; the best on validation stays
        in `folder`.

    Raises:
        TrainingError: the loss or its gradient is not finite (says at which step; `folder` keeps the last good state).
        CheckpointError: `folder` holds a run of another network or other settings.
        ValueError: a batch that the processes cannot share, too few pictures for the steps, no such precision
            or optimizer.
    """
    steps = len(train) // max(batch_size, 1) if steps is None else steps
    accelerator = make_accelerator()
    device = accelerator.device
    bfloat16 = wants_bfloat16(precision, device)
    _check_budget(len(train), steps, batch_size, accelerator.num_processes, seconds, folder)
    set_seed(seed)
    model.to(device, memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "optimizer": optimizer}
    stepper = make_optimizer(optimizer, parameters, lr, weight_decay)
    average = AveragedModel(model, multi_avg_fn=ema_update(ema), use_buffers=False) if ema else None
    state = RunState(folder, model, average, stepper, settings) if folder else None
    start, history, best = state.restore() if state else (0, [], -math.inf)  # every process reads, the main one writes
    loader = DataLoader(Subset(train, range(start * batch_size, steps * batch_size)), batch_size=batch_size,
                        num_workers=workers, pin_memory=device.type == "cuda")
    wrapped, prepared, loader = accelerator.prepare(model, stepper, loader)
    loss, every = loss or nn.MSELoss(), every or max(1, steps // 20)
    forward = forward or (lambda network, sample: loss(network(sample.noisy).float(), sample.clean))
    wrapped.train()
    total, parts, counted = 0.0, defaultdict(float), 0
    began = time.perf_counter() - (history[-1]["seconds"] if history else 0)
    bar = tqdm(total=steps, initial=start, disable=not (progress and accelerator.is_main_process), leave=False,
               mininterval=1)
    for step, sample in enumerate(loader, start + 1):
        elapsed = time.perf_counter() - began
        if seconds and accelerator.num_processes > 1:  # one clock, or one process would stop and the others wait
            elapsed = broadcast(torch.tensor(elapsed, device=device)).item()
        done = (elapsed / seconds) if seconds else (step / steps)
        for group in prepared.param_groups:
            group["lr"] = learning_rate(min(done, 1.0), lr)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            value = forward(wrapped, sample)
        mean = float(accelerator.reduce(value.detach(), "mean"))  # over the processes, so that all stop or none
        _check_finite("loss", mean, step, steps, folder)
        accelerator.backward(value)
        norm = accelerator.clip_grad_norm_(parameters, clip or math.inf)
        _check_finite("gradient's norm", float(norm), step, steps, folder)
        prepared.step()
        prepared.zero_grad(set_to_none=True)
        if average:
            average.update_parameters(model)
        total, counted = total + mean, counted + 1
        for name, part in getattr(loss, "parts", {}).items():
            parts[name] += float(part)
        bar.update()
        last = step == steps or bool(seconds and elapsed >= seconds)
        if step % every == 0 or last:
            line = {"step": step, "loss": total / counted, "lr": stepper.param_groups[0]["lr"],
                    "seconds": round(elapsed, 1), **{name: part / counted for name, part in parts.items()}}
            if valid is not None and accelerator.is_main_process:
                line.update(score(average.module if average else model, valid))
            history.append(line)
            bar.set_postfix({key: f"{number:.4g}" for key, number in line.items() if key in ("loss", "psnr")})
            if state and accelerator.is_main_process:
                best = state.save(step, history, best)
            total, counted = 0.0, 0
            parts.clear()
        if last:
            break
    bar.close()
    accelerator.wait_for_everyone()
    if average:
        model.load_state_dict(average.module.state_dict())
    accelerator.free_memory()
    model.eval()
    return history


def _check_finite(what, value, step, steps, folder):
    if not math.isfinite(value):
        raise TrainingError(f"the {what} is {value} at step {step} of {steps}"
                            + (f"; the last good state is in {folder}" if folder else ""))


def _check_budget(length, steps, batch_size, processes, seconds, folder):
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if batch_size % processes:
        raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {batch_size}")
    if length < steps * batch_size:
        raise ValueError(f"{steps} steps of {batch_size} take {steps * batch_size} pictures, the data set has {length}")
    if seconds is not None and (seconds <= 0 or folder):
        raise ValueError(f"seconds must be above 0 and without a folder, since such runs cannot resume; got {seconds}")
