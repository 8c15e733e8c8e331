"""Write the tables of what `photos` and `synthetic` do not have: `unseen`, `cost`, `hybrids_interventions` and others.

    CRACK_PHOTOS=... python -m lab.report_comparison
    CRACK_PHOTOS=... python -m lab.report_comparison --methods unet    only these, the rest as it was
    CRACK_PHOTOS=... python -m lab.report_comparison --cost            the table `cost` alone

Noise that no network was trained on, crack legibility of the clean pictures, the token intervention in a retrained
hybrid, cost, and the vectors that say whether a photograph is like those trained on. Kept in data/cache/report/ like
all reports, so that a stopped one goes on.
"""

import argparse
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import torch
from skimage.restoration import estimate_sigma
from tqdm import tqdm

from helpers.cam import activation_map
from helpers.checkpoints import checkpoint_names, load, read_card
from helpers.data import open_dataset
from helpers.denoise import denoise
from helpers.metrics import psnr
from helpers.project import env_path
from helpers.vit import open_vit
from lab.aggregate import item_rows, source_rows
from lab.cam_interventions import intervention_rows, replace_tokens
from lab.cost import cost_rows, peak_memory
from lab.filters import FILTERS
from lab.provenance import provenance
from lab.report import DENOISERS, cached, content_key, measure_legibility, numpy_picture, reader
from lab.tables import save_tables
from lab.unseen import UNSEEN, Familiar, mean_tokens

FILTERED = ("nlm", "wavelet")  # the quick ones; they are told the noise that scikit-image estimates
TOKENS_OF = ("hybrid_attention", "hybrid_cam")  # in these, tokens are replaced
PER_SOURCE = {"photos": 12, "built-in": 4}


def some(dataset, per_source):
    """Return the first of every source's cracked samples, evenly spread, `per_source` of each."""
    source = np.array([item.source for item in dataset.items])
    places = [np.flatnonzero(source == name) for name in dict.fromkeys(source)]
    return [dataset[i] for here in places for i in here[np.linspace(0, len(here) - 1, per_source).astype(int)]]


def methods():
    """Yield (name, key, function of a noisy (3, H, W) tensor)."""
    yield "noisy", {}, lambda noisy: noisy
    for name in FILTERED:
        def filtered(noisy, name=name):
            picture = numpy_picture(noisy)
            sigma = 255 * float(estimate_sigma(picture, channel_axis=-1, average_sigmas=True))
            return torch.from_numpy(FILTERS[name](picture, sigma).astype(np.float32)).permute(2, 0, 1)
        yield name, {}, filtered
    for name in (name for name in DENOISERS if name in checkpoint_names()):
        yield name, {"sha256": read_card(name)["sha256"]}, partial(denoise, load(name))


def tested(samples, make, function):
    """Return the PSNR in dB of every sample under a noise."""
    return [round(psnr(function(make(s.clean, s.name)), s.clean), 4) for s in samples]


def unseen_items(sets, only=None):
    """Return the rows of `unseen_items`: PSNR in dB per method, noise and image; of the methods `only`."""
    parts = []
    for which, samples in sets.items():
        content = content_key(samples)
        for name, key, function in methods():
            if only and name not in only:
                continue
            for noise, make in UNSEEN.items():
                values = cached({"unseen": noise, "method": name, **key, "content": content,
                                 "names": [s.name for s in samples]}, partial(tested, samples, make, function))
                parts.append(item_rows(samples, {"psnr": values}, set=which, noise=noise, method=name))
            print(which, name, flush=True)
    return pd.concat(parts).drop(columns="has_mask")


def unseen_rows(items):
    """Return the rows of `unseen` from those of `unseen_items`."""
    return source_rows(items, ["method", "set", "noise"])


def clean_legibility(dataset):
    """Return the rows of `legibility_of_clean`: average precision of the segmenter on the clean images."""
    read, key = reader()
    samples = [sample for sample in (dataset[i] for i in range(len(dataset))) if sample.mask.any()]
    key = {"legibility": "clean", "reader": key, "content": content_key(samples), "n": len(samples)}
    values = cached(key, lambda: [measure_legibility(numpy_picture(s.clean), s.mask.numpy(), read)["legibility"]
                                  for s in tqdm(samples)])
    return source_rows(item_rows(samples, {"legibility": values}, method="clean"), ["method"])[["source", "legibility"]]


