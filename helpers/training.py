"""One training loop for every network of the series: resumable to the exact step, on one device or several.

`accelerate` moves the work to the GPU, splits it over processes and chooses the precision; batches come from a data set whose
item k is fixed by (seed, k), so that a run that was killed goes on with the very next picture.
"""

import math
import time
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import ConcatDataset, DataLoader, Subset
from tqdm.auto import tqdm

from helpers import checkpoints
from helpers.checkpoints import RunState, load
from helpers.data import Crops, drawn_pool, everyday_pool, open_dataset, photo_pool
from helpers.metrics import legibility_ap, psnr
from helpers.project import data_dir, env_path, pick_device, provenance, set_seed
from helpers.recipes import RECIPES

__all__ = ["TrainingError", "fit", "load", "load_or_train", "train"]

SHEETS = 600  # drawn surfaces of 512 x 512 that a training's crops are cut from


class TrainingError(RuntimeError):
    """Training had to stop: the message says at which step and why."""


def learning_rate(progress, peak, warmup=0.05):
    """Return the rate at `progress` (0..1) of the run: linear warm-up, then a cosine down to a hundredth of `peak`.

    Example:
        >>> [round(learning_rate(p, 1.0), 3) for p in (0, 0.05, 0.525, 1)]
        [0.0, 1.0, 0.505, 0.01]
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))))


def bfloat16_is_fast(device):
    """Return whether `device` multiplies bfloat16 in hardware; without it mixed precision is slower than none."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(torch.cpu.get_capabilities().get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def make_accelerator(precision="auto"):
    """Return accelerate's `Accelerator` on `pick_device()`, in bfloat16 where the hardware has it.

    Args:
        precision: "auto", "no" or "bf16".
    """
    device = pick_device()
    if precision == "auto":
        precision = "bf16" if bfloat16_is_fast(device) else "no"
    if precision not in ("no", "bf16"):
        raise ValueError(f'precision must be "auto", "no" or "bf16", got {precision!r}')
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu",
                       dataloader_config=DataLoaderConfiguration(split_batches=True))


def ema_update(decay):
    """Return the update of an exponential moving average that starts as a plain mean and ends with `decay`."""
    @torch.no_grad()
    def update(averaged, current, count):
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - keep)
    return update


@torch.no_grad()
def validate(model, dataset, device=None):
    """Return the mean PSNR in dB of `model` over the Samples of `dataset`: per source, and their mean as "psnr"."""
    device = device or next(model.parameters()).device
    was_training, scores = model.training, defaultdict(list)
    model.eval()
    for sample in (dataset[i] for i in range(len(dataset))):
        denoised = model(sample.noisy[None].to(device))[0].float().cpu()
        scores[sample.source].append(psnr(denoised, sample.clean))
    model.train(was_training)
    means = {source: sum(values) / len(values) for source, values in scores.items()}
    return {"psnr": sum(means.values()) / len(means), **means}


