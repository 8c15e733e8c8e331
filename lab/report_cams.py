"""Write the `cams` tables: what the maps find, the controls, and whether the denoiser uses what they show.

    CRACK_PHOTOS=... DENOISE_TEACHER=... python -m lab.report_cams              all parts, then the tables
    python -m lab.report_cams --parts maps settings                              only measure these now

What was measured is kept in data/cache/report/ until a network or a picture changes, so that a report that was stopped
goes on where it was. Cracked tiles only.
"""

import argparse
from functools import cached_property, partial

import pandas as pd
import torch

from helpers.cam import LAYERS, SharedMap, layers_of
from helpers.checkpoints import checkpoint_names, load, read_card
from helpers.data import open_dataset
from helpers.project import env_path
from helpers.vit import open_vit
from lab.aggregate import interval, item_rows, mean_of_sources, rounded, source_rows
from lab.cam_interventions import (
    intervention_rows,
    randomised_unets,
    randomised_vits,
    replace_tokens,
    sanity,
    zero_features,
)
from lab.cam_measures import (
    FROM_FEATURES,
    choose_setting,
    controls_of,
    gradient_kind,
    measure_controls,
    measure_evidence,
    measure_gradients,
    measure_iou,
    measure_layers,
    measure_maps,
    measure_signs,
    settled_maps,
    shuffled_and_mean,
)
from lab.intervals import holm
from lab.provenance import provenance
from lab.report import cached, content_key
from lab.student import TEACHER
from lab.tables import save_tables
from surfaces.draw import KINDS

SIGMAS = (0, 15, 25, 50)
TRAIN_TILES = 240  # spread over the sources; those with a crack among them choose setting, threshold and sign
SETTING = "shared direction, " + ", ".join(name.split()[1] for name in LAYERS)
STAGES = ("encoder 3", "bottleneck", "decoder 2")
RANDOM_SEEDS = (0, 1, 2)
CHECKPOINTS = {"unet": "unet_start", "hybrid": "hybrid_attention"}  # the U-Net is the one that the hybrid started from


