"""Trained denoisers on disk: one safetensors file each, weights and card together, verified on reading.

    save(model, "mine", {"architecture": "UNet", "arguments": {"width": 32}, "data": "my walls"})
    model, card = load("mine"), read_card("mine")

The card is JSON in the file's metadata, under the key "card": architecture and its arguments, data, seed, steps, git
revision, metrics, and a sha256 of the weights; ``python -m lab.cards`` prints it. Nothing here unpickles, and nothing
that a file says makes it go to the internet.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from helpers.models import Denoiser, check_finite_weights
from helpers.project import data_dir, plain
from surfaces.files import atomic_path

WANTED = {"architecture": (str, "the name of a class in helpers.models"), "arguments": (dict, "a dict of plain values"),
          "sha256": (str, "64 hexadecimal digits"), "vit": (dict, "a dict of name, sha256 and frozen")}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be trusted: broken, changed, or for another architecture."""


class OtherViTError(CheckpointError):
    """A hybrid's checkpoint beside another ViT than the one that it was trained beside."""


def checkpoint_path(name: str) -> Path:
    """Return where checkpoint `name` is: in ``data/checkpoints/``, or in ``data/runs/`` as an experiment made here.

    Where there is nothing of the name, return the path that a shipped one would have.
    """
    shipped = data_dir() / "checkpoints" / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    # An experiment never hides a checkpoint of the same name.
    experiment = data_dir() / "runs" / f"{name}.safetensors"
    return experiment if experiment.is_file() else shipped


def checkpoint_names() -> list[str]:
    """Return the names of the shipped checkpoints that are there, sorted."""
    return sorted(path.stem for path in (data_dir() / "checkpoints").glob("[!.]*.safetensors"))  # no unfinished ones


def build(architecture: str, arguments: dict) -> Denoiser:
    """Return an untrained denoiser of class `architecture` in `helpers.models`, or of lab where that is imported.

    Raise CheckpointError where there is no such class or it does not take these arguments, and FileNotFoundError where
    it is a hybrid and the ViT that `open_vit` looks for is not there.
    """
    if architecture not in Denoiser.kinds:  # a file may name whatever it likes: only a network of ours is called
        raise CheckpointError(f"helpers.models has no denoiser {architecture!r}")
    try:
        card = {"architecture": architecture, "arguments": arguments}
        return Denoiser.kinds[architecture].from_card(card)  # which fetches nothing
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{architecture} does not take the arguments {arguments}: {error}") from error


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Return a sha256 of tensors as hexadecimal digits: of names, types, shapes and bytes, in the order of the names.

    >>> tensors_sha256({"a": torch.zeros(2)}) == tensors_sha256({"a": torch.zeros(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # bfloat16 too, which numpy does not know
    return digest.hexdigest()


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a dict of tensors as safetensors in one step: a reader finds the old file or the new one, never half."""
    # safetensors refuses tensors that share memory, as tied weights do.
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialize(copies, metadata))  # safetensors' own writer leaves files that only we may read


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors in a safetensors file, on the CPU, and its metadata; CheckpointError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:  # opened once, so that both are of one file
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def save(model: Denoiser, name: str, card: dict, half: bool = True, folder: str = "checkpoints") -> Path:
    """Write a denoiser of `helpers.models` as checkpoint `name`, weights and card in one step; return the file's path.

    Args:
        card: what there is to say of its origin, fit for JSON. What the model says of itself (`Denoiser.card`:
            architecture, arguments, a hybrid's ViT), "name" and "sha256" are added.
        half: store float16, else as it is. Raise CheckpointError where weights are not finite in this precision.
        folder: "checkpoints" for what is shipped, "runs" for experiments.
    """
    path, state = data_dir() / folder / f"{name}.safetensors", model.state_dict()
    if half:  # half the size in git
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    # What could not be loaded again is not written: above 65504 half precision has only infinity.
    for key, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path.name} is not written: {key} holds NaN or infinity (stored as {value.dtype})")
    # The model and the weights have the last word: a card cannot name others.
    card = plain({**card, **model.card(), "name": name, "sha256": tensors_sha256(state)})
    save_tensors(state, path, {"card": json.dumps(card, ensure_ascii=False, allow_nan=False)})
    return path


def _read(name: str) -> tuple[dict[str, torch.Tensor], dict, str]:
    """Return tensors, card and file name of checkpoint `name`; what is raised, see `read_card`."""
    if not (path := checkpoint_path(name)).is_file():
        there = ", ".join(checkpoint_names()) or "none"
        raise FileNotFoundError(f"no checkpoint {name!r} in data/checkpoints (there: {there}): restore it from git, "
                                f"or train it with `python -m lab.train --only {name}`")
    tensors, metadata = read_tensors(path)
    try:
        card = json.loads(metadata["card"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} needs a card, JSON under the key 'card' of its metadata: "
                              f"{type(error).__name__}: {error}") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{path.name} needs a card, a JSON object, got {card!r:.80}")
    # A field of another type would fail later and name neither file nor field.
    for field, (kind, words) in WANTED.items():
        value = card.get(field)
        if not isinstance(value, kind) and (field in card or field != "vit"):  # hybrids alone have one
            raise CheckpointError(f"{path.name}: the card's field {field!r} must be {words}, got {value!r:.80}")
    return tensors, card, path.name


def read_card(name: str) -> dict:
    """Return the card of checkpoint `name`.

    Raise FileNotFoundError where there is no such file, CheckpointError where a card or a field of it is missing.
    """
    return _read(name)[1]


def load(name: str) -> Denoiser:
    """Return the trained denoiser `name`: float32, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: no such checkpoint; lists those there are and says how to train it.
        CheckpointError: the card is broken; the weights differ from its sha256, are not finite, or do not fit.
        OtherViTError: `open_vit()` gives another ViT than the one that it was trained beside.
    """
    tensors, card, file = _read(name)
    # The card vouches for the weights: a flipped bit is found here, and not seen later as a strange image.
    if tensors_sha256(tensors) != card["sha256"]:
        raise CheckpointError(f"{file} does not hold the weights that its card describes (sha256 differs): restore it "
                              f"from git, or train it again with `make train ONLY={name}`")
    try:
        model = build(card["architecture"], card["arguments"])
        model.check_card(card)  # a frozen ViT's weights are not in the file: it must be the same one
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except ValueError as error:
        raise OtherViTError(f"{file}: {error}") from error
    # Last the weights: they must fit, and none may be NaN, which would make every image black.
    try:
        model.load_state_dict(tensors)  # float16 is turned into the model's float32
        check_finite_weights(model)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit {card['architecture']}({card['arguments']}): {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return model.eval()
