"""Train the networks of the series, one after the other; a run that was stopped goes on where it was.

    python -m lab.train                      every shipped network that is not there yet
    python -m lab.train --only unet conv     these
    python -m lab.train --only student       the built-in ViT (lab/student.py)
    python -m lab.train --list               the recipes

A run that had ended counts as trained as long as its state is in data/runs/NAME; remove that to train it again.
Photographs come from CRACK_PHOTOS; without it the networks are trained on the drawn surfaces alone. On several GPUs:
`accelerate launch -m lab.train --only unet`.
"""

import argparse
from dataclasses import asdict

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import ConcatDataset

from helpers import checkpoints
from helpers.checkpoints import checkpoint_names, load
from helpers.data import Crops, drawn_pool, open_dataset
from helpers.project import data_dir, env_path, set_seed
from helpers.training import fit, validate
from lab.measures import legibility_ap
from lab.provenance import provenance
from lab.recipes import RECIPES, SHEETS, start_of
from lab.student import TEACHER, train_student
from surfaces.training_images import everyday_pool, photo_pool


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
    wants_everyday = recipe.data == "both" and recipe.objective == "denoise"
    everyday = everyday_pool(env_path("EVERYDAY_PHOTOS")) if wants_everyday else {}
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
    for name in options.only or missing:
        if name == "student":
            train_student(TEACHER, workers=options.workers)
        else:
            train(name, workers=options.workers)


if __name__ == "__main__":
    main()
