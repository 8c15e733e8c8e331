"""Train the built-in ViT: a student whose tokens of a noisy picture are its teacher's of the clean one.

    python -m lab.student                        the teacher is fetched from the Hub (or its cache)
    python -m lab.student --teacher FOLDER       or DENOISE_TEACHER=FOLDER

The student starts from the teacher and every weight trains. A run that was stopped goes on where it was, in
data/runs/student; one that is complete trains nothing and leaves the result, data/models/vit-tiny-surfaces, as it is.
Photographs come from CRACK_PHOTOS; without it the student sees synthetic surfaces and the photographs that packages
ship.

Method: Hinton et al., "Distilling the knowledge in a neural network" (arXiv:1503.02531), on tokens instead of classes.
"""

import argparse
import json
import math
import os
import shutil
from collections import defaultdict
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity, smooth_l1_loss
from torch.utils.data import ConcatDataset, Dataset

from helpers.checkpoints import read_tensors, save_tensors
from helpers.data import Crops, drawn_pool, open_dataset
from helpers.project import data_dir, env_path
from helpers.training import fit
from helpers.vit import BUILT_IN, extra_tokens, open_vit
from lab.provenance import provenance, write_json
from lab.recipes import SHEETS
from lab.runs import AcceleratedRun, fingerprint
from surfaces.folders import list_photos
from surfaces.training_images import everyday_pool, photo_pool

TEACHER = os.environ.get("DENOISE_TEACHER", "").strip() or "WinKawaks/vit-tiny-patch16-224"
BLOCKS = (3, 5, 7, 9, 11, None)  # where tokens must match, counted from 0; None: after the final normalisation
# One step of five at the full size, the others at half of it: a quarter of the work per picture, and photographs that
# are no larger than the full size give more than eight different crops.
SIZES = (112, 112, 112, 112, 224)
SIGMA = (0, 75)
CLEAN_EVERY = 10  # one picture of so many has no noise
STATISTICS = 512  # clean pictures that the teacher's channels are standardised by
CLASS_WEIGHT = 0.1  # of the class token's loss beside that of the patches


