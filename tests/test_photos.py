"""Reading photographs and folders of them: every format and layout, and for every mistake an error that names it."""

import csv
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from surfaces import draw_surface
from surfaces.folders import SPLITS, _split_by_name, list_photos, write_folder
from surfaces.photos import (
    LOSSLESS,
    WRITABLE,
    read_mask,
    read_photo,
    read_photo_uint8,
    read_size,
    to_uint8,
    write_mask,
    write_photo,
)
from surfaces.tiles import list_tiles, read_pair, read_tile

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def smooth(height, width):
    """A picture that survives JPEG: a colour gradient, uint8."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, np.full_like(y, 90)], axis=-1).astype(np.uint8)


def write(path, height=224, width=224, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = smooth(height, width) if value is None else np.full((height, width), value, np.uint8)
    Image.fromarray(array).save(path)
    return path


def mask(path, height=224, width=224):
    array = np.zeros((height, width), np.uint8)
    array[height // 2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


# --- bytes

@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bytes_survive_the_way_to_floats_and_back(dtype):
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8((every / 255).astype(dtype)), every)
    assert to_uint8(every) is every


def test_bytes_are_rounded_half_up_and_clipped():
    halves = (np.arange(255) + 0.5) / 255
    np.testing.assert_array_equal(to_uint8(halves + 1e-9), np.arange(1, 256))
    np.testing.assert_array_equal(to_uint8(halves - 1e-9), np.arange(255))
    assert to_uint8(np.float32([0.5 / 255, 2.5 / 255])).tolist() == [1, 3]  # half to even would give 0 and 2
    assert to_uint8(np.array([-np.inf, -0.2, 1.01, np.inf, np.nan])).tolist() == [0, 0, 255, 255, 0]


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3), bool), np.zeros((2, 2, 3), np.uint16), [[0, 255]]])
def test_bytes_refuse_what_has_no_known_white(image):
    with pytest.raises(TypeError, match=r"floating point in \[0, 1\] or uint8, got (bool|uint16|int64)"):
        to_uint8(image)


# --- one photograph

@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_read_photo_keeps_8_bit_exactly(tmp_path, name):
    Image.fromarray(PICTURE).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    photo = read_photo(tmp_path / name)
    assert photo.dtype == np.float32 and photo.shape == (40, 60, 3)
    np.testing.assert_array_equal(photo, PICTURE.astype(np.float32) / 255)
    assert read_size(str(tmp_path / name)) == (40, 60)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_read_photo_keeps_16_bit(tmp_path, name):
    deep = RNG.integers(0, 65536, (40, 60, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
    np.testing.assert_allclose(read_photo(tmp_path / name), deep / 65535, atol=1e-6)
    assert read_size(tmp_path / name) == (40, 60)


def test_read_photo_grey(tmp_path):
    grey8, grey16 = PICTURE[..., 0], RNG.integers(0, 65536, (40, 60), dtype=np.uint16)
    Image.fromarray(grey8).save(tmp_path / "8.png")
    cv2.imwrite(str(tmp_path / "16.png"), grey16)
    for name, grey in (("8.png", grey8 / 255), ("16.png", grey16 / 65535)):
        np.testing.assert_allclose(read_photo(tmp_path / name), np.repeat(grey[..., None], 3, axis=2), atol=1e-6)


def test_read_photo_palette_and_black_and_white(tmp_path):
    few = Image.fromarray(PICTURE).quantize(16)
    few.save(tmp_path / "p.png")
    np.testing.assert_allclose(read_photo(tmp_path / "p.png"), np.asarray(few.convert("RGB")) / 255, atol=1e-6)
    Image.fromarray(PICTURE[..., 0] > 127).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "1.png")[..., 2], PICTURE[..., 0] > 127)


@pytest.mark.parametrize("deep", [False, True])
def test_read_photo_lays_transparency_on_white(tmp_path, deep):
    top = 65535 if deep else 255
    rgba = RNG.integers(0, top + 1, (40, 60, 4)).astype(np.uint16 if deep else np.uint8)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, top
    cv2.imwrite(str(tmp_path / "a.png"), rgba[..., [2, 1, 0, 3]])
    alpha = rgba[..., 3:] / top
    expected = rgba[..., :3] / top * alpha + 1 - alpha
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_allclose(photo, expected, atol=1e-5)
    np.testing.assert_array_equal(photo[0, 0], 1)


def test_read_photo_transparent_grey_and_palette(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 40, np.uint8))
    grey.putalpha(0)
    grey.save(tmp_path / "la.png")
    palette = Image.fromarray(np.zeros((8, 8), np.uint8), "L").convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_photo(tmp_path / "la.png").min() == 1
    assert read_photo(tmp_path / "p.png").min() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.tif", "a.png", "16 bit.tif", "16 bit.png"])
def test_read_photo_turns_by_exif(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    p = PICTURE[..., 0].astype(np.uint16) * 257 if name.startswith("16") else PICTURE[..., 0]
    Image.fromarray(p).save(path, exif=exif)
    # written out from the EXIF standard: where row 0 and column 0 of the file are in the picture shown
    p = np.repeat(PICTURE[..., :1], 3, axis=2)
    shown = {1: p, 2: p[:, ::-1], 3: p[::-1, ::-1], 4: p[::-1], 5: p.transpose(1, 0, 2), 6: p[::-1].transpose(1, 0, 2),
             7: p[::-1, ::-1].transpose(1, 0, 2), 8: p[:, ::-1].transpose(1, 0, 2)}[orientation]
    np.testing.assert_array_equal(read_photo(path), shown.astype(np.float32) / 255)
    assert read_size(path) == shown.shape[:2]


def with_exif(path, orientation):
    """Put an EXIF orientation into a PNG before its pixels, as cameras' software does."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content, chunk = path.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + chunk + content[33:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_deep_colour_and_its_mask_are_turned_by_exif(tmp_path, orientation, channels):
    deep = RNG.integers(0, 65536, (40, 60, channels), dtype=np.uint16)
    deep[..., 3:] = 65535
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., [2, 1, 0, 3][:channels]] if channels > 1 else deep)
    plain, plain_mask = read_photo(tmp_path / "a.png"), read_mask(tmp_path / "a.png")
    with_exif(tmp_path / "a.png", orientation)
    for read, expected in ((read_photo, plain), (read_mask, plain_mask)):
        turned = read(tmp_path / "a.png")
        # the standard's table: where row 0 is at the bottom or right, and column 0 at the right or bottom
        upright = turned.swapaxes(0, 1) if orientation >= 5 else turned
        upright = upright[::-1] if orientation in (3, 4, 6, 7) else upright
        upright = upright[:, ::-1] if orientation in (2, 3, 7, 8) else upright
        np.testing.assert_array_equal(upright, expected)
        assert turned.flags.c_contiguous and turned.dtype == expected.dtype
    assert read_size(tmp_path / "a.png") == ((60, 40) if orientation >= 5 else (40, 60))


