"""Write the numbers in README.md and data/README.md from data/, so that they cannot drift: `make readme`.

    python -m lab.readme            rewrite the marked parts
    python -m lab.readme --picture  draw data/results/at_a_glance.jpg anew
    python -m lab.readme --check    exit 1 where they differ from what would be written
"""

import argparse
import contextlib
import json
import sys

import numpy as np
from PIL import Image

from helpers.cam import activation_map, overlay, threshold_cam
from helpers.checkpoints import load, read_card
from helpers.data import open_dataset
from helpers.denoise import denoise
from helpers.metrics import as_image
from helpers.project import ROOT, results
from helpers.vit import open_vit
from surfaces.files import atomic_path

GPU_FLOPS = 3e13


def means(name):
    """Return each method's PSNR in dB at sigma 50, mean of the sources, from table `name`, lowest first (a Series)."""
    return results(name).query("sigma == 50 and source == 'mean'").set_index("method")["psnr"].sort_values()


def results_part():
    """Return the results table: the real photographs beside the built-in test set."""
    photos, drawn = means("photos"), means("synthetic")
    tiles, pictures = (results(name)["n"].iloc[-1] for name in ("photos", "synthetic"))  # of the last row, a mean
    lines = [f"| method | real photographs ({tiles} tiles) | built-in test set ({pictures} pictures) |",
             "| --- | --- | --- |"]
    return lines + [f"| {method} | {value:.2f} | {f'{drawn[method]:.2f}' if method in drawn else '–'} |"
                    for method, value in photos.items()]


def notebooks_part():
    """Return one table row per notebook: its title as a link, and its answer with the number it rests on."""
    photos = means("photos")
    answers = {"01": f"A plain U-Net reaches {photos['unet_classic']:.2f} dB on real photographs, the best filter "
                     f"(BM3D) {photos['bm3d']:.2f}, a Gaussian blur {photos['gaussian']:.2f}; a dense autoencoder "
                     f"stops at {photos['dense']:.2f}."}
    gains = results("regimes_gains").query("sigma == 150 and swap == 'none'").set_index(["source", "arm", "against"])
    cracks, things = ("{gain:.2f} % [{low:.2f}, {high:.2f}]".format(**gains.loc[(source, "two_pass", "random")])
                      for source in ("sutcrack", "everyday"))
    answers["02"] = ("Where the noise is strong, a little: at sigma 150 a pretrained ViT that looks at a first output "
                     f"removes {cracks} more of the squared error than a random ViT does on cracked surfaces, and "
                     f"{things} on everyday photographs. At the bottleneck, where the original joins it, it is hardly "
                     "used.")
    chosen = results("settings").set_index(["table", "setting"])["value"]
    auc = results("cams").query("set == 'photos' and sigma == 50 and source == 'mean'").set_index(
        ["network", "layer", "method"])["auc"]
    ours, sato = auc["student", "setting", chosen["cams", "best"]], auc["control", "picture", "sato"]
    answers["03"] = (f"The ViT sees cracks, and not just dark lines: AUC {ours:.2f} "
                     f"under noise, the best ridge filter {sato:.2f}.")
    gap = 100 * results("losses_at_rise").query("set == 'photos' and rise == 2").set_index("method")["gap"]
    term, trick = chosen["losses", "winner"], chosen["losses", "rival"]
    answers["04"] = (f"Not better than an old trick: at 2 % more error the best term (*{term}*) brings back "
                     f"{gap[term]:.0f} % of the missing detail, {trick} {gap[trick]:.0f} %; pushing the "
                     "network to where the ViT looks is in no comparison better at a crack than pushing it elsewhere.")
    best = photos.idxmax()
    answers["05"] = (f"*{best}* is best on real photographs with {photos[best]:.2f} dB; the original U-Net has "
                     f"{photos['unet_classic']:.2f}, BM3D {photos['bm3d']:.2f}.")
    seconds = results("seconds").set_index("notebook")["seconds"]
    lines = ["| notebook | question | answer in one line | seconds |", "| --- | --- | --- | --- |"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        title = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0].lstrip("# ")
        number, question = title.split(" · ")
        time = f"{seconds[path.stem]:.0f}" if path.stem in seconds else "–"
        lines.append(f"| [{number}](notebooks/{path.name}) | {question} | {answers.get(number, '')} | {time} |")
    return lines


