"""Denoise an image of any size in overlapping tiles; from a shell: ``python -m helpers.denoise IN OUT``.

    denoised = denoise(load("unet"), image)     # numpy (H, W, 3) or torch (3, H, W), and the same comes back

Neighbouring tiles cross-fade (`surfaces.tiling`), so that no border of one is a step above 1/255, whatever a model
makes of them. What is missing at the image's end is mirrored. Beside image and result only a band is in memory.
"""

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.checkpoints import CheckpointError, load
from helpers.models import Denoiser, check_finite_weights
from helpers.project import bfloat16_is_fast, pick_device
from surfaces.batch import process_files
from surfaces.folders import list_outputs
from surfaces.tiling import Tiles, lay_tiles, mirror

TILE = 768  # pixels; on a CPU cheaper than 512 (which overlaps more) and below 1 GB for a U-Net of width 32


def denoise(model: nn.Module, image: np.ndarray | Tensor, tile: int | None = None, overlap: int | None = None,
            batch_size: int | None = None, progress: bool = False, fast: bool = False) -> np.ndarray | Tensor:
    """Return an image of any size denoised: of its kind, shape, dtype and device; uint8 rounded, floats unclipped.

    With the default tiles `UNet` gives what it gives for the whole image in one piece (to 1e-5), with a smaller
    `overlap` only away from the overlaps. The model works in its own precision, on its device and in eval mode, also
    for several threads at once.

    Args:
        model: a `Denoiser`, which says what sizes it takes and how far it sees; or another network from (B, 3, h, w) to
            (B, 3, h, w), which is taken to be like a `UNet` of three stages in that.
        image: numpy (H, W, 3) or torch (3, H, W); uint8, or floating point, clipped to [0, 1] first (as in training).
        tile: side of the tiles in pixels at most, a multiple of 8; default the model's, else 768.
        overlap: pixels that neighbours share at least; default both radii and 32 to cross-fade (136 for `UNet`), for
            small tiles (below 454) less. From 16 on no border of a tile is a step above 1/255.
        batch_size: tiles at once; default 768 x 768 pixels of them.
        fast: compute in bfloat16 where the processor has it: a third of the time and 0.003 dB less (`unet`, sigma 50).

    Raises:
        TypeError: `model` is no `torch.nn.Module`; `image` is neither array nor tensor, or of another dtype.
        ValueError: another shape, an empty image, NaN or infinity in it or in a weight; a tile, overlap or batch size
            that cannot be; a model whose output is not of its input's shape.

    >>> denoise(nn.Identity(), np.full((5, 1, 3), 0.25, np.float32)).shape
    (5, 1, 3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module such as load('unet'), got {type(model).__name__}")
    check_finite_weights(model)  # one NaN makes the whole image black
    seen = _check_image(image)  # (3, H, W), whatever the library
    height, width = seen.shape[1:]
    down, across = _lay_tiles(model, (height, width), tile, overlap)
    if batch_size is None:  # as much at once as one large tile
        batch_size = max(1, TILE * TILE // (down.size * across.size))
    elif batch_size != int(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")

    array, home = isinstance(image, np.ndarray), image.device  # numpy's is "cpu"
    output = (np if array else torch).empty_like(image)
    written = np.moveaxis(output, -1, 0) if array else output  # (3, H, W) of the same memory
    bar = tqdm(total=len(down.starts) * len(across.starts), unit="tile", disable=not progress)
    with bar, evaluating(model), torch.inference_mode():
        # rows of tiles add to a band of the image; what no later row touches is written and leaves the band
        band = torch.zeros(3, down.size, across.starts[-1] + across.size, device=home)
        for y, until, weight in zip(down.starts, [*down.starts[1:], height], down.weights, strict=True):
            for first in range(0, len(across.starts), batch_size):
                # cut as many tiles as go through the model at once
                columns = across.starts[first:first + batch_size]
                tiles = torch.stack([_cut(seen, y, x, down.size, across.size) for x in columns])  # (B, 3, h, w)
                denoised = _run(model, tiles, fast).to(home)
                # lay each into the band, faded where its neighbours overlap it
                for x, piece, fade in zip(columns, denoised, across.weights[first:], strict=False):
                    band[:, :, x:x + across.size] += piece * torch.from_numpy(weight[:, None] * fade).to(home)
                bar.update(len(columns))
            rows = band[:, :until - y, :width]
            if image.dtype in (np.uint8, torch.uint8):  # floating point stays as the model says
                rows = (rows * 255).round_().clamp_(0, 255)
            written[:, y:until] = rows.numpy() if array else rows
            # the rows that the next tiles add to move up, with empty ones behind them
            band = torch.cat([band[:, until - y:], torch.zeros_like(band[:, :until - y])], dim=1)
    return output


def _check_image(image: Any) -> np.ndarray | Tensor:
    """Return `image` seen as (3, H, W), without a copy; raise TypeError or ValueError where it is no image."""
    if isinstance(image, np.ndarray):
        wanted, seen = "numpy image must have shape (H, W, 3)", np.moveaxis(image, -1, 0) if image.ndim else image
        floating, finite = np.issubdtype(image.dtype, np.floating), np.isfinite
    elif isinstance(image, Tensor):
        wanted, seen = "torch image must have shape (3, H, W)", image
        floating, finite = image.is_floating_point(), torch.isfinite
    else:
        raise TypeError(f"image must be a numpy array (H, W, 3) or a torch tensor (3, H, W), got {type(image)}")
    if seen.ndim != 3 or len(seen) != 3 or 0 in seen.shape:
        raise ValueError(f"a {wanted} with H and W at least 1, got {tuple(image.shape)}")
    if not floating and image.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"an image must be floating point in [0, 1] or uint8, got {image.dtype}")
    if bad := sum(int((~finite(part)).sum()) for part in image):  # in parts, so that no second image is in memory
        raise ValueError(f"the image has {bad} NaN or infinite values; wanted finite ones in [0, 1]")
    return seen


_SWITCHED: dict[tuple[int, str], list[Any]] = {}  # (id of a part, its switch): [value before, who needs it off]
_LOCK = threading.Lock()


@contextmanager
def evaluating(model: nn.Module, freeze: bool = False) -> Iterator[None]:
    """Put a network in eval mode for a while, with `freeze` also freeze its weights; then put back what was switched.

    Several threads may be inside at once, with one network or its parts: the first switches off, the last puts back.
    """
    # one by one: a frozen half may have been in eval mode before
    switches = [(module, "training") for module in model.modules()]
    if freeze:
        switches += [(weight, "requires_grad") for weight in model.parameters()]
    with _LOCK:
        for part, switch in switches:
            _SWITCHED.setdefault((id(part), switch), [getattr(part, switch), 0])[1] += 1
            setattr(part, switch, False)
    try:
        yield
    finally:
        with _LOCK:
            for part, switch in switches:
                _SWITCHED[id(part), switch][1] -= 1
                if _SWITCHED[id(part), switch][1] == 0:  # nobody else is inside
                    setattr(part, switch, _SWITCHED.pop((id(part), switch))[0])


def _lay_tiles(model: nn.Module, shape: Sequence[int], tile: int | None = None,
               overlap: int | None = None) -> list[Tiles]:
    """Return the `Tiles` of rows and of columns for an image of `shape` (H, W), as the model wants them."""
    rule = model if isinstance(model, Denoiser) else Denoiser  # what another network takes nobody knows
    if tile is None:
        tile = rule.size or rule.tile or -(-TILE // rule.multiple) * rule.multiple
    elif rule.size and tile != rule.size:
        raise ValueError(f"tile must be {rule.size}, the one size that {type(model).__name__} takes, got {tile}")
    return lay_tiles(shape, tile, overlap, rule.multiple, rule.radius, bool(rule.size or rule.tile), rule.size or 1)


def _cut(image: np.ndarray | Tensor, y: int, x: int, height: int, width: int) -> Tensor:
    """Return a tile (3, height, width) of (3, H, W), float32; beyond the end it is mirrored, the edge not repeated."""
    rows, columns = mirror(y, height, image.shape[1])[:, None], mirror(x, width, image.shape[2])
    tile = image[:, rows, columns]
    tile = tile.float() if isinstance(tile, Tensor) else torch.from_numpy(tile.astype(np.float32))
    return tile / 255 if image.dtype in (np.uint8, torch.uint8) else tile.clamp(0, 1)


def _run(model: nn.Module, tiles: Tensor, fast: bool) -> Tensor:
    """Return `model(tiles)`, float32, of the tiles' shape, made where the model is; if not fast in its precision."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), tiles)
    # convolutions on a CPU are a third faster with channels last; other layers may count on the order in memory
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    order = torch.channels_last if convolves else torch.contiguous_format
    tiles = tiles.to(weight.device, weight.dtype, memory_format=order)
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=fast and bfloat16_is_fast(weight.device)):
        denoised = model(tiles)  # (B, 3, h, w), else it is no denoiser
    got = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised)
    if got != tuple(tiles.shape):
        raise ValueError(f"a denoiser must return shape {tuple(tiles.shape)}, {type(model).__name__} returned {got}")
    return denoised.float()


def main(arguments: Sequence[str] | None = None) -> int:
    """Denoise images as the command line says; return its exit status: 0, or 1 where an image failed."""
    parser = argparse.ArgumentParser(prog="python -m helpers.denoise", description=(
        "Denoise a photograph of any size, or those of a folder. Results are 8 bit sRGB, of the same size and upright. "
        "Exit status: 0, 1 where a photograph failed (stderr says which and why; the rest goes on), 2 for misuse."))
    parser.add_argument("input", metavar="IN", type=Path, help="a photograph, or a folder of them")
    parser.add_argument("output", metavar="OUT", type=Path, help="the result, or a folder: names are kept, with .png")
    parser.add_argument("--model", metavar="NAME", default="unet", help="checkpoint; default %(default)s")
    parser.add_argument("--force", action="store_true", help="overwrite results, though never a photograph of IN")
    options = parser.parse_args(arguments)
    try:
        model, pairs = load(options.model).to(pick_device()), list_outputs(options.input, options.output)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))  # exits with 2
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        work = partial(denoise, model, progress=sys.stderr.isatty(), fast=True)
        failed = process_files(pairs, work, options.model, options.force)
    except KeyboardInterrupt:
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
