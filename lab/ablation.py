"""Does the ViT help? Train the arms of the ablation with one budget, test them, write data/results/vit_ablation.json.

    python -m lab.ablation train                         all arms and seeds, going on where the last call stopped
    python -m lab.ablation train --arms unet wide        these
    python -m lab.ablation report                        the results, from the runs that are complete

Every arm starts from random weights and sees the same crops with the same noise, step by step; the seed changes both.
The teacher is the folder or Hub name in DENOISE_TEACHER or --teacher.
"""

import argparse
import json
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from helpers import checkpoints
from helpers.data import open_dataset
from helpers.denoise import denoise
from helpers.metrics import mse
from helpers.project import data_dir, env_path, set_seed, write_json
from helpers.training import fit
from lab.cost import weights
from lab.intervals import holm, paired_bootstrap
from lab.measures import other_tile, zone_mse
from lab.provenance import provenance, save_results
from lab.recipes import JOINS_TRIED, Recipe
from lab.student import TEACHER
from lab.train import training_data

BUDGET = Recipe("UNet", data="both", steps=600, batch_size=8, crop=128, sigma=(5, 60), lr=1e-3, shipped=False)


@dataclass(frozen=True)
class Arm:
    """A network of the ablation: class and arguments (`vit`: "teacher", "student" or "random"), and its seeds."""

    says: str
    architecture: str = "HybridViTUNet"
    arguments: dict = field(default_factory=dict)
    vit: str | None = None
    seeds: tuple = (0, 1, 2)
ARMS = {
    "unet": Arm("U-Net, width 32", "UNet", {"width": 32}),
    "wide": Arm("U-Net widened to the hybrid's trained weights", "UNet", {"width": 38}),
    "student": Arm("hybrid, frozen student", vit="student"),
    "teacher": Arm("hybrid, frozen teacher", vit="teacher"),
    "random": Arm("hybrid, frozen ViT with random weights", vit="random"),
    "deep": Arm("U-Net with one more stage, as many weights as hybrid and ViT together", "UNet",
                {"width": 32, "stages": 4}, seeds=(0,)),
    "scratch": Arm("hybrid, the ViT trained with it from random weights", arguments={"freeze_vit": False}, vit="random",
                   seeds=(0,)),
}
SHUFFLED = "student, tokens of another picture"
COMPARED = (("student", "wide"), ("student", "unet"), ("student", "teacher"), ("student", "random"),
            ("teacher", "wide"), ("random", "wide"), ("wide", "unet"), ("student", SHUFFLED))
FIGURES = ("mse", "mse_crack", "mse_rest")


def make_model(arm, seed, teacher):
    """Return the untrained network of an arm; the frozen random ViT has other weights for every seed."""
    set_seed(seed)
    options = dict(ARMS[arm].arguments)
    if vit := ARMS[arm].vit:
        options["vit"] = None if vit == "student" else teacher
        options["seed"] = seed if vit == "random" else None
    return checkpoints.build(ARMS[arm].architecture, options)


def run_path(arm, seed, steps):
    return data_dir() / "runs" / "ablation" / f"{arm}-{seed}-{steps}"


