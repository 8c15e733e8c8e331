"""Maps against masks, for ``lab/report_cams.py``: every layer, the controls, the settings, the evidence they add.

All figures are of cracked tiles only and of the signed maps; nothing here looks at a mask before it measures.
"""

import warnings
from collections import defaultdict

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from helpers.cam import SharedMap, activation_map, along, layer_features, layers_of, shared_direction, standardised
from helpers.cam_methods import SIGN_RULES, kernel_projection, orient, principal_map, project, token_norm
from helpers.metrics import crack_auc, darkness_map, resize_map
from lab.measures import (
    centre_blob,
    crack_ap,
    crack_iou,
    evaluate_map,
    fit_threshold,
    mean_map,
    other_tile,
    patch_ap,
    pool_to_grid,
    sato_map,
)

GRID = (14, 14)
FIGURES = ("auc", "auc_either", "ap", "ap_over_oracle", "patch_ap", "prevalence")


def kernel_map(features, sign="auto"):
    """KPCA_CAM's map (B, h, w) from features (B, C, h, w)."""
    return orient(torch.stack([kernel_projection(picture) for picture in features]), features, sign)
FROM_FEATURES = {"EigenCAM": principal_map, "KPCA_CAM": kernel_map,
                 "TokenNorm": lambda features: token_norm(features, centred=False), "CentredTokenNorm": token_norm}
# (method, target): the main ones that need a gradient
GRADIENTS = {"ViT": [("GradCAM", "mean"), ("GradCAM", "norm"), ("HiResCAM", "norm"), ("EigenGradCAM", "norm"),
                     ("SegEigenCAM", "norm")],
             "U-Net": [("GradCAM", "mean"), ("GradCAM", "norm"), ("GradCAM", "residual"), ("HiResCAM", "residual")]}
GRADIENT_LAYERS = {"ViT": ("block 3", "block 5", "block 7", "block 11"),
                   "U-Net": ("encoder 3", "bottleneck", "decoder 2")}


def figures(raw, mask):
    """Return `FIGURES` of one signed map on one cracked tile, rounded."""
    found = evaluate_map(raw, mask) | {"patch_ap": patch_ap(raw, mask, GRID)}
    return {figure: float(f"{found[figure]:.4g}") for figure in FIGURES}


def as_columns(rows):
    """Turn [{setting: {figure: value}}] into {setting: {figure: [a value per tile]}}."""
    return {setting: {figure: [row[setting][figure] for row in rows] for figure in FIGURES} for setting in rows[0]}


def numpy_picture(tensor):
    return tensor.permute(1, 2, 0).numpy()


def measure_layers(samples, model, layers, methods, label):
    """Return the columns of "layer|method" for maps that need no gradient."""
    rows = []
    for sample in tqdm(samples, desc=label, leave=False, mininterval=10):
        found, mask = layer_features(model, sample.noisy[None], layers), sample.mask.numpy()
        rows.append({f"{name}|{method}": figures(FROM_FEATURES[method](features)[0].numpy(), mask)
                     for name, features in found.items() for method in methods})
    return as_columns(rows)


def measure_gradients(samples, model, kind, label):
    """Return the columns of "layer|method, target" for maps that need a gradient."""
    rows = []
    for sample in tqdm(samples, desc=label, leave=False, mininterval=10):
        mask, row = sample.mask.numpy(), {}
        for layer in GRADIENT_LAYERS[kind]:
            for method, target in GRADIENTS[kind]:
                with warnings.catch_warnings():  # SegEigenCAM's own division by a constant map
                    warnings.simplefilter("ignore", RuntimeWarning)
                    raw = activation_map(model, sample.noisy, layer, method, target).raw
                row[f"{layer}|{method}, {target}"] = figures(raw, mask)
        rows.append(row)
    return as_columns(rows)


def controls_of(sample):
    """Return {control: map} of the filters that any reader could use instead of a network, on the noisy picture."""
    picture = numpy_picture(sample.noisy)
    sato, darkness = sato_map(picture), darkness_map(picture)
    return {"sato": sato, "sato, pooled": pool_to_grid(sato, GRID), "darkness": darkness,
            "darkness, pooled": pool_to_grid(darkness, GRID), "centre blob": centre_blob(GRID),
            "oracle 14 x 14": pool_to_grid(sample.mask.numpy(), GRID)}


def measure_controls(samples, label):
    """Return the columns of "picture|control"."""
    return as_columns([{f"picture|{name}": figures(map, sample.mask.numpy())
                        for name, map in controls_of(sample).items()}
                       for sample in tqdm(samples, desc=label, leave=False, mininterval=10)])


# Which sign? ---------------------------------------------------------------------------------------------------------


def measure_signs(samples, vit, label):
    """Return {"block|method|rule": [AUC per tile]} for every sign rule, the better sign, and no decomposition."""
    columns = defaultdict(list)
    for sample in tqdm(samples, desc=label, leave=False, mininterval=10):
        mask = sample.mask.numpy()
        for name, features in layer_features(vit, sample.noisy[None]).items():
            kernel = torch.stack([kernel_projection(picture) for picture in features])
            for method, map in (("EigenCAM", project(features)), ("KPCA_CAM", kernel)):
                up = crack_auc(map[0].numpy(), mask)
                columns[f"{name}|{method}|either"].append(max(up, 1 - up))
                for rule in SIGN_RULES:
                    turned = bool((orient(map, features, rule) * map).sum() < 0)
                    columns[f"{name}|{method}|{rule}"].append(1 - up if turned else up)
            columns[f"{name}|CentredTokenNorm|none"].append(crack_auc(token_norm(features)[0].numpy(), mask))
    return {key: [float(f"{value:.4g}") for value in values] for key, values in columns.items()}
