"""Measure every method on the fixed test sets and write the tables of data/results/ about denoisers.

    python -m lab.report synthetic                the built-in test set: drawn surfaces and photo-texture
    python -m lab.report photos                   all test tiles of CRACK_PHOTOS
    python -m lab.report surfaces                 drawn surfaces against the photographs of CRACK_PHOTOS
    python -m lab.report differences              networks against BM3D and the U-Net, from the tiles of `photos`
    python -m lab.report student                  what the built-in ViT sees under noise, on those photographs
    python -m lab.report photos --methods bm3d    measure only these now; the full report then finds them done
    python -m lab.report photos --methods unet --into    and put them into the results that there are

Each method's figures are kept in data/cache/report/ until the method, its parameters or its weights change, so a
report that was stopped goes on where it was.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.utils.data import ConcatDataset
from tqdm import tqdm

from helpers.checkpoints import checkpoint_names, load, read_card
from helpers.data import open_dataset
from helpers.denoise import denoise
from helpers.project import data_dir, env_path, results
from lab.aggregate import interval, item_rows, per_source, quotient, with_mean
from lab.filters import FILTERS, GRIDS, search
from lab.judges import CrackSegmenter
from lab.measures import evaluate_image, legibility_ap
from lab.provenance import provenance, write_json
from lab.report_student import report_student
from lab.student import TEACHER
from lab.surface_stats import passed, surface_statistics
from lab.tables import save_tables
from surfaces.files import atomic_path

SIGMAS = (15, 25, 50)
KEPT = ("mse", "ssim", "sharpness", "sharpness_clean", "aligned_numerator", "aligned_denominator", "mse_crack",
        "mse_rest", "legibility", "legibility_outside")
DENOISERS = ("dense", "dense_skip", "conv", "unet_start", "unet_classic", "hybrid_classic", "hybrid_attention",
             "hybrid_regional", "hybrid_frequency", "hybrid_cam", "unet", "hybrid")


def numpy_picture(tensor):
    return tensor.permute(1, 2, 0).numpy()


def cached(key, measure):
    """Return what `measure()` gives, kept under `key` (a dict of plain values)."""
    text = json.dumps(key, sort_keys=True)
    path = data_dir() / "cache" / "report" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
    if not path.is_file():
        write_json(path, {"key": key, "value": measure()}, indent=None)
    return json.loads(path.read_text())["value"]


def remembered(function):
    """Return `function` of a noisy picture with its outputs kept on disk: BM3D takes seconds a picture."""
    def recall(noisy, sigma, **parameters):
        path = data_dir() / "cache" / "bm3d" / f"{hashlib.sha256(noisy.tobytes()).hexdigest()[:20]}-{sigma}.npy"
        if not path.is_file():
            with atomic_path(path) as temporary:
                np.save(temporary, function(noisy, sigma, **parameters).astype(np.float16))
        return np.load(path).astype(np.float32)
    return recall


def chosen_parameters(sigma, only=None):
    """Return each filter's best parameters on validation pictures, drawn and (where there are some) photographs.

    Where methods are named, `only` the filters among them.
    """
    photos = env_path("CRACK_PHOTOS")
    parts = [open_dataset("valid", photos=False, sigma=sigma, length=6)]
    parts += [open_dataset("valid", photos=photos, sigma=sigma, length=6)] if photos else []
    samples = ConcatDataset(parts)
    names = [item.name for part in parts for item in part.items]
    return {name: cached({"search": name, "grid": GRIDS[name], "sigma": sigma, "pictures": names},
                         lambda name=name: search(name, list(samples), sigma)[0][1])
            for name in FILTERS if not only or name in only}


def methods(sigma, only=None):
    """Yield (name, key, function of a noisy (H, W, 3) picture) for filters and trained denoisers, or `only` some."""
    if not only or "noisy" in only:
        yield "noisy", {}, lambda noisy: noisy
    for name, parameters in chosen_parameters(sigma, only).items():
        function = remembered(FILTERS[name]) if name == "bm3d" else FILTERS[name]
        yield name, parameters, partial(function, sigma=sigma, **parameters)
    for name in (name for name in DENOISERS if name in checkpoint_names() and (not only or name in only)):
        model = load(name)
        yield name, {"sha256": read_card(name)["sha256"]}, lambda noisy, model=model: denoise(model, noisy)


def reader():
    """Return the crack segmenter's probability map of a picture, or None where it is not trained yet."""
    if "segmenter" not in checkpoint_names():
        return None, None
    model: CrackSegmenter = load("segmenter")  # whose class is known since lab.judges is imported

    @torch.inference_mode()
    def read(picture):
        picture = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        return torch.sigmoid(model(picture[None]))[0, 0].numpy()
    return read, read_card("segmenter")["sha256"]