class Views(Dataset):
    """Noisy crops whose size depends on the step that they are for; every tenth picture is clean."""

    def __init__(self, pools, pictures, batch_size, weights=None, seed=0, sizes=SIZES):
        self.crops = [Crops(pools, pictures, size, SIGMA, seed, weights) for size in sizes]
        self.pictures, self.batch_size = pictures, batch_size

    def __len__(self):
        return self.pictures

    def __getitem__(self, index):
        sample = self.crops[index // self.batch_size % len(self.crops)][index]
        return sample._replace(noisy=sample.clean, sigma=0.0) if index % CLEAN_EVERY == 0 else sample


@torch.no_grad()
def statistics(teacher, views, count=STATISTICS):
    """Return mean and deviation of each channel of the teacher's tokens of clean pictures.

    Returns:
        Dict of "mean" and "std", each (targets, 2, C): of the class token and its like [0], of the patches [1].
    """
    extra, device, crops = extra_tokens(teacher), teacher.mean.device, views.crops[-1]
    count = min(count, len(crops))
    sums, squares = torch.zeros(2, len(BLOCKS), 2, teacher.channels, dtype=torch.float64)
    for index in range(count):
        tokens = torch.cat(teacher(crops[index].clean[None].to(device), BLOCKS)).double().cpu()  # (targets, N, C)
        for kind, part in enumerate((tokens[:, :extra], tokens[:, extra:])):
            sums[:, kind] += part.sum(1)
            squares[:, kind] += part.square().sum(1)
    number = count * torch.tensor([[extra], [tokens.shape[1] - extra]])
    mean = sums / number
    return {"mean": mean.float(), "std": (squares / number - mean.square()).clamp_min(1e-12).sqrt().float()}


class Distillation:
    """The loss of a student: smooth L1 between its tokens of the noisy and the teacher's of the clean picture.

    Per channel the difference is divided by the deviation of the teacher's tokens; patches and class token are averaged
    apart, then all of `BLOCKS`.
    """

    def __init__(self, teacher, std):
        self.teacher, self.extra = teacher, extra_tokens(teacher)
        self.std = std.to(teacher.mean.device)

    def __call__(self, student, sample):
        with torch.no_grad():
            wanted = self.teacher(sample.clean, BLOCKS)
        total = 0.0
        for given, target, std in zip(student(sample.noisy, BLOCKS), wanted, self.std, strict=True):
            parts = [(given[:, part] - target[:, part]).float() / std[kind]
                     for kind, part in enumerate((slice(None, self.extra), slice(self.extra, None)))]
            single, patches = (smooth_l1_loss(part, torch.zeros_like(part)) for part in parts)
            total = total + patches + CLASS_WEIGHT * single
        return total / len(BLOCKS)


class Agreement:
    """The score of a student: cosine of its patch tokens on noisy pictures with the teacher's on the clean ones.

    Tokens are centred and divided by the teacher's deviation per channel first, so that a constant would score about 0.
    """

    def __init__(self, teacher, stats):
        self.teacher, self.extra, self.stats, self.wanted = teacher, extra_tokens(teacher), stats, {}

    def _tokens(self, vit, picture):
        device = next(vit.parameters()).device
        tokens = torch.cat(vit(picture[None].to(device), BLOCKS))[:, self.extra:].cpu()  # (targets, patches, C)
        return (tokens - self.stats["mean"][:, 1:]) / self.stats["std"][:, 1:]

    @torch.no_grad()
    def __call__(self, student, valid):
        student.eval()
        per_source = defaultdict(list)
        for index in range(len(valid)):
            sample = valid[index]
            if index not in self.wanted:
                self.wanted[index] = self._tokens(self.teacher, sample.clean).half()
            tokens = self._tokens(student, sample.noisy)
            per_source[sample.source].append(cosine_similarity(tokens, self.wanted[index].float(), dim=-1).mean(1))
        sources = [torch.stack(values).mean(0) for values in per_source.values()]
        means = torch.stack(sources).mean(0).tolist()  # one per target
        student.train()
        names = [f"block {n + 1}" if n is not None else "last" for n in BLOCKS]
        return {"score": sum(means) / len(means), **dict(zip(names, means, strict=True))}


def open_data(pictures, batch_size, seed=0):
    """Return the training `Views`, the validation Samples at sigma 50, a line that says what they are, the files."""
    photos, more = env_path("CRACK_PHOTOS"), env_path("EVERYDAY_PHOTOS")
    drawn, everyday = {"drawn": drawn_pool(SHEETS)}, everyday_pool(more)
    real = photo_pool(photos, smallest=max(SIZES)) if photos else {}
    weights = {**dict.fromkeys(drawn, 0.3), **{name: 0.2 / len(everyday) for name in everyday},
               **{name: 0.5 / len(real) for name in real}}
    views = Views({**drawn, **everyday, **real}, pictures, batch_size, weights, seed)
    valid = [open_dataset("valid", photos=False, length=12)]
    valid += [open_dataset("valid", photos=photos, length=36)] if real else []
    total = sum(weights.values())
    says = ", ".join(f"{name} {100 * w / total:.0f} %" for name, w in weights.items())
    files = [photo.path for photo in list_photos(photos, "train")] if real else []
    return views, ConcatDataset(valid), says, files + (sorted(Path(more).rglob("*.jpg")) if more else [])


def train_student(teacher, pictures=150_000, batch_size=32, lr=3e-4, seed=0, data=None, workers=0, progress=True,
                  folder=None):
    """Train the student and write it in Hugging Face layout; return the history of `fit`.

    A run that is complete, with its student in the folder, trains nothing.

    Args:
        teacher: what `open_vit` takes.
        pictures: noisy images to train on, `batch_size` a step.
        data: what `open_data` returns, where other data are wanted.
        folder: where the student goes, default the built-in ViT's.

    Raises:
        CheckpointError: ``data/runs/student`` holds another run: another teacher, other data or settings.
    """
    teacher, folder = open_vit(teacher), Path(folder or data_dir() / "models" / BUILT_IN)
    steps = math.ceil(pictures / batch_size)
    views, valid, says, files = data or open_data(steps * batch_size, batch_size, seed)
    run = AcceleratedRun(data_dir() / "runs" / "student", {
        "teacher_sha256": teacher.sha256, "steps": steps, "batch_size": batch_size, "sizes": SIZES, "sigma": SIGMA,
        "blocks": BLOCKS, "lr": lr, "seed": seed, "fingerprint of the data": fingerprint(views, files)})
    if run.is_complete() and (history := written(folder, run.digest)):
        return history
    if run.device.type == "cpu":  # there the plain attention is faster in bfloat16 than the fused one
        teacher.model.set_attn_implementation("eager")
    student = deepcopy(teacher).requires_grad_(True)
    teacher.to(run.device)
    stats = kept_statistics(run, teacher, views)
    agreement = Agreement(teacher, stats)
    before = agreement(student.to(run.device), valid)
    history = fit(student, views, valid, steps=steps, batch_size=batch_size, lr=lr, weight_decay=0.01,
                  every=max(1, steps // 40), score=agreement, forward=Distillation(teacher, stats["std"]),
                  workers=workers, seed=seed, progress=progress, run=run)
    card = {"teacher": teacher.name, "teacher_sha256": teacher.sha256, "data": says, "pictures": steps * batch_size,
            "steps": steps, "batch_size": batch_size, "lr": lr, "sizes": SIZES, "sigma": SIGMA,
            "teacher on noisy": before, "student on noisy": history[-1], "identity": run.digest, "history": history,
            **provenance("make train ONLY=student", seed)}
    if run.is_main:
        write_student(student.cpu(), teacher, card, folder)
    run.wait()
    return history


def written(folder, identity):
    """Return the history of the student in `folder`, if it is the one of the run `identity`; else None."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return card["history"] if card.get("identity") == identity else None


def kept_statistics(run, teacher, views):
    """Return the `statistics` of the teacher, computed once per run and kept beside its state."""
    path = run.folder / "statistics.safetensors"
    if path.is_file():
        stats, notes = read_tensors(path)
        if notes.get("identity") == run.digest:
            return stats
    stats = statistics(teacher, views)
    if run.is_main:
        save_tensors(stats, path, {"identity": run.digest})
    return stats


@contextmanager
def atomic_folder(folder):
    """Yield an empty folder beside `folder` that takes its place in the end; on any failure `folder` stays as it was.

    Two folders cannot change places in one step: a kill between the two renames leaves the old one as ".NAME.old", and
    the next call puts it back first.
    """
    part, old = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "old"))
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (part, old):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_student(student, teacher, card, folder):
    """Write config.json, model.safetensors (float16), preprocessor_config.json, README.md, card.json: all or none."""
    mean, std = (values.flatten().tolist() for values in (teacher.mean, teacher.std))
    preprocessor = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
                    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": mean, "image_std": std,
                    "resample": 2, "size": dict(zip(("height", "width"), 2 * [student.config.image_size], strict=True))}
    with atomic_folder(folder) as part:
        deepcopy(student.model).half().save_pretrained(part)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        for labels in ("id2label", "label2id", "_name_or_path"):  # it has no classes
            config.pop(labels, None)
        write_json(part / "config.json", config)
        write_json(part / "preprocessor_config.json", preprocessor)
        card = {**card, "sha256": open_vit(part).sha256}  # opened once, to see that it can be
        write_json(part / "card.json", card)
        (part / "README.md").write_text(describe(card), encoding="utf-8")


def describe(card):
    """Return the model card as Markdown."""
    names = [name for name in card["student on noisy"] if name.startswith("block") or name in ("last", "score")]
    rows = "\n".join(f"| {name} | {card['teacher on noisy'][name]:.3f} | {card['student on noisy'][name]:.3f} |"
                     for name in names)
    return f"""# {BUILT_IN}

A Vision Transformer that sees cracked surfaces through noise: a student of `{card['teacher']}`. It started from the
teacher's weights, and every weight was trained so that its tokens of a **noisy** picture match the teacher's of the
**clean** one.

- **Teacher:** `{card['teacher']}` (sha256 of its weights: `{card['teacher_sha256']}`), a ViT-Tiny pretrained on
  ImageNet-21k and fine-tuned on ImageNet-1k (AugReg). **Licence:** Apache-2.0, the
  teacher's; the weights were changed.
- **Load:** `open_vit()`, or `transformers.ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)`; float16 on disk,
  sha256 `{card['sha256']}`.
- **Input:** RGB in [0, 1] and of any size, normalised as preprocessor_config.json says (`open_vit` does it inside).
- **Data:** {card['data']}. Of `drawn` and of photographs train pictures alone; the names of photographs' data sets are
  those of the folder in CRACK_PHOTOS. No picture is in this folder.
- **Training:** {card['pictures']} noisy pictures, {card['steps']} steps of {card['batch_size']}, crops of
  {card['sizes'][0]} and, in one step of {len(card['sizes'])}, of {card['sizes'][-1]} pixels; Gaussian noise, clipped,
  sigma uniform in {card['sigma'][0]}..{card['sigma'][1]} on the 0..255 scale, one picture in {CLEAN_EVERY} clean.
  Smooth L1 on tokens after blocks {', '.join(str(n + 1) for n in BLOCKS if n is not None)} and after the final
  normalisation, divided by the teacher's deviation per channel; the class token weighs {CLASS_WEIGHT}. AdamW, peak rate
  {card['lr']:g}, moving average of the weights. {card['machine']}; revision {card['revision']}; `{card['command']}`.
- **Limits:** made for Gaussian noise up to sigma 75 on surfaces; other noise, blur and everyday scenes were hardly or
  never seen. It has no classes, and is no better than its teacher on clean pictures.

Cosine with the teacher's patch tokens of the clean picture, centred and standardised per channel, validation pictures
at sigma 50, mean of sources:

| tokens after | teacher on noisy | student on noisy |
|---|---|---|
{rows}
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=TEACHER, help="folder or Hub name (default: DENOISE_TEACHER, %(default)s)")
    parser.add_argument("--pictures", type=int, default=150_000, help="noisy ones, to train on (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare pictures")
    options = parser.parse_args(arguments)
    history = train_student(options.teacher, options.pictures, options.batch_size, options.lr, workers=options.workers)
    print(history[-1])


if __name__ == "__main__":
    main()
