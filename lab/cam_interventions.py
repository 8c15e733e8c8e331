"""Take away what a map points at and see whether the picture suffers, for ``lab/report_cams.py``.

In the hybrid k of the 196 tokens are replaced, in the U-Net the features of k of the 14 x 14 cells are set to zero,
chosen by a map, at random, by a filter, or by the mask; nothing is trained again.
"""

from contextlib import contextmanager

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn.functional import interpolate
from tqdm import tqdm

from helpers.cam import activation_map, layers_of
from helpers.metrics import crack_auc, crack_zone, darkness_map, grey
from helpers.vit import open_vit, vit_blocks
from lab.aggregate import interval, mean_of_sources
from lab.measures import other_tile, pool_to_grid, sato_map

GRID = (14, 14)
CELLS = (5, 10, 20, 40)
RANDOM = 2  # draws of the random choice, averaged
BATCH = 12


def choices(sample, maps, rng):
    """Return {how: scores (196,)}; the cells with the highest scores are taken.

    `maps`: {name: (h, w)}. Where the mask leaves a tie (cells without any crack), the nearest to the crack come first.
    """
    picture = numpy_picture(sample.noisy)
    near = pool_to_grid(crack_zone(sample.mask, 24), GRID)
    scores = {name: pool_to_grid(map, GRID) if map.shape != GRID else map for name, map in maps.items()}
    scores |= {"darkness": pool_to_grid(darkness_map(picture), GRID), "sato": pool_to_grid(sato_map(picture), GRID),
               "mask": pool_to_grid(sample.mask.numpy(), GRID) + 1e-3 * near,
               "brightness": pool_to_grid(grey(picture), GRID)}
    scores |= {f"random {n}": rng.random(GRID) for n in range(RANDOM)}
    return {how: np.asarray(score).ravel() for how, score in scores.items()}


def numpy_picture(tensor):
    return tensor.permute(1, 2, 0).numpy()


def cells_mask(score, k):
    """Return (14, 14) bool: the k cells of highest score."""
    chosen = np.zeros(score.size, bool)
    chosen[np.argsort(-score, kind="stable")[:k]] = True
    return torch.from_numpy(chosen.reshape(GRID))


def zone_errors(denoised, sample):
    """Return squared errors of outputs (N, 3, H, W), [whole, crack zone, rest] each (N,)."""
    zone = torch.from_numpy(crack_zone(sample.mask))
    error = ((denoised.clamp(0, 1) - sample.clean) ** 2).mean(1)  # (N, H, W)
    return [error.mean((1, 2)).tolist(), error[:, zone].mean(1).tolist(), error[:, ~zone].mean(1).tolist()]


def record(columns, keys, denoised, sample):
    for key, *values in zip(keys, *zone_errors(denoised, sample), strict=True):
        columns.setdefault(key, []).append([float(f"{value:.5g}") for value in values])


@torch.inference_mode()
def replace_tokens(samples, model, map_of, train):
    """Return {"replacement|how|k": [[MSE, in the crack zone, outside] per tile]}, and "none" for the untouched network.

    Args:
        model: a hybrid; map_of: function of a sample, {name: map}; train: samples whose mean token is the replacement
            "mean" (the other is "swapped", the tokens at the same places of another test picture).
    """
    mean = torch.stack([model.token_grid(sample.noisy[None])[0].mean((1, 2)) for sample in train]).mean(0)
    grids = [model.token_grid(sample.noisy[None]) for sample in samples]
    other, rng, columns = other_tile(len(samples)), np.random.default_rng(0), {}
    for i, sample in enumerate(tqdm(samples, desc="tokens", leave=False, mininterval=10)):
        keys, variants = ["none"], [grids[i]]
        for how, score in choices(sample, map_of(sample), rng).items():
            for k in CELLS:
                cells = cells_mask(score, k)
                for name, instead in (("mean", mean[:, None, None]), ("swapped", grids[other[i]][0])):
                    keys.append(f"{name}|{how}|{k}")
                    variants.append(torch.where(cells, instead, grids[i]))
        outputs = [model(sample.noisy.expand(len(part), -1, -1, -1), tokens=part)
                   for part in torch.cat(variants).split(BATCH)]
        record(columns, keys, torch.cat(outputs), sample)
    return columns


