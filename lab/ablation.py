"""Does the ViT help? Train the arms of the ablation with one budget, test them, write the `ablation` tables.

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
import pandas as pd
import torch

from helpers import checkpoints, models
from helpers.data import open_dataset
from helpers.denoise import denoise
from helpers.metrics import mse
from helpers.project import data_dir, env_path, set_seed
from lab.aggregate import interval, item_rows, mean_of_sources, source_rows
from lab.cost import weights
from lab.intervals import holm
from lab.measures import other_tile, zone_mse
from lab.provenance import provenance, write_json
from lab.recipes import JOINS_TRIED, Recipe
from lab.runs import refuse_another
from lab.student import TEACHER
from lab.tables import save_tables
from lab.train import fit_recipe, open_run, training_data

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
    return getattr(models, ARMS[arm].architecture)(**options)


def run_path(arm, seed, steps):
    return data_dir() / "runs" / "ablation" / f"{arm}-{seed}-{steps}"


def train_arm(arm, seed, steps, teacher, workers=0):
    """Train one network, unless that was done, and write what it does on every test tile.

    Raises:
        CheckpointError: it was done, or begun, with other photographs, another teacher or budget.
    """
    folder = run_path(arm, seed, steps)
    path, recipe = folder.with_suffix(".json"), replace(BUDGET, steps=steps, seed=seed)
    model, data = make_model(arm, seed, teacher), training_data(recipe)
    run = open_run(folder, model, recipe, data)
    if path.is_file():
        return refuse_another(json.loads(path.read_text(encoding="utf-8")).get("identity", {}), run.identity, path)
    card = fit_recipe(run, model, recipe, data, f"python -m lab.ablation train --arms {arm} --steps {steps}",
                      scored=False, every=max(1, steps // 6), workers=workers)
    if run.is_main:
        content = {"arm": arm, "seed": seed, "steps": steps, "data": card["data"], "identity": run.identity,
                   "history": card["history"], "trained": weights(model, trained=True), "weights": weights(model),
                   **test(model)}
        write_json(path, content, indent=None)
        print(f"{arm} {seed}: loss {card['history'][-1]['loss']:.5f}, test {np.mean(content['mse']):.6f}", flush=True)
    run.wait()


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
    """Collate the runs, compare the arms, write the `ablation` tables."""
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
    # the same tiles with another picture's tokens were measured beside the student's own
    arms = [(arm, "", done) for arm, done in runs.items()]
    arms += [(SHUFFLED, "shuffled_", runs["student"])] if "student" in runs else []
    tiles = pd.concat([item_rows(items, {figure: run[prefix + figure] for figure in FIGURES}, method=arm, seed=seed)
                       for arm, prefix, done in arms for seed, run in enumerate(done)])
    made = provenance(f"python -m lab.ablation train && python -m lab.ablation report --steps {steps}", 0)
    save_tables({
        "ablation": rows_of(tiles), "ablation_items": tiles, "ablation_differences": differences(tiles),
        "ablation_joins": compare_joins(),
        "ablation_runs": [{"method": arm, "seed": seed, "says": ARMS[arm].says, "trained": run["trained"],
                           "weights": run["weights"], "seconds": run["history"][-1]["seconds"],
                           "loss": run["history"][-1]["loss"]} for arm, done in runs.items()
                          for seed, run in enumerate(done)]},
        made, ablation={"primary": "mse, mean of sources at sigma 50, student against wide", "steps": steps,
                        "batch_size": BUDGET.batch_size, "crop": BUDGET.crop, "sigma_low": BUDGET.sigma[0],
                        "sigma_high": BUDGET.sigma[1], "lr": BUDGET.lr, "data": next(iter(runs.values()))[0]["data"]})


def rows_of(tiles):
    """Return the rows of `ablation` from those of `ablation_items`: one per source, and "mean" with equal weights."""
    rows = source_rows(tiles.assign(psnr=-10 * np.log10(tiles["mse"])), ["method", "seed"]).assign(sigma=50)
    return rows[["method", "seed", "source", "sigma", "psnr", *FIGURES]]


def differences(tiles):
    """Return the rows of `ablation_differences` from those of `ablation_items`; `p_holm` is of the MSE's only."""
    there = set(tiles["method"])
    rows = pd.DataFrame([compare(tiles, a, b, figure) for figure in FIGURES for a, b in COMPARED if {a, b} <= there])
    primary = (rows["figure"] == "mse") & rows["p"].notna()
    rows.loc[primary, "p_holm"] = holm(rows.loc[primary, "p"])
    return rows


def compare(tiles, a, b, figure):
    """Return the paired difference a - b of `figure`, mean of sources: interval over tiles, and seed by seed.

    A tile's value is its mean over the seeds that both arms have; `percent` is relative to b.
    """
    def of(arm):
        return tiles[tiles["method"] == arm].pivot_table(
            index=["name", "photo", "group", "source"], columns="seed", values=figure, sort=False)
    mine, others = of(a).align(of(b), join="inner")
    kept = mine.notna().all(axis=1) & others.notna().all(axis=1)
    mine, others = mine[kept], others[kept]
    items = mine.index.to_frame()
    found, base = interval(mine.mean(axis=1), others.mean(axis=1), items), mean_of_sources(others.mean(axis=1), items)
    row = {"a": a, "b": b, "figure": figure, **{name: found[name] for name in
                                                ("n", "unit", "p", "difference", "low", "high")}}
    row |= {name: 100 * found[of] / base for name, of in
            (("percent", "difference"), ("percent_low", "low"), ("percent_high", "high"),
             ("percent_covered", "covered"))}
    seeds = {f"percent_seed_{seed}": 100 * mean_of_sources(mine[seed] - others[seed], items)
             / mean_of_sources(others[seed], items) for seed in mine}
    return row | {seed: float(f"{percent:.3g}") for seed, percent in seeds.items()}


@torch.inference_mode()
def compare_joins():
    """Return rows of the ways to join that were tried: MSE on validation against the U-Net they start from.

    Per set ("photos" and "drawn"), in per cent of the U-Net's, mean of sources, with the bootstrap interval.
    """
    names = {name: f"hybrid_try_{name}" for name in JOINS_TRIED}
    tried = [name for name, file in names.items() if checkpoints.checkpoint_path(file).is_file()]
    models, rows = {"unet": checkpoints.load("unet_start")}, []
    models |= {name: checkpoints.load(names[name]) for name in tried}
    for label, photos in (("photos", env_path("CRACK_PHOTOS")), ("drawn", False)):
        dataset = open_dataset("valid", photos=photos)
        table = {name: errors(dataset, lambda sample, index, model=model: model(sample.noisy[None])[0])
                 for name, model in models.items()}
        tiles = pd.concat([item_rows(dataset.items, columns, method=name, seed=0) for name, columns in table.items()])
        rows += [{"join": name, "set": label, "arguments": json.dumps(JOINS_TRIED[name]), "n": found["n"],
                  **{key: found[key] for key in ("percent", "percent_low", "percent_high", "percent_covered")}}
                 for name in tried for found in [compare(tiles, name, "unet", "mse")]]
    return rows


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
