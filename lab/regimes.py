"""When does a ViT help a denoiser? The experiment of notebook 02: gain against how little the image itself still tells.

    python -m lab.regimes trunk                       train the independent trunks, sigma 25 to 300
    python -m lab.regimes train --arms two_pass       this arm, on every trunk and seed of the plan
    python -m lab.regimes valid                       measure what is trained on valid: what choices rest on
    python -m lab.regimes test                        measure on test, once
    python -m lab.regimes report                      the tables `regimes`, `regimes_gains`, ... of what was measured

DENOISE_TEACHER is the pretrained ViT, CRACK_PHOTOS and EVERYDAY_PHOTOS what is trained on, POLYU_PHOTOS the second test
set. Everything goes on where it was stopped.

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
    continued      nothing: the trunk's own weights are trained on, to see how far it is from its plateau

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
   trunks' means, a bootstrap over places beside it; second set: at least 50 everyday photographs. (The oracle has one
   seed; levels other than 150 are measured on every sixth image: both were decided for want of time, before any arm was
   measured.)
3. Expected: 1 to 2.5 % over the trunk, 0.3 to 1 % over the best control. "Helps" if the interval's lower end is above
   0 and its mean at least 0.5 %; "no useful help" if its upper end is below 0.5 %; else "undecided".
4. Exploratory, with Holm's correction: sigma 25, 50, 75, 100, 200, 300; the crack zone; the other arms.
5. Equal steps, data and noise. Weights and work of every arm are in `regimes_cost`.

A pilot on every second sutcrack tile of valid, one trunk, one seed, came before this text: `oracle` -3.8 % at sigma
150, `two_pass` -2.4 %, `random` -1.5 %. It chose a frozen trunk (trained along: `oracle` -3.6 %) and FiLM alone (with a
residual block beside it: `two_pass` -2.4 %). It had not seen `twice`, `encoder` or any test tile.
"""

import argparse
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import t, ttest_1samp
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
from lab.aggregate import rounded
from lab.cost import multiply_adds, weights
from lab.intervals import holm, resampled_means
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
SWAPPED = ("two_pass", "oracle")  # whose tokens are also replaced: does the output depend on them?


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
    """A `HybridResUNet` with a trained convolutional network in the ViT's place: of its grid, channels and cost."""

    def __init__(self, widths, residual_blocks=2, vit=None, blocks=BLOCKS) -> None:
        super().__init__(widths, residual_blocks, vit, blocks)
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
    """Return mean and contrast of patches of 16 x 16 pixels, (B, channels, H / 16, W / 16), the rest zeros."""
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


def make_arm(arm: str, trunk: int, seed: int) -> ResUNet:
    """Return the network of an arm on a trunk, its joins untrained; `seed` is that of their weights."""
    set_seed(1000 + seed)
    base = checkpoints.load(f"strong_{trunk}")
    if arm == "continued":
        return base
    kind = EncoderResUNet if arm == "encoder" else HybridResUNet
    vit = open_vit(None if arm.endswith("student") else TEACHER, seed=seed if arm == "random" else None)
    model = kind(widths=base.arguments["widths"], residual_blocks=base.arguments["blocks"], vit=vit, blocks=BLOCKS)
    return model.start_from(base)


def run_arm(model: ResUNet, arm: str, noisy: Tensor, clean: Tensor, swap: str = "none",
            first: Tensor | None = None) -> Tensor:
    """Return an arm's output (B, 3, H, W).

    `swap`: "none", "mean", "swapped": what replaces its tokens. `first`: the trunk's output, where it is known already.
    """
    if arm == "continued":
        return model(noisy)
    first, channels = ResUNet.forward(model, noisy) if first is None else first, model.joins[0].hidden.in_channels
    if arm == "twice":
        tokens = noisy.new_zeros(len(noisy), channels, 1, 1)
    elif arm == "brightness":
        tokens = brightness(first.clamp(0, 1), channels)
    else:
        looks_at = clean if arm == "oracle" else noisy.clamp(0, 1) if arm.startswith("noisy") else first.clamp(0, 1)
        tokens = model.token_grid(looks_at)
    if swap != "none":  # of a batch of two images each gets the other's
        tokens = tokens.roll(1, 0) if swap == "swapped" else tokens.mean((2, 3), keepdim=True).expand_as(tokens)
    joins = [partial(join, tokens=tokens) for join in model.joins]
    return noisy - model.predict_noise(model.stem(noisy) + model.again(first), joins)


