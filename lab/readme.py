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
from helpers.plots import in_words, pivot
from helpers.project import ROOT, load_results
from helpers.vit import open_vit
from surfaces.files import atomic_path

GPU_FLOPS = 3e13


def means(name):
    """Return each method's PSNR in dB at sigma 50, mean of the sources, from results `name`, lowest first."""
    return {line["method"]: line["mean"] for line in pivot(load_results(name)["rows"])}


def results_part():
    """Return the results table: the real photographs beside the built-in test set."""
    photos, drawn = means("photos"), means("baselines")
    tiles, pictures = (load_results(name)["rows"][-1]["n"] for name in ("photos", "baselines"))
    lines = [f"| method | real photographs ({tiles} tiles) | built-in test set ({pictures} pictures) |",
             "| --- | --- | --- |"]
    return lines + [f"| {method} | {value:.2f} | {f'{drawn[method]:.2f}' if method in drawn else '–'} |"
                    for method, value in photos.items()]


def notebooks_part():
    """Return one table row per notebook: its title as a link, and its answer with the number it rests on."""
    photos = means("photos")
    answers = {"01": f"A plain U-Net reaches {photos['unet']:.2f} dB on real photographs, the best filter (BM3D) "
                     f"{photos['bm3d']:.2f}, a Gaussian blur {photos['gaussian']:.2f}; a dense autoencoder stops at "
                     f"{photos['dense']:.2f}."}
    student = {row["method"]: row["cosine"] for row in load_results("student")["rows"]
               if (row["source"], row["block"]) == ("mean", "block 5")}
    ablation = load_results("vit_ablation")["differences"]
    fair = next(d for d in ablation if (d["a"], d["b"], d["figure"]) == ("student", "wide", "mse"))
    differs = in_words(*(fair[f"percent{key}"] for key in ("", "_low", "_high", "_covered")), " %", 1)
    answers["02"] = (f"Not measurably: the hybrid reaches {photos['hybrid']:.2f} dB, the U-Net that it started from "
                     f"{photos['unet_start']:.2f}, and that U-Net trained on without a ViT {photos['unet']:.2f}; "
                     f"with equal data and steps from scratch its error is "
                     f"{differs} from that of "
                     "a U-Net with as many weights. But a ViT can be taught to see through noise: the student's tokens "
                     f"have a cosine of {student['student, noisy']:.2f} with its teacher's of the clean picture, the "
                     f"teacher's own {student['teacher, noisy']:.2f}.")
    cams = load_results("cams")
    auc = {(row["network"], row["layer"], row["method"]): row["auc"] for row in cams["rows"]
           if (row["set"], row["sigma"], row["source"]) == ("photos", 50, "mean")}
    sato = auc["control", "picture", "sato"]
    answers["03"] = (f"The ViT sees cracks, and not just dark lines: AUC {auc['student', 'setting', cams['best']]:.2f} "
                     f"under noise, the best ridge filter {sato:.2f}.")
    losses = load_results("losses")
    gap = {row["method"]: 100 * row["gap"] for row in losses["at_rise"] if (row["set"], row["rise"]) == ("photos", 2)}
    term, trick = losses["winner"], losses["rival"]
    answers["04"] = (f"Not better than an old trick: at 2 % more error the best term (*{term}*) brings back "
                     f"{gap[term]:.0f} % of the missing detail, {trick} {gap[trick]:.0f} %; pushing the "
                     "network to where the ViT looks is in no comparison better at a crack than pushing it elsewhere.")
    best = max(photos, key=photos.get)
    hybrid = max(value for name, value in photos.items() if name.startswith("hybrid"))
    answers["05"] = (f"*{best}* is best on real photographs with {photos[best]:.2f} dB; the best hybrid has "
                     f"{hybrid:.2f}, the U-Net that all networks named unet or hybrid started from "
                     f"{photos['unet_start']:.2f}, BM3D {photos['bm3d']:.2f}.")
    seconds = {row["notebook"]: row["seconds"] for row in load_results("seconds")["rows"]}
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
    billions = {row["method"]: row["gmac"] for row in load_results("comparison")["cost"]}  # multiply-adds at 224 x 224
    for name, cost in (("unet_start", "unet"), ("hybrid", "hybrid")):  # each was trained on one core
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


def results_table(rows, sigma=50):
    """Return PSNR (dB) of every method on every source at one `sigma`, as lines of text; "" where there is none.

    >>> print(results_table([{"method": "noisy", "source": "sand", "sigma": 50, "psnr": 14.53},
    ...                      {"method": "noisy", "source": "terrazzo", "sigma": 50, "psnr": 14.91}]))
    PSNR in dB, sigma 50  sand terrazzo  mean
    noisy                14.53    14.91 14.72
    """
    rows = [row for row in rows if row.get("sigma", sigma) == sigma and row.get("psnr") is not None
            and row.get("source") != "mean"]  # it is formed anew, and only from all sources
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sources = list(dict.fromkeys(row.get("source", "all") for row in rows))
    values = {(row["method"], row.get("source", "all")): row["psnr"] for row in rows}
    if not rows:
        return ""
    first = f"PSNR in dB, sigma {sigma}"
    widths = [max(map(len, [first, *methods])), *(max(len(source), 5) + 1 for source in [*sources, "mean"])]
    lines = [[first, *sources, "mean"]]
    for method in methods:
        found = [values.get((method, source)) for source in sources]
        mean = sum(found) / len(found) if None not in found else None  # a mean over fewer sources would not compare
        lines.append([method, *("-" if value is None else f"{value:.2f}" for value in [*found, mean])])
    return "\n".join(line[0].ljust(widths[0]) + "".join(v.rjust(w) for v, w in zip(line[1:], widths[1:], strict=True))
                     for line in lines)


def print_results():
    """Print the tables of `data/results/` that there are: the built-in test pictures and the real photographs."""
    for name, what in (("baselines", "Built-in test pictures"), ("photos", "Real photographs")):
        with contextlib.suppress(FileNotFoundError):
            results = load_results(name)
            table = results_table(results.get("rows", []))
            made = ", then ".join(part.get("revision", "unknown") for part in (results, *results.get("updates", [])))
            if table:
                print(f"\n{what} (data/results/{name}.json, revision {made})\n{table}")


if __name__ == "__main__":
    print_results()
