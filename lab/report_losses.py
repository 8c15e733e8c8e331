"""Write the `losses` tables from the runs of lab/retrain.py: curves, what costs nothing, artefacts, intervals.

    CRACK_PHOTOS=... python -m lab.report_losses                 the tables
    python -m lab.report_losses --ship                           and the shipped checkpoints, from their runs

A *curve* (`lab/loss_curves.py`) is a method's points, one per weight or strength: per cent more MSE than plain MSE with
the same budget, and the gap closed in aligned sharpness.
"""

import argparse
import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.functional import gaussian_blur

from helpers import checkpoints
from helpers.noise import noise_generator
from lab.aggregate import interval, labels_of, per_source, quotient, rounded
from lab.loss_curves import RISES, at, by_source, curve, drawn_curves, point, with_interval
from lab.measures import gap_closed
from lab.provenance import provenance
from lab.report import cached, reader
from lab.retrain import BUDGET, PLAN, folder, measure, test_sets, valid_set
from lab.tables import save_tables

BASE = "mse-0"
SHIPPED = {"hybrid_regional": ("sorted", "aligned", "pixel"), "hybrid_frequency": ("frequency",),
           "hybrid_cam": ("cam",)}
STRENGTHS = {"unsharp": (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.1, 1.5), "blend": (0.02, 0.04, 0.06, 0.09, 0.12, 0.16),
             "noise": (1, 2, 3, 4, 6, 8)}
RADII = (0.6, 1, 2)
AVERAGED = ("mse", "psnr", "ssim", "mse_crack", "mse_rest", "residual", "delta_e", "dark_bias", "bright_bias",
            "legibility", "legibility_outside")


# What needs no training ----------------------------------------------------------------------------------------------


def sharpened(denoised, sample, method, strength, radius=None):
    """Return an output (3, H, W) after unsharp masking, with the noisy picture blended in, or with white noise."""
    if method == "unsharp":
        size = 2 * int(np.ceil(3 * radius)) + 1
        return denoised + strength * (denoised - gaussian_blur(denoised, [size, size], [radius, radius]))
    if method == "blend":
        return (1 - strength) * denoised + strength * sample.noisy
    noise = noise_generator(sample.name, strength, 1).standard_normal(tuple(denoised.shape), np.float32)
    return denoised + strength / 255 * torch.from_numpy(noise)


class Outputs:
    """The outputs of the MSE checkpoint, made once per sample."""

    def __init__(self):
        self.model, self.made = checkpoints.load(f"losses/{BASE}-weights"), {}

    @torch.inference_mode()
    def __call__(self, sample):
        key = sample.name, sample.sigma
        if key not in self.made:
            self.made[key] = self.model(sample.noisy[None])[0]
        return self.made[key]


def training_free(digest):
    """Return {set: {"unsharp 1, 0.3": columns}}: all on validation, on test the radius that validation chose."""
    outputs, (read, _) = Outputs(), reader()

    def columns(dataset, name, method, strength, radius, full):
        return cached({"losses": "free", "set": name, "method": method, "strength": strength, "radius": radius,
                       "start": digest}, lambda: measure(
            dataset, lambda sample: sharpened(outputs(sample), sample, method, strength, radius),
            read if full else None, full=full))
    settings = [("unsharp", radius) for radius in RADII] + [("blend", None), ("noise", None)]
    valid = valid_set()
    found = {"valid": {(method, radius): {s: columns(valid, "valid", method, s, radius, False)
                                          for s in STRENGTHS[method]} for method, radius in settings}}
    base, labels = load_runs()[BASE]["tested"]["valid"], labels_of(items_of(valid))
    gain = {radius: np.mean([at(curve(found["valid"]["unsharp", radius].values(), base, labels), x) for x in RISES])
            for radius in RADII}
    chosen = max(gain, key=gain.get)
    for name, dataset in test_sets().items():
        found[name] = {(method, radius): {s: columns(dataset, name, method, s, radius, True)
                                          for s in STRENGTHS[method]}
                       for method, radius in settings if radius in (None, chosen)}
        print("training-free", name, flush=True)
    found["valid"] = {key: value for key, value in found["valid"].items() if key[1] in (None, chosen)}
    return {name: {method if radius is None else f"{method}, radius {radius:g}": points
                   for (method, radius), points in methods.items()} for name, methods in found.items()}, chosen


# Results -------------------------------------------------------------------------------------------------------------


def load_runs():
    """Return the runs that are complete, {name: content}."""
    paths = {run.name: folder() / f"{run.name}.json" for run in PLAN}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def items_of(dataset):
    """Return the Items of a data set, or of all of a ConcatDataset's."""
    return [item for part in getattr(dataset, "datasets", [dataset]) for item in part.items]


