"""Folders of photographs in three layouts: which photographs there are, their masks, and the split each belongs to.

    photos = list_photos("my-walls", "train")
    write_folder("synthetic", ((f"sand-{seed}", *draw_surface("sand", seed)) for seed in range(100)))

Nothing is skipped in silence: a file that fits no layout raises an error that names it and says what was wanted. Only
names are looked at here; headers are read when tiles are cut, pixels when a tile is read (`surfaces.tiles`).
"""

import csv
import hashlib
import sys
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surfaces.photos import SUFFIXES, WRITABLE, write_mask, write_photo

SPLITS = ("train", "valid", "test")
VALID, TEST = 0.15, 0.15  # shares of the photographs, where the folder does not say
NOTES = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf", ".ini", ".db")  # lie beside images, hold none
LAYOUTS = ("a manifest.csv, or train/images and test/images (with masks/ beside), or images in one folder "
           "(masks in masks/ or as NAME_mask.png)")
COLUMNS = ("path", "mask", "source", "photo", "split")


class Photo(NamedTuple):
    """One photograph on disk: `mask` is None without one; `group` holds photographs of one place together."""

    name: str
    path: Path
    mask: Path | None
    photo: str
    group: str
    source: str
    split: str


def list_photos(folder: str | Path, split: str | None = None) -> list[Photo]:
    """List the photographs of a folder, in a fixed order, without opening them.

    Three layouts: `manifest.csv` (columns path, mask, source, photo, split, and optionally group);
    `train/images`, `train/masks`, `test/images`, `test/masks` (15 % of train becomes valid); or one folder of images,
    in it or in `images/`, with masks in `masks/`, as NAME_mask.png or without (15 % valid, 15 % test). Where the folder
    does not say, a hash of the photograph's name decides, the same on every machine.

    Args:
        folder: the folder.
        split: "train", "valid" or "test", or None for all.

    Returns:
        List of `Photo`, sorted by source and name.

    Raises:
        FileNotFoundError: no such folder, or nothing in it.
        ValueError: a file that fits no layout, two files for one mask, a mask without its photograph or the reverse,
            a name in two splits, a split without photographs, an unknown split.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of photographs (wanted one with {LAYOUTS})")
    if (folder / "manifest.csv").is_file():
        photos = _from_manifest(folder)
    elif (folder / "train").is_dir() or (folder / "test").is_dir():
        photos = _from_train_test(folder)
    else:
        photos = _from_plain(folder)
    if not photos:
        raise FileNotFoundError(f"{folder}: no photographs in it (wanted {LAYOUTS})")
    refuse_twice([(photo.name, f"{photo.path} in {photo.split}") for photo in photos])
    # what shows one place belongs to one split, or a test would be on what was trained on
    for what in ("photo", "group"):
        seen = {}
        for photo in photos:
            if seen.setdefault(key := getattr(photo, what), photo.split) != photo.split:
                raise ValueError(f"{folder}: {what} {key!r} is in two splits, {seen[key]} and {photo.split} "
                                 f"({photo.path.name}); wanted all of it in one")
    chosen = [photo for photo in photos if split in (None, photo.split)]
    if not chosen:
        raise ValueError(f"{folder}: wanted photographs for {split}, got none ({len(photos)} for other splits)")
    return sorted(chosen, key=lambda photo: (photo.source, photo.name))


def write_folder(folder: str | Path, images: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> int:
    """Write images with masks as PNG, into ``images/`` and ``masks/`` of a new folder that `list_photos` reads.

    Args:
        folder: where; it must be new or empty.
        images: (name, image, mask) one after the other: a name for the two files, (H, W, 3) float in [0, 1] or uint8,
            and (H, W) bool. A generator is written as it goes, so that any number fits in memory.

    Returns:
        How many there were.

    Raises:
        FileExistsError: there is something in the folder.
        ValueError: a name that comes twice, is no plain file name or ends in "_mask"; an image and a mask of two
            sizes; as `surfaces.photos.write_photo`.
    """
    folder, seen = Path(folder), set()
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: wanted a new or an empty folder to write images into, got one with files")
    for name, image, mask in images:
        if not name or name in seen or name != Path(name).name or name.startswith(".") or name.endswith("_mask"):
            raise ValueError(f"wanted a plain file name, once, not hidden and without _mask at its end, got {name!r}")
        if np.shape(image)[:2] != np.shape(mask):
            raise ValueError(f"{name}: wanted a mask of its image's size, got {np.shape(image)} and {np.shape(mask)}")
        seen.add(name)
        write_photo(folder / "images" / f"{name}.png", image)
        write_mask(folder / "masks" / f"{name}.png", mask)
    return len(seen)


def list_outputs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Pair each image of IN, a file or a folder, with where its result goes in OUT, for commands that treat images.

    A single image may get any name that `write_photo` can write; those of a folder keep theirs, with .png. Files of the
    folder that are no images by their names are named on stderr.

    Raises:
        ValueError: there is no IN, or OUT makes no sense for it; says what was wanted.
    """
    if not source.exists():
        raise ValueError(f"IN must be an image or a folder of images, there is no {source}")
    if not source.is_dir():
        target = target / f"{source.stem}.png" if target.is_dir() else target
        if target.suffix.lower() not in WRITABLE:
            raise ValueError(f"OUT must be a folder that is there or end in one of {', '.join(WRITABLE)}; got {target}")
        return [(source, target)]
    # many images need a folder, and not the one in which they are
    if target.is_file() or target.suffix.lower() in WRITABLE or target.resolve() == source.resolve():
        raise ValueError(f"IN is a folder, so OUT must be another folder, got {target}")
    pairs = []
    for path in sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")):
        if path.suffix.lower() in SUFFIXES:
            pairs.append((path, target / f"{path.stem}.png"))
        else:
            print(f"{path}: left out, no image by its name", file=sys.stderr)
    if not pairs:
        raise ValueError(f"no images in {source} (wanted {', '.join(SUFFIXES)})")
    return pairs


