"""One training loop for every network of the series: resumable to the exact step, on one device or several.

`accelerate` moves the work to the GPU and splits it over processes; batches come from a data set whose item k is fixed
by (seed, k), so that a run that was killed goes on with the very next picture.
"""

import math
import time
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import broadcast
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import ConcatDataset, DataLoader, Subset
from tqdm.auto import tqdm

from helpers import checkpoints
from helpers.checkpoints import RunState, load
from helpers.data import Crops, drawn_pool, everyday_pool, open_dataset, photo_pool
from helpers.denoise import denoise
from helpers.metrics import legibility_ap, psnr
from helpers.optim import ema_update, learning_rate, make_optimizer
from helpers.project import data_dir, env_path, pick_device, provenance, set_seed
from helpers.recipes import RECIPES, start_of

__all__ = ["TrainingError", "fit", "load", "load_or_train", "train"]

SHEETS = 600  # drawn surfaces of 512 x 512 that a training's crops are cut from


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
        optimizer: "adamw" or "muon", see `helpers.optim.make_optimizer`.
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
    weights = {**dict.fromkeys(drawn, 0.4 - recipe.everyday if real else 1.0),
               **dict.fromkeys(real, 0.6 / max(len(real), 1)), **dict.fromkeys(everyday, recipe.everyday)}
    weights = {source: weight / sum(weights.values()) for source, weight in weights.items()}
    crops = Crops({**drawn, **real, **everyday}, recipe.steps * recipe.batch_size, size=recipe.crop,
                  sigma=recipe.sigma, seed=recipe.seed, weights=weights, colour=recipe.colour)
    valid = [open_dataset("valid", photos=False, length=20)] if drawn else []
    valid += [open_dataset("valid", photos=photos, length=40)] if real else []
    return crops, ConcatDataset(valid), ", ".join(f"{name} {100 * weights[name]:.0f} %" for name in weights)


@torch.no_grad()
def segmentation_score(model, dataset):
    """Return the mean average precision of the crack segmenter over the cracked Samples of `dataset`, as "score"."""
    model.eval()
    device, scores = next(model.parameters()).device, []
    for sample in (dataset[i] for i in range(len(dataset))):
        if sample.has_mask and sample.mask.any():
            probability = torch.sigmoid(model(sample.clean[None].to(device)))[0, 0].float().cpu().numpy()
            scores.append(legibility_ap(probability, sample.mask.numpy(), side="outside"))
    return {"score": float(np.mean(scores))}


def _segmentation_loss(network, sample):
    crack = sample.mask[:, None].float()
    weight = torch.tensor(4.0, device=crack.device)  # a few per cent of the pixels are crack
    return binary_cross_entropy_with_logits(network(sample.clean).float(), crack, pos_weight=weight)


def train(name, workers=0, progress=True):
    """Run the recipe `name`, resuming a run that was stopped, and write its checkpoint and card.

    Shipped recipes end in ``data/checkpoints/``, experiments in ``data/runs/``. Returns the card. What is left of a
    run in ``data/runs/<name>/`` is gone on with, also where it had ended.
    """
    recipe = RECIPES[name]
    set_seed(recipe.seed)
    model = checkpoints.build(recipe.architecture, recipe.arguments)
    if start := start_of(recipe, env_path("CRACK_PHOTOS")):
        begin = load_or_train(start)
        model.start_from(begin) if hasattr(model, "start_from") else model.load_state_dict(begin.state_dict())
    crops, valid, data = training_data(recipe)
    folder = data_dir() / "runs" / name
    segment = recipe.objective == "segment"
    every = max(min(250, recipe.steps), recipe.steps // 16)  # what a run that is killed loses at most
    history = fit(model, crops, valid, batch_size=recipe.batch_size, lr=recipe.lr, every=every, folder=folder,
                  score=segmentation_score if segment else validate, forward=_segmentation_loss if segment else None,
                  workers=workers, optimizer=recipe.optimizer, seed=recipe.seed, progress=progress)
    card = {"architecture": recipe.architecture, "arguments": recipe.arguments, "recipe": asdict(recipe), "data": data,
            "metrics": {"valid": history[-1]}, "history": history, **provenance(f"make train ONLY={name}", recipe.seed)}
    if hasattr(model, "vit_card"):
        card["vit"] = model.vit_card()
    if PartialState().is_main_process:  # only there does the history hold scores
        checkpoints.save(model.cpu(), name, card, folder="checkpoints" if recipe.shipped else "runs")
        print(f"{name}: {history[-1]}", flush=True)
    PartialState().wait_for_everyone()
    return card


def load_or_train(name):
    """Return the trained denoiser `name` as `load` does; train it first by its recipe where there is no checkpoint.

    Raises:
        KeyError: neither a checkpoint nor a recipe of that name; lists both.
    """
    if not checkpoints.checkpoint_path(name).is_file():
        if name not in RECIPES:
            there = ", ".join(checkpoints.checkpoint_names()) or "none"
            raise KeyError(f"no denoiser {name!r}: checkpoints {there}; recipes {', '.join(RECIPES)}")
        train(name)
    return load(name)
