"""What a Vision Transformer still sees under noise: the measurements of ``lab/report.py student``.

Four ways of looking at a noisy picture are held against the teacher's tokens of the clean one, block by block: the
teacher on the noisy picture, the built-in student on it, the teacher on a U-Net's denoised picture, and two constants.
"""

from collections import defaultdict

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.cam_methods import orient, project
from helpers.checkpoints import load
from helpers.data import open_dataset
from helpers.denoise import denoise
from helpers.metrics import crack_auc
from helpers.vit import extra_tokens, open_vit, vit_blocks
from lab.aggregate import ITEM, interval, per_source, with_mean
from lab.measures import pool_to_grid
from lab.provenance import provenance
from lab.tables import save_tables

WAYS = ("teacher, noisy", "student, noisy", "teacher, denoised")
CONSTANTS = ("mean token", "mean token of the picture")
PROBE_TILES = 240  # train tiles, spread over the sources, that the probes and the standardisation are fitted on
POSITIVE = 0.05  # a patch is "crack" from this share of crack pixels on


class Tokens:
    """Patch tokens of pictures (layers, patches, C), half precision, after every block and the final normalisation."""

    def __init__(self, teacher, student, denoiser):
        self.teacher, self.student, self.denoiser = teacher, student, denoiser
        self.layers = [*range(len(vit_blocks(teacher))), None]

    @torch.inference_mode()
    def _of(self, vit, picture):
        tokens = torch.cat(vit(picture[None], self.layers))
        return tokens[:, extra_tokens(vit):].half()

    def __call__(self, sample):
        """Return {way: tokens}, and the teacher's of the clean picture under "teacher, clean"."""
        denoised = denoise(self.denoiser, sample.noisy).clamp(0, 1)
        pictures = {"teacher, clean": (self.teacher, sample.clean), WAYS[0]: (self.teacher, sample.noisy),
                    WAYS[1]: (self.student, sample.noisy), WAYS[2]: (self.teacher, denoised)}
        return {way: self._of(vit, picture) for way, (vit, picture) in pictures.items()}


def agreement(tokens, wanted):
    """Return mean cosine and top-1 retrieval of tokens (layers, N, C) against `wanted`, each (layers,).

    Retrieval: how often the nearest clean token of the picture, by cosine, is the one at the same place.
    """
    tokens, wanted = (torch.nn.functional.normalize(each, dim=-1) for each in (tokens, wanted))
    similar = tokens @ wanted.mT  # (layers, N, N)
    right = similar.argmax(-1) == torch.arange(similar.shape[-1])
    return similar.diagonal(dim1=1, dim2=2).mean(-1).numpy(), right.float().mean(-1).numpy()


def is_crack(mask, grid=(14, 14)):
    """Which patches, (h * w,) bool, are crack from `POSITIVE` on."""
    return (pool_to_grid(mask.numpy(), grid) >= POSITIVE).ravel()


def standardisation(samples, tokens_of):
    """Return the train tiles' tokens per way, their patches' labels, and mean and deviation of the clean tokens."""
    kept, labels = defaultdict(list), []
    for sample in samples:
        for way, tokens in tokens_of(sample).items():
            kept[way].append(tokens)
        labels.append(is_crack(sample.mask))
    kept = {way: torch.cat(tokens, dim=1) for way, tokens in kept.items()}  # (layers, all patches, C)
    deviation, mean = torch.std_mean(kept["teacher, clean"].float(), dim=1, keepdim=True)
    return kept, np.concatenate(labels), mean, deviation.clamp_min(1e-6)


def fit_probes(kept, labels):
    """Return {way: [one logistic regression per layer]} for "crack in this patch", each fitted on its own tokens."""
    return {way: [make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=60)).fit(layer.float(), labels)
                  for layer in tokens] for way, tokens in kept.items()}


