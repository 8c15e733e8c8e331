"""Photographs from disk: read one as sRGB, read a crack mask, cut tiles.

What cannot be understood raises an error that names the file and says what was wanted. Cutting tiles looks at headers
only; pixels are decoded when a tile is read.
"""

import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

TILE = 224
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".jp2")
EXIF_ORIENTATION = 0x0112
TURNS = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
         6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}


class Photo(NamedTuple):
    """One photograph on disk: `mask` is None without one; `group` holds photographs of one place together."""

    name: str
    path: Path
    mask: Path | None
    photo: str
    group: str
    source: str
    split: str


class Tile(NamedTuple):
    """A square of `size` pixels at row `y`, column `x` of a photograph: NAME_r0c1, or NAME where it is all of it."""

    name: str
    image: Photo
    y: int
    x: int
    size: int


def read_photo(path):
    """Read one photograph as sRGB, the way a viewer would show it.

    8 and 16 bit, grey, palette and CMYK; transparency is laid on white, the EXIF orientation applied (in a PNG where it
    stands before the pixels) and an embedded colour profile converted to sRGB (at 8 bit). Of several frames the first.
    16 bit goes through OpenCV, because Pillow keeps 8 bit of colour.

    Args:
        path: the file (str or Path).

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a picture, a broken one, or neither 8 nor 16 bit per channel. The message names the path.
    """
    image, deep, orientation = _open(path)
    profile = image.info.get("icc_profile") if image is not None else None
    alpha = None
    if deep:
        pixels = _read_deep(path, image)
        if pixels.shape[2] == 4:
            pixels, alpha = pixels[..., :3], pixels[..., 3]
        if profile:
            eight_bit = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
            pixels = _to_srgb(eight_bit.convert("L") if image.mode.startswith(("I", "L")) else eight_bit, profile, path)
    else:
        _load(image, path)
        if image.has_transparency_data:
            shown = image.convert("RGBA")
            alpha = np.asarray(shown.getchannel("A"), np.float32) / 255
            image = image.getchannel("L") if image.mode == "LA" else shown.convert("RGB")
        elif image.mode not in ("RGB", "L", "CMYK"):
            image = image.convert("RGB")
        pixels = _to_srgb(image, profile, path)
    if alpha is not None:
        pixels = pixels * alpha[..., None] + (1 - alpha[..., None])
    return np.ascontiguousarray(_turn(pixels, orientation), dtype=np.float32)


def read_mask(path):
    """Read a crack mask: crack where grey is above half, in a palette where the colour is not black, in 0/1 files at 1.

    Returns:
        (H, W) bool.

    Raises:
        FileNotFoundError, ValueError: as `read_photo`.
    """
    image, deep, orientation = _open(path)
    if deep:
        mask = _read_deep(path, image)[..., :3].mean(axis=2) > 0.5
    else:
        _load(image, path)
        grey = np.asarray(image.convert("RGB").convert("L"))
        mask = grey > (0 if image.mode in ("P", "PA") or grey.max(initial=0) <= 1 else 127)
    return np.ascontiguousarray(_turn(mask, orientation))


def read_tile(tile, cache=None):
    """Read a tile's pixels and mask.

    Args:
        tile: a `Tile`.
        cache: a dict that keeps the last photograph, so that its tiles in a row decode it once.

    Returns:
        (size, size, 3) float32 in [0, 1] and (size, size) bool; the mask is all False where the photograph has none.
    """
    cache = {} if cache is None else cache
    if tile.image.path not in cache:
        cache.clear()
        cache[tile.image.path] = read_pair(tile.image)
    pixels, mask = cache[tile.image.path]
    window = np.s_[tile.y:tile.y + tile.size, tile.x:tile.x + tile.size]
    return pixels[window], mask[window]


def read_pair(photo):
    """Read a `Photo` and its mask (all False without one): (H, W, 3) float32 in [0, 1] and (H, W) bool."""
    pixels = read_photo(photo.path)
    mask = read_mask(photo.mask) if photo.mask else np.zeros(pixels.shape[:2], bool)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(_other_size(photo, mask.shape, pixels.shape))
    return pixels, mask


def read_size(path):
    """Return (height, width) as `read_photo` would, from the file's header alone where Pillow knows the format."""
    image, _, orientation = _open(path)
    if image is None:
        return _read_deep(path, None).shape[:2]
    with image:
        width, height = image.size
    return (width, height) if orientation >= 5 else (height, width)


