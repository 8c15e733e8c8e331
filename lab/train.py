"""Train the networks of the series, one after the other; a run that was stopped goes on where it was.

    python -m lab.train                      every shipped network that is not there yet
    python -m lab.train --only unet conv     these
    python -m lab.train --only student       the built-in ViT (lab/student.py)
    python -m lab.train --list               the recipes

A run that is complete trains nothing when it is started again, and leaves its checkpoint as it is; remove
data/runs/NAME to train it again. One with another recipe, other photographs or another start is refused. Photographs
come from CRACK_PHOTOS; without it the networks are trained on the synthetic surfaces alone. On several GPUs:
`accelerate launch -m lab.train --only unet`, or torchrun with `-m lab.train`.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import ConcatDataset

from helpers import checkpoints
from helpers.checkpoints import CheckpointError, checkpoint_names, load
from helpers.data import Crops, drawn_pool, open_dataset
from helpers.project import data_dir, env_path, set_seed
from helpers.training import fit, validate
from lab.measures import legibility_ap
from lab.provenance import provenance
from lab.recipes import LOSSES, RECIPES, SHEETS, start_of
from lab.runs import AcceleratedRun, fingerprint
from lab.student import TEACHER, train_student
from surfaces.folders import list_photos
from surfaces.training_images import everyday_pool, photo_pool


class TrainingData(NamedTuple):
    """What a recipe is trained on: crops, Samples to validate on, a line that says what they are, the files read."""

    crops: Crops
    valid: ConcatDataset
    says: str
    files: list[Path]


def training_data(recipe):
    """Return the `TrainingData` of `recipe`.

    Raises:
        ValueError: the recipe wants photographs and CRACK_PHOTOS is not set.
    """
    photos, more = env_path("CRACK_PHOTOS"), env_path("EVERYDAY_PHOTOS")
    if recipe.data == "photos" and not photos:
        raise ValueError("this recipe trains on photographs: set CRACK_PHOTOS to a folder of them")
    drawn = {"drawn": drawn_pool(SHEETS)} if recipe.data != "photos" else {}
    real = photo_pool(photos) if photos and recipe.data != "drawn" else {}
    wants_everyday = recipe.data == "both" and recipe.objective == "denoise"
    everyday = everyday_pool(more) if wants_everyday else {}
    weights = {**dict.fromkeys(drawn, 0.4 - recipe.everyday if real else 1.0),
               **dict.fromkeys(real, 0.6 / max(len(real), 1)), **dict.fromkeys(everyday, recipe.everyday)}
    weights = {source: weight / sum(weights.values()) for source, weight in weights.items()}
    crops = Crops({**drawn, **real, **everyday}, recipe.steps * recipe.batch_size, size=recipe.crop,
                  sigma=recipe.sigma, seed=recipe.seed, weights=weights, colour=recipe.colour,
                  sigma_power=recipe.sigma_power)
    valid = [open_dataset("valid", photos=False, length=20)] if drawn else []
    valid += [open_dataset("valid", photos=photos, length=40)] if real else []
    listed = list_photos(photos, "train") if real else []
    files = [path for photo in listed for path in (photo.path, photo.mask) if path]
    files += sorted(Path(more).rglob("*.jpg")) if everyday and more else []
    says = ", ".join(f"{name} {100 * weights[name]:.0f} %" for name in weights)
    return TrainingData(crops, ConcatDataset(valid), says, files)


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


def open_run(folder, model, recipe, data, **more):
    """Return the run of `model` by `recipe` on `data` in `folder`; `more` is what else makes it another run."""
    identity = {**asdict(recipe), **model.card(),
                "fingerprint of the data": fingerprint(data.crops, data.files), **more}
    del identity["shipped"]  # where the result is kept changes nothing in the run
    return AcceleratedRun(folder, identity)


def fit_recipe(run, model, recipe, data, command, loss=None, scored=True, every=None, workers=0, progress=True,
               forward=None, ema=0.999):
    """Train `model` by `recipe`, going on where `run` stopped; return what its card says besides what the model says.

    Args:
        run: of `open_run`.
        command: the command that repeats it.
        loss: as in `fit`; the recipe's where None.
        scored: whether the history holds scores on the validation Samples.
        forward, ema: as in `fit`.
    """
    segment = recipe.objective == "segment"
    history = fit(model, data.crops, data.valid if scored else None, batch_size=recipe.batch_size, lr=recipe.lr,
                  every=every, loss=loss or LOSSES[recipe.loss], score=segmentation_score if segment else validate,
                  forward=_segmentation_loss if segment else forward, ema=ema, workers=workers,
                  optimizer=recipe.optimizer, schedule=recipe.schedule, seed=recipe.seed, progress=progress, run=run)
    model.cpu()
    return {"recipe": asdict(recipe), "data": data.says, "identity": run.digest, "history": history,
            **provenance(command, recipe.seed)}


def train(name, workers=0, progress=True):
    """Run the recipe `name`, going on with a run that was stopped, and write its checkpoint; return the card.

    Shipped recipes end in ``data/checkpoints/``, experiments in ``data/runs/``. A run in ``data/runs/<name>/`` that is
    complete trains nothing, and its checkpoint is left as it is.

    Raises:
        CheckpointError: ``data/runs/<name>/`` holds another run: other data, another recipe or start.
    """
    recipe = RECIPES[name]
    set_seed(recipe.seed)
    model, begin = checkpoints.build(recipe.architecture, recipe.arguments), None
    if start := start_of(recipe, env_path("CRACK_PHOTOS")):
        model.start_from(load_or_train(start))
        begin = checkpoints.read_card(start)["sha256"]
    data = training_data(recipe)
    run = open_run(data_dir() / "runs" / name, model, recipe, data, start_sha256=begin)
    if run.is_complete() and (card := card_of(name)).get("identity") == run.digest:
        print(f"{name}: complete, nothing to train; remove {run.folder} to train it again", flush=True)
        return card
    every = max(min(250, recipe.steps), recipe.steps // 16)  # what a run that is killed loses at most
    card = fit_recipe(run, model, recipe, data, f"make train ONLY={name}", every=every, workers=workers,
                      progress=progress)
    card["metrics"] = {"valid": card["history"][-1]}
    if run.is_main:  # only there does the history hold scores
        checkpoints.save(model, name, card, folder="checkpoints" if recipe.shipped else "runs")
        print(f"{name}: {card['history'][-1]}", flush=True)
    run.wait()
    return card_of(name)


def card_of(name):
    """Return the card of checkpoint `name`, empty where there is none that can be loaded."""
    try:
        load(name)
        return checkpoints.read_card(name)
    except (FileNotFoundError, CheckpointError):
        return {}


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes to run, in this order")
    parser.add_argument("--list", action="store_true", help="show the recipes and stop")
    parser.add_argument("--workers", type=int, default=0,
                        help="processes that prepare crops (0: none; 8 or more for a GPU)")
    options = parser.parse_args()
    unknown = set(options.only or ()) - {*RECIPES, "student"}
    if unknown:
        parser.error(f"no recipe {', '.join(sorted(unknown))}; there are student, {', '.join(RECIPES)}")
    if options.list:
        for name, recipe in RECIPES.items():
            print(f"{name:18} {recipe}")
        return
    missing = [name for name, recipe in RECIPES.items() if recipe.shipped and name not in checkpoint_names()]
    try:
        for name in options.only or missing:
            if name == "student":
                train_student(TEACHER, workers=options.workers)
            else:
                train(name, workers=options.workers)
    except CheckpointError as error:
        raise SystemExit(f"{name}: {error}") from error


if __name__ == "__main__":
    main()