@pytest.mark.parametrize("orientation", [0, 9, 77])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(tmp_path / name, exif=exif)
    assert read_photo(tmp_path / name).shape[:2] == read_mask(tmp_path / name).shape == (40, 60)
    assert read_size(tmp_path / name) == (40, 60)


def linear_profile():
    """sRGB's primaries with gamma 1, as bytes: the profile's curves replaced by the identity."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(int.from_bytes(profile[128:132], "big")):
        tag = 132 + 12 * i
        if profile[tag:tag + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            offset = int.from_bytes(profile[tag + 4:tag + 8], "big")
            profile[offset:offset + 12] = b"curv" + bytes(8)  # a curve of no entries is the identity
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "16 bit"])
def test_read_photo_converts_the_profile_to_srgb(tmp_path, mode):
    linear = np.full((8, 8, 3), 55, np.uint8)  # 0.2157 linear is 0.5019 in sRGB
    path = tmp_path / "a.png"
    if mode == "16 bit":
        cv2.imwrite(str(path), linear.astype(np.uint16) * 257)
        data = path.read_bytes()
        with io.BytesIO() as buffer:  # take the iCCP chunk from a picture that Pillow wrote
            Image.fromarray(linear).save(buffer, "PNG", icc_profile=linear_profile())
            other = buffer.getvalue()
        start = other.index(b"iCCP") - 4
        length = int.from_bytes(other[start:start + 4], "big") + 12
        path.write_bytes(data[:33] + other[start:start + length] + data[33:])
    else:
        Image.fromarray(linear).convert(mode).save(path, icc_profile=linear_profile())
    np.testing.assert_allclose(read_photo(path), 0.502, atol=2 / 255)


def test_read_photo_warns_about_a_broken_profile(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png", icc_profile=b"no profile")
    with pytest.warns(UserWarning, match="a.png.*taken as sRGB"):
        photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo, PICTURE.astype(np.float32) / 255)


def test_read_photo_cmyk(tmp_path):
    Image.fromarray(smooth(40, 60)).convert("CMYK").save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_photo(tmp_path / "a.tif"), smooth(40, 60) / 255, atol=2 / 255)


def test_read_photo_errors_name_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.png"):
        read_photo(tmp_path / "none.png")
    with pytest.raises(ValueError, match=tmp_path.name):
        read_photo(tmp_path)
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(PICTURE[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("text.jpg", "empty.png", "float.tif"):
        with pytest.raises(ValueError, match=f"{name}: wanted"):
            read_photo(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp", "a.webp", "16.png", "16.tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused(tmp_path, name, share):
    path = tmp_path / name
    if name.startswith("16"):
        cv2.imwrite(str(path), PICTURE.astype(np.uint16) * 257)
    else:
        Image.fromarray(PICTURE).save(path)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    for read in (read_photo, read_mask):
        with pytest.raises(ValueError, match=f"{name}: wanted"):
            read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "lzw.tif", "a.webp", "a.bmp", "a.ppm", "palette.png",
                                  "16.png", "16.tif"])
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path, name):
    """Bytes changed at random, sixty times: an image of the size that the header says, or an error that names it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a wall"
    path, rng = tmp_path / name, np.random.default_rng(len(name))
    if name.startswith("16"):
        cv2.imwrite(str(path), PICTURE.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(PICTURE).quantize(16) if name.startswith("palette") else Image.fromarray(PICTURE)
        options = {"exif": exif, "icc_profile": linear_profile()} if path.suffix not in (".bmp", ".ppm") else {}
        image.save(path, **options, **({"compression": "tiff_lzw"} if name.startswith("lzw") else {}))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        # most of what can go wrong stands in the head
        places = rng.integers(min(len(whole), 400) if rng.random() < 0.6 else len(whole), size=rng.integers(1, 9))
        damaged[places] = rng.integers(256, size=len(places))
        path.write_bytes(damaged.tobytes())
        try:
            image = read_photo(path)
        except ValueError as error:
            assert name in str(error)
        else:
            assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
            assert read_size(path) == image.shape[:2] == read_mask(path).shape


def test_broken_exif_is_told_and_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.webp"
    Image.fromarray(PICTURE).save(path, exif=exif, lossless=True)
    content = path.read_bytes()
    assert content.count(b"MM\0*") == 1
    path.write_bytes(content.replace(b"MM\0*", b"MM?*"))
    with pytest.warns(UserWarning, match="a.webp: its EXIF data cannot be read.*taken as upright"):
        photo = read_photo(path)
    np.testing.assert_array_equal(photo, PICTURE.astype(np.float32) / 255)


def test_reading_as_bytes_is_reading_and_rounding(tmp_path):
    deep = RNG.integers(0, 65536, (40, 60, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    Image.fromarray(PICTURE).save(tmp_path / "plain.jpg")
    Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])).save(tmp_path / "transparent.png")
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "grey.tif")
    for path in sorted(tmp_path.iterdir()):
        as_bytes = read_photo_uint8(path)
        assert as_bytes.dtype == np.uint8 and as_bytes.flags.c_contiguous
        np.testing.assert_array_equal(as_bytes, to_uint8(read_photo(path)), err_msg=path.name)
    np.testing.assert_array_equal(read_photo_uint8(tmp_path / "deep.png"), np.floor(deep[..., ::-1] / 257 + 0.5))