def arm_name(arm: str, trunk: int, seed: int) -> str:
    return f"{arm}_{trunk}_{seed}"


def train_arm(arm: str, trunk: int, seed: int) -> None:
    """Train an arm on a trunk, unless that was done: checkpoint ``<arm>_<trunk>_<seed>`` in data/runs/."""
    name = arm_name(arm, trunk, seed)
    if checkpoints.checkpoint_path(name).is_file():
        return
    recipe = replace(ARM, seed=ARM.seed + seed, lr=0.4 * ARM.lr if arm == "continued" else ARM.lr)
    model, data = make_arm(arm, trunk, seed), strong(recipe)
    run = open_run(data_dir() / "runs" / name, model, recipe, data, sigma=RANGE, arm=arm,
                   start_sha256=checkpoints.read_card(f"strong_{trunk}")["sha256"])

    def loss(network, batch):
        return log_mse(run_arm(network, arm, batch.noisy, batch.clean).float(), batch.clean)
    card = fit_recipe(run, model, recipe, data, f"python -m lab.regimes train --arms {arm}", scored=False, every=200,
                      progress=False, ema=0.995, forward=loss)
    checkpoints.save(model, name, card, folder="runs")


def load_arm(arm: str, trunk: int, seed: int) -> ResUNet:
    """Return a trained arm, in eval mode."""
    model = make_arm(arm, trunk, seed)
    model.load_state_dict(checkpoints.read_tensors(checkpoints.checkpoint_path(arm_name(arm, trunk, seed)))[0])
    return model.eval()


def images(split: str, which: str, step: int = 1) -> list[Sample]:
    """Return what is measured on: every `step`-th clean Sample of 224 x 224 of a set, "photos" or "everyday".

    "photos" are the tiles of CRACK_PHOTOS, "everyday" the middles of the clean photographs that the manifest of
    POLYU_PHOTOS lists (columns clean, scene, split).
    """
    if which == "photos":
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


def measured_path(split: str, arm: str, trunk: int, seed: int) -> Path:
    return data_dir() / "runs" / "regimes" / f"{split}-{arm_name(arm, trunk, seed)}.csv.gz"


