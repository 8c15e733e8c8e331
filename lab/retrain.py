"""Retrain the hybrid with each loss term, all from one checkpoint with one budget, and test every run.

    CRACK_PHOTOS=... python -m lab.retrain                     all runs, going on where the last call stopped
    python -m lab.retrain --only mse-0 wavelet-0.4-0           these
    python -m lab.retrain --list                               the plan

Runs of one seed see the same crops with the same noise. Weights and figures are kept in data/runs/losses/;
``python -m lab.report_losses`` makes the `losses` tables of them.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace

import torch
from torch.utils.data import ConcatDataset

from helpers import checkpoints
from helpers.cam import activation_map
from helpers.data import open_dataset
from helpers.losses import CamWeightedLoss, CombinedLoss, FrequencyLoss, RegionalSharpnessLoss, WaveletLoss
from helpers.metrics import crack_auc
from helpers.project import data_dir, env_path, set_seed
from helpers.vit import open_vit
from lab.controls import CONTROLS, MovedCamLoss
from lab.measures import evaluate_image
from lab.provenance import write_json
from lab.recipes import Recipe
from lab.report import measure_legibility, numpy_picture, reader
from lab.runs import refuse_another
from lab.train import fit_recipe, open_run, training_data

BUDGET = Recipe("HybridViTUNet", data="both", steps=400, batch_size=8, crop=128, sigma=(5, 60), lr=3e-4, colour=0.25,
                start="hybrid_attention", shipped=False)
CAM_LAYER = "block 4"  # the best EigenCAM on train tiles
MAP_STAGES = ("encoder 2", "bottleneck", "decoder 2")
TERMS = {
    "mse": lambda: None,
    "sorted": lambda: RegionalSharpnessLoss(match="sorted"),
    "aligned": lambda: RegionalSharpnessLoss(match="aligned"),
    "pixel": lambda: RegionalSharpnessLoss(match="pixel"),
    "sorted24": lambda: RegionalSharpnessLoss(window=24, match="sorted"),
    "frequency": lambda: FrequencyLoss(),
    "frequency_hf": lambda: FrequencyLoss(2.0),
    "wavelet": lambda: WaveletLoss(),
    "cam": lambda: CamWeightedLoss(open_vit(), CAM_LAYER),
    **{f"cam_{control}": lambda control=control: MovedCamLoss(open_vit(), CAM_LAYER, control=control)
       for control in CONTROLS},
}
# the checkpoint that a run begins with
STARTS = {"hybrid": "hybrid_attention", "bilinear": "hybrid_attention", "unet": "unet_start"}


@dataclass(frozen=True)
class Run:
    """One retraining: a term of `TERMS` with weight `a`, a seed, and what it starts from."""

    term: str
    a: float = 0.0
    seed: int = 0
    start: str = "hybrid"

    @property
    def name(self):
        words = [self.term, *([f"{self.a:g}"] if self.a else []), str(self.seed)]
        return "-".join(words + ([] if self.start == "hybrid" else [self.start]))
WEIGHTS = (0.4, 0.2, 0.1)
PLAN = (
    Run("mse"), *(Run(term, 0.4) for term in ("pixel", "wavelet", "sorted", "aligned", "frequency", "frequency_hf",
                                              "cam", "cam_shuffled", "cam_random", "cam_contrast")),
    Run("mse", seed=1), Run("mse", seed=2), Run("cam", 0.4, 1), Run("cam", 0.4, 2),
    *(Run(term, a) for a in WEIGHTS[1:] for term in ("pixel", "wavelet", "sorted", "aligned", "frequency",
                                                     "frequency_hf", "cam")),
    *(Run(term, 0.8) for term in ("frequency", "frequency_hf", "pixel", "wavelet")),  # as far as *sorted* goes
    Run("aligned", 0.2, 1), Run("aligned", 0.2, 2),
    Run("sorted24", 0.4), Run("mse", start="unet"), Run("sorted", 0.4, start="unet"),
    Run("mse", start="bilinear"), Run("sorted", 0.4, start="bilinear"),
    *(Run(term, a) for a in WEIGHTS[1:] for term in ("cam_shuffled", "cam_random", "cam_contrast")),
)


def starting_model(start):
    """Return the network a run starts from; "bilinear": the hybrid with upsampling that has to be learnt anew."""
    if start != "bilinear":
        return checkpoints.load(STARTS[start])
    hybrid, card = checkpoints.load("hybrid_attention"), checkpoints.read_card("hybrid_attention")
    set_seed(0)
    model = checkpoints.build(card["architecture"], {**card["arguments"], "upsample": "bilinear"})
    model.load_state_dict({**model.state_dict(), **{key: value for key, value in hybrid.state_dict().items()
                                                    if not key.startswith("up.")}})
    return model


def folder():
    return data_dir() / "runs" / "losses"


def train_run(run, workers=0):
    """Train and test one run, unless that was done.

    Raises:
        CheckpointError: it was done, or begun, with other photographs, from another start or with another budget.
    """
    path = folder() / f"{run.name}.json"
    recipe, start = replace(BUDGET, seed=run.seed), checkpoints.read_card(STARTS[run.start])["sha256"]
    model, term, data = starting_model(run.start), TERMS[run.term](), training_data(recipe)
    kept = open_run(folder() / run.name, model, recipe, data, loss=asdict(run), start_sha256=start)
    if path.is_file():
        return refuse_another(json.loads(path.read_text(encoding="utf-8")).get("identity", {}), kept.identity, path)
    loss = CombinedLoss({run.term: (term, run.a)}) if term else None
    card = fit_recipe(kept, model, recipe, data, f"python -m lab.retrain --only {run.name}", loss=loss, scored=False,
                      every=recipe.steps // 8, workers=workers)
    if kept.is_main:
        budget = {"steps": recipe.steps, "batch_size": recipe.batch_size, "crop": recipe.crop, "lr": recipe.lr}
        checkpoints.save(model, f"{run.name}-weights", {**card, "budget": budget, "run": asdict(run),
                                                        "start_sha256": start}, folder="runs/losses")
        write_json(path, {"run": asdict(run), "name": run.name, "history": card["history"], "data": card["data"],
                          "identity": kept.identity, "start": start, "tested": test(model)}, indent=None)
        print(f"{run.name}: {card['history'][-1]}", flush=True)
    kept.wait()


def test_sets():
    """Return {"photos": ..., "built-in": ...}, the test sets at sigma 50."""
    photos = env_path("CRACK_PHOTOS")
    sets = {"photos": open_dataset("test", photos=photos)} if photos else {}
    return {**sets, "built-in": open_dataset("test", photos=False)}


@torch.inference_mode()
def test(model):
    """Return {set: {figure: [a value per tile]}}: `evaluate_image`, crack legibility, AUC of the network's maps.

    "valid", on which is chosen, has the first of these only.
    """
    read, _ = reader()
    found = {name: measure(dataset, lambda sample: model(sample.noisy[None])[0], read, model)
             for name, dataset in test_sets().items()}
    return found | {"valid": measure(valid_set(), lambda sample: model(sample.noisy[None])[0], full=False)}


def valid_set():
    """Return validation Samples at sigma 50, photographs (where there are some) and drawn surfaces."""
    photos = env_path("CRACK_PHOTOS")
    parts = [open_dataset("valid", photos=photos, length=40)] if photos else []
    return ConcatDataset([*parts, open_dataset("valid", photos=False, length=20)])


def measure(dataset, function, read=None, model=None, full=True):
    """Return {figure: [a value per tile]} of a function from samples to outputs (3, H, W)."""
    columns = defaultdict(list)
    for index in range(len(dataset)):
        sample = dataset[index]
        row = figures(function(sample), sample, read, full)
        for stage in MAP_STAGES if model is not None else ():
            raw = activation_map(model, sample.noisy, stage).raw
            row[f"auc {stage}"] = crack_auc(raw, sample.mask)  # NaN without a crack
        for figure, value in row.items():
            columns[figure].append(float(f"{value:.5g}"))
    return dict(columns)


def figures(denoised, sample, read=None, full=True):
    """Return all figures of one output (3, H, W)."""
    picture, mask = numpy_picture(denoised), sample.mask.numpy()
    row = evaluate_image(picture, numpy_picture(sample.clean), mask, full=full)
    return row | (measure_legibility(picture, mask, read) if full else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {run.name: run for run in PLAN}
    parser.add_argument("--only", nargs="+", choices=names, metavar="RUN")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--part", default="1/1", help="k/n: every n-th run, from the k-th on")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    if options.list:
        for name in names:
            print(f"{name:20} {'done' if (folder() / f'{name}.json').is_file() else ''}")
        return
    part, parts = map(int, options.part.split("/"))
    for name in (options.only or list(names))[part - 1::parts]:
        train_run(names[name], options.workers)


if __name__ == "__main__":
    main()