def intervention(samples, train, name):
    """Return rows of the token intervention in hybrid `name`, as in `cams_interventions`."""
    key = {"tokens": name, "sha256": read_card(name)["sha256"], "content": content_key(samples), "n": len(samples)}
    vit = open_vit()
    columns = cached(key, lambda: replace_tokens(samples, load(name), lambda sample: {
        "map": activation_map(vit, sample.noisy, "block 5").raw}, train))
    return [{"method": name, "replacement": what, **row} for what, row in intervention_rows(columns, samples)
            if row["k"] == 20]
LARGE = """
import resource, sys, time
import numpy as np
from helpers.checkpoints import load
from helpers.denoise import denoise
model, picture = load(sys.argv[1]), np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
start = time.perf_counter()
denoise(model, picture)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def large(name):
    """Return {"seconds_12mp", "peak_mb_12mp"} of a photograph in a process of its own, libraries included."""
    done = subprocess.run([sys.executable, "-c", LARGE, name], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    return {"seconds_12mp": round(seconds, 1), "peak_mb_12mp": round(peak)}


def costs():
    """Return the rows of `cost`: per image of 224 x 224, and for most of 12 megapixels."""
    networks = ("conv", "unet_classic", "hybrid_classic", "hybrid_attention", "unet", "hybrid")
    models = {name: load(name) for name in networks if name in checkpoint_names()}
    rows = cost_rows(models)
    picture = torch.rand(1, 3, 224, 224)
    for row in rows:
        model = models[row["method"]]
        with torch.inference_mode():
            row["peak_mb"] = peak_memory(lambda model=model: model(picture), torch.device("cpu")) / 1e6
        if row["method"] in ("unet_classic", "hybrid_attention", "unet", "hybrid"):
            row |= cached({"large photograph": row["method"], "sha256": read_card(row["method"])["sha256"]},
                          partial(large, row["method"]))
    return pd.DataFrame(rows, dtype=object).rename(columns={
        "weights": "weights_millions", "trained": "trained_millions", "vit share": "vit_share_percent"})


def familiar(photos):
    """Return the rows of `familiar_vectors`, and settings: whose they are, how many test tiles are called unlike them.
    """
    vit = open_vit()
    drawn = open_dataset("train", photos=False, sigma=(5, 60), length=40)
    real = open_dataset("train", photos=photos, sigma=(5, 60), length=120)
    known = mean_tokens(vit, [dataset[i].noisy for dataset in (drawn, real) for i in range(len(dataset))])
    known = np.round(known.numpy(), 3)
    test = some(open_dataset("test", photos=photos), 12)
    far = Familiar(known)(mean_tokens(vit, [sample.noisy for sample in test]))
    return (pd.DataFrame(known, columns=[f"channel_{n}" for n in range(known.shape[1])]),
            {"vit_sha256": vit.sha256, "test_tiles": len(test), "test_tiles_unlike": int((far > 1).sum())})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="measure only these, and put them into the tables that there are")
    parser.add_argument("--cost", action="store_true", help="measure only what networks cost")
    options = parser.parse_args()
    if options.cost:
        return save_tables({"cost": costs()}, provenance("python -m lab.report_comparison --cost", 0))
    if found := set(options.methods or ()) & set(TOKENS_OF):
        parser.error(f"of {', '.join(sorted(found))} more is measured: measure all anew")
    photos = env_path("CRACK_PHOTOS")
    if not photos:
        sys.exit("set CRACK_PHOTOS to a folder of photographs")
    test = open_dataset("test", photos=photos)
    sets = {"photos": some(test, PER_SOURCE["photos"]),
            "built-in": some(open_dataset("test", photos=False), PER_SOURCE["built-in"])}
    command = "python -m lab.report_comparison"
    if options.methods:
        items = unseen_items(sets, {"noisy", *options.methods})
        return save_tables({"unseen": unseen_rows(items), "unseen_items": items},
                           provenance(f"{command} --methods {' '.join(options.methods)}", 0), options.methods)
    items = unseen_items(sets)
    cracked = [sample for sample in sets["photos"] if sample.mask.any()][::2]
    train = open_dataset("train", photos=photos, length=24)
    tokens = [row for name in TOKENS_OF if name in checkpoint_names()
              for row in intervention(cracked, [train[i] for i in range(len(train))], name)]
    vectors, chosen = familiar(photos)
    save_tables({"unseen": unseen_rows(items), "unseen_items": items, "hybrids_interventions": tokens, "cost": costs(),
                 "legibility_of_clean": clean_legibility(test), "familiar_vectors": vectors},
                provenance(command, 0), familiar=chosen)


if __name__ == "__main__":
    main()