# --- writing

@pytest.mark.parametrize("suffix", WRITABLE)
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / "made" / f"a{suffix}"
    image = smooth(40, 60)
    write_photo(path, image)
    tolerance = 0 if suffix in (".png", ".tif", ".tiff", ".bmp", ".ppm") else 10
    assert np.abs(read_photo_uint8(path).astype(int) - image).max() <= tolerance
    first = path.read_bytes()
    write_photo(str(path), image.astype(np.float32) / 255)  # the same image in floats gives the same file
    assert path.read_bytes() == first and list(path.parent.iterdir()) == [path]


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
       st.sampled_from([".png", ".TIF", ".bmp", ".ppm"]))
def test_any_bytes_survive_a_lossless_file(tmp_path_factory, image, suffix):
    path = tmp_path_factory.mktemp("written") / f"a{suffix}"
    write_photo(path, image)
    np.testing.assert_array_equal(read_photo(path), image.astype(np.float32) / 255)


@pytest.mark.parametrize(("name", "image", "error", "message"), [
    ("a.gif", PICTURE, ValueError, r"a\.gif: wanted a name that ends in one of \.png, .*got '\.gif'"),
    ("a", PICTURE, ValueError, "wanted a name that ends in one of .*got ''"),
    ("a.png", PICTURE[..., 0], ValueError, r"a\.png: wanted an image of shape \(H, W, 3\), got \(40, 60\)"),
    ("a.png", PICTURE.transpose(2, 0, 1), ValueError, r"\(H, W, 3\), got \(3, 40, 60\)"),
    ("a.png", PICTURE[:0], ValueError, r"\(H, W, 3\), got \(0, 60, 3\)"),
    ("a.png", PICTURE.astype(np.float32), ValueError, r"a\.png: wanted values in \[0, 1\], got 0 to 255"),
    ("a.png", np.full((4, 4, 3), -0.01), ValueError, r"\[0, 1\], got -0.01 to -0.01"),
    ("a.png", np.full((4, 4, 3), np.nan), ValueError, r"\[0, 1\], got nan to nan"),
    ("a.png", PICTURE.astype(np.uint16), TypeError, "got uint16"),
    ("a.webp", np.zeros((2, 16384, 3), np.uint8), ValueError, "webp file holds at most 16383 pixels a side, got 2 x"),
    ("a.JPG", np.zeros((65501, 2, 3), np.uint8), ValueError, "jpg file holds at most 65500 pixels a side, got 65501 x"),
])
def test_what_no_file_can_hold_is_refused(tmp_path, name, image, error, message):
    with pytest.raises(error, match=message):
        write_photo(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.webp", "a.jpg"])
def test_the_longest_side_that_is_allowed_is_written(tmp_path, name):
    longest = {"a.webp": 16383, "a.jpg": 65500}[name]
    write_photo(tmp_path / name, np.zeros((1, longest, 3), np.uint8))
    assert read_size(tmp_path / name) == (1, longest)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_photo(tmp_path / "a.png", PICTURE)
    before = (tmp_path / "a.png").read_bytes()

    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for write, content in ((write_photo, 255 - PICTURE), (write_mask, PICTURE[..., 0] > 9)):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "a.png", content)
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_a_written_mask_is_read_back(tmp_path, suffix):
    for crack in (RNG.random((40, 60)) < 0.2, np.zeros((5, 7), bool), np.ones((5, 7), bool)):
        write_mask(tmp_path / f"m{suffix}", crack)
        np.testing.assert_array_equal(read_mask(tmp_path / f"m{suffix}"), crack)