def measure_legibility(picture, mask, read):
    """Return crack legibility of a picture (H, W, 3), both ways to leave out pixels, NaN where there is no crack."""
    probability = read(np.clip(picture, 0, 1)) if read and mask.any() else None
    return {figure: float("nan") if probability is None else legibility_ap(probability, mask, side=side)
            for figure, side in (("legibility", "both"), ("legibility_outside", "outside"))}


def measure(samples, function, read, label):
    """Return {figure: [one value per test picture]} for one method."""
    columns = defaultdict(list)
    for sample in tqdm(samples, desc=label, leave=False, mininterval=5):
        noisy, clean, mask = numpy_picture(sample.noisy), numpy_picture(sample.clean), sample.mask.numpy()
        denoised = np.asarray(function(noisy), np.float32)
        row = evaluate_image(denoised, clean, mask)
        row |= measure_legibility(denoised, mask, read)
        for figure in KEPT:
            columns[figure].append(float(f"{row[figure]:.5g}"))
    return dict(columns)


def denoiser_rows(items):
    """Return the rows of `photos` from those of `photos_items`: one per source, and "mean" with equal weights."""
    items = items.assign(psnr=-10 * np.log10(items["mse"]))
    rows = per_source(items, ["method", "sigma"])
    rows["sharpness"] = quotient(rows, "sharpness", "sharpness_clean")
    rows["aligned_sharpness"] = quotient(rows, "aligned_numerator", "aligned_denominator")
    columns = ["method", "source", "sigma", "n", "mse", "psnr", "ssim", "sharpness", "aligned_sharpness", "mse_crack",
               "mse_rest", "legibility", "legibility_outside"]
    return with_mean(rows[columns], ["method", "sigma"])


def report(name, photos, only=(), sigmas=SIGMAS, skip=(), into=False):
    """Measure the test set ("synthetic", or `photos`) at every sigma; write table `name`, `<name>_items`, `filters`.

    With `only` nothing is written, or, `into` the tables that there are, the rows of these methods.
    """
    wanted = {"noisy", *only} if into else set(only)
    parts, filters = [], []
    for sigma in sigmas:
        read, reader_key = reader() if sigma == 50 else (None, None)  # crack legibility: at the standard noise
        dataset = open_dataset("test", photos=photos, sigma=sigma)
        samples = None
        filters += [{"set": {"synthetic": "built-in"}.get(name, name), "sigma": sigma, "method": method,
                     "arguments": json.dumps(arguments)}
                    for method, arguments in chosen_parameters(sigma, wanted).items()]
        for method, key, function in methods(sigma, wanted):
            if f"{method}|{sigma}" in skip:
                continue
            if samples is None:
                samples = [dataset[i] for i in range(len(dataset))]
            full_key = {"method": method, **key, "sigma": sigma, "pictures": [item.name for item in dataset.items],
                        "reader": reader_key, "content": content_key(samples)}
            columns = cached(full_key, partial(measure, samples, function, read, f"{method} {sigma}"))
            parts.append(item_rows(dataset.items, columns, method=method, sigma=sigma))
            mean = denoiser_rows(parts[-1]).iloc[-1]
            print(f"{method:14} sigma {sigma:2}  {mean.psnr:6.2f} dB  SSIM {mean.ssim:.3f}", flush=True)
    if only and not into:
        return
    items = pd.concat(parts)
    command = " ".join(["python -m lab.report", name, *(["--skip", *map(repr, skip)] if skip else []),
                        *(["--methods", *only, "--into"] if into else [])])
    save_tables({name: denoiser_rows(items), f"{name}_items": items, "filters": filters}, provenance(command, 0),
                methods=only)


