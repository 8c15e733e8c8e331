"""Write the numbers in README.md from data/results/, so that they cannot drift: `make readme`.

    python scripts/readme.py            rewrite the marked parts
    python scripts/readme.py --check    exit 1 where they differ from what would be written
"""

import argparse
import json
import sys

from helpers.intervals import in_words
from helpers.plots import pivot
from helpers.project import ROOT, atomic_path, load_results


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
                     f"{photos['unet']:.2f}; with equal data and steps from scratch its error is "
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
    lines = ["| notebook | question | answer in one line |", "| --- | --- | --- |"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        title = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0].lstrip("# ")
        number, question = title.split(" · ")
        lines.append(f"| [{number}](notebooks/{path.name}) | {question} | {answers.get(number, '')} |")
    return lines


def written(text):
    """Return the README's `text` with its marked parts regenerated."""
    for name, lines in (("results", results_part()), ("notebooks", notebooks_part())):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start not in text or end not in text:
            raise ValueError(f"README.md must hold the marks {start.strip()} and {end}")
        text = text[: text.index(start) + len(start)] + "\n".join([*lines, ""]) + text[text.index(end):]
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where README.md is not up to date")
    options = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    new = written(text)
    if options.check and new != text:
        sys.exit("README.md is not what data/results/ says: run `make readme`")
    if new != text:
        with atomic_path(path) as temporary:
            temporary.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