def draw_picture(path):
    """Write the README's picture: noisy, denoised, and where the ViT looks, of a drawn surface."""
    sample = next(s for s in open_dataset("test", photos=False, length=None) if s.source == "concrete" and s.mask.any())
    cam = activation_map(open_vit(), sample.noisy, "block 5").map
    denoised = denoise(load("hybrid"), sample.noisy)
    parts = [as_image(sample.noisy), as_image(denoised, clip=True), overlay(denoised, threshold_cam(cam)) / 255]
    gap = np.ones((224, 8, 3))
    strip = np.hstack([parts[0], gap, parts[1], gap, parts[2]])
    with atomic_path(path) as temporary:
        Image.fromarray(np.uint8(255 * strip + 0.5)).save(temporary, "JPEG", quality=90)


def cost_part():
    """Return the table of what a training costs: crops per second on the CPU as measured, passes as reckoned."""
    lines = ["| network | crops a second, CPU core | 11,000 photographs, CPU core | 1,000,000, CPU core | "
             "1,000,000, one GPU | 1,000,000, eight GPUs |", "| --- | --- | --- | --- | --- | --- |"]
    billions = results("cost").set_index("method")["gmac"]  # multiply-adds at 224 x 224
    # each of these was trained on one core
    for name, cost in (("unet_start", "unet_classic"), ("hybrid_attention", "hybrid_attention")):
        card = read_card(name)
        recipe, side = card["recipe"], card["recipe"]["crop"]
        rate = recipe["steps"] * recipe["batch_size"] / card["history"][-1]["seconds"]
        flop = 6e9 * billions[cost] * (side / 224) ** 2  # forward and backward, two operations each
        gpu = 1e6 * flop / GPU_FLOPS / 60
        lines.append(f"| {name}, crops of {side} x {side} | {rate:.1f} | {11_000 / rate / 60:.0f} minutes | "
                     f"{1e6 / rate / 3600:.0f} hours | {gpu:.0f} minutes | {gpu / 8:.0f} minutes |")
    return lines


def written(text, parts=None):
    """Return the `text` of README.md, or of a file with other `parts`, with what is marked regenerated."""
    for name, make in (parts or {"results": results_part, "notebooks": notebooks_part}).items():
        start, end, lines = f"<!-- {name} -->\n", f"<!-- /{name} -->", make()
        if start not in text or end not in text:
            raise ValueError(f"the file must hold the marks {start.strip()} and {end}")
        text = text[: text.index(start) + len(start)] + "\n".join([*lines, ""]) + text[text.index(end):]
    return text


def results_table(rows, sigma=50):
    """Return PSNR in dB of every method on every source at one `sigma`, as lines of text; "" where there is none.

    The mean is formed anew, and only from all sources: one over fewer would not compare.

    Args:
        rows: DataFrame with method, source, sigma and psnr.
    """
    rows = rows[(rows["sigma"] == sigma) & (rows["source"] != "mean")]
    if rows.empty:
        return ""
    table = rows.pivot_table(index="method", columns="source", values="psnr", sort=False)
    table["mean"] = table.mean(axis=1, skipna=False)
    table = table.rename_axis(index=None, columns=f"PSNR in dB, sigma {sigma}")
    return table.to_string(float_format="{:.2f}".format, na_rep="-")


def print_results():
    """Print the scores of data/results/ that there are, the built-in test images and the real photographs."""
    for name, what in (("synthetic", "Built-in test images"), ("photos", "Real photographs")):
        with contextlib.suppress(FileNotFoundError):
            table, origin = results_table(results(name)), results("provenance")
            made = ", then ".join(origin["revision"][origin["table"] == name])
            print(f"\n{what} (table {name} in data/results/, revision {made})\n{table}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where README.md is not up to date")
    parser.add_argument("--picture", action="store_true", help="draw data/results/at_a_glance.jpg anew")
    options = parser.parse_args()
    if options.picture:
        draw_picture(ROOT / "data" / "results" / "at_a_glance.jpg")
    for path, parts in ((ROOT / "README.md", None), (ROOT / "data" / "README.md", {"cost": cost_part})):
        text = path.read_text(encoding="utf-8")
        new = written(text, parts)
        if options.check and new != text:
            sys.exit(f"{path.relative_to(ROOT)} is not what data/ says: run `make readme`")
        if new != text:
            with atomic_path(path) as temporary:
                temporary.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