def differences(items):
    """Return the rows of `photos_differences` from those of `photos_items`: PSNR at sigma 50, mean and each source."""
    items = items[items["sigma"] == 50].assign(psnr=lambda tiles: -10 * np.log10(tiles["mse"]))
    tiles = {method: part.reset_index(drop=True) for method, part in items.groupby("method", sort=False)}
    networks = [name for name in DENOISERS if name.startswith(("unet", "hybrid")) and name in tiles]
    rows = []
    for method in networks:
        start = {"unet": "unet_classic", "hybrid": "unet"}.get(method, "unet_start")  # what it is to be better than
        rivals = ("bm3d", start)
        for against in (name for name in rivals if name in tiles and name != method):
            mine, other = tiles[method], tiles[against]
            rows += [{"method": method, "against": against, "source": source,
                      **interval(part["psnr"], other["psnr"][part.index], part)}
                     for source, part in [("mean", mine), *mine.groupby("source", sort=False)]]
    return rows


def content_key(samples):
    """Return a short hash of the pictures and their noise, so that what is drawn otherwise is measured again."""
    digest = hashlib.sha256()
    for sample in samples[:: max(1, len(samples) // 20)]:
        for picture in (sample.clean, sample.noisy):
            digest.update(np.round(255 * picture.numpy()).astype(np.uint8).tobytes())
    return digest.hexdigest()[:16]


def report_surfaces(photos):
    """Write `surfaces`, statistics of kinds beside real sources, and `trained_on`, drawn-only against photographs-only.
    """
    parts = []
    for name in ("unet_photos_only", "unet_drawn_only"):
        model, key = load(name), {"method": name, "sha256": read_card(name)["sha256"]}
        dataset = open_dataset("test", photos=photos)
        samples = [dataset[i] for i in range(len(dataset))]
        columns = cached({**key, "content": content_key(samples)},
                         partial(measure, samples, partial(denoise, model), None, name))
        parts.append(item_rows(dataset.items, columns, method=name, sigma=50))
        print(denoiser_rows(parts[-1])[["method", "source", "psnr"]].to_string(index=False), flush=True)
    statistics = surface_statistics(photos)
    save_tables({"trained_on": denoiser_rows(pd.concat(parts)), "surfaces": statistics},
                provenance("python -m lab.report surfaces", 0),
                surfaces={"drawings": 100, "first_seed": 0, "passed": passed(statistics)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("synthetic", "photos", "differences", "student", "surfaces"))
    parser.add_argument("--methods", nargs="+", default=(), help="measure only these now; no table is written")
    parser.add_argument("--into", action="store_true", help="with --methods: put them into the tables that there are")
    parser.add_argument("--skip", nargs="+", default=[], metavar="METHOD|SIGMA", help='leave out, such as "bm3d|15"')
    parser.add_argument("--teacher", default=TEACHER,
                        help="folder or Hub name of the student's teacher (default: DENOISE_TEACHER, else %(default)s)")
    options = parser.parse_args()
    if options.into and not (options.methods and options.what in ("synthetic", "photos")):
        parser.error("--into goes with --methods, for synthetic and photos")
    photos = env_path("CRACK_PHOTOS")
    if options.what not in ("synthetic", "differences") and not photos:
        parser.error("set CRACK_PHOTOS to a folder of photographs")
    if options.what == "surfaces":
        report_surfaces(photos)
    elif options.what == "differences":
        save_tables({"photos_differences": differences(results("photos_items"))},
                    provenance("python -m lab.report differences", 0))
    elif options.what == "student":
        report_student(photos, options.teacher)
    elif options.what == "photos":
        report("photos", photos, options.methods, skip=options.skip, into=options.into)
    else:  # BM3D takes seconds a picture and needs a package that not everybody may use: photographs only
        report("synthetic", False, options.methods, sigmas=(50,), skip=["bm3d|50"], into=options.into)


if __name__ == "__main__":
    main()
