"""What each shipped network is and how it was trained: pure data, read by `load_or_train` and ``make train``."""

from dataclasses import dataclass, field

import torch

import lab.joins  # noqa: F401  "gated", which two of them use
from lab.judges import CrackSegmenter


@dataclass(frozen=True)
class Recipe:
    """One training run; a checkpoint's card repeats it.

    Attributes:
        architecture: class in `helpers.models`.
        arguments: its keyword arguments.
        data: "drawn" (built-in surfaces), "photos" (train tiles of CRACK_PHOTOS) or "both".
        steps: optimizer steps.
        batch_size: crops per step.
        crop: side of the square crops in pixels.
        sigma: noise, standard deviation on the 0..255 scale; a number or a (low, high) range drawn per crop.
        lr: the optimizer's peak learning rate.
        optimizer: "adamw" or "muon" (`helpers.training.make_optimizer`).
        sigma_power: how sigma is drawn from its range: 1 uniform, above 1 weak noise more often (`helpers.data.Crops`).
        schedule: of the rate after the warm-up, "cosine" or "constant" (`helpers.training.learning_rate`).
        colour: share of the crops whose colours are changed (`helpers.data.Crops`).
        everyday: share of the crops cut from everyday photographs (`surfaces.training_images.everyday_pool`), 0..0.4.
        start: name of the recipe whose weights it starts from, or None.
        objective: "denoise" or "segment" (cross entropy against the crack mask).
        loss: what "denoise" minimises, a name in `LOSSES`: "mse", or "log", the mean logarithm of the squared error.
        shipped: whether the result belongs in ``data/checkpoints/``; else it is an experiment, kept in ``data/runs/``.
        seed: of the weights, the crops and the noise.
    """

    architecture: str
    arguments: dict = field(default_factory=dict)
    data: str = "both"
    steps: int = 4000
    batch_size: int = 16
    crop: int = 64
    sigma: float | tuple = (5, 60)
    sigma_power: float = 1.0
    lr: float = 1e-3
    optimizer: str = "adamw"
    schedule: str = "cosine"
    colour: float = 0.0
    everyday: float = 0.15
    start: str | None = None
    objective: str = "denoise"
    loss: str = "mse"
    shipped: bool = True
    seed: int = 0