def refuse_twice(pairs: Iterable[tuple[Hashable, object]], what: str = "name") -> None:
    """Raise ValueError where the same key comes twice in (key, where) pairs, naming both places."""
    seen = {}
    for key, where in pairs:
        if key in seen:
            raise ValueError(f"the {what} {key} comes twice: {seen[key]} and {where}; wanted every {what} once")
        seen[key] = where


def _from_manifest(folder):
    table = folder / "manifest.csv"
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{table}: wanted the columns {', '.join(COLUMNS)}, missing {', '.join(missing)}")
        rows = list(reader)
    photos = []
    for line, row in enumerate(rows, start=2):
        if not row["path"] or not row["source"] or row["split"] not in SPLITS:
            raise ValueError(f"{table}, line {line}: wanted a path, a source and a split ({', '.join(SPLITS)}), "
                             f"got {row['path']!r}, {row['source']!r} and {row['split']!r}")
        path = folder / row["path"]
        # photographs of two sources may share a number, and must not count as one
        photo = f"{row['source']}-{row['photo'] or path.stem}"
        photos.append(Photo(path.stem, path, folder / row["mask"] if row["mask"] else None, photo,
                            row.get("group") or photo, row["source"], row["split"]))
    refuse_twice([(photo.mask, photo.path) for photo in photos if photo.mask], "mask")
    return photos


def _from_train_test(folder):
    photos = []
    for part in ("train", "test"):
        inner = folder / part / "images"
        if not inner.is_dir():
            raise FileNotFoundError(f"{inner}: no such folder (wanted train/images and test/images, masks/ beside)")
        images = _images(inner)
        masks = _match(images, folder / part / "masks")
        splits = _split_by_name(images, 0, VALID) if part == "train" else dict.fromkeys(images, part)
        photos += [Photo(name, path, masks.get(name), name, name, folder.resolve().name, splits[name])
                   for name, path in images.items()]
    return photos


def _from_plain(folder):
    inner = folder / "images" if (folder / "images").is_dir() else folder
    images = _images(inner, folders_beside=("masks",))
    if inner != folder and (left := _images(folder, folders_beside=("images", "masks"))):
        raise ValueError(f"{next(iter(left.values()))}: beside the folder images/; wanted all images in one of both")
    beside = {name.removesuffix("_mask"): path for name, path in images.items() if name.endswith("_mask")}
    images = {name: path for name, path in images.items() if not name.endswith("_mask")}
    if (folder / "masks").is_dir():
        if beside:
            raise ValueError(f"{next(iter(beside.values()))}: wanted masks in masks/ or beside the images, got both")
        masks = _match(images, folder / "masks")
    else:
        masks = beside
        _refuse_lonely(masks, images)
    splits = _split_by_name(images, TEST, VALID)
    source = folder.resolve().name
    return [Photo(name, path, masks.get(name), name, name, source, splits[name]) for name, path in images.items()]


def _images(folder, folders_beside=()):
    """Return the images in a folder by their name without suffix; refuse what is neither image, note nor hidden."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() in NOTES or path.name in folders_beside:
            continue
        if path.is_dir() or path.suffix.lower() not in SUFFIXES and path.stem.upper() not in ("LICENSE", "README"):
            raise ValueError(f"{path}: wanted only images here ({', '.join(SUFFIXES)}), or {LAYOUTS}; "
                             f"got {'a folder' if path.is_dir() else 'another file'}")
        if path.suffix:
            found.append((path.stem, path))
    refuse_twice(found)
    return dict(found)


def _match(images, folder):
    """Return the masks in a folder by name: one for each image, none over; no masks where there is no folder."""
    if not folder.is_dir():
        return {}
    masks = {}
    for name, path in _images(folder).items():
        name = name if name in images else name.removesuffix("_mask")
        if name in masks:
            raise ValueError(f"{path}: wanted one mask for {name}, got two, this and {masks[name].name}")
        masks[name] = path
    _refuse_lonely(masks, images)
    if missing := [name for name in images if name not in masks]:
        raise ValueError(f"{images[missing[0]]}: wanted a mask {missing[0]}.png in {folder}, got none "
                         f"({len(missing)} of {len(images)} images have none)")
    return masks


def _refuse_lonely(masks, images):
    for name, path in masks.items():
        if name not in images:
            raise ValueError(f"{path}: wanted a photograph called {name} for this mask, got none")


def _split_by_name(names, test, valid):
    """Give each name a split by its hash, so that it stays where it is when others come; no split stays empty.

    >>> sorted(set(_split_by_name(["a", "b", "c"], 0.15, 0.15).values()))
    ['test', 'train', 'valid']
    """
    share = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names}
    order = sorted(share, key=lambda name: (share[name], name))
    wanted = 3 if test else 2
    if 0 < len(order) < wanted:
        raise ValueError(f"wanted at least {wanted} photographs to split, got {len(order)}: {', '.join(order)}")
    tests = max(1, sum(value < test for value in share.values())) if test else 0
    tests = min(tests, max(len(order) - 2, 0))
    valids = max(1, sum(test <= value < test + valid for value in share.values()))
    valids = min(valids, max(len(order) - tests - 1, 0))
    return {name: "test" if i < tests else "valid" if i < tests + valids else "train" for i, name in enumerate(order)}
