"""Photographs on disk: read one the way a viewer would show it, read a crack mask, and write both back.

    image = read_photo("wall.jpg")            # (H, W, 3) float32 in [0, 1], sRGB, upright
    mask = read_mask("wall_mask.png")         # (H, W) bool
    write_photo("wall-denoised.png", image)

What cannot be understood raises an error that names the file and says what was wanted.
"""

import warnings
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from surfaces.files import atomic_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".jp2")  # of what is read
WRITABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm")  # of what `write_photo` writes
LOSSLESS = (".png", ".tif", ".tiff", ".bmp")  # of what `write_mask` writes
LOSSY = {"quality": 95}  # of 100: an error of JPEG's own far below that of a denoiser
LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}  # pixels that a format can hold at most
EXIF_ORIENTATION = ExifTags.Base.Orientation


def read_photo(path: str | Path) -> np.ndarray:
    """Read one photograph as sRGB, the way a viewer would show it.

    8 and 16 bit, grey, palette and CMYK; transparency is laid on white, the EXIF orientation applied (in a PNG where it
    stands before the pixels) and an embedded colour profile converted to sRGB (at 8 bit). Of several frames the first.
    16 bit goes through OpenCV, because Pillow keeps 8 bit of colour.

    Args:
        path: the file.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an image, a broken one, or neither 8 nor 16 bit per channel. The message names the path.
    """
    return np.ascontiguousarray(_as_floats(_read_srgb(path)))


def read_photo_uint8(path: str | Path) -> np.ndarray:
    """Read one photograph as (H, W, 3) uint8: `to_uint8(read_photo(path))` in a quarter of the memory.

    Raises:
        FileNotFoundError, ValueError: as `read_photo`.
    """
    return np.ascontiguousarray(to_uint8(_read_srgb(path)))


