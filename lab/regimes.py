"""When does a ViT help a denoiser? The experiment of notebook 02: gain against how little the image itself still tells.

    python -m lab.regimes trunk 0 1 2 3                        train the independent trunks, sigma 25 to 300
    python -m lab.regimes train --arms two_pass oracle         these arms, on every trunk and seed of the plan
    python -m lab.regimes valid                                measure what is trained on valid: what choices rest on
    python -m lab.regimes test                                 once: the tables `regimes`, `regimes_items`, ...

DENOISE_TEACHER is the pretrained ViT; CRACK_PHOTOS and EVERYDAY_PHOTOS what is trained on; CLEAN_PHOTOS a folder of
clean everyday photographs, the second test set. Everything goes on where it was stopped.

Written down before it ran
--------------------------
**Networks.** A trunk (`ResUNet`, from random weights) is trained on noise of sigma 25 to 300, log-uniform and *not*
clipped. An arm is a `HybridResUNet` on that trunk, whose weights stay frozen: the trunk denoises, something looks at
this first output, and what it says modulates the trunk's second pass over the noisy image. Of an arm only the joins are
trained, and whatever looks where that is trained, so that arms of one trunk differ by nothing but what looks:

    trunk          nothing: the first output
    twice          nothing looks (tokens of zero), but the second pass sees the first output
    two_pass       the pretrained ViT (the teacher) looks at the first output
    random         a ViT of the same architecture with random weights, frozen, looks at it
    encoder        a convolutional encoder with the ViT's grid and cost, trained along, looks at it
    oracle         the teacher looks at the *clean* image
    student        the built-in ViT looks at the first output
    noisy_student, noisy_teacher   the built-in ViT, the teacher, look at the noisy image
    brightness     the first output's local mean and contrast, on the ViT's grid

**Can it move?** The positive control is `oracle`: unless it gains at least 3 % of the trunk's squared error at sigma
150 on sutcrack, this join cannot carry an answer and nothing is said about the ViT. The manipulation check: the tokens
swapped with another image's, and replaced by their mean, at test time, must cost `two_pass` at least 0.1 %.
**Is it decided already?** The ViT's tokens are a function of the noisy image, so that the exact posterior mean needs
none; what they can add is what a trunk of this size, reach and training does not know: content beyond its radius, and
what photographs look like. A regression from tokens to what is left wrong found 1.45 % for a ViT on the output and
6.06 % for the clean image's tokens, hence the room is there and is small.
**What control could win?** `twice` if a second pass is all, `encoder` if any trained look at 16 x 16 pixels helps,
`random` if the teacher's weights do not matter.

1. H1: at sigma 150 `two_pass` has lower squared error than the best of `twice`, `random` and `encoder`, the best chosen
   on valid.
2. Primary figure: sutcrack test, per cent of squared error, paired; four trunks x two seeds; a t-interval over the
   trunks' means, a bootstrap over places beside it; second set: at least 50 everyday photographs.
3. Expected: 1 to 2.5 % over the trunk, 0.3 to 1 % over the best control. "Helps" if the interval's lower end is above
   0 and its mean at least 0.5 %; "no useful help" if its upper end is below 0.5 %; else "undecided".
4. Exploratory, with Holm's correction: sigma 25, 50, 75, 100, 200, 300; the crack zone; the other arms.
5. Equal steps, data and noise. Weights, work and reach of every arm are in `regimes_cost`.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad
from torch.utils.data import Dataset

from helpers import checkpoints
from helpers.data import Sample, open_dataset
from helpers.metrics import crack_zone
from helpers.models import HybridResUNet, ResUNet
from helpers.noise import noise_generator
from helpers.project import data_dir, env_path, set_seed
from helpers.vit import open_vit
from lab.intervals import holm
from lab.provenance import provenance
from lab.recipes import Recipe, log_mse
from lab.student import TEACHER
from lab.tables import save_tables
from lab.train import TrainingData, fit_recipe, open_run, training_data
from surfaces.photos import read_photo

SIGMAS = (25, 50, 75, 100, 150, 200, 300)
PRIMARY = 150
RANGE = (25, 300)
TRUNKS, SEEDS = 4, 2
BLOCKS = (3, 7)  # of the ViT, whose tokens are joined
TRUNK = Recipe("ResUNet", {"widths": [64, 112, 160], "blocks": 2}, steps=4500, batch_size=8, crop=128, sigma=0, lr=1e-3,
               optimizer="muon", colour=0.25, everyday=0.2, loss="log", shipped=False, seed=40)
ARM = replace(TRUNK, architecture="HybridResUNet", steps=600, batch_size=2, crop=224, seed=50)
CONTROLS = ("twice", "random", "encoder")


class StrongNoise(Dataset):
    """Samples of a data set of clean ones with noise that is not clipped, sigma drawn log-uniformly from `RANGE`.

    Item k's noise is seeded by (seed, k), so that every arm of a seed sees the same.
    """

    def __init__(self, clean: Dataset, seed: int) -> None:
        self.clean, self.seed = clean, seed

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> Sample:
        rng, sample = np.random.default_rng([self.seed, index]), self.clean[index]
        sigma = math.exp(rng.uniform(*np.log(RANGE)))
        return sample._replace(noisy=unclipped(sample.clean, sigma, rng), sigma=sigma)


def unclipped(clean: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Return `clean` (3, H, W) with Gaussian noise of `sigma` on the 0..255 scale, beyond [0, 1] where that leads."""
    return clean + sigma / 255 * torch.from_numpy(rng.standard_normal(clean.shape, np.float32))