def rows_of(method, columns, base, labels, **words):
    """Return a row per source and their mean: averages, sharpness, aligned sharpness, gap closed, artefacts."""
    tiles, before = (pd.DataFrame({**labels, **{name: np.asarray(values, float) for name, values in part.items()}})
                     for part in (columns, base))
    rows, plain = per_source(tiles.assign(psnr=-10 * np.log10(tiles["mse"])), []), per_source(before, [])
    rows["sharpness"] = quotient(rows, "sharpness", "sharpness_clean")
    rows["aligned_sharpness"], aligned = (quotient(part, "aligned_numerator", "aligned_denominator")
                                          for part in (rows, plain))
    rows["gap"] = pd.Series(map(gap_closed, rows["aligned_sharpness"], aligned), dtype=float)  # None: there is no gap
    extra = [name for name in columns if name.startswith(("checkerboard", "residual_", "auc "))]
    # the mean is of the sources that have a figure; rise and gap of the mean are the curve's
    rise, gap = point(columns, base, labels)
    mean = {"source": "mean", **rows.mean(numeric_only=True), "rise": rise, "gap": gap}
    rows = pd.concat([rows, pd.DataFrame([mean])], ignore_index=True)
    figures = [*AVERAGED, *extra, "sharpness", "aligned_sharpness", "gap", "rise"]
    return rounded(rows.reindex(columns=["source", *figures])).assign(method=method, **words)


def paired(columns, base, figure, labels):
    """Return the paired difference of a figure to the MSE checkpoint, mean of sources, with its interval."""
    a, b = (np.array(part[figure], float) for part in (columns, base))
    kept = np.isfinite(a) & np.isfinite(b)
    found = interval(a[kept], b[kept], pd.DataFrame(labels)[kept])
    row = {"figure": figure, **{name: found[name] for name in ("difference", "low", "high", "covered", "p")}}
    if "mse" in figure:
        percent = 100 / by_source(b, labels).mean()
        row |= {"percent": percent * row["difference"],
                **{f"percent_{name}": percent * row[name] for name in ("low", "high", "covered")}}
    return row
COMPARED = ("mse", "mse_crack", "mse_rest", "delta_e", "residual", "legibility", "checkerboard_2", "checkerboard_4",
            "checkerboard_8", "checkerboard_16", "checkerboard_24", "checkerboard_32", "auc encoder 2",
            "auc bottleneck", "auc decoder 2")


