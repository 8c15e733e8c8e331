"""Trained denoisers on disk: safetensors plus a JSON card, written in one piece and verified on reading.

Nothing here unpickles. The card of ``unet.safetensors`` is ``unet.json``: architecture, its arguments, data, seed,
steps, git revision, metrics and the sha256 of the weights.
"""

import hashlib
import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers import models
from helpers.project import data_dir, write_json
from surfaces.files import atomic_path


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be trusted: broken, changed, or for another architecture."""


class OtherViTError(CheckpointError):
    """A hybrid's checkpoint beside another ViT than the one that it was trained beside."""


def checkpoint_path(name):
    """Return where checkpoint `name` is: in ``data/checkpoints/``, or in ``data/runs/`` as an experiment made here.

    An alias leads to the checkpoint that it names.

    Raises:
        CheckpointError: an alias of a checkpoint that is not there.
    """
    shipped = data_dir() / "checkpoints" / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    if other := _aliases().get(name):
        if not (target := shipped.with_stem(other)).is_file():
            raise CheckpointError(f"{name!r} is another name of {other!r}, which is not in data/checkpoints")
        return target
    experiment = data_dir() / "runs" / f"{name}.safetensors"
    return experiment if experiment.is_file() else shipped


def _aliases():
    """Return {alias: name} from ``data/checkpoints/aliases.json``: second names of shipped checkpoints."""
    path = data_dir() / "checkpoints" / "aliases.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def checkpoint_names():
    """Return the names of the shipped checkpoints that are there and their aliases, sorted."""
    names = {path.stem for path in (data_dir() / "checkpoints").glob("[!.]*.safetensors")}  # no unfinished ones
    return sorted(names | {alias for alias, name in _aliases().items() if name in names})


def build(architecture, arguments):
    """Return an untrained model of class `architecture` in `helpers.models`.

    Raises:
        CheckpointError: there is no such class, or it does not take these arguments.
    """
    kind = getattr(models, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise CheckpointError(f"helpers.models has no denoiser {architecture!r}")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise CheckpointError(f"{architecture} does not take the arguments {arguments}: {error}") from error


def sha256(path):
    """Return the file's sha256 as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(tensors, path, metadata=None):
    """Write a dict of tensors as safetensors through a temporary name; shared storage is copied apart."""
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(copies, temporary, metadata)


def read_tensors(path):
    """Return the tensors in a safetensors file.

    Raises:
        CheckpointError: the file is no readable safetensors file; says which.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def save(model, name, card, half=True, folder="checkpoints"):
    """Write `model` as checkpoint `name`: the weights, then the card that vouches for them.

    Args:
        model: a denoiser of `helpers.models`.
        card: at least "architecture" and "arguments"; what else there is to say of its origin.
        half: store float16, else as it is.
        folder: "checkpoints" for what is shipped, "runs" for experiments.
    """
    path = data_dir() / folder / f"{name}.safetensors"
    state = model.state_dict()
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_tensors(state, path)
    write_json(path.with_suffix(".json"), {**card, "name": name, "sha256": sha256(path)})
    return path


def read_card(name):
    """Return the card of checkpoint `name` as a dict.

    Raises:
        FileNotFoundError: no such checkpoint; lists those there are.
        CheckpointError: the card is missing or is no JSON with the fields needed.
    """
    path = checkpoint_path(name)
    if not path.is_file():
        there = ", ".join(checkpoint_names()) or "none"
        raise FileNotFoundError(f"no checkpoint {name!r} in data/checkpoints (there: {there})")
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        card["architecture"], card["arguments"], card["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {name!r} needs a card {name}.json with architecture, arguments and sha256: "
                              f"{error!r}") from error
    return card


def load(name):
    """Return the trained denoiser `name`: float32, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: no such checkpoint; lists those there are.
        CheckpointError: the weights differ from the card's sha256, or do not fit the architecture it names.
        OtherViTError: `open_vit()` gives another ViT than the one that it was trained beside.
    """
    card, path = read_card(name), checkpoint_path(name)
    if sha256(path) != card["sha256"]:
        raise CheckpointError(f"{path.name} is not the file its card describes (sha256 differs): "
                              f"restore both, or train it again with `make train ONLY={name}`")
    model = build(card["architecture"], card["arguments"])
    try:
        if hasattr(model, "check_vit"):  # a frozen ViT's weights are not in the file: it must be the same one
            model.check_vit(card)
    except ValueError as error:
        raise OtherViTError(f"{path.name}: {error}") from error
    try:
        model.load_state_dict(read_tensors(path))  # float16 is turned into the model's float32
    except RuntimeError as error:
        wanted = f"{card['architecture']}({card['arguments']})"
        raise CheckpointError(f"{path.name} does not fit {wanted}: {error}") from error
    return model.eval()