# Which setting? ------------------------------------------------------------------------------------------------------

SETS = {"3": [3], "4": [4], "5": [5], "7": [7], "3, 5": [3, 5], "3 to 5": [3, 4, 5], "2 to 5": [2, 3, 4, 5],
        "3 to 7": [3, 4, 5, 6, 7]}


def collect(samples, vit, label):
    """Return a ViT's features of all blocks, {name: (N, C, h, w)} in half precision."""
    parts = [layer_features(vit, sample.noisy[None]) for sample in tqdm(samples, desc=label, leave=False)]
    return {name: torch.cat([part[name].half() for part in parts]) for name in parts[0]}


def setting_maps(features, directions=None):
    """Return {setting: maps (N, h, w)} of a ViT's features: first components, norms, and (given some) directions."""
    features = {name: value.float() for name, value in features.items()}
    single = {"EigenCAM": {name: standardised(principal_map(value)) for name, value in features.items()},
              "CentredTokenNorm": {name: standardised(token_norm(value)) for name, value in features.items()}}
    if directions:
        single["shared direction"] = {name: standardised(along(features[name], direction))
                                      for name, direction in directions.items()}
    return {f"{method}, {words}": torch.stack([maps[f"block {n}"] for n in blocks]).mean(0)
            for method, maps in single.items() for words, blocks in SETS.items()}


def directions_of(features, keep=slice(None)):
    """Return {block: direction (C,)} shared by the pictures `keep` of a ViT's features."""
    return {name: shared_direction(value[keep].float()) for name, value in features.items()}


def choose_setting(samples, vit):
    """Compare the settings on train tiles, directions fitted on one half of the groups and tested on the other.

    Returns {setting: [AUC per tile]}, and the directions fitted on all of the tiles.
    """
    features, groups = collect(samples, vit, "settings"), [f"{s.source}/{s.group}" for s in samples]
    order = np.random.default_rng(0).permutation(sorted(set(groups)))
    half = {group: i % 2 for i, group in enumerate(order)}
    fold, columns = np.array([half[group] for group in groups]), defaultdict(lambda: [None] * len(samples))
    for part in (0, 1):
        here = np.flatnonzero(fold == part)
        maps = setting_maps({name: value[here] for name, value in features.items()},
                            directions_of(features, np.flatnonzero(fold != part)))
        for setting, values in maps.items():
            for i, map in zip(here, values, strict=True):
                columns[setting][i] = float(f"{crack_auc(map.numpy(), samples[i].mask.numpy()):.4g}")
    return dict(columns), directions_of(features)


def settled_maps(samples, vit, directions, setting):
    """Return the maps (N, h, w) of one setting."""
    method, words = setting.split(", ", 1)
    if method == "shared direction":
        return torch.cat([SharedMap(vit, {f"block {n}": directions[f"block {n}"] for n in SETS[words]})(
            sample.noisy[None]) for sample in samples]).numpy()
    return setting_maps(collect(samples, vit, setting))[setting].numpy()


def measure_maps(samples, maps):
    """Return {figure: [a value per tile]} of maps, one per tile."""
    found = [figures(map, sample.mask.numpy()) for map, sample in zip(maps, samples, strict=True)]
    return {figure: [row[figure] for row in found] for figure in FIGURES}


def shuffled_and_mean(samples, maps, train_maps):
    """Return the columns of two controls made of maps: those of another tile, and the mean of the train tiles'."""
    return {"shuffled": measure_maps(samples, maps[other_tile(len(maps))]),
            "mean map": measure_maps(samples, [mean_map(train_maps)] * len(maps))}


def measure_iou(train, test, train_maps, test_maps):
    """Return the threshold that is best on train tiles and the test tiles' IoU at it."""
    threshold = fit_threshold(train_maps, [sample.mask.numpy() for sample in train])
    return threshold, [float(f"{crack_iou(map, sample.mask.numpy(), threshold):.4g}")
                       for map, sample in zip(test_maps, test, strict=True)]


# What does the map add to the filters? -------------------------------------------------------------------------------


def measure_evidence(train, test, train_maps, test_maps, pixels=400):
    """Return {"filters": [...], "filters and map": [...]}: average precision per test tile of logistic regressions.

    Fitted on `pixels` pixels of every train tile, half of them crack; the sources weigh as their tiles do.
    """
    rng = np.random.default_rng(0)

    def columns(sample, map):
        controls, size = controls_of(sample), sample.mask.shape
        maps = [controls["sato"], controls["darkness"], resize_map(map, tuple(size))]
        return np.stack([(m - m.mean()) / max(m.std(), 1e-9) for m in maps], -1).reshape(-1, 3)
    inputs, labels = [], []
    for sample, map in zip(train, train_maps, strict=True):
        mask = sample.mask.numpy().ravel()
        drawn = np.concatenate([rng.choice(np.flatnonzero(mask == kind), pixels // 2) for kind in (True, False)])
        inputs.append(columns(sample, map)[drawn])
        labels.append(mask[drawn])
    inputs, labels = np.concatenate(inputs), np.concatenate(labels)
    found = {}
    for name, kept in (("filters", [0, 1]), ("filters and map", [0, 1, 2])):
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs[:, kept], labels)
        scores = [model.decision_function(columns(sample, map)[:, kept]).reshape(sample.mask.shape)
                  for sample, map in zip(test, test_maps, strict=True)]
        found[name] = [float(f"{crack_ap(s, t.mask):.4g}") for s, t in zip(scores, test, strict=True)]
    return found


def gradient_kind(model):
    return "U-Net" if "bottleneck" in layers_of(model) else "ViT"