@pytest.mark.parametrize(("name", "crack", "error", "message"), [
    ("m.jpg", np.zeros((4, 4), bool), ValueError, r"ends in one of \.png, .* for a mask, got '\.jpg'"),
    ("m.png", np.zeros((4, 4), np.uint8), TypeError, "a mask must be bool, got uint8"),
    ("m.png", np.zeros((4, 4, 3), bool), ValueError, r"shape \(H, W\), got \(4, 4, 3\)"),
])
def test_what_is_no_mask_is_refused(tmp_path, name, crack, error, message):
    with pytest.raises(error, match=message):
        write_mask(tmp_path / name, crack)
    assert list(tmp_path.iterdir()) == []


# --- masks

def test_read_mask_understands_0_1_and_0_255_and_palettes(tmp_path):
    crack = RNG.random((40, 60)) < 0.2
    palette = Image.fromarray(crack.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)  # dark red, as segmentation sets have it
    ones = crack.astype(np.uint8)
    pictures = {"255.png": Image.fromarray(ones * 255), "01.png": Image.fromarray(ones),
                "bit.png": Image.fromarray(crack), "palette.png": palette,
                "rgb.png": Image.fromarray(np.repeat(ones[..., None] * 255, 3, axis=2))}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        read = read_mask(tmp_path / name)
        assert read.dtype == bool
        np.testing.assert_array_equal(read, crack, err_msg=name)
    cv2.imwrite(str(tmp_path / "16.png"), crack.astype(np.uint16) * 65535)
    np.testing.assert_array_equal(read_mask(tmp_path / "16.png"), crack)