@contextmanager
def zeroed(layer, cells):
    """Set a layer's features to zero at `cells` (N, 14, 14) bool, one set per picture of the batch."""
    def hook(module, inputs, output):
        kept = interpolate((~cells)[:, None].float(), output.shape[-2:], mode="nearest")
        return output * kept
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def zero_features(samples, model, stages, cells=CELLS):
    """Return {"stage|how|k": [[MSE, in the crack zone, outside] per tile]} for a U-Net, and "none"."""
    columns, rng = {}, np.random.default_rng(0)
    for sample in tqdm(samples, desc="features", leave=False, mininterval=10):
        record(columns, ["none"], model(sample.noisy[None]), sample)
        for stage in stages:
            raw = activation_map(model, sample.noisy, stage).raw
            chosen = {f"{stage}|{how}|{k}": cells_mask(score, k)
                      for how, score in choices(sample, {"map": raw}, rng).items() for k in cells}
            keys = list(chosen)
            for start in range(0, len(keys), BATCH):
                part = keys[start:start + BATCH]
                with zeroed(layers_of(model)[stage], torch.stack([chosen[key] for key in part])):
                    outputs = model(sample.noisy.expand(len(part), -1, -1, -1))
                record(columns, part, outputs, sample)
    return columns


def intervention_rows(columns, samples):
    """Yield (what, row) for an intervention: per cent more MSE than the untouched network, and against a random choice.

    Args:
        columns: {"what|how|k": [[MSE, in the crack zone, outside] per tile]} and "none", as the two above give them.
    """
    errors = {tuple(key.split("|")): np.array(values) for key, values in columns.items()}
    untouched = errors.pop(("none",), None)
    # the draws of the random choice count as one, their mean
    cuts = {key: values for key, values in errors.items() if not key[1].startswith("random")}
    cuts |= {(what, "random", k): np.mean([errors[what, f"random {n}", k] for n in range(RANDOM)], axis=0)
             for what, how, k in errors if how == "random 0"}
    for (what, how, k), mine in cuts.items():
        for zone, figure in enumerate(("mse", "mse_crack", "mse_rest")):
            percent = 100 / mean_of_sources(untouched[:, zone], samples)
            row = {"how": how, "k": int(k), "figure": figure}
            for words, other in (("", untouched), ("random_", cuts[what, "random", k])):
                if words and how == "random":
                    continue
                found = interval(mine[:, zone], other[:, zone], samples)
                row |= {f"{words}{name}": float(f"{percent * found[of]:.4g}") for name, of in
                        (("percent", "difference"), ("low", "low"), ("high", "high"), ("covered", "covered"))}
                row[f"{words}p"] = found["p"]
            yield what, row


# Sanity check of the maps --------------------------------------------------------------------------------------------


def randomised_vits(source):
    """Yield (words, ViT) with ever more blocks random, from the last one down, and at the end the embeddings too.

    Source: Adebayo et al., "Sanity checks for saliency maps" (NeurIPS 2018, arXiv:1810.03292).
    """
    vit, random = open_vit(source), open_vit(source, seed=0)
    yield "trained", vit
    for numbers in (range(6, 12), *([n] for n in range(5, -1, -1))):
        for n in numbers:
            vit_blocks(vit)[n].load_state_dict(vit_blocks(random)[n].state_dict())
        yield f"blocks 11 to {numbers[0]}", vit
    vit.model.load_state_dict(random.model.state_dict())
    yield "everything", vit


@torch.no_grad()
def randomised_unets(model):
    """Yield (words, U-Net) with ever more stages random, from the last decoder stage up to the first encoder stage."""
    torch.manual_seed(0)
    yield "trained", model
    for name, stage in reversed(layers_of(model).items()):
        for module in stage.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        yield f"down to {name}", model


def sanity(samples, networks, layer):
    """Return rows: how alike is the map to the trained network's (Spearman, without sign), and what AUC is left."""
    rows, first = [], None
    for words, model in networks:
        maps = [activation_map(model, sample.noisy, layer).raw for sample in samples]
        first = first or maps
        alike = [abs(spearmanr(a.ravel(), b.ravel()).statistic) for a, b in zip(first, maps, strict=True)]
        auc = [crack_auc(map, sample.mask.numpy()) for map, sample in zip(maps, samples, strict=True)]
        rows.append({"randomised": words, "layer": layer, "n": len(samples), "spearman": float(np.nanmean(alike)),
                     "auc": float(np.mean(auc))})
    return rows