def measure(split: str, trunk: int, arms: Sequence[tuple[str, int]]) -> None:
    """Measure a trunk and arms on it, (name, seed) each, on a split: a file of rows each in data/runs/regimes/.

    On test every image at sigma 150, where some arms' tokens are also swapped, and of seed 0 every sixth one at the
    other levels; on valid the photographs at sigma 150 alone, for no other choice is made there. In float32, the noise
    seeded by the image's name and sigma: the same for all trunks and arms. What was measured already is left out.
    """
    arms = [("trunk", 0), *arms]
    models = {(arm, seed): checkpoints.load(f"strong_{trunk}") if arm == "trunk" else load_arm(arm, trunk, seed)
              for arm, seed in arms if not measured_path(split, arm, trunk, seed).is_file()}
    rows, base = defaultdict(list), checkpoints.load(f"strong_{trunk}")
    sets, sigmas = (("photos",), (PRIMARY,)) if split == "valid" else (("photos", "everyday"), SIGMAS)
    for name, sigma in itertools.product(sets if models else (), sigmas):
        samples = images(split, name, step=1 if sigma == PRIMARY else 6)
        half = (len(samples) + 1) // 2  # in pairs, one of the first half and one of the second: of different places
        for pair in itertools.zip_longest(samples[:half], samples[half:]):
            pair = [sample for sample in pair if sample]
            clean = torch.stack([sample.clean for sample in pair])
            noisy = torch.stack([unclipped(sample.clean, sigma, noise_generator(f"{sample.name}, unclipped {sigma}", 0))
                                 for sample in pair]).to(memory_format=torch.channels_last)
            with torch.inference_mode():
                first = base(noisy)
            for (arm, seed), model in models.items():
                if sigma != PRIMARY and seed:
                    continue
                swaps = ("none", "mean", "swapped") if sigma == PRIMARY and arm in SWAPPED and len(pair) == 2 else None
                for swap in swaps or ("none",):
                    with torch.inference_mode():
                        output = first if arm == "trunk" else run_arm(model, arm, noisy, clean, swap, first)
                    for sample, error in zip(pair, (output.clamp(0, 1) - clean).square(), strict=True):
                        zone = torch.from_numpy(crack_zone(sample.mask))
                        rows[arm, seed].append({
                            "arm": arm, "trunk": trunk, "seed": seed, "regime": "noise", "sigma": sigma, "hole": 0,
                            "set": name, "source": sample.source, "name": sample.name, "group": sample.group,
                            "swap": swap, "mse": float(error.mean()),
                            "mse_crack": float(error[:, zone].mean()) if zone.any() else math.nan})
    for (arm, seed), found in rows.items():
        path = measured_path(split, arm, trunk, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(found).to_csv(path, index=False)


def measured(split: str) -> pd.DataFrame:
    """Return all rows that `measure` wrote for a split."""
    files = sorted((data_dir() / "runs" / "regimes").glob(f"{split}-*.csv.gz"))
    return pd.concat(map(pd.read_csv, files), ignore_index=True)


def percent_of_trunk(items: pd.DataFrame, figure: str = "mse") -> pd.DataFrame:
    """Return the mean squared error per arm, trunk, seed, sigma, set, source and swap, and its per cent of the trunk's.

    `percent` is 100 * (arm / trunk - 1), on the same images: below 0 the arm is better than its trunk.
    """
    by = ["arm", "trunk", "seed", "regime", "sigma", "hole", "set", "source", "swap"]
    base = items.query("arm == 'trunk'").set_index(["trunk", "sigma", "set", "name"])[figure]
    base = base.reindex(pd.MultiIndex.from_frame(items[base.index.names])).to_numpy()
    rows = items.assign(base=base).dropna(subset=[figure]).groupby(by, sort=False).agg(
        mse=(figure, "mean"), base=("base", "mean"), n=(figure, "size")).reset_index()
    return rows.assign(percent=100 * (rows["mse"] / rows["base"] - 1)).drop(columns="base")


def gain(rows: pd.DataFrame, arm: str, against: str, swap: str = "none") -> dict:
    """Return the gain of an arm, 100 * (1 - its squared error / that of `against`), as a t-interval over trunks.

    `rows` are those of one sigma, set and source in `percent_of_trunk`. The seeds of a trunk are averaged first: they
    share its weights. Without two trunks there is no interval. ValueError where they saw other numbers of images.
    """
    rows = rows.query("swap == 'none' or arm == @against")
    sizes = rows.query("arm == @arm and swap == 'none' or arm == @against and swap == @swap")["n"].unique()
    if len(sizes) > 1:
        raise ValueError(f"{arm} and {against} ({swap}) must be measured on the same images, got {sizes.tolist()}")
    table = rows.pivot_table(index=["trunk", "seed"], columns=["arm", "swap"], values="mse")
    ours, other = table[arm, "none"], table[against, swap]
    if against == "trunk":  # measured once per trunk
        other = other.groupby("trunk").first().reindex(ours.index.get_level_values("trunk")).set_axis(ours.index)
    means = (100 * (1 - ours / other)).dropna().groupby("trunk").mean()
    low = high = p = math.nan
    if len(means) > 1 and means.std() > 0:
        low, high = t.interval(0.95, len(means) - 1, means.mean(), means.sem())
        p = ttest_1samp(means, 0).pvalue
    return {"gain": means.mean(), "low": low, "high": high, "p": p, "trunks": len(means),
            **{f"gain_trunk{trunk}": value for trunk, value in means.items()}}


def best_control() -> str:
    """Return the control of lowest squared error on valid: sigma 150, sutcrack, mean over trunks and seeds."""
    rows = percent_of_trunk(measured("valid")).query("sigma == @PRIMARY and source == 'sutcrack' and swap == 'none'")
    return rows.query("arm in @CONTROLS").groupby("arm")["percent"].mean().idxmin()


def over_places(items: pd.DataFrame, arm: str, against: str) -> dict:
    """Return the gain of an arm in per cent, the means over trunks and seeds, with a bootstrap interval over places.

    `items` are those of one sigma, set and source. What may differ by chance here is the images; in `gain` the trunks.
    """
    tiles = items.query("swap == 'none' and arm in [@arm, @against]").pivot_table(
        index=["source", "group", "name"], columns="arm", values="mse")
    drawn = resampled_means(tiles[[arm, against]].to_numpy().T, group=tiles.index.get_level_values("group"))[0]
    low, high = np.quantile(100 * (1 - drawn[0] / drawn[1]), [0.025, 0.975])
    return {"places_low": low, "places_high": high}


def costs(arms: Sequence[str]) -> list[dict]:
    """Return the rows of `regimes_cost`: weights, of these trained, and multiply-adds of each arm, ViT included."""
    rows = []
    for arm in arms:
        model = checkpoints.load("strong_0") if arm in ("trunk", "continued") else make_arm(arm, 0, 0)
        blind = arm in ("twice", "brightness")  # their ViT is never asked
        idle = weights(model.vit) if blind or arm == "encoder" else 0
        rows.append({"arm": arm, "weights_millions": (weights(model) - idle) / 1e6,
                     "trained_millions": 0.0 if arm == "trunk" else weights(model, trained=True) / 1e6,
                     "gmac": (multiply_adds(model) - (multiply_adds(model.vit) if blind else 0)) / 1e9})
    return rows


def report() -> None:
    """Write the tables of the test split; choices (the best control) are made on valid."""
    items, control = measured("test"), best_control()
    rows = percent_of_trunk(items)
    gains = []
    for (sigma, name, source), part in rows.groupby(["sigma", "set", "source"], sort=False):
        arms = [arm for arm in part["arm"].unique() if arm != "trunk"]
        pairs = [(arm, "trunk", "none") for arm in arms] + [("two_pass", c, "none") for c in CONTROLS if c in arms]
        tiles = items.query("sigma == @sigma and set == @name and source == @source")
        gains += [{"arm": arm, "against": against, "swap": swap, "sigma": sigma, "set": name, "source": source,
                   **gain(part, arm, against, swap), **over_places(tiles, arm, against)}
                  for arm, against, swap in pairs]
        for swap in sorted(set(part["swap"]) - {"none"}):
            # an image without a partner was never told another's tokens: it is left out of both sides
            both = tiles[tiles["name"].isin(tiles.loc[tiles["swap"] == swap, "name"])]
            gains.append({"arm": "two_pass", "against": "two_pass", "swap": swap, "sigma": sigma, "set": name,
                          "source": source, **gain(percent_of_trunk(both), "two_pass", "two_pass", swap)})
    gains = pd.DataFrame(gains)
    primary = gains.eval("arm == 'two_pass' and against == @control and sigma == @PRIMARY and source == 'sutcrack'")
    gains["role"] = np.where(primary, "primary", "exploratory")
    explored = gains["role"].eq("exploratory") & gains["p"].notna()
    gains.loc[explored, "p_holm"] = holm(gains.loc[explored, "p"])
    made = provenance("python -m lab.regimes report", seed=0)
    settings = {"trunk": TRUNK, "arm": ARM, "sigma": RANGE, "blocks": BLOCKS, "best control on valid": control}
    save_tables({"regimes": rounded(rows), "regimes_gains": rounded(gains), "regimes_items": rounded(items, 6),
                 "regimes_crack": rounded(percent_of_trunk(items, "mse_crack")),
                 "regimes_valid": rounded(percent_of_trunk(measured("valid"))),
                 "regimes_cost": rounded(pd.DataFrame(costs(items["arm"].unique())))}, made, regimes=settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("trunk", "train", "valid", "test", "report"))
    parser.add_argument("--arms", nargs="+", default=[*CONTROLS, "two_pass", "oracle"])
    parser.add_argument("--trunks", nargs="+", type=int, default=range(TRUNKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=range(SEEDS))
    options = parser.parse_args()
    if options.what == "report":
        return report()
    if options.what in ("valid", "test"):
        for trunk in options.trunks:
            there = [(arm, seed) for seed, arm in itertools.product(options.seeds, options.arms)
                     if checkpoints.checkpoint_path(arm_name(arm, trunk, seed)).is_file()]
            measure(options.what, trunk, there)
        return None
    for seed, trunk in itertools.product(options.seeds, options.trunks):
        if options.what == "trunk":
            train_trunk(trunk)
        else:
            for arm in options.arms:
                train_arm(arm, trunk, seed)
    return None


if __name__ == "__main__":
    main()