def report():
    """Collate everything and write the `losses` tables; return what is to be shipped and the winning term."""
    runs = load_runs()
    base = runs[BASE]["tested"]
    free, radius = training_free(runs[BASE]["start"] + BASE)
    datasets = {**test_sets(), "valid": valid_set()}
    labels = {name: labels_of(items_of(dataset)) for name, dataset in datasets.items()}
    terms = dict.fromkeys(run["run"]["term"] for run in runs.values()
                          if run["run"]["start"] == "hybrid" and run["run"]["term"] != "mse")
    curves = {name: {term: [run["tested"][name] for run in runs.values() if run["run"]["term"] == term
                            and run["run"]["seed"] == 0 and run["run"]["start"] == "hybrid"] for term in terms}
              | {method: list(points.values()) for method, points in free[name].items()} for name in datasets}
    reached = {name: {method: {rise: at(curve(points, base[name], labels[name]), rise) for rise in RISES}
                      for method, points in methods.items()} for name, methods in curves.items()}
    score = {method: np.mean(list(values.values())) for method, values in reached["valid"].items()}
    candidates = [term for group in SHIPPED.values() for term in group if term in terms]  # no controls
    winner, rival = (max(names, key=score.get) for names in (candidates, free["valid"]))
    tests = [name for name in datasets if name != "valid"]
    rows = [rows_of(run["run"]["term"], run["tested"][name], base[name], labels[name], set=name, run=run["name"],
                    strength=np.nan, **{key: run["run"][key] for key in ("a", "seed", "start")}, sigma=50)
            for name in tests for run in runs.values()]
    rows += [rows_of(method, columns, base[name], labels[name], set=name, strength=float(strength), sigma=50)
             for name in tests for method, points in free[name].items() for strength, columns in points.items()]
    rows = pd.concat(rows, ignore_index=True).astype({"seed": "Int64"})  # whole numbers, of which some are missing
    first = ["set", "method", "run", "strength", "a", "seed", "start", "sigma", "source"]
    at_rise = []
    for name in tests:
        draws = drawn_curves(curves[name], base[name], labels[name])
        kept, plain = with_interval(labels[name], labels[name]), with_interval(base[name], labels[name])
        covered = {method: curve([with_interval(columns, labels[name]) for columns in points], plain, kept)
                   for method, points in curves[name].items()}
        for method in curves[name]:
            for rise in RISES:
                row = {"set": name, "method": method, "rise": rise, "gap": reached[name][method][rise],
                       "valid": reached["valid"][method][rise], "trained": method in terms}
                row["against"], row["difference"] = rival, row["gap"] - reached[name][rival][rise]
                spread = draws[method][rise] - draws[rival][rise]
                row["low"], row["high"] = np.quantile(spread, [0.025, 0.975]).tolist()
                row["covered"] = at(covered[method], rise) - at(covered[rival], rise)
                at_rise.append(row)
    differences = [{"set": name, "run": run["name"], "against": against, **paired(
        run["tested"][name], runs[against]["tested"][name], figure, labels[name])}
        for name in tests for run in runs.values() for against in rivals_of(run, runs) for figure in COMPARED]
    shipped = to_ship(runs, base, labels["valid"], winner)
    save_tables({
        "losses": rows[[*first, *rows.columns.drop(first)]], "losses_at_rise": at_rise,
        "losses_differences": differences, "losses_history": history_rows(runs),
        "losses_items": pd.concat([pd.DataFrame({
            "set": name, "run": run["name"], "item": range(len(labels[name]["photo"])),
            **{what: labels[name][what] for what in ("photo", "group", "source")},
            **{figure: run["tested"][name][figure] for figure in ("mse", "aligned_numerator")}})
            for name in datasets for run in runs.values()])},
        provenance("python -m lab.retrain && python -m lab.report_losses", 0),
        losses={"base": BASE, "winner": winner, "rival": rival, "unsharp_radius": radius,
                **checkpoints.read_card(f"losses/{BASE}-weights")["budget"], "data": runs[BASE]["data"],
                "start_sha256": runs[BASE]["start"],
                **{f"run shipped as {name}": run for name, run in shipped.items()}})
    return shipped, winner


def history_rows(runs):
    """Return the rows of `losses_history`; what a run's history calls by its term's name is `term_value`."""
    return pd.DataFrame([{"run": run["name"], "term": run["run"]["term"], **{
        "term_value" if name == run["run"]["term"] and name != "mse" else name: value for name, value in line.items()}}
        for run in runs.values() for line in run["history"]]).reindex(columns=[
            "run", "term", "step", "seconds", "lr", "loss", "mse", "term_value"])


def rivals_of(run, runs):
    """Return the runs that a run is held against: plain MSE of its start and seed, and for "cam" its controls."""
    seed, start = run["run"]["seed"], run["run"]["start"]
    plain = f"mse-{seed}" + ("" if start == "hybrid" else f"-{start}")
    found = [plain] if run["name"] != plain else [] if run["name"] == BASE or start != "hybrid" else [BASE]
    if run["run"]["term"] == "cam" and seed == 0:
        found += [run["name"].replace("cam-", f"cam_{control}-") for control in ("shuffled", "random", "contrast")]
    return [name for name in found if name in runs]


def to_ship(runs, base, labels, winner):
    """Return {name: run}: of each shipped name's terms the run that closes most of the gap on validation.

    Of seed 0, with at most 10 % more MSE than plain MSE there; of the winning term only, where it is among the terms.
    """
    found = {}
    for name, terms in SHIPPED.items():
        terms = (winner,) if winner in terms else terms
        points = {run["name"]: point(run["tested"]["valid"], base["valid"], labels) for run in runs.values()
                  if run["run"]["term"] in terms and run["run"]["start"] == "hybrid" and run["run"]["seed"] == 0}
        allowed = {run: gap for run, (rise, gap) in points.items() if rise <= max(RISES)}
        found |= {name: max(allowed, key=allowed.get)} if allowed else {}
    return found


def ship(shipped):
    """Copy the weights of the runs to data/checkpoints, with their cards."""
    for name, run in shipped.items():
        card = checkpoints.read_card(f"losses/{run}-weights")
        model = checkpoints.load(f"losses/{run}-weights")
        card |= {"recipe": asdict(replace(BUDGET, arguments=card["arguments"], seed=card["seed"], shipped=True)),
                 "metrics": {"valid": card["history"][-1]}}
        checkpoints.save(model, name, {key: value for key, value in card.items() if key not in ("name", "sha256")})
        print(name, "from", run, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    shipped, _ = report()
    if options.ship:
        ship(shipped)


if __name__ == "__main__":
    main()
