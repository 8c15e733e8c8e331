"""Denoise a picture of any size in overlapping tiles; from a shell: ``python -m helpers.denoise IN OUT``.

Tiles start at multiples of 8, so that their pooling grids are the picture's; what is missing at its end is mirrored. Of
an overlap each of the two neighbours gives up its outer margin, where it lacks surroundings; between the margins they
cross-fade by a raised cosine. All weights sum to 1, and a tile enters with a weight far below 1/255: whatever a model
makes of its tiles, the border of one is never a step above 1/255. Beside picture and result only a band is in memory.
"""

import argparse
import math
import sys
import time
import warnings
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import nn
from tqdm.auto import tqdm

from helpers.checkpoints import CheckpointError, checkpoint_names, load
from helpers.project import pick_device
from surfaces.files import atomic_path
from surfaces.photos import EXIF_ORIENTATION, SUFFIXES, read_photo

TILE = 768  # pixels; on a CPU cheaper than 512 (which overlaps more) and below 1 GB for a U-Net of width 32
RAMP = 32  # pixels of cross-fade; the weight at its first pixel, (pi / 4 / 32) ** 2 = 0.0006, is far below 1/255
# How far an output pixel of `UNet` sees: two 3 x 3 convolutions in each stage down, in the bottleneck and in each stage
# up are 2 * (1 + 2 + 4 + 8 + 4 + 2 + 1) = 44 pixels, the pooling grids add up to 1 + 2 + 4 = 7: 51, rounded up.
RADIUS = 52
DEFAULTS = ("hybrid_sharp", "hybrid", "unet")  # the first of these checkpoints that is there
WRITABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm")


