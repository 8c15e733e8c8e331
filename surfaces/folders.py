"""Folders of photographs in three layouts: which photographs there are, their masks, and the split each belongs to.

Nothing is skipped in silence: a file that fits no layout raises an error that names it and says what was wanted. Only
names are looked at here; headers are read when tiles are cut, pixels when a tile is read (`surfaces.photos`).
"""

import csv
import hashlib
from pathlib import Path

from surfaces.photos import SUFFIXES, Photo, refuse_twice

SPLITS = ("train", "valid", "test")
VALID, TEST = 0.15, 0.15  # shares of the photographs, where the folder does not say
NOTES = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf", ".ini", ".db")  # lie beside pictures, hold none
LAYOUTS = ("a manifest.csv, or train/images and test/images (with masks/ beside), or pictures in one folder "
           "(masks in masks/ or as NAME_mask.png)")
COLUMNS = ("path", "mask", "source", "photo", "split")


def list_photos(folder, split=None):
    """List the photographs of a folder, in a fixed order, without opening them.

    Three layouts: `manifest.csv` (columns path, mask, source, photo, split, and optionally group);
    `train/images`, `train/masks`, `test/images`, `test/masks` (15 % of train becomes valid); or one folder of pictures,
    in it or in `images/`, with masks in `masks/`, as NAME_mask.png or without (15 % valid, 15 % test). Where the folder
    does not say, a hash of the photograph's name decides, the same on every machine.

    Args:
        folder: the folder (str or Path).
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
        images = folder / part / "images"
        if not images.is_dir():
            raise FileNotFoundError(f"{images}: no such folder (wanted train/images and test/images, masks/ beside)")
        pictures = _pictures(images)
        masks = _match(pictures, folder / part / "masks")
        splits = _split_by_name(pictures, 0, VALID) if part == "train" else dict.fromkeys(pictures, part)
        photos += [Photo(name, path, masks.get(name), name, name, folder.resolve().name, splits[name])
                   for name, path in pictures.items()]
    return photos


def _from_plain(folder):
    images = folder / "images" if (folder / "images").is_dir() else folder
    pictures = _pictures(images, folders_beside=("masks",))
    if images != folder and (left := _pictures(folder, folders_beside=("images", "masks"))):
        raise ValueError(f"{next(iter(left.values()))}: beside the folder images/; wanted all pictures in one of both")
    beside = {name.removesuffix("_mask"): path for name, path in pictures.items() if name.endswith("_mask")}
    pictures = {name: path for name, path in pictures.items() if not name.endswith("_mask")}
    if (folder / "masks").is_dir():
        if beside:
            raise ValueError(f"{next(iter(beside.values()))}: wanted masks in masks/ or beside the pictures, got both")
        masks = _match(pictures, folder / "masks")
    else:
        masks = beside
        _refuse_lonely(masks, pictures)
    splits = _split_by_name(pictures, TEST, VALID)
    source = folder.resolve().name
    return [Photo(name, path, masks.get(name), name, name, source, splits[name]) for name, path in pictures.items()]


def _pictures(folder, folders_beside=()):
    """Return the pictures in a folder by their name without suffix; refuse what is neither picture, note nor hidden."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() in NOTES or path.name in folders_beside:
            continue
        if path.is_dir() or path.suffix.lower() not in SUFFIXES and path.stem.upper() not in ("LICENSE", "README"):
            raise ValueError(f"{path}: wanted only pictures here ({', '.join(SUFFIXES)}), or {LAYOUTS}; "
                             f"got {'a folder' if path.is_dir() else 'another file'}")
        if path.suffix:
            found.append((path.stem, path))
    refuse_twice(found)
    return dict(found)


def _match(pictures, folder):
    """Return the masks in a folder by name: one for each picture, none over; no masks where there is no folder."""
    if not folder.is_dir():
        return {}
    masks = {}
    for name, path in _pictures(folder).items():
        name = name if name in pictures else name.removesuffix("_mask")
        if name in masks:
            raise ValueError(f"{path}: wanted one mask for {name}, got two, this and {masks[name].name}")
        masks[name] = path
    _refuse_lonely(masks, pictures)
    if missing := [name for name in pictures if name not in masks]:
        raise ValueError(f"{pictures[missing[0]]}: wanted a mask {missing[0]}.png in {folder}, got none "
                         f"({len(missing)} of {len(pictures)} pictures have none)")
    return masks


def _refuse_lonely(masks, pictures):
    for name, path in masks.items():
        if name not in pictures:
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