def measure_tile(sample, tokens_of, probes, mean, deviation):
    """Return {way: {figure: (layers,)}} of one test tile, and the probe's scores of its patches."""
    found, mask = tokens_of(sample), sample.mask
    wanted = (found["teacher, clean"].float() - mean) / deviation
    constant = {CONSTANTS[0]: mean.expand_as(wanted) + 0, CONSTANTS[1]: found["teacher, clean"].float()}
    constant[CONSTANTS[1]] = constant[CONSTANTS[1]].mean(1, keepdim=True).expand_as(wanted)
    rows = {}
    for way, tokens in {**found, **constant}.items():
        tokens = tokens.float()
        cosine, retrieval = agreement((tokens - mean) / deviation, wanted)
        rows[way] = {"cosine": cosine, "retrieval": retrieval}
        if way in CONSTANTS:
            rows[way]["retrieval"] = np.full(len(tokens), 1 / tokens.shape[1])  # all are equal: a guess
            continue
        if mask.any():
            grids = tokens.mT.unflatten(2, (14, 14))  # (layers, C, h, w)
            maps = orient(project(grids), grids)
            rows[way]["auc"] = np.array([crack_auc(map.numpy(), mask.numpy()) for map in maps])
        rows[way]["probe"] = [probe.predict_proba(layer)[:, 1]
                              for probe, layer in zip(probes[way], tokens.numpy(), strict=True)]
    return rows


def report_student(photos, teacher):
    """Measure on all test tiles of `photos` at sigma 50 and write the `student` tables."""
    teacher, student = open_vit(teacher), open_vit()
    tokens_of = Tokens(teacher, student, load("unet_start"))
    train = open_dataset("train", photos=photos, length=PROBE_TILES)
    kept, labels, mean, deviation = standardisation((train[i] for i in range(len(train))), tokens_of)
    print(f"{len(train)} train tiles, {labels.mean():.1%} of the patches are crack", flush=True)
    probes = fit_probes(kept, labels)
    test = open_dataset("test", photos=photos)
    tiles = [measure_tile(test[i], tokens_of, probes, mean, deviation) for i in range(len(test))]
    truth = [is_crack(test[i].mask) for i in range(len(test))]
    names = [f"block {n}" if n is not None else "last" for n in tokens_of.layers]
    figures = frame_of(tiles, test.items, names)
    save_tables({"student": rows_of(figures, tiles, truth, test.items), "student_differences": differences(figures),
                 "student_items": items_of(figures)},
                provenance("python -m lab.report student", 0),
                student={"teacher": teacher.name, "student_sha256": student.sha256, "sigma": 50,
                         "probe_tiles": len(train)})


def frame_of(tiles, items, names):
    """Return a DataFrame with a row per way (`method`), tile and `block`: cosine, retrieval and auc (NaN: no crack)."""
    none = np.full(len(names), np.nan)
    return pd.concat([
        pd.DataFrame({"method": way, "block": names, **{what: getattr(item, what) for what in ITEM},
                      **{figure: np.float64(tile[way].get(figure, none)) for figure in ("cosine", "retrieval", "auc")}})
        for way in tiles[0] for tile, item in zip(tiles, items, strict=True)], ignore_index=True)


def items_of(figures):
    """Return the rows of `student_items`: the ways that are compared, four decimals."""
    return figures[figures["method"].isin(WAYS)].drop(columns="auc").round({"cosine": 4, "retrieval": 4})


def rows_of(figures, tiles, truth, items):
    """Return a row per way, block and source, and one, "mean", in which the sources weigh equally.

    `truth`: which patches are crack, per tile. `probe_ap` is of all patches of a source together.
    """
    rows = per_source(figures, ["method", "block"])
    blocks, sources = list(dict.fromkeys(figures["block"])), np.array([item.source for item in items])
    rows["probe_ap"] = [
        np.nan if row.method in CONSTANTS else average_precision_score(
            np.concatenate([truth[i] for i in np.flatnonzero(sources == row.source)]),
            np.concatenate([tiles[i][row.method]["probe"][blocks.index(row.block)]
                            for i in np.flatnonzero(sources == row.source)]))
        for row in rows.itertuples()]
    return with_mean(rows, ["method", "block"])


def differences(figures):
    """Return the rows of `student_differences`: student minus another way, mean of sources, with the interval."""
    rows = []
    for against in (WAYS[0], WAYS[2]):
        for figure in ("cosine", "retrieval"):
            for block, part in figures.groupby("block", sort=False):
                mine, other = (part[part["method"] == way] for way in (WAYS[1], against))
                found = interval(mine[figure], other[figure], mine)
                rows.append({"against": against, "figure": figure, "block": block, **{
                    name: found[name] for name in ("difference", "low", "high", "covered", "p", "unit")}})
    return rows