def denoise(model, image, tile=None, overlap=None, batch_size=None, progress=False):
    """Denoise a picture of any size, from 1 x 1 to 100 megapixels and more.

    With the default tiles `UNet` gives what it gives for the whole picture in one piece (to 1e-5), with a smaller
    `overlap` only away from the overlaps. The model works in its own precision, on its device and in eval mode.

    Args:
        model: a denoiser, (B, 3, h, w) to (B, 3, h, w). `model.size`, where there is one, is the only size it takes,
            `model.tile` the size it prefers, `model.multiple` what h and w must be multiples of (else 8).
        image: numpy (H, W, 3) or torch (3, H, W); uint8, or floating point in [0, 1] (others pass as they are).
        tile: side of the tiles in pixels at most, a multiple of 8; default the model's, else 768.
        overlap: pixels that neighbours share at least; default 136 (the radii of both, and 32 to cross-fade), for
            tiles below 454 less. From 16 on no border of a tile is a step above 1/255.
        batch_size: tiles at once; default 768 x 768 pixels of them.
        progress: show a bar that counts tiles.

    Returns:
        The denoised picture: same kind, shape and dtype, torch on the picture's device. Floating point is what the
        model says, unclipped; uint8 is clipped and rounded.

    Raises:
        TypeError: `model` is no `torch.nn.Module`; `image` is neither array nor tensor, or of another dtype.
        ValueError: another shape, an empty picture, NaN or infinity in it; a tile, overlap or batch size that cannot
            be; a model whose output is not of its input's shape.

    Example:
        >>> denoise(nn.Identity(), np.full((5, 1, 3), 0.25, np.float32)).shape
        (5, 1, 3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module such as load('unet'), got {type(model).__name__}")
    height, width = _check_picture(image)
    down, across = _lay_tiles(model, (height, width), tile, overlap)
    if batch_size is None:
        batch_size = max(1, TILE * TILE // (down.size * across.size))
    elif batch_size != int(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")

    output, home = (np if isinstance(image, np.ndarray) else torch).empty_like(image), image.device
    bar = tqdm(total=len(down.starts) * len(across.starts), unit="tile", disable=not progress)
    with bar, _evaluating(model), torch.inference_mode():
        # rows of tiles add to a band of the picture; what no later row touches is written and leaves the band
        band = torch.zeros(3, down.size, across.starts[-1] + across.size, device=home)
        for y, until, weight in zip(down.starts, [*down.starts[1:], height], down.weights, strict=True):
            for first in range(0, len(across.starts), batch_size):
                columns = across.starts[first:first + batch_size]
                tiles = torch.stack([_cut(image, y, x, down.size, across.size) for x in columns])  # (B, 3, h, w)
                denoised = _run(model, tiles).to(home)
                for x, piece, fade in zip(columns, denoised, across.weights[first:], strict=False):
                    band[:, :, x:x + across.size] += piece * (weight[:, None] * fade).to(home)
                bar.update(len(columns))
            _write(output, y, until, band[:, :until - y, :width])
            band = torch.cat([band[:, until - y:], torch.zeros_like(band[:, :until - y])], dim=1)
    return output


def _check_picture(image):
    """Return (H, W); raise TypeError or ValueError where `image` is no picture."""
    if isinstance(image, np.ndarray):
        kind, wanted, channels, size = "numpy", "(H, W, 3)", image.shape[2:], image.shape[:2]
        known, finite = image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating), np.isfinite
    elif isinstance(image, torch.Tensor):
        kind, wanted, channels, size = "torch", "(3, H, W)", image.shape[:-2], image.shape[-2:]
        known, finite = image.dtype == torch.uint8 or image.is_floating_point(), torch.isfinite
    else:
        raise TypeError(f"image must be a numpy array (H, W, 3) or a torch tensor (3, H, W), got {type(image)}")
    if tuple(channels) != (3,) or 0 in size:
        raise ValueError(f"a {kind} picture must have shape {wanted} with H and W at least 1, got {tuple(image.shape)}")
    if not known:
        raise TypeError(f"a picture must be floating point in [0, 1] or uint8, got {image.dtype}")
    if bad := sum(int((~finite(part)).sum()) for part in image):  # in parts, so that no second picture is in memory
        raise ValueError(f"the picture has {bad} NaN or infinite values; wanted finite ones in [0, 1]")
    return tuple(size)


class _Tiles(NamedTuple):
    starts: list  # first pixels of the tiles, multiples of the model's `multiple`
    size: int  # pixels, the same for all
    weights: torch.Tensor  # (tiles, size) float32, sum to 1 at every pixel


def _lay_tiles(model, shape, tile=None, overlap=None):
    """Return the `_Tiles` of rows and of columns for a picture of `shape` (H, W)."""
    only, likes, multiple = getattr(model, "size", None), getattr(model, "tile", None), getattr(model, "multiple", 8)
    tile = only or likes or -(-TILE // multiple) * multiple if tile is None else tile
    if tile != int(tile) or tile < multiple or tile % multiple:
        raise ValueError(f"tile must be a multiple of {multiple} pixels, got {tile!r}")
    if only and tile != only:
        raise ValueError(f"tile must be {only}, the one size that {type(model).__name__} takes, got {tile}")
    if overlap is None:
        half = tile // 2 // multiple * multiple  # so that no three tiles meet in a row
        overlap = min(2 * RADIUS + RAMP, max(3 * tile // 10, min(half, RAMP)), tile - multiple)
    if overlap != int(overlap) or not 0 <= overlap <= tile - multiple:
        raise ValueError(f"overlap must be in 0..{tile - multiple} pixels for tiles of {tile}, got {overlap!r}")
    whole = [max(-(-length // multiple) * multiple, only or 0) for length in shape]
    return [_lay_line(length, tile, overlap, multiple, shrink=not (only or likes)) for length in whole]


def _lay_line(length, tile, overlap, multiple, shrink):
    """Spread tiles evenly over `length` pixels; with `shrink` no larger than their number and the overlap ask for."""
    if length <= tile:
        return _Tiles([0], length, torch.ones(1, length))
    units, whole = tile // multiple, length // multiple
    step = (tile - overlap) // multiple  # rounded down, so that neighbours share at least `overlap`
    count = -(-(whole - units) // step) + 1
    if shrink:
        units = -(-(whole + (count - 1) * (units - step)) // count)
    starts = [i * (whole - units) // (count - 1) * multiple for i in range(count)]
    size = units * multiple
    # The outermost pixels of an overlap, up to the U-Net's radius, count for nothing; the rest is the cross-fade.
    ramp = max(overlap - 2 * min(max((overlap - RAMP) // 2, 0), RADIUS), 1)
    middles = [(a + size + b) / 2 for a, b in zip(starts, starts[1:], strict=False)]  # of the overlaps
    pixels = torch.tensor(starts, dtype=torch.float64)[:, None] + torch.arange(size) + 0.5  # (tiles, size)

    def past(middle):  # 0 before the cross-fade around `middle`, 1 after it
        place = (pixels - torch.tensor(middle, dtype=torch.float64)[:, None]) / ramp + 0.5
        return torch.sin(math.pi / 2 * place.clamp(0, 1)) ** 2

    # a difference of steps: sums to 1 however many tiles meet at a pixel
    return _Tiles(starts, size, (past([-math.inf, *middles]) - past([*middles, math.inf])).float())


def _cut(image, y, x, height, width):
    """Return a tile as (3, height, width) float32; beyond the picture's end it is mirrored, its edge not repeated."""
    array = isinstance(image, np.ndarray)
    rows, columns = (_mirror(*place) for place in zip((y, x), (height, width), image.shape[not array:], strict=False))
    if array:
        tile = torch.from_numpy(image[np.ix_(rows, columns)].astype(np.float32)).permute(2, 0, 1)
    else:
        tile = image[:, torch.from_numpy(rows)[:, None], torch.from_numpy(columns)].float()
    return tile / 255 if image.dtype in (np.uint8, torch.uint8) else tile


def _mirror(start, count, length):
    turn = max(2 * (length - 1), 1)  # there and back, as often as it takes
    index = np.arange(start, start + count) % turn
    return np.minimum(index, turn - index)