def test_jpeg_noise_of_a_mask_is_no_crack(tmp_path):
    Image.fromarray(RNG.integers(0, 20, (40, 60), dtype=np.uint8)).save(tmp_path / "a.jpg")
    assert not read_mask(tmp_path / "a.jpg").any()


# --- tiles

@settings(max_examples=20, deadline=None)
@given(height=st.integers(224, 900), width=st.integers(224, 900))
def test_tiles_lie_inside_without_overlap_and_reach_the_edges(tmp_path_factory, height, width):
    path = write(tmp_path_factory.mktemp("tiles") / "a.png", height, width, value=7)
    photo = list_photos_of(path)
    tiles = list_tiles([photo])
    assert len(tiles) == (height // 224) * (width // 224)
    assert len({tile.name for tile in tiles}) == len(tiles)
    covered = np.zeros((height, width), int)
    for tile in tiles:
        assert 0 <= tile.y <= height - 224 and 0 <= tile.x <= width - 224
        covered[tile.y:tile.y + 224, tile.x:tile.x + 224] += 1
    assert covered.max() == 1 and covered.sum() == len(tiles) * 224**2
    if height >= 448 and width >= 448:
        assert covered[0, 0] == covered[-1, -1] == 1


def list_photos_of(path, crack=None):
    from surfaces.folders import Photo

    return Photo(path.stem, path, crack, path.stem, path.stem, "here", "test")


def test_tile_names_and_pixels(tmp_path):
    path, crack = write(tmp_path / "wall.png", 448, 500), mask(tmp_path / "crack.png", 448, 500)
    tiles = list_tiles([list_photos_of(path, crack)])
    assert [tile.name for tile in tiles] == ["wall_r0c0", "wall_r0c1", "wall_r1c0", "wall_r1c1"]
    whole, cache = read_photo(path), {}
    for tile in tiles:
        pixels, cracked = read_tile(tile, cache)
        np.testing.assert_array_equal(pixels, whole[tile.y:tile.y + 224, tile.x:tile.x + 224])
        assert cracked.any() == (tile.y == 224)
    assert list(cache) == [path]
    exact = list_tiles([list_photos_of(write(tmp_path / "one.png"))])
    assert [(tile.name, tile.y, tile.x) for tile in exact] == [("one", 0, 0)]


def test_small_photographs_and_other_sizes_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"small\.png.*at least 224 x 224.*223 x 300"):
        list_tiles([list_photos_of(write(tmp_path / "small.png", 223, 300))])
    pair = list_photos_of(write(tmp_path / "a.png", 224, 230), mask(tmp_path / "m.png", 230, 224))
    with pytest.raises(ValueError, match=r"m\.png.*224 x 230 \(a\.png\), got 230 x 224"):
        list_tiles([pair])