def read_mask(path: str | Path) -> np.ndarray:
    """Read a crack mask: crack where grey is above half, in a palette where the colour is not black, in 0/1 files at 1.

    Returns:
        (H, W) bool.

    Raises:
        FileNotFoundError, ValueError: as `read_photo`.
    """
    image, deep, orientation = _open(path)
    if deep:
        return np.ascontiguousarray(_read_deep(path, image, orientation)[..., :3].mean(axis=2) > 0.5)
    image = _load(image, path, orientation)
    grey = np.asarray(image.convert("RGB").convert("L"))
    return grey > (0 if image.mode in ("P", "PA") or grey.max(initial=0) <= 1 else 127)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) as `read_photo` would, from the file's header alone where Pillow knows the format.

    Raises:
        FileNotFoundError, ValueError: as `read_photo`.
    """
    image, _, orientation = _open(path)
    if image is None:
        return _read_deep(path, None, orientation).shape[:2]
    with image:
        width, height = image.size
    return (width, height) if orientation >= 5 else (height, width)


def write_photo(path: str | Path, image: np.ndarray) -> None:
    """Write an image as 8 bit sRGB in the format of the path's suffix; a file that is there is replaced in one step.

    Folders on the way are made. JPEG and WebP are written at quality 95, the others without loss.

    Args:
        path: the file, ending in one of `WRITABLE`.
        image: (H, W, 3), floating point in [0, 1] (rounded by `to_uint8`) or uint8.

    Raises:
        ValueError: another suffix or shape, values outside [0, 1] (clip a denoiser's output first), NaN, a side longer
            than the format can hold.
        TypeError: another dtype.
        OSError: the file cannot be written; nothing is left of it, and an old one stays as it was.
    """
    suffix, image = Path(path).suffix.lower(), np.asarray(image)
    if suffix not in WRITABLE:
        raise ValueError(f"{path}: wanted a name that ends in one of {', '.join(WRITABLE)}, got {suffix!r}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{path}: wanted an image of shape (H, W, 3), got {image.shape}")
    pixels = to_uint8(image)
    # negated, so that NaN fails too
    if image.dtype != np.uint8 and not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"{path}: wanted values in [0, 1], got {image.min():g} to {image.max():g}")
    if max(image.shape) > (most := LONGEST_SIDE.get(suffix, 2**31 - 1)):
        raise ValueError(f"{path}: a {suffix[1:]} file holds at most {most} pixels a side, "
                         f"got {image.shape[0]} x {image.shape[1]}")
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, **(LOSSY if suffix in (".jpg", ".jpeg", ".webp") else {}))


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a crack mask (H, W) bool as an image, 255 on cracks and 0 elsewhere, that `read_mask` reads back.

    Raises:
        ValueError: a suffix that is none of `LOSSLESS`, another shape.
        TypeError: another dtype than bool.
        OSError: as `write_photo`.
    """
    suffix, mask = Path(path).suffix.lower(), np.asarray(mask)
    if suffix not in LOSSLESS:
        raise ValueError(f"{path}: wanted a name that ends in one of {', '.join(LOSSLESS)} for a mask, got {suffix!r}")
    if mask.dtype != bool:
        raise TypeError(f"{path}: a mask must be bool, got {mask.dtype}")
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"{path}: wanted a mask of shape (H, W), got {mask.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary)


def _read_srgb(path):
    """Read a photograph upright, as (H, W, 3) uint8 where nothing is lost by it, else float32 in [0, 1]."""
    image, deep, orientation = _open(path)
    profile = image.info.get("icc_profile") if image is not None else None
    alpha = None
    if deep:
        pixels = _read_deep(path, image, orientation)
        if pixels.shape[2] == 4:
            pixels, alpha = pixels[..., :3], pixels[..., 3]
        if profile:  # Pillow converts profiles at 8 bit
            eight_bit = Image.fromarray(to_uint8(pixels))
            pixels = _to_srgb(eight_bit.convert("L") if image.mode.startswith(("I", "L")) else eight_bit, profile, path)
    else:
        image = _load(image, path, orientation)
        if image.has_transparency_data:
            shown = image.convert("RGBA")
            alpha = np.asarray(shown.getchannel("A"), np.float32) / 255
            image = image.getchannel("L") if image.mode == "LA" else shown.convert("RGB")
        elif image.mode not in ("RGB", "L", "CMYK"):
            image = image.convert("RGB")
        pixels = _to_srgb(image, profile, path)
    if alpha is None:
        return pixels
    return _as_floats(pixels) * alpha[..., None] + (1 - alpha[..., None])


def _open(path):
    """Return Pillow's unread image (None if it knows none), whether OpenCV must read it, its EXIF orientation."""
    try:
        image = Image.open(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such image") from error
    except UnidentifiedImageError:
        return None, True, 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: wanted an image, could not open it: {error}") from error
    raw = image.tile[0][3] if image.tile else ""
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    deep = "16" in str(raw) or image.mode.startswith(("I", "F"))
    # Pillow would decode a whole PNG to look for EXIF data behind the pixels, where hardly any has it
    early = image.format != "PNG" or "exif" in image.info
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1) if early else 1
    except Exception as error:  # damaged EXIF data raise errors of any kind, and say nothing about the pixels
        warnings.warn(f"{path}: its EXIF data cannot be read ({error}); taken as upright", stacklevel=4)
        orientation = 1
    orientation = orientation if orientation in range(1, 9) else 1
    if image.format == "TIFF":  # OpenCV turns it; Pillow scrambles uncompressed grey ones that lie on their side
        return image, deep or orientation != 1, 1
    return image, deep, orientation


def _load(image, path, orientation=1):
    """Decode Pillow's image and return it upright."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: wanted a whole image, it breaks off or is damaged: {error}") from error
    return _upright(image, orientation)


def _upright(image, orientation):
    """Return Pillow's image turned as an EXIF orientation says."""
    if orientation == 1:
        return image
    image.getexif()[EXIF_ORIENTATION] = orientation
    for kept in ("exif", "Raw profile type exif"):  # Pillow would write the rest anew, and fail where it is damaged
        image.info.pop(kept, None)
    return ImageOps.exif_transpose(image)


def _read_deep(path, image, orientation):
    """Read with OpenCV what is deeper than 8 bit, upright, as (H, W, 3 or 4) float32 RGB(A) in [0, 1]."""
    if image is not None:
        _load(image, path)  # finds a broken file, where OpenCV may return half of it
    try:  # not cv2.imread, which has no non-ASCII paths on Windows
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"{path}: wanted a whole image ({', '.join(SUFFIXES)}), got a file that neither Pillow "
                         "nor OpenCV reads")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: wanted 8 or 16 bit per channel, got {pixels.dtype}")
    pixels = _as_floats(pixels if pixels.ndim == 3 else pixels[..., None])
    # from OpenCV's order of channels: grey, grey and alpha, BGR, BGR and alpha
    pixels = pixels[..., {1: [0, 0, 0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]]
    if orientation == 1:
        return pixels
    # OpenCV leaves a PNG as it lies in the file, and Pillow turns no image of 16 bit colour, but each channel as floats
    channels = [_upright(Image.fromarray(channel), orientation) for channel in np.moveaxis(pixels, 2, 0)]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


def _as_floats(pixels):
    """Return uint8 or uint16 pixels as float32 in [0, 1], and floats as they are."""
    whole = np.issubdtype(pixels.dtype, np.integer)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max) if whole else pixels


def _to_srgb(image, profile, path):
    """Return Pillow's image as (H, W, 3) uint8, converted from its colour profile to sRGB."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:  # damaged ones raise any of these
            warnings.warn(f"{path}: its colour profile cannot be used ({error}); taken as sRGB", stacklevel=4)
    return np.asarray(image.convert("RGB"))


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