def train_arm(arm, seed, steps, teacher, workers=0):
    """Train one network, unless that was done, and write what it does on every test tile."""
    folder = run_path(arm, seed, steps)
    if folder.with_suffix(".json").is_file():
        return
    model = make_model(arm, seed, teacher)
    recipe = replace(BUDGET, steps=steps, seed=seed)
    crops, _, line = training_data(recipe)
    history = fit(model, crops, None, batch_size=recipe.batch_size, lr=recipe.lr, folder=folder, workers=workers,
                  seed=seed, every=max(1, steps // 6))
    content = {"arm": arm, "seed": seed, "steps": steps, "data": line, "history": history,
               "trained": weights(model, trained=True), "weights": weights(model), **test(model)}
    write_json(folder.with_suffix(".json"), content, indent=None)
    print(f"{arm} {seed}: loss {history[-1]['loss']:.5f}, test {np.mean(content['mse']):.6f}", flush=True)


@torch.inference_mode()
def test(model):
    """Return MSE, whole, in the crack zone and outside, per test tile at sigma 50; with shuffled tokens for hybrids."""
    dataset = open_dataset("test", photos=env_path("CRACK_PHOTOS"))
    model = model.cpu().eval()
    found = errors(dataset, lambda sample, index: denoise(model, sample.noisy))
    if getattr(model, "vit", None) is not None:
        other = other_tile(len(dataset))
        shuffled = errors(dataset, lambda sample, index: model(
            sample.noisy[None], tokens=model.token_grid(dataset[int(other[index])].noisy[None]))[0])
        found |= {f"shuffled_{figure}": values for figure, values in shuffled.items()}
    return found


def errors(dataset, function):
    """Return `FIGURES` of ``function(sample, index)`` for every sample, a list each."""
    columns = {figure: [] for figure in FIGURES}
    for index in range(len(dataset)):
        sample = dataset[index]
        denoised = function(sample, index)
        found = mse(denoised, sample.clean), *zone_mse(denoised, sample.clean, sample.mask)
        for figure, value in zip(FIGURES, found, strict=True):
            columns[figure].append(float(f"{value:.6g}"))
    return columns


def report(steps):
    """Collate the runs, compare the arms, write results "vit_ablation"."""
    runs = {}
    for arm in ARMS:
        paths = [run_path(arm, seed, steps).with_suffix(".json") for seed in ARMS[arm].seeds]
        runs[arm] = [json.loads(path.read_text()) for path in paths if path.is_file()]
        if len(runs[arm]) < len(paths):
            print(f"{arm}: {len(runs[arm])} of {len(paths)} runs are complete")
    runs = {arm: done for arm, done in runs.items() if done}
    if not runs:
        raise SystemExit(f"no run of {steps} steps is complete: python -m lab.ablation train --steps {steps}")
    items = open_dataset("test", photos=env_path("CRACK_PHOTOS")).items
    tables = {arm: [{figure: run[figure] for figure in FIGURES} for run in done] for arm, done in runs.items()}
    if "student" in runs:
        tables[SHUFFLED] = [{figure: run[f"shuffled_{figure}"] for figure in FIGURES} for run in runs["student"]]
    rows = [row for arm, seeds in tables.items() for seed, table in enumerate(seeds)
            for row in rows_of(arm, seed, table, items)]
    differences = [compare(tables, items, a, b, figure) for figure in FIGURES for a, b in COMPARED
                   if a in tables and b in tables]
    primary = [d for d in differences if d["figure"] == "mse" and np.isfinite(d["p"])]
    for difference, corrected in zip(primary, holm([d["p"] for d in primary]), strict=True):
        difference["p_holm"] = corrected
    arms = {arm: {"says": ARMS[arm].says, "trained": done[0]["trained"], "weights": done[0]["weights"],
                  "seeds": len(done), "seconds": [run["history"][-1]["seconds"] for run in done],
                  "loss": [run["history"][-1]["loss"] for run in done]} for arm, done in runs.items()}
    save_results("vit_ablation", {
        **provenance(f"python -m lab.ablation train && python -m lab.ablation report --steps {steps}", 0),
        "budget": {"steps": steps, "batch_size": BUDGET.batch_size, "crop": BUDGET.crop, "sigma": BUDGET.sigma,
                   "lr": BUDGET.lr, "data": next(iter(runs.values()))[0]["data"]},
        "primary": "mse, mean of sources at sigma 50, student against wide", "arms": arms, "rows": rows,
        "differences": differences, "joins": compare_joins(), "items": [list(item) for item in items],
        "per_item": {f"{arm}|{seed}": table for arm, seeds in tables.items() for seed, table in enumerate(seeds)}})


@torch.inference_mode()
def compare_joins():
    """Return rows of the ways to join that were tried: MSE on validation against the U-Net they start from.

    Per set ("photos" and "drawn"), in per cent of the U-Net's, mean of sources, with the bootstrap interval.
    """
    names = {name: f"hybrid_try_{name}" for name in JOINS_TRIED}
    found = [name for name, file in names.items() if checkpoints.checkpoint_path(file).is_file()]
    models, rows = {"unet": checkpoints.load("unet_start")}, []
    models |= {name: checkpoints.load(names[name]) for name in found}
    for label, photos in (("photos", env_path("CRACK_PHOTOS")), ("drawn", False)):
        dataset = open_dataset("valid", photos=photos)
        table = {name: errors(dataset, lambda sample, index, model=model: model(sample.noisy[None])[0])
                 for name, model in models.items()}
        rows += [{"join": name, "set": label, "arguments": JOINS_TRIED[name], **{key: value for key, value in compare(
            {arm: [columns] for arm, columns in table.items()}, dataset.items, name, "unet", "mse").items()
            if key.startswith("percent") or key == "n"}} for name in found]
    return rows


def rows_of(arm, seed, table, items):
    """Return a row per source and one, "mean", in which the sources weigh equally."""
    rows, source = [], np.array([item.source for item in items])
    values = {figure: np.array(table[figure], float) for figure in FIGURES}
    for name in dict.fromkeys(source):
        here = {figure: float(np.nanmean(value[source == name])) for figure, value in values.items()}
        psnr = float(np.mean(-10 * np.log10(values["mse"][source == name])))
        rows.append({"method": arm, "seed": seed, "source": name, "sigma": 50, "psnr": psnr, **here})
    means = {figure: float(np.mean([row[figure] for row in rows])) for figure in ("psnr", *FIGURES)}
    return [*rows, {"method": arm, "seed": seed, "source": "mean", "sigma": 50, **means}]


def compare(tables, items, a, b, figure):
    """Return the paired difference a - b of `figure`, mean of sources: interval over tiles, and seed by seed.

    A tile's value is its mean over the seeds that both arms have; `percent` is relative to b.
    """
    count = min(len(tables[a]), len(tables[b]))
    mine, others = (np.array([table[figure] for table in tables[name][:count]], float) for name in (a, b))
    kept = np.isfinite(mine).all(0) & np.isfinite(others).all(0)
    labels = {what: [getattr(item, what) for item, keep in zip(items, kept, strict=True) if keep]
              for what in ("group", "photo", "source")}
    interval = paired_bootstrap(mine[:, kept].mean(0), others[:, kept].mean(0), **labels)
    source = np.array(labels["source"])

    def of_sources(values):
        return np.mean([values[source == name].mean() for name in dict.fromkeys(source)])
    seeds = [100 * of_sources((x - y)[kept]) / of_sources(y[kept]) for x, y in zip(mine, others, strict=True)]
    scale = 100 / of_sources(others[:, kept].mean(0))
    return {"a": a, "b": b, "figure": figure, "n": interval.n, "unit": interval.unit, "p": interval.p,
            "difference": interval.difference, "low": interval.low, "high": interval.high,
            "percent": scale * interval.difference, "percent_low": scale * interval.low,
            "percent_high": scale * interval.high, "percent_covered": scale * interval.covered,
            "percent_by_seed": [float(f"{seed:.3g}") for seed in seeds]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=BUDGET.steps)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    if options.what == "report":
        return report(options.steps)
    for seed in range(3):  # a seed of every arm first, so that what is there is comparable
        for arm in options.arms:
            if seed in ARMS[arm].seeds:
                train_arm(arm, seed, options.steps, options.teacher, options.workers)


if __name__ == "__main__":
    main()