# --- folders

def manifest(folder, rows, columns=("path", "mask", "source", "photo", "split", "group")):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def row(name, split, source="dam", photo=None, group=None, crack=True):
    return {"path": f"{source}/images/{name}.png", "mask": f"{source}/masks/{name}.png" if crack else "",
            "source": source, "photo": photo or name, "split": split, "group": group or photo or name}


def test_manifest(tmp_path):
    rows = [row("b", "train"), row("a", "train", photo="1", group="g"), row("v", "valid"),
            row("t", "test", crack=False), row("c", "train", source="road", photo="1", group="h")]
    manifest(tmp_path, rows)
    photos = list_photos(tmp_path)
    assert [photo.name for photo in photos] == ["a", "b", "t", "v", "c"]  # by source, then name
    assert [photo.name for photo in list_photos(tmp_path, "train")] == ["a", "b", "c"]
    a, c = photos[0], photos[-1]
    assert (a.photo, a.group, a.source, a.split) == ("dam-1", "g", "dam", "train")
    assert c.photo == "road-1"  # the same number in another source is another photograph
    assert a.path == tmp_path / "dam/images/a.png" and a.mask == tmp_path / "dam/masks/a.png"
    assert list_photos(tmp_path, "test")[0].mask is None


def test_manifest_groups_by_photograph_without_the_column(tmp_path):
    manifest(tmp_path, [row("a", "train", photo="7")], columns=("path", "mask", "source", "photo", "split"))
    assert list_photos(tmp_path, "train")[0].group == "dam-7"