def strong(recipe: Recipe) -> TrainingData:
    """Return the training data of a recipe, with strong noise."""
    data = training_data(recipe)
    return data._replace(crops=StrongNoise(data.crops, recipe.seed))


class EncoderResUNet(HybridResUNet):
    """A `HybridResUNet` with a trained convolutional network where the ViT is: its grid, channels and about its work."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        channels = self.vit.channels * len(self.blocks)
        widths = (3, channels // 8, channels // 4, channels // 2, channels)
        self.eye = nn.Sequential(  # (B, 3, H, W) to (B, channels, H / 16, W / 16)
            *(layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())),
            *(layer for _ in range(3) for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())),
            nn.GroupNorm(len(self.blocks), channels))

    def token_grid(self, images: Tensor) -> Tensor:
        """Return what the encoder makes of images (B, 3, H, W) in [0, 1], (B, C, H / 16, W / 16)."""
        return self.eye(images - 0.5)


def brightness(images: Tensor, channels: int) -> Tensor:
    """Return the mean and the contrast of patches of 16 x 16 pixels, (B, channels, H / 16, W / 16), padded with zeros."""
    mean = avg_pool2d(images, 16)
    contrast = (avg_pool2d(images.square(), 16) - mean.square()).clamp_min(0).sqrt()
    return pad(torch.cat([mean, contrast], dim=1), (0, 0, 0, 0, 0, channels - 6))


def train_trunk(number: int) -> None:
    """Train trunk `number`, unless that was done: checkpoint ``strong_<number>`` in data/runs/."""
    recipe = replace(TRUNK, seed=TRUNK.seed + number)
    set_seed(recipe.seed)
    model, data = checkpoints.build(recipe.architecture, recipe.arguments), strong(recipe)
    run = open_run(data_dir() / "runs" / f"strong_{number}", model, recipe, data, sigma=RANGE)
    if run.is_complete() and checkpoints.checkpoint_path(f"strong_{number}").is_file():
        return
    card = fit_recipe(run, model, recipe, data, f"python -m lab.regimes trunk {number}", scored=False, every=250,
                      progress=False)
    checkpoints.save(model, f"strong_{number}", card, folder="runs")


def make_arm(arm: str, trunk: int, seed: int) -> HybridResUNet:
    """Return the network of an arm on a trunk, its joins untrained; `seed` is that of their weights."""
    set_seed(1000 + seed)
    base = checkpoints.load(f"strong_{trunk}")
    kind = EncoderResUNet if arm == "encoder" else HybridResUNet
    vit = open_vit(None if arm.endswith("student") else TEACHER, seed=seed if arm == "random" else None)
    model = kind(widths=base.arguments["widths"], residual_blocks=base.arguments["blocks"], vit=vit, blocks=BLOCKS)
    return model.start_from(base)


def run_arm(model: HybridResUNet, arm: str, noisy: Tensor, clean: Tensor, swap: str = "") -> Tensor:
    """Return an arm's output (B, 3, H, W); `swap`: "mean" or "swapped", what its tokens are replaced by."""
    tokens = None
    if arm == "twice":
        tokens = noisy.new_zeros(len(noisy), model.joins[0].hidden.in_channels, 1, 1)
    elif arm == "brightness":
        tokens = brightness(ResUNet.forward(model, noisy).clamp(0, 1), model.joins[0].hidden.in_channels)
    elif arm == "oracle":
        tokens = model.token_grid(clean)
    elif arm.startswith("noisy"):
        tokens = model.token_grid(noisy.clamp(0, 1))
    elif swap:
        tokens = model.token_grid(ResUNet.forward(model, noisy).clamp(0, 1))
    if swap:  # of a batch of two images each gets the other's
        tokens = tokens.roll(1, 0) if swap == "swapped" else tokens.mean((2, 3), keepdim=True).expand_as(tokens)
    return model(noisy, tokens)