def _run(model, tiles):
    """Return `model(tiles)`, float32 and of the tiles' shape, computed where and in what precision the model is."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), tiles)
    # convolutions on a CPU are a third faster with channels last; other layers may count on the order in memory
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    order = torch.channels_last if convolves else torch.contiguous_format
    denoised = model(tiles.to(weight.device, weight.dtype, memory_format=order))
    got = tuple(getattr(denoised, "shape", ())) or type(denoised)
    if got != tuple(tiles.shape):
        raise ValueError(f"a denoiser must return shape {tuple(tiles.shape)}, {type(model).__name__} returned {got}")
    return denoised.float()


def _write(output, y, until, rows):
    """Write finished `rows`, (3, until - y, W) float32, in the output's dtype."""
    if output.dtype in (np.uint8, torch.uint8):
        rows = (rows * 255).round_().clamp_(0, 255)
    if isinstance(output, np.ndarray):
        output[y:until] = rows.permute(1, 2, 0).numpy()
    else:
        output[:, y:until] = rows


@contextmanager
def _evaluating(model):
    modes = [(module, module.training) for module in model.modules()]  # one by one: a frozen half may stay in eval mode
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _read_bytes(path):
    """`read_photo` as (H, W, 3) uint8; the common kinds without its float32 copies, 1.2 GB each at 100 megapixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photographs are what this is for
        try:
            with Image.open(path) as image:
                plain = image.mode in ("RGB", "L") and not image.has_transparency_data
                plain = plain and not any("16" in str(part.args) for part in image.tile)
                if plain and (image.format != "TIFF" or image.getexif().get(EXIF_ORIENTATION, 1) == 1):
                    ImageOps.exif_transpose(image, in_place=True)
                    if profile := image.info.get("icc_profile"):
                        profile, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
                        image = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
                    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, ImageCms.PyCMSError):
            pass  # read_photo tries more, and has the words where that does not help either
        return np.round(read_photo(path) * 255).astype(np.uint8)


def _pairs(source, target):
    """Return (picture, where its result goes) for IN and OUT; raise ValueError where they make no sense."""
    if not source.exists():
        raise ValueError(f"IN must be a picture or a folder of pictures, there is no {source}")
    if not source.is_dir():
        target = target / f"{source.stem}.png" if target.is_dir() else target
        if target.suffix.lower() not in WRITABLE:
            raise ValueError(f"OUT must be a folder that is there or end in one of {', '.join(WRITABLE)}; got {target}")
        return [(source, target)]
    if target.is_file() or target.suffix.lower() in WRITABLE or target.resolve() == source.resolve():
        raise ValueError(f"IN is a folder, so OUT must be another folder, got {target}")
    files = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    for path in sorted(set(files) - set(pictures)):
        print(f"{path}: left out, no picture by its name", file=sys.stderr)
    if not pictures:
        raise ValueError(f"no pictures in {source} (wanted {', '.join(SUFFIXES)})")
    return [(path, target / f"{path.stem}.png") for path in pictures]


def _denoise_file(model, source, target, taken, force):
    """Denoise one file; return (H, W, 3). Raise FileExistsError where that would overwrite something."""
    if target.resolve() in taken or (target.exists() and any(target.samefile(path) for path in taken if path.exists())):
        raise FileExistsError(f"{source}: {target} is a photograph of IN or the result of another, never overwritten")
    if target.exists() and not force:
        raise FileExistsError(f"{source}: {target} is there already (--force overwrites it)")
    denoised = denoise(model, _read_bytes(source), progress=sys.stderr.isatty())
    quality = {"quality": 95} if target.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    with atomic_path(target) as temporary:
        Image.fromarray(denoised).save(temporary, **quality)
    return denoised.shape


def main(arguments=None):
    """Denoise pictures as the command line says; return its exit status: 0, or 1 where a picture failed."""
    parser = argparse.ArgumentParser(prog="python -m helpers.denoise", description=(
        "Denoise a photograph of any size, or those of a folder. Results are 8 bit sRGB, of the same size and upright. "
        "Exit status: 0, 1 where a photograph failed (stderr says which and why; the rest goes on), 2 for misuse."))
    parser.add_argument("input", metavar="IN", type=Path, help="a photograph, or a folder of them")
    parser.add_argument("output", metavar="OUT", type=Path, help="the result, or a folder: names are kept, with .png")
    parser.add_argument("--model", metavar="NAME", help=f"checkpoint; default the first there of {', '.join(DEFAULTS)}")
    parser.add_argument("--force", action="store_true", help="overwrite results, though never a photograph of IN")
    options = parser.parse_args(arguments)
    try:
        name = options.model or next((name for name in DEFAULTS if name in checkpoint_names()), DEFAULTS[-1])
        model, pairs = load(name).to(pick_device()), _pairs(options.input, options.output)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))  # exits with 2
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    taken, failed = {source.resolve() for source, _ in pairs}, 0
    for source, target in pairs:
        started = time.monotonic()
        try:
            height, width, _ = _denoise_file(model, source, target, taken, options.force)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            failed += 1
            print(error if str(source) in str(error) else f"{source}: {error!r}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"{source}: stopped before it was done", file=sys.stderr)
            return 130
        else:
            taken.add(target.resolve())
            seconds = time.monotonic() - started
            print(f"{source} -> {target}, {width} x {height} pixels, {name}, {seconds:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