@pytest.mark.parametrize("rows, message", [
    ([row("a", "train"), row("a", "train")], "name a comes twice|mask .* comes twice"),
    ([row("a", "train"), row("a", "test", source="road")], r"name a comes twice.*in train and .*in test"),
    ([row("a", "train", photo="1"), row("b", "test", photo="1")], "photo 'dam-1' is in two splits, train and test"),
    ([row("a", "train", group="g"), row("b", "valid", group="g")], "group 'g' is in two splits"),
    ([row("a", "training")], r"line 2: wanted .*split \(train, valid, test\).*'training'"),
    ([row("a", "train") | {"path": ""}], "line 2: wanted a path"),
    ([row("a", "train") | {"source": ""}], "line 2: wanted a path, a source"),
    ([row("a", "train"), row("b", "train") | {"mask": "dam/masks/a.png"}], "mask .*a.png comes twice"),
])
def test_manifest_mistakes(tmp_path, rows, message):
    manifest(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        list_photos(tmp_path)


def test_manifest_missing_columns_rows_and_files(tmp_path):
    manifest(tmp_path, [row("a", "train")], columns=("path", "mask"))
    with pytest.raises(ValueError, match="manifest.csv: wanted the columns .*missing source, photo, split"):
        list_photos(tmp_path)
    manifest(tmp_path, [])
    with pytest.raises(FileNotFoundError, match="no photographs"):
        list_photos(tmp_path)
    manifest(tmp_path, [row("a", "train")])
    with pytest.raises(FileNotFoundError, match=r"images/a\.png"):
        list_tiles(list_photos(tmp_path))
    write(tmp_path / "dam/images/a.png")
    with pytest.raises(FileNotFoundError, match=r"masks/a\.png"):
        list_tiles(list_photos(tmp_path))
    with pytest.raises(ValueError, match="wanted photographs for valid, got none"):
        list_photos(tmp_path, "valid")


def kaggle(folder, train=("a", "b", "c", "d"), test=("t", "u"), masks=True):
    for part, names in (("train", train), ("test", test)):
        for name in names:
            write(folder / part / "images" / f"{name}.jpg")
            if masks:
                mask(folder / part / "masks" / f"{name}.jpg")
    return folder


def test_train_and_test_folders(tmp_path):
    folder = kaggle(tmp_path / "kaggle")
    assert [photo.name for photo in list_photos(folder, "test")] == ["t", "u"]
    train, valid = list_photos(folder, "train"), list_photos(folder, "valid")
    assert train and valid and sorted(photo.name for photo in train + valid) == ["a", "b", "c", "d"]
    assert {photo.source for photo in train} == {"kaggle"}
    assert train[0].mask == folder / "train/masks" / train[0].path.name
    assert len(list_tiles(train + valid)) == 4
    assert list_photos(kaggle(tmp_path / "without", masks=False), "test")[0].mask is None


def test_train_and_test_folders_mistakes(tmp_path):
    folder = kaggle(tmp_path / "1")
    write(folder / "test/images/a.jpg")
    mask(folder / "test/masks/a.jpg")
    with pytest.raises(ValueError, match="name a comes twice.* in (train|valid) and .*test/images/a.jpg in test"):
        list_photos(folder)
    folder = kaggle(tmp_path / "2")
    (folder / "test/masks/t.jpg").unlink()
    with pytest.raises(ValueError, match=r"images/t\.jpg: wanted a mask t\.png.*1 of 2"):
        list_photos(folder)
    folder = kaggle(tmp_path / "3")
    mask(folder / "test/masks/x.png")
    with pytest.raises(ValueError, match=r"masks/x\.png: wanted a photograph called x"):
        list_photos(folder)
    folder = kaggle(tmp_path / "4")
    mask(folder / "test/masks/t.png")
    with pytest.raises(ValueError, match=r"comes twice: .*t\.jpg and .*t\.png"):
        list_photos(folder)
    folder = kaggle(tmp_path / "5")
    mask(folder / "test/masks/t_mask.png")
    with pytest.raises(ValueError, match="wanted one mask for t, got two"):
        list_photos(folder)
    folder = kaggle(tmp_path / "6", test=())
    with pytest.raises(FileNotFoundError, match="test/images: no such folder"):
        list_photos(folder)
    with pytest.raises(ValueError, match="wanted at least 2 photographs"):
        list_photos(kaggle(tmp_path / "7", train=("a",)))


@pytest.mark.parametrize("layout", ["bare", "masks/", "_mask", "images/"])
def test_plain_folder(tmp_path, layout):
    folder = tmp_path / "walls"
    for i in range(6):
        write(folder / ("images" if layout == "images/" else "") / f"wall{i}.png")
        if layout in ("masks/", "images/"):
            mask(folder / "masks" / f"wall{i}.png")
        if layout == "_mask" and i < 3:
            mask(folder / f"wall{i}_mask.png")
    (folder / "notes.txt").write_text("when and where")
    (folder / ".hidden").touch()
    photos = list_photos(folder)
    assert [photo.name for photo in photos] == [f"wall{i}" for i in range(6)]
    assert {photo.split for photo in photos} == set(SPLITS)
    assert {photo.source for photo in photos} == {"walls"}
    with_mask = {"bare": 0, "masks/": 6, "_mask": 3, "images/": 6}[layout]
    assert sum(photo.mask is not None for photo in photos) == with_mask
    assert len(list_tiles(photos)) == 6


def test_plain_folder_mistakes(tmp_path):
    def fresh(name, count=4):
        for i in range(count):
            write(tmp_path / name / f"wall{i}.png")
        return tmp_path / name

    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        list_photos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no photographs in it"):
        list_photos(tmp_path / "empty")
    with pytest.raises(ValueError, match="split must be one of train, valid, test, got 'tset'"):
        list_photos(fresh("ok"), "tset")
    with pytest.raises(ValueError, match="at least 3 photographs to split, got 2: wall0, wall1"):
        list_photos(fresh("two", 2))
    folder = fresh("twice")
    write(folder / "wall0.jpg")
    with pytest.raises(ValueError, match=r"name wall0 comes twice: .*wall0\.jpg and .*wall0\.png"):
        list_photos(folder)
    folder = fresh("heic")
    (folder / "wall9.heic").touch()
    with pytest.raises(ValueError, match=r"wall9\.heic: wanted only images"):
        list_photos(folder)
    folder = fresh("nested")
    write(folder / "more" / "x.png")
    with pytest.raises(ValueError, match="more: wanted only images.* got a folder"):
        list_photos(folder)
    folder = fresh("lonely")
    mask(folder / "other_mask.png")
    with pytest.raises(ValueError, match=r"other_mask\.png: wanted a photograph called other"):
        list_photos(folder)
    folder = fresh("both")
    mask(folder / "wall0_mask.png")
    for i in range(4):
        mask(folder / "masks" / f"wall{i}.png")
    with pytest.raises(ValueError, match=r"wall0_mask\.png: wanted masks in masks/ or beside the images, got both"):
        list_photos(folder)
    folder = fresh("beside")
    write(folder / "images" / "x.png")
    with pytest.raises(ValueError, match=r"wall0\.png: beside the folder images/"):
        list_photos(folder)


@settings(max_examples=50)
@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=3, max_size=20))
def test_split_by_name_fills_every_split(names):
    splits = _split_by_name(names, 0.15, 0.15)
    assert set(splits) == names and set(splits.values()) == set(SPLITS)
    assert _split_by_name(sorted(names, reverse=True), 0.15, 0.15) == splits  # the order of files does not matter