def arm_name(arm: str, trunk: int, seed: int) -> str:
    return f"{arm}_{trunk}_{seed}"


def train_arm(arm: str, trunk: int, seed: int) -> None:
    """Train an arm on a trunk, unless that was done: checkpoint ``<arm>_<trunk>_<seed>`` in data/runs/."""
    name = arm_name(arm, trunk, seed)
    if checkpoints.checkpoint_path(name).is_file():
        return
    recipe = replace(ARM, seed=ARM.seed + seed)
    model, data = make_arm(arm, trunk, seed), strong(recipe)
    run = open_run(data_dir() / "runs" / name, model, recipe, data, sigma=RANGE, arm=arm,
                   start_sha256=checkpoints.read_card(f"strong_{trunk}")["sha256"])
    card = fit_recipe(run, model, recipe, data, f"python -m lab.regimes train --arms {arm}", scored=False, every=200,
                      progress=False, ema=0.995,
                      forward=lambda net, batch: log_mse(run_arm(net, arm, batch.noisy, batch.clean).float(), batch.clean))
    checkpoints.save(model, name, card, folder="runs")


def load_arm(arm: str, trunk: int, seed: int) -> HybridResUNet:
    """Return a trained arm, in eval mode."""
    model = make_arm(arm, trunk, seed)
    model.load_state_dict(checkpoints.read_tensors(checkpoints.checkpoint_path(arm_name(arm, trunk, seed)))[0])
    return model.eval()


def images(split: str, set: str, step: int = 1) -> list[Sample]:
    """Return what is measured on: every `step`-th clean Sample of 224 x 224 of a set, "photos" or "everyday".

    "photos" are the tiles of CRACK_PHOTOS, "everyday" the middles of the clean photographs that the manifest of
    POLYU_PHOTOS lists (columns clean, scene, split).
    """
    if set == "photos":
        return list(open_dataset(split, photos=env_path("CRACK_PHOTOS"), sigma=0))[::step]
    folder = env_path("POLYU_PHOTOS")
    listed = pd.read_csv(folder / "manifest.csv").query("split == @split").drop_duplicates("clean")
    samples = []
    for row in listed.iloc[::step].itertuples():
        image = read_photo(folder / row.clean)
        y, x = ((side - 224) // 2 for side in image.shape[:2])
        clean = torch.from_numpy(image[y:y + 224, x:x + 224]).permute(2, 0, 1).contiguous()
        samples.append(Sample(clean, clean, torch.zeros(224, 224, dtype=torch.bool), False, row.clean, row.clean,
                              str(row.scene), "everyday", 0.0))
    return samples


def measure(split: str, arms: Sequence[str], trunk: int, seed: int, sigmas: Sequence[int], step: int = 1,
            sets: Sequence[str] = ("photos", "everyday"), swaps: Sequence[str] = ("none",)) -> pd.DataFrame:
    """Return the squared error of every arm, and of the trunk, on every image: a row each; in float32.

    The noise is seeded by the image's name and sigma, so that it is the same for all trunks and arms.
    """
    networks = {arm: load_arm(arm, trunk, seed) for arm in arms}
    base, rows = checkpoints.load(f"strong_{trunk}"), []
    for name, sigma in itertools.product(sets, sigmas):
        samples = images(split, name, step)
        noisy = [unclipped(s.clean, sigma, noise_generator(f"{s.name}, unclipped {sigma}", 0)) for s in samples]
        for i in range(0, len(samples), 2):  # in pairs from one end to the other: swapped tokens are of another place
            pair = [i // 2, i // 2 + (len(samples) + 1) // 2]
            pair = [k for k in pair if k < len(samples)]
            y, x = (torch.stack([them[k] for k in pair]) for them in (noisy, [s.clean for s in samples]))
            with torch.inference_mode():
                outputs = {("trunk", "none"): base(y)}
                for arm, swap in itertools.product(networks, swaps):
                    if swap == "none" or arm == "two_pass":
                        outputs[arm, swap] = run_arm(networks[arm], arm, y, x, swap.replace("none", ""))
            for (arm, swap), output in outputs.items():
                errors = (output.clamp(0, 1) - x).square()  # (2, 3, 224, 224)
                for k, error in zip(pair, errors, strict=True):
                    sample = samples[k]
                    zone = crack_zone(sample.mask)
                    crack = float(error[:, torch.from_numpy(zone)].mean()) if zone.any() else math.nan
                    rows.append({"arm": arm, "trunk": trunk, "seed": seed, "sigma": sigma, "set": name,
                                 "source": sample.source, "name": sample.name, "group": sample.group, "swap": swap,
                                 "mse": float(error.mean()), "mse_crack": crack})
    return pd.DataFrame(rows)
