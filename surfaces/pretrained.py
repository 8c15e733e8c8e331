"""Folders of pretrained networks as Hugging Face lays them out: find one, read its weights' bytes and its settings."""

import hashlib
import json
import os
from pathlib import Path

FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json",
         "model-*.safetensors"]


def find_pretrained(source: str | os.PathLike[str] | None, built_in: Path) -> tuple[Path, str]:
    """Return the folder of a ViT and its name: of `source`, else of DENOISE_VIT, else `built_in`.

    The Hub is asked only where a name of it was given. Raises FileNotFoundError where it is not to be had.
    """
    source = os.environ.get("DENOISE_VIT", "").strip() if source is None else os.fspath(source)
    folder = Path(source).expanduser() if source else built_in
    if (folder / "config.json").is_file():
        return folder, folder.resolve().name  # no path: it goes into cards
    ways = "a folder in Hugging Face layout or a Hub name such as WinKawaks/vit-tiny-patch16-224"
    if not source:
        raise FileNotFoundError(f"the built-in ViT is not in data/models/{built_in.name}: restore it from git, make "
                                f"it with `make train ONLY=student`, or set DENOISE_VIT to {ways}")
    if folder.is_dir():
        raise FileNotFoundError(f"{source} has no config.json: wanted {ways}")
    if source.count("/") != 1 or source[0] in "./~":  # not even the Hub has such a name
        raise FileNotFoundError(f"there is no ViT {source}: wanted {ways}")
    from huggingface_hub import errors, snapshot_download  # only who names a model of the Hub needs it
    try:
        return Path(snapshot_download(source, allow_patterns=FILES)), source
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise FileNotFoundError(f"the ViT {source} is neither a folder nor to be had from the Hub "
                                f"({type(error).__name__}): go online, unset HF_HUB_OFFLINE, or name a folder with "
                                "DENOISE_VIT") from error


def read_weight_files(folder: Path) -> tuple[list[bytes], str]:
    """Return the contents of a model's safetensors files, the one or those that its index names, and their sha256.

    Raises ValueError where one is missing, is of another kind or lies outside of the folder.
    """
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and (index := folder / "model.safetensors.index.json").is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))
        shards = shards.get("weight_map") if isinstance(shards, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index.name} must have a weight_map that names files, got {shards!r:.60}")
        names = sorted(set(map(str, shards.values())))  # a file is named once for every tensor in it
    home, contents, digest = folder.resolve(), [], hashlib.sha256()
    # in the Hub's cache the files of a snapshot are links to ../../blobs
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    for name in names:
        path = folder / name
        if path.suffix != ".safetensors" or path.parent != folder or "\\" in name:
            raise ValueError(f"weights must be .safetensors files in the folder itself, got {name!r}")
        if not path.is_file():
            raise ValueError(f"there is no {name}, a file of its weights")
        if path.resolve().parent not in homes:
            raise ValueError(f"weights must lie in the folder, and {name} is a link that leads out of it")
        contents.append(path.read_bytes())  # once, so that what is hashed is what is loaded
        digest.update(contents[-1])
    return contents, digest.hexdigest()


def read_normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of images in [0, 1] that the preprocessor's settings come to.

    Raises ValueError without such settings.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError("it has no preprocessor_config.json, which says how images are normalised")
    settings = json.loads(path.read_text(encoding="utf-8"))
    # what the preprocessor makes of 1.0, our white: it is told of images in 0..255
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    if not settings.get("do_normalize", True):
        return [0.0] * 3, [1 / scale] * 3
    return [m / scale for m in settings["image_mean"]], [s / scale for s in settings["image_std"]]