def test_split_by_name_shares_and_stays():
    names = [f"photo{i}" for i in range(2000)]
    splits = _split_by_name(names, 0.15, 0.15)
    for name, share in (("train", 0.7), ("valid", 0.15), ("test", 0.15)):
        assert abs(sum(split == name for split in splits.values()) / 2000 - share) < 0.03
    fewer = _split_by_name(names[:1000], 0.15, 0.15)
    assert all(splits[name] == fewer[name] for name in fewer)  # new photographs move no old one
    assert splits["photo0"] == "valid"  # the same on every machine, for ever


# --- folders, written

def test_a_written_folder_is_read_back(tmp_path):
    made = {f"{kind}-{seed}": draw_surface(kind, seed, 48) for kind in ("sand", "terrazzo") for seed in range(3)}
    assert write_folder(tmp_path / "new", ((name, *pair) for name, pair in made.items())) == 6
    photos = list_photos(tmp_path / "new")
    assert {photo.name for photo in photos} == set(made) and {photo.split for photo in photos} == set(SPLITS)
    for photo in photos:
        image, crack = read_pair(photo)
        np.testing.assert_array_equal(to_uint8(image), to_uint8(made[photo.name][0]))
        np.testing.assert_array_equal(crack, made[photo.name][1])


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "wall_mask", "twice"])
def test_a_written_folder_takes_plain_names_once(tmp_path, name):
    image, crack = draw_surface("sand", 0, 32)
    with pytest.raises(ValueError, match="wanted a plain file name, once"):
        write_folder(tmp_path / "new", [("twice", image, crack), (name, image, crack)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_a_written_folder_must_be_new_and_its_masks_fit(tmp_path):
    image, crack = draw_surface("sand", 0, 32)
    with pytest.raises(ValueError, match=r"a: wanted a mask of its image's size, got \(32, 32, 3\) and \(31, 32\)"):
        write_folder(tmp_path / "new", [("a", image, crack[1:])])
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="wanted a new or an empty folder"):
        write_folder(tmp_path, [("mine", image, crack)])
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