class Work:
    """Pictures, networks and what was measured of them."""

    def __init__(self, teacher):
        self.photos, self.teacher = env_path("CRACK_PHOTOS"), teacher
        self.sets = {"photos": self.photos, "built-in": False}
        self.networks = {"teacher": open_vit(teacher), "student": open_vit()}
        self.networks |= {name: load(file) for name, file in CHECKPOINTS.items() if file in checkpoint_names()}
        self.digests = {name: getattr(model, "sha256", None) or read_card(CHECKPOINTS[name])["sha256"]
                        for name, model in self.networks.items()}
        self._samples = {}

    def samples(self, which, sigma=50, split="test"):
        """Return the cracked tiles of a set."""
        key = which, sigma, split
        if key not in self._samples:
            dataset = open_dataset(split, self.sets[which], sigma, length=TRAIN_TILES if split == "train" else None)
            every = (dataset[i] for i in range(len(dataset)))
            self._samples = {key: [sample for sample in every if sample.mask.any()],
                             **{k: v for k, v in self._samples.items() if k[1] == 50}}
        return self._samples[key]

    def kept(self, part, samples, measure, **key):
        """Return what `measure()` gives, from the cache where nothing changed."""
        content = content_key(samples), len(samples), samples[0].sigma
        return cached({"cams": part, "content": content, "version": 1, **key}, measure)

    def layers_of(self, name, which, sigma):
        """Return which layers and methods: a hybrid's ViT is the student; KPCA_CAM is slow on a U-Net's stages."""
        kinds = {"unet": ["encoder", "bottleneck", "decoder"], "hybrid": ["encoder", "bottleneck", "decoder"]}
        layers = [layer for layer in layers_of(self.networks[name])
                  if name not in kinds or layer.split()[0] in kinds[name]]
        slow = name in kinds and (which, sigma) != ("photos", 50)
        return layers, [method for method in FROM_FEATURES if not (slow and method == "KPCA_CAM")]

    def maps(self):
        """Every layer, method and control, every set and sigma: {(set, sigma, network): columns}."""
        found = {}
        for which in self.sets:
            for sigma in SIGMAS:
                samples = self.samples(which, sigma)
                found[which, sigma, "control"] = self.kept("controls", samples,
                                                           partial(measure_controls, samples, f"controls {sigma}"))
                for name, model in self.networks.items():
                    layers, methods = self.layers_of(name, which, sigma)
                    found[which, sigma, name] = self.kept(
                        "layers", samples, partial(measure_layers, samples, model, layers, methods, f"{name} {sigma}"),
                        model=self.digests[name], layers=layers, methods=methods)
                    print(which, sigma, name, flush=True)
                for seed in RANDOM_SEEDS if sigma == 50 else ():
                    random = open_vit(seed=seed)
                    found[which, sigma, f"random ViT {seed}"] = self.kept(
                        "layers", samples, partial(measure_layers, samples, random, ["block 3", "block 4", "block 5"],
                                                   ["EigenCAM", "CentredTokenNorm"], "random"), model=random.sha256)
        return found

    def gradients(self):
        """Return the methods that need a gradient, at sigma 50 on photographs: {(set, sigma, network): columns}."""
        samples = self.samples("photos")
        return {("photos", 50, name): self.kept(
            "gradients", samples, partial(measure_gradients, samples, model, gradient_kind(model), name),
            model=self.digests[name]) for name, model in self.networks.items() if name != "hybrid"}

    def signs(self):
        """Return the sign rules on train and test tiles: {(split, network): columns}."""
        return {(split, name): self.kept("signs", self.samples("photos", 50, split), partial(
            measure_signs, self.samples("photos", 50, split), self.networks[name], f"signs {split} {name}"),
            model=self.digests[name], split=split) for split in ("train", "test") for name in ("teacher", "student")}

    def settings(self):
        """Choose the setting on train tiles, then measure it and what is compared with it."""
        train, student = self.samples("photos", 50, "train"), self.networks["student"]

        def choose():
            columns, directions = choose_setting(train, student)
            return {"columns": columns, "directions": {n: d.tolist() for n, d in directions.items()}}
        kept = self.kept("choice", train, choose, model=self.digests["student"])
        directions = {name: torch.tensor(values) for name, values in kept["directions"].items()}
        mean = {setting: mean_of_sources(values, train) for setting, values in kept["columns"].items()}
        best = max(mean, key=mean.get)
        if best != SETTING:
            raise SystemExit(f"{best} is the best setting on train tiles, helpers.cam.LAYERS says {LAYERS}")
        found = {"train": kept["columns"], "best": best, "sources": [s.source for s in train], "columns": {}}
        train_maps = settled_maps(train, student, directions, best)
        for which in self.sets:
            for sigma in SIGMAS:
                samples = self.samples(which, sigma)
                found["columns"][which, sigma] = self.kept(
                    "settings", samples, partial(self.measure_setting, samples, best, directions, train_maps),
                    model=self.digests["student"], best=best)
        samples = self.samples("photos")
        found |= self.kept("evidence", samples, lambda: {
            **self.thresholded(train, samples, train_maps, settled_maps(samples, student, directions, best), best)},
            model=self.digests["student"], best=best)
        return found

    def measure_setting(self, samples, best, directions, train_maps):
        """Return the columns of the setting, and at sigma 50 those of its own controls."""
        maps = settled_maps(samples, self.networks["student"], directions, best)
        found = {best: measure_maps(samples, maps)}
        if samples[0].sigma == 50:
            found |= shuffled_and_mean(samples, maps, train_maps)
            found |= {f"{best}, {name}": measure_maps(samples, maps) for name, maps in self.variants(samples)}
        print("settings", samples[0].source, samples[0].sigma, flush=True)
        return found

    def thresholded(self, train, samples, train_maps, maps, best):
        """Return IoU at a threshold fixed on train tiles, and what the map adds to the filters."""
        iou = {best: measure_iou(train, samples, train_maps, maps)}
        iou |= {name: measure_iou(train, samples, *([controls_of(sample)[name] for sample in part]
                                                    for part in (train, samples)))
                for name in ("sato", "darkness", "oracle 14 x 14")}
        return {"iou": iou, "evidence": measure_evidence(train, samples, train_maps, maps)}

    @cached_property
    def shared_map(self):
        """The setting's map, fitted on all train tiles."""
        train = torch.stack([s.noisy for s in self.samples("photos", 50, "train")])
        return SharedMap.fit(self.networks["student"], train)

    def map_of(self, sample):
        """Return the setting's map of a sample, for the interventions."""
        return {"map": self.shared_map(sample.noisy[None])[0].numpy()}

    def variants(self, samples):
        """Yield (words, maps) of the same recipe with other ViTs and with directions from the drawn surfaces."""
        drawn, photos = (torch.stack([s.noisy for s in self.samples(which, 50, "train")])
                         for which in ("built-in", "photos"))
        vits = {"fitted on drawn surfaces": (self.networks["student"], drawn),
                "teacher": (self.networks["teacher"], photos),
                **{f"random ViT {seed}": (open_vit(seed=seed), photos) for seed in RANDOM_SEEDS}}
        for words, (vit, pictures) in vits.items():
            shared = SharedMap.fit(vit, pictures)
            yield words, torch.cat([shared(sample.noisy[None]) for sample in samples]).numpy()

    def interventions(self):
        """Return what is lost when tokens are replaced and features set to zero."""
        samples, train = self.samples("photos"), self.samples("photos", 50, "train")
        found = {"features": self.kept("features", samples, partial(
            zero_features, samples, self.networks["unet"], STAGES), model=self.digests["unet"])}
        if "hybrid" in self.networks:
            found["tokens"] = self.kept("tokens", samples, partial(
                replace_tokens, samples, self.networks["hybrid"], self.map_of, train), model=self.digests["hybrid"])
        return found

    def sanity(self):
        """Return the rows of the sanity check on 30 tiles spread over the test set."""
        samples = self.samples("photos")[::max(1, len(self.samples("photos")) // 30)]
        return self.kept("sanity", samples, lambda: [
            {"network": "student", **row} for row in sanity(samples, randomised_vits(None), "block 5")] + [
            {"network": "unet", **row}
            for row in sanity(samples, randomised_unets(load(CHECKPOINTS["unet"])), "encoder 2")],
            models=[self.digests["student"], self.digests["unet"]])


def tiles_of(samples, columns, **words):
    """Return a row per tile (see `item_rows`), the drawn kinds as one source."""
    return item_rows(samples, columns, **words).replace({"source": dict.fromkeys(KINDS, "drawn")})


def rows_of(tiles, *by):
    """Return a row per source and "mean", four digits."""
    return rounded(source_rows(pd.concat(tiles), by))


def differences(items, best):
    """Return the rows of `cams_differences` about maps from those of `cams_items`: the setting minus all controls.

    `p_holm` is of the means only; the best two filters are held against the map in each source, too.
    """
    names = (items["network"] + "|" + items["layer"] + "|" + items["method"]).str.removeprefix("student|").where(
        items["layer"] == "setting", items["network"] + "|" + items["layer"] + "|" + items["method"])
    maps = {name: part.reset_index(drop=True) for name, part in items.groupby(names, sort=False)}
    mine = maps[f"setting|{best}"]
    controls = [name for name in maps if name.startswith(("control|", "setting|", "random")) and "oracle" not in name
                and name != f"setting|{best}"]
    rows = pd.DataFrame([{"a": best, "b": name, "figure": "auc", "source": "mean",
                          **interval(mine["auc"], maps[name]["auc"], mine)}
                         for name in [*controls, "student|block 5|EigenCAM"]])
    known = rows["p"].notna()  # there is no p-value where there is no interval
    rows.loc[known, "p_holm"] = holm(rows.loc[known, "p"])
    return pd.concat([rows, pd.DataFrame([
        {"a": best, "b": name, "figure": "auc", "source": source,
         **interval(part["auc"], maps[name]["auc"][part.index], part)}
        for name in ("control|picture|sato", "control|picture|darkness")
        for source, part in mine.groupby("source", sort=False)])], ignore_index=True)


def collate(work, parts):
    """Put everything together and write the tables."""
    signs, settings, best = parts["signs"], parts["settings"], parts["settings"]["best"]
    # every map: of all layers and methods, and of the setting with its controls
    measured = [(which, sigma, network, *key.split("|"), values) for (which, sigma, network), columns in
                [*parts["maps"].items(), *parts["gradients"].items()] for key, values in columns.items()]
    measured += [(which, sigma, "student", "setting", method, values)
                 for (which, sigma), columns in settings["columns"].items() for method, values in columns.items()]
    tiles = [tiles_of(work.samples(which, sigma), values, set=which, sigma=sigma, network=network, layer=layer,
                      method=method) for which, sigma, network, layer, method, values in measured]
    items = pd.concat(tiles).query("set == 'photos' and sigma == 50")[
        ["network", "layer", "method", "name", "photo", "group", "source", "auc"]]
    samples, train = work.samples("photos"), work.samples("photos", 50, "train")
    evidence = settings["evidence"]
    added = {"a": "filters and map", "b": "filters", "figure": "ap", "source": "mean",
             **interval(evidence["filters and map"], evidence["filters"], samples)}
    cuts = parts["interventions"]
    save_tables({
        "cams": rows_of(tiles, "set", "sigma", "network", "layer", "method"), "cams_items": items,
        "cams_signs": rows_of([
            tiles_of(work.samples("photos", 50, split), {"auc": values}, split=split, network=network,
                     **dict(zip(("layer", "method", "rule"), key.split("|"), strict=True)))
            for (split, network), columns in signs.items() for key, values in columns.items()],
            "split", "network", "layer", "method", "rule"),
        "cams_choice": rows_of([tiles_of(train, {"auc": values}, setting=setting)
                                for setting, values in settings["train"].items()], "setting"),
        "cams_differences": pd.concat([differences(items, best), pd.DataFrame([added])], ignore_index=True),
        "cams_evidence": rows_of([tiles_of(samples, {"ap": values}, method=name)
                                  for name, values in evidence.items()], "method"),
        "cams_iou": rows_of([tiles_of(samples, {"iou": values}, method=name, threshold=threshold)
                             for name, (threshold, values) in settings["iou"].items()], "method", "threshold"),
        "cams_interventions": [
            *({"network": "hybrid", "layer": "tokens", "replacement": what, **row}
              for what, row in intervention_rows(cuts.get("tokens", {}), samples)),
            *({"network": "unet", "layer": what, "replacement": "zero", **row}
              for what, row in intervention_rows(cuts["features"], samples))],
        "cams_sanity": parts["sanity"]},
        provenance("python -m lab.report_cams", 0),
        cams={"teacher": work.networks["teacher"].name, "best": best,
              **{f"sha256 of {network}": digest for network, digest in work.digests.items()}})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("maps", "gradients", "signs", "settings", "interventions", "sanity")
    parser.add_argument("--parts", nargs="+", choices=names, help="measure these now; no results are written")
    parser.add_argument("--teacher", default=TEACHER)
    options = parser.parse_args()
    if not env_path("CRACK_PHOTOS"):
        parser.error("set CRACK_PHOTOS to a folder of photographs with crack masks")
    work = Work(options.teacher)
    parts = {name: getattr(work, name)() for name in options.parts or names}
    if not options.parts:
        collate(work, parts)


if __name__ == "__main__":
    main()