def list_tiles(photos, size=TILE):
    """Cut photographs into tiles: as many as fit side by side without overlap, spread evenly from edge to edge.

    Reads headers: a missing file, one that is no picture, a mask of another size and a photograph smaller than `size`
    are found here.

    Args:
        photos: list of `Photo`.
        size: side of a tile in pixels.

    Returns:
        List of `Tile`, in the order of `photos`, row by row.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    tiles = []
    for photo in photos:
        height, width = check_size(photo, size)
        rows, columns = _starts(height, size), _starts(width, size)
        whole = (height, width) == (size, size)
        tiles += [Tile(photo.name if whole else f"{photo.name}_r{r}c{c}", photo, y, x, size)
                  for r, y in enumerate(rows) for c, x in enumerate(columns)]
    refuse_twice([(tile.name, tile.image.path) for tile in tiles])
    return tiles


def check_size(photo, smallest):
    """Return a `Photo`'s (height, width) from its header; raise ValueError where too small or unlike its mask's."""
    size = read_size(photo.path)
    if min(size) < smallest:
        raise ValueError(f"{photo.path}: wanted a photograph of at least {smallest} x {smallest} pixels, "
                         f"got {size[0]} x {size[1]}")
    if photo.mask and (mask := read_size(photo.mask)) != size:
        raise ValueError(_other_size(photo, mask, size))
    return size


def _starts(length, size):
    count = length // size
    return [(length - size) // 2] if count == 1 else [round(i * (length - size) / (count - 1)) for i in range(count)]


def _other_size(photo, mask, size):
    return (f"{photo.mask}: wanted a mask of its photograph's size, {size[0]} x {size[1]} ({photo.path.name}), "
            f"got {mask[0]} x {mask[1]}")


def _open(path):
    """Return Pillow's unread image (None if it knows none), whether OpenCV must read it, how its pixels are turned."""
    try:
        image = Image.open(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such picture") from error
    except UnidentifiedImageError:
        return None, True, 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: wanted a picture, could not open it: {error}") from error
    raw = image.tile[0][3] if image.tile else ""
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    deep = "16" in str(raw) or image.mode.startswith(("I", "F"))
    # Pillow would decode a whole PNG to look for EXIF data behind the pixels, where hardly any has it
    early = image.format != "PNG" or "exif" in image.info
    orientation = image.getexif().get(EXIF_ORIENTATION, 1) if early else 1
    if image.format == "TIFF":  # OpenCV turns it, Pillow scrambles the ones on their side
        return image, deep or orientation != 1, 1
    return image, deep, orientation


def _load(image, path):
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: wanted a whole picture, it breaks off or is damaged: {error}") from error


def _read_deep(path, image):
    """Read with OpenCV what is deeper than 8 bit, as (H, W, 3 or 4) float32 RGB(A) in [0, 1]."""
    if image is not None:
        _load(image, path)  # finds a broken file, where OpenCV may return half of it
    try:  # not cv2.imread, which has no non-ASCII paths on Windows
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"{path}: wanted a whole picture ({', '.join(SUFFIXES)}), got a file that neither Pillow "
                         "nor OpenCV reads")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: wanted 8 or 16 bit per channel, got {pixels.dtype}")
    pixels = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return pixels[..., [2, 1, 0, 3][:pixels.shape[2]]]  # BGR(A) to RGB(A)


def _turn(pixels, orientation):
    return TURNS.get(orientation, np.asarray)(pixels)


def _to_srgb(image, profile, path):
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            warnings.warn(f"{path}: its colour profile cannot be used ({error}); taken as sRGB", stacklevel=3)
    return np.asarray(image.convert("RGB"), np.float32) / 255


def refuse_twice(pairs, what="name"):
    """Raise ValueError where the same key comes twice in (key, where) pairs, naming both places."""
    seen = {}
    for key, where in pairs:
        if key in seen:
            raise ValueError(f"the {what} {key} comes twice: {seen[key]} and {where}; wanted every {what} once")
        seen[key] = where


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Return an image as uint8: the one rule of the whole project, value * 255 rounded half up.

    Args:
        image: array of any shape; floating point in [0, 1] (what lies outside is clipped, NaN becomes 0), or uint8.

    Returns:
        uint8 array of the same shape; an image that is uint8 already is returned as it is, not copied.

    Raises:
        TypeError: another dtype, of which nobody can say where its white is.

    >>> to_uint8(np.float32([-1, 0, 0.5, 1, 2])).tolist()
    [0, 0, 128, 255, 255]
    """
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"an image must be floating point in [0, 1] or uint8, got {image.dtype}")
    # half precision has too few digits for 255 steps and a half
    image = image.astype(np.float32) if image.dtype == np.float16 else image
    return np.uint8(np.clip(np.nan_to_num(image), 0, 1) * 255 + 0.5)