def log_mse(denoised: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Return the mean over images of log(squared error + 1e-5), of (B, 3, H, W) in [0, 1]; 1e-5 is sigma 0.8."""
    return torch.log((denoised - clean).square().mean((1, 2, 3)) + 1e-5).mean()


LOSSES = {"mse": None, "log": log_mse}  # None: the mean squared error that `fit` minimises by itself
SHEETS = 600  # synthetic surfaces of 512 x 512 that a training's crops are cut from
UNET = {"width": 32, "predict": "noise"}
JOINS_TRIED = {"concat": {}, "blocks": {"blocks": [2, 5, 8, 11]}, "gated": {"join": "gated", "blocks": [2, 5, 8, 11]},
               "attention": {"join": "attention", "blocks": [2, 5, 8, 11]},
               "tuned": {"join": "gated", "blocks": [2, 5, 8, 11], "freeze_vit": 10}}
RECIPES = {
    # Is a network that never saw a photograph nearly as good on photographs?
    "unet_photos_only": Recipe("UNet", UNET, data="photos", steps=5000, sigma=50, shipped=False),
    "unet_drawn_only": Recipe("UNet", UNET, data="drawn", steps=5000, sigma=50, shipped=False),
    # Picture or noise? On validation, mean of all sources, 24.2 dB against 24.0 for the U-Net (of the real ones 23.2
    # against 23.3: a tie, and noise as in DnCNN was kept) and 21.5 against 14.8 for the autoencoder without skips.
    "unet_image": Recipe("UNet", {"width": 32, "predict": "image"}, steps=300, shipped=False),
    "unet_noise": Recipe("UNet", UNET, steps=300, shipped=False),
    "conv_image": Recipe("ConvDAE", {"width": 32, "predict": "image"}, steps=300, shipped=False),
    "conv_noise": Recipe("ConvDAE", {"width": 32, "predict": "noise"}, steps=300, shipped=False),
    # The checkpoints.
    "dense": Recipe("DenseDAE", {"bottleneck": 64}, steps=3000, batch_size=64, crop=56),
    "dense_skip": Recipe("DenseDAE", {"bottleneck": 64, "skip": True}, steps=3000, batch_size=64, crop=56),
    "conv": Recipe("ConvDAE", {"width": 32, "predict": "image"}, steps=5000),
    # On validation the first 8000 steps washed out a blue floor: the last ones see changed colours.
    "unet_blind": Recipe("UNet", UNET, steps=8000, start="unet_photos_only", shipped=False),
    "unet_colour": Recipe("UNet", UNET, steps=3000, start="unet_blind", lr=5e-4, colour=0.5, seed=1, shipped=False),
    # Larger crops: less of what it learns is about a crop's edges. The hybrids start from these weights.
    "unet_start": Recipe("UNet", UNET, steps=7000, batch_size=5, crop=128, start="unet_colour", lr=5e-4, colour=0.25,
                         seed=2),
    # Which optimizer goes on from there? Six minutes each on one core, 5 crops of 128 x 128 a step, dB won on 70 real
    # and 40 drawn validation pictures: AdamW at 2e-4 -0.00 and +0.01, Muon at 3e-4 +0.02 and +0.04, at 1e-3 -0.04 and
    # -0.02. So Muon, longer and at a rate between: +0.20 on the mean of the recipe's own validation pictures.
    "unet_classic": Recipe("UNet", UNET, steps=8000, batch_size=8, crop=128, start="unet_start", lr=5e-4,
                           optimizer="muon", colour=0.25, seed=6),
    # 42 photographs of everyday things more (EVERYDAY_PHOTOS) in place of drawn surfaces: no better on validation.
    "unet_everyday": Recipe("UNet", UNET, steps=1500, batch_size=5, crop=128, start="unet_start", lr=4e-4, colour=0.25,
                            everyday=0.25, seed=4, shipped=False),
    # Crops as large as the train tiles allow with some room to move: the ViT looks at the whole picture.
    "hybrid_classic": Recipe("HybridViTUNet", {"width": 32}, steps=2600, batch_size=3, crop=192,
                             start="unet_start", lr=5e-4, colour=0.25, seed=3),
    # Which tokens, joined how? Equal budgets from one start. MSE on validation, real sources, against the U-Net they
    # start from, in per cent: attention +0.3, the others +0.7 (all lose something to the restart).
    **{f"hybrid_try_{name}": Recipe("HybridViTUNet", {"width": 32, **options}, steps=600, batch_size=3, crop=192,
                                    start="unet_start", lr=5e-4, colour=0.25, seed=3, shipped=False)
       for name, options in JOINS_TRIED.items()},
    "hybrid_attention": Recipe("HybridViTUNet", {"width": 32, **JOINS_TRIED["attention"]}, steps=4500, batch_size=3,
                               crop=192, start="unet_start", lr=4e-4, colour=0.25, seed=5),
    # The new trunk, from scratch. Leg 1 of 3: at a constant rate, so that the next leg goes on from its average.
    # sigma = 80 u ** 1.5 has the mean of the old range 5..60 (32), reaches 80, and is below 15 for a third of the
    # crops: drawn uniformly, weak noise would hardly count, for its squared error is a fraction of strong noise's.
    "trunk_leg1": Recipe("ResUNet", {"widths": [64, 112, 160], "blocks": 2}, steps=28000, batch_size=8, crop=128,
                         sigma=(0, 80), sigma_power=1.5, lr=1e-3, schedule="constant", optimizer="muon", colour=0.25,
                         everyday=0.2, seed=10, shipped=False),
    # Leg 2 goes on from leg 1's average and lets the rate fall. PSNR is minus the logarithm of the squared error, so
    # that its mean over images asks for the mean logarithm: a crop with weak noise counts as much as one with strong.
    "unet": Recipe("ResUNet", {"widths": [64, 112, 160], "blocks": 2}, steps=26000, batch_size=8, crop=128,
                   sigma=(0, 80), sigma_power=1.25, lr=1e-3, optimizer="muon", colour=0.25, everyday=0.2,
                   start="trunk_leg1", loss="log", seed=11),
    # The joins alone are trained, the trunk stays as it is. Crops as large as the tiles that `denoise` cuts for it.
    "hybrid": Recipe("HybridResUNet", {"widths": [64, 112, 160], "residual_blocks": 2, "blocks": [3, 7]}, steps=3000,
                     batch_size=2, crop=224, sigma=(0, 80), lr=1e-3, optimizer="muon", colour=0.25, everyday=0.2,
                     start="unet", loss="log", seed=12),
    "segmenter": Recipe(CrackSegmenter.__name__, {"width": 16}, steps=800, batch_size=8, crop=128, sigma=0,
                        objective="segment"),
}


def start_of(recipe, photos):
    """Return the recipe that `recipe` starts from, or None; without `photos` those for photographs are passed over."""
    start = recipe.start
    while start and RECIPES[start].data == "photos" and not photos:
        start = RECIPES[start].start
    return start