def fit(model, train, valid=None, *, steps=None, seconds=None, batch_size=16, loss=None, lr=1e-3, weight_decay=1e-4, clip=1.0,
        ema=0.999, every=None, folder=None, score=validate, forward=None, workers=0, precision="auto", seed=0, progress=True):
    """Train `model` in place with AdamW, warm-up and cosine, gradient clipping and a moving average of the weights.

    Args:
        model: a network called as ``model(noisy)``; only parameters that require a gradient are trained.
        train: map-style data set of Samples, item k fixed by k; step s takes items s * batch_size ... (global batch).
        valid: data set of Samples for `score`, or None.
        steps: number of steps; `len(train) // batch_size` where None.
        seconds: stop after so many seconds and let the schedule follow the clock (live trainings; cannot resume).
        batch_size: pictures per step over all processes together; a multiple of their number.
        loss: ``loss(denoised, clean)``, mean squared error where None; its ``parts`` (dict of floats), where it has them, are logged.
        lr, weight_decay, clip, ema: AdamW's peak rate and decay, largest gradient norm, decay of the average (0: none).
        every: steps per line of the history (a twentieth of the run where None).
        folder: where the run is kept (state.safetensors, best.safetensors); a run found there goes on where it stopped.
        score: ``score(model, valid) -> dict`` with "psnr" or another first entry to be maximised.
        forward: ``forward(model, sample) -> loss tensor`` for networks that are no denoisers; `loss` is then unused.
        progress: show a bar when a person watches.

    Returns:
        The history: a list of dicts ``step, loss, lr, seconds`` and the scores of the averaged weights. `model` is left on
        its device with the averaged weights, in eval mode; the best on validation stays in `folder`.

    Raises:
        TrainingError: the loss is not finite (says at which step; `folder` keeps the last good state).
        ValueError: a batch that the processes cannot share, too few pictures for the steps.
    """
    steps = steps or len(train) // batch_size
    accelerator = make_accelerator(precision)
    _check_budget(len(train), steps, batch_size, accelerator.num_processes, seconds, folder)
    set_seed(seed)
    device = accelerator.device
    model.to(device, memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    average = AveragedModel(model, multi_avg_fn=ema_update(ema), use_buffers=False) if ema else None
    state = RunState(folder, model, average, optimizer) if folder else None
    start, history, best = state.restore() if state else (0, [], -math.inf)  # every process reads, the main one writes
    loader = DataLoader(Subset(train, range(start * batch_size, steps * batch_size)), batch_size=batch_size,
                        num_workers=workers, pin_memory=device.type == "cuda")
    wrapped, prepared, loader = accelerator.prepare(model, optimizer, loader)
    loss, every = loss or nn.MSELoss(), every or max(1, steps // 20)
    forward = forward or (lambda network, sample: loss(network(sample.noisy).float(), sample.clean))
    wrapped.train()
    total, parts, counted, began = 0.0, defaultdict(float), 0, time.perf_counter()
    bar = tqdm(total=steps, initial=start, disable=not (progress and accelerator.is_main_process), leave=False, mininterval=1)
    for step, sample in enumerate(loader, start + 1):
        elapsed = time.perf_counter() - began
        done = (elapsed / seconds) if seconds else (step / steps)
        for group in prepared.param_groups:
            group["lr"] = learning_rate(min(done, 1.0), lr)
        with accelerator.autocast():
            value = forward(wrapped, sample)
        if not torch.isfinite(value):
            raise TrainingError(f"the loss is {float(value)} at step {step} of {steps}"
                                + (f"; the last good state is in {folder}" if folder else ""))
        accelerator.backward(value)
        if clip:
            accelerator.clip_grad_norm_(parameters, clip)
        prepared.step()
        prepared.zero_grad(set_to_none=True)
        if average:
            average.update_parameters(model)
        total, counted = total + float(value.detach()), counted + 1
        for name, part in getattr(loss, "parts", {}).items():
            parts[name] += float(part)
        bar.update()
        last = step == steps or bool(seconds and elapsed >= seconds)
        if step % every == 0 or last:
            line = {"step": step, "loss": total / counted, "lr": optimizer.param_groups[0]["lr"], "seconds": round(elapsed, 1),
                    **{name: part / counted for name, part in parts.items()}}
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
    return (model.eval(), history)[1]


def _check_budget(length, steps, batch_size, processes, seconds, folder):
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if batch_size % processes:
        raise ValueError(f"batch_size {batch_size} cannot be shared by {processes} processes: give a multiple of {processes}")
    if length < steps * batch_size:
        raise ValueError(f"{steps} steps of {batch_size} take {steps * batch_size} pictures, the data set has {length}")
    if seconds and folder:
        raise ValueError("a run limited by seconds cannot resume: give steps, or no folder")


def training_data(recipe):
    """Return the crops and the validation Samples of `recipe`, and a line that says what they are.

    Raises:
        ValueError: the recipe wants photographs and CRACK_PHOTOS is not set.
    """
    photos = env_path("CRACK_PHOTOS")
    if recipe.data == "photos" and not photos:
        raise ValueError("this recipe trains on photographs: set CRACK_PHOTOS to a folder of them")
    drawn = {"drawn": drawn_pool(SHEETS)} if recipe.data != "photos" else {}
    real = photo_pool(photos) if photos and recipe.data != "drawn" else {}
    everyday = everyday_pool() if recipe.data == "both" and recipe.objective == "denoise" else {}
    weights = {**dict.fromkeys(drawn, 0.25 if real else 1.0), **dict.fromkeys(real, 0.6 / max(len(real), 1)),
               **dict.fromkeys(everyday, 0.15)}
    weights = {source: weight / sum(weights.values()) for source, weight in weights.items()}
    crops = Crops({**drawn, **real, **everyday}, recipe.steps * recipe.batch_size, size=recipe.crop,
                  sigma=recipe.sigma, seed=recipe.seed, weights=weights)
    valid = [open_dataset("valid", photos=False, length=32)] if drawn else []
    valid += [open_dataset("valid", photos=photos)] if real else []
    return crops, ConcatDataset(valid), ", ".join(f"{name} {100 * weights[name]:.0f} %" for name in weights)


@torch.no_grad()
def segmentation_score(model, dataset):
    """Return the mean average precision of the crack segmenter over the cracked Samples of `dataset`, as "score"."""
    model.eval()
    device, scores = next(model.parameters()).device, []
    for sample in (dataset[i] for i in range(len(dataset))):
        if sample.has_mask and sample.mask.any():
            probability = torch.sigmoid(model(sample.clean[None].to(device)))[0, 0].float().cpu().numpy()
            scores.append(legibility_ap(probability, sample.mask.numpy()))
    return {"score": float(np.mean(scores))}


def _segmentation_loss(network, sample):
    crack = sample.mask[:, None].float()
    return binary_cross_entropy_with_logits(network(sample.clean).float(), crack, pos_weight=torch.tensor(4.0, device=crack.device))


def train(name, workers=0, progress=True):
    """Run the recipe `name`, resuming a run that was stopped, and write its checkpoint and card.

    Shipped recipes end in ``data/checkpoints/``, experiments in ``data/runs/``. Returns the card.
    """
    recipe = RECIPES[name]
    model = checkpoints.build(recipe.architecture, recipe.arguments)
    if recipe.start:
        model.load_state_dict(load(recipe.start).state_dict())
    crops, valid, data = training_data(recipe)
    folder = data_dir() / "runs" / name
    segment = recipe.objective == "segment"
    history = fit(model, crops, valid, batch_size=recipe.batch_size, lr=recipe.lr, every=max(1, recipe.steps // 10), folder=folder,
                  score=segmentation_score if segment else validate, forward=_segmentation_loss if segment else None,
                  workers=workers, seed=recipe.seed, progress=progress)
    card = {"architecture": recipe.architecture, "arguments": recipe.arguments, "recipe": asdict(recipe), "data": data,
            "metrics": {"valid": history[-1]}, "history": history, **provenance(f"make train ONLY={name}", recipe.seed)}
    checkpoints.save(model.cpu(), name, card, folder="checkpoints" if recipe.shipped else "runs")
    print(f"{name}: {history[-1]}", flush=True)
    return card


def load_or_train(name):
    """Return the trained denoiser `name` as `load` does; train it first by its recipe where there is no checkpoint.

    Raises:
        KeyError: neither a checkpoint nor a recipe of that name; lists both.
    """
    if name not in checkpoints.checkpoint_names():
        if name not in RECIPES:
            raise KeyError(f"no denoiser {name!r}: checkpoints {', '.join(checkpoints.checkpoint_names())}; recipes {', '.join(RECIPES)}")
        train(name)
    return load(name)
