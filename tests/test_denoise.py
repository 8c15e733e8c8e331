"""Pictures of any size: equal to the untiled result, no seams, little memory; and the shell command."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage import data as skimage_data
from torch import nn

from helpers.checkpoints import save
from helpers.denoise import _lay_tiles, denoise, evaluating, main
from helpers.models import ConvDAE, Denoiser, DenseDAE, HybridViTUNet, UNet, check_finite_weights
from helpers.project import data_dir
from lab.judges import CrackSegmenter
from surfaces.photos import read_photo, read_photo_uint8
from surfaces.tiling import mirror

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(kind, *arguments, gain=1.0, **keywords):
    """An untrained model whose layers pass on what they see: `gain` makes far pixels count."""
    torch.manual_seed(0)
    model = kind(*arguments, **keywords).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain)
    return model


@pytest.fixture(scope="module")
def unet():
    return seeded(UNet, width=4, predict="image", gain=1.5)


def whole(model, image):
    """The model's result for (3, H, W) in one piece, mirrored to multiples of 8."""
    height, width = image.shape[1:]
    padded = nn.functional.pad(image[None], (0, -width % 8, 0, -height % 8), mode="reflect")
    with torch.inference_mode():
        return model(padded)[0, :, :height, :width]


class OwnMean(Denoiser):
    """Takes each tile's own mean away: tiles disagree by as much as the picture's parts differ."""

    def forward(self, noisy):
        return noisy - noisy.mean(dim=(-2, -1), keepdim=True) + 0.5


class BlackOrWhite(Denoiser):
    """Black and white tiles in turn, as far apart as two tiles can be."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, noisy):
        output = torch.empty_like(noisy)
        for tile in output:
            tile.fill_(self.calls % 2)
            self.calls += 1
        return output


class Spy(Denoiser):
    """Returns its input and remembers shapes, dtypes and modes."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)
        self.seen = []

    def forward(self, noisy):
        self.seen.append((tuple(noisy.shape), noisy.dtype, self.training, torch.is_inference_mode_enabled()))
        return noisy


# --- equal to the untiled result

def reach(model, size):
    """How far an output pixel of a network sees, by its gradient, over all places of its pooling grid."""
    model = deepcopy(model).double().eval()
    for module in model.modules():  # so that nothing in sight is multiplied by zero, and nothing out of sight counts
        for name, part in list(module.named_children()):
            if isinstance(part, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))
            elif isinstance(part, nn.ReLU):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)
    image = torch.ones(1, 3, *size, dtype=torch.double, requires_grad=True)
    output, farthest = model(image)[0, 0], 0
    for pixel in range(size[1] // 2, size[1] // 2 + model.multiple):
        gradient, = torch.autograd.grad(output[size[0] // 2, pixel], image, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
        farthest = max(farthest, pixel - int(seen[0]), int(seen[-1]) - pixel)
    return farthest


@pytest.mark.parametrize("model, size", [
    (UNet(1), (8, 128)), (UNet(1, stages=1), (8, 64)), (UNet(1, stages=2), (8, 64)), (UNet(1, stages=4), (16, 256)),
    (UNet(1, upsample="bilinear"), (8, 160)), (UNet(1, upsample="bilinear", stages=1), (8, 64)), (ConvDAE(1), (8, 96)),
    (CrackSegmenter(1, stages=2), (8, 96))])
def test_the_radius_is_how_far_an_output_pixel_sees(model, size):
    assert reach(model, size) == model.radius


def test_a_dense_network_and_a_hybrid_see_everything():
    torch.manual_seed(0)  # with other weights both units of the small bottleneck may be off
    for model, size in ((DenseDAE(2), (56, 56)), (HybridViTUNet(4, seed=0), (224, 224))):
        image = torch.rand(1, 3, *size, requires_grad=True)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, 0, 0.1)
        gradient, = torch.autograd.grad(model(image)[0, :, 0, 0].sum(), image)
        assert model.radius == np.inf and gradient[..., -8:, -8:].any()


@pytest.mark.parametrize("tile, overlap, second, size, alone, given_up", [
    (None, None, 632, 768, 684, 52), (768, 200, 488, 696, 544, 56), (448, None, 280, 424, 336, 56),
    (224, None, 144, 216, 164, 20), (256, 136, 112, 256, 168, 56), (320, 32, 256, 296, 260, 4)])
def test_a_unets_tiles_lie_where_they_always_lay(tile, overlap, second, size, alone, given_up):
    """As when one radius of 52 was written down for all networks: start, size, pixels of weight 1 and of weight 0."""
    for model in (UNet(2), nn.Identity()):
        _, line = _lay_tiles(model, (8, 2664), tile, overlap)
        weights = line.weights[0]
        assert (line.starts[1], line.size, int((weights == 1).sum()), int((weights == 0).sum())) == (
            second, size, alone, given_up)


def test_who_sees_farther_gives_up_more():
    margins = []
    for model in (ConvDAE(2), UNet(2), UNet(2, stages=4)):
        _, line = _lay_tiles(model, (16, 5000))
        margins.append(int((line.weights[0] == 0).sum()))
        assert margins[-1] >= model.radius and line.starts[0] + line.size - line.starts[1] >= 2 * model.radius + 32
    assert margins[0] < 51 < margins[1] < 107 < margins[2]


@pytest.mark.parametrize("tile", [None, 224, 256, 344])
def test_unet_equals_untiled_everywhere(unet, tile):
    image = torch.rand(3, 381, 437, generator=torch.Generator().manual_seed(1))
    expected = whole(unet, image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(denoise(unet, image, tile, overlap=136), expected, atol=1e-5, rtol=0)


def test_unet_equals_untiled_away_from_borders(unet):
    image = torch.rand(3, 40, 900, generator=torch.Generator().manual_seed(2))
    difference = (denoise(unet, image, tile=320, overlap=32) - whole(unet, image)).abs().amax(dim=(0, 1))
    _, across = _lay_tiles(unet, (40, 900), 320, 32)
    near = np.zeros(900, bool)
    for start in across.starts:
        for border in (start, start + across.size):
            if 0 < border < 900:
                near[max(border - unet.radius, 0):border + unet.radius] = True
    assert difference[~near].max() <= 1e-5
    assert difference[near].max() > 1e-5  # there the overlap is too narrow, or this test could not fail


def test_convdae_within_a_tile_is_the_model():
    model, image = seeded(ConvDAE, width=4), torch.rand(3, 48, 64)
    with torch.inference_mode():
        torch.testing.assert_close(denoise(model, image), model(image[None])[0], atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([16, 32, 56]), st.integers(0, 40),
       st.sampled_from([np.uint8, np.float32, np.float64, np.float16]), st.booleans())
def test_any_size_comes_back(height, width, tile, overlap, dtype, as_torch):
    overlap = min(overlap, tile - 8)
    image = np.random.default_rng(height * 151 + width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    image = image if dtype == np.uint8 else (image / 128 - 0.5).astype(dtype)  # also below 0 and above 1
    given = torch.from_numpy(image).permute(2, 0, 1) if as_torch else image
    spy = Spy()
    output = denoise(spy, given, tile, overlap)
    assert type(output) is type(given) and output.shape == given.shape and output.dtype == given.dtype
    output = output.permute(1, 2, 0).numpy() if as_torch else output
    expected = image if dtype == np.uint8 else image.clip(0, 1)
    np.testing.assert_allclose(output.astype(float), expected.astype(float), atol=0 if dtype == np.uint8 else 2e-3 if
                               dtype == np.float16 else 1e-6)
    assert all(h % 8 == 0 and w % 8 == 0 and max(h, w) <= tile for (_, _, h, w), *_ in spy.seen)


def test_any_size_with_a_model_of_one_size():
    model = seeded(DenseDAE, bottleneck=4)
    for size in ((1, 1), (3, 200), (56, 56), (57, 113)):
        output = denoise(model, np.full((*size, 3), 0.5, np.float32))
        assert output.shape == (*size, 3) and np.isfinite(output).all()


def test_mirror_is_numpys_reflection():
    for length in (1, 2, 5, 9):
        expected = np.pad(np.arange(length), (0, 20), mode="reflect" if length > 1 else "edge")
        np.testing.assert_array_equal(mirror(0, length + 20, length), expected)


# --- seams

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(2, 40), st.integers(0, 319), st.booleans())
def test_weights_are_a_partition_of_unity_that_fades_in(length, tile, overlap, fixed):
    tile *= 8
    overlap = min(overlap, tile - 8)
    line, _ = _lay_tiles(Spy(**({"tile": tile} if fixed else {})), (length, 1), tile, overlap)
    total = torch.zeros(line.starts[-1] + line.size)
    for start, weight in zip(line.starts, line.weights, strict=True):
        total[start:start + line.size] += torch.from_numpy(weight)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
    assert len(total) >= length and line.weights.min() >= 0 and line.size <= tile
    assert all(b - a <= line.size - overlap for a, b in zip(line.starts, line.starts[1:], strict=False))
    assert all(start % 8 == 0 for start in line.starts)
    if fixed and len(line.starts) > 1:
        assert line.size == tile
    if overlap >= 16 and len(line.starts) > 1:
        assert line.weights[1:, 0].max() < 1 / 255 and line.weights[:-1, -1].max() < 1 / 255


@pytest.mark.parametrize("attributes, width", [({}, 1536), ({"tile": 224}, 500), ({"size": 56}, 216)])
def test_no_tile_border_shows_whatever_the_model(attributes, width):
    """A seam is a step that comes with a tile's border. Tiles black or white: every step is the blending's."""
    model = BlackOrWhite()
    model.__dict__.update(attributes)
    output = denoise(model, np.zeros((8, width, 3), np.float32))[0, :, 0]
    _, across = _lay_tiles(model, (8, width))
    borders = [b for start in across.starts for b in (start, start + across.size) if 0 < b < width]
    steps = np.abs(np.diff(output))
    assert len(borders) >= 2 and output.max() - output.min() > 0.9  # neighbours do differ
    assert steps[np.array(borders) - 1].max() < 1 / 255
    assert steps.max() < 1 / 8  # between black and white is a slope


@pytest.mark.parametrize("model, overlap", [(OwnMean(), None), (seeded(DenseDAE, bottleneck=64), 16)],
                         ids=["own mean", "dense"])
def test_a_step_at_a_border_is_one_that_the_tiles_make_themselves(model, overlap):
    ramp = np.linspace(0, 1, 400, dtype=np.float32)
    image = np.broadcast_to(ramp[None, :, None], (48, 400, 3)).copy()
    tile = model.size or 128
    output = denoise(model, image, tile, overlap)
    _, across = _lay_tiles(model, image.shape[:2], tile, overlap)
    alone = [denoise(model, image[:, start:start + across.size], tile) for start in across.starts]
    for i, b in enumerate(across.starts[1:]):
        before = alone[i][:, b - across.starts[i] - 1], alone[i][:, b - across.starts[i]]  # around the border of i + 1
        own = before[1] - before[0]
        assert np.abs(output[:, b] - output[:, b - 1] - own).max() < 1 / 255
        assert np.abs(alone[i + 1][:, 0] - before[1]).max() > 0.02  # a cut there would show


# --- what goes in and comes out

def test_eval_and_inference_mode_inside_modes_restored_outside():
    model = nn.Sequential(Spy(), nn.Dropout(0.9), Spy())
    model.train()
    model[2].eval()  # a frozen half
    image = np.full((9, 9, 3), 0.5, np.float32)
    np.testing.assert_array_equal(denoise(model, image), image)
    assert model[0].seen == [((1, 3, 16, 16), torch.float32, False, True)]
    assert model.training and model[0].training and model[1].training and not model[2].training

    class Broken(nn.Module):
        def forward(self, noisy):
            raise RuntimeError("out of luck")
    broken = Broken().train()
    with pytest.raises(RuntimeError, match="out of luck"):
        denoise(broken, image)
    assert broken.training


def test_floats_unclipped_bytes_clipped_and_rounded():
    class Shift(nn.Module):
        def forward(self, noisy):
            return noisy + 0.5 + 0.3 / 255
    values = np.array([[-0.5, 0.2, 1.7]], np.float32).repeat(3).reshape(1, 3, 3)
    # what comes is clipped, as noise was in training; what the model makes of it is not
    np.testing.assert_allclose(denoise(Shift(), values), values.clip(0, 1) + 0.5 + 0.3 / 255, atol=1e-6)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = np.minimum(levels.astype(int) + 128, 255)  # 127.5 + 0.3 rounds to 128
    np.testing.assert_array_equal(denoise(Shift(), levels), expected)


def test_input_is_left_alone_and_need_not_be_writable(unet, recwarn):
    image = RNG.random((30, 40, 3)).astype(np.float32)
    image.flags.writeable = False
    output = denoise(unet, image)
    assert output.flags.writeable and not recwarn.list
    np.testing.assert_array_equal(denoise(unet, image[::-1, ::-1]), denoise(unet, image[::-1, ::-1].copy()))


def test_result_can_be_trained_on_and_half_models_work():
    weight = torch.ones(1, requires_grad=True)
    (denoise(seeded(ConvDAE, width=4), torch.rand(3, 20, 20)) * weight).sum().backward()
    assert weight.grad is not None
    model = seeded(ConvDAE, width=4).to(torch.bfloat16)
    assert denoise(model, torch.rand(3, 20, 20)).dtype == torch.float32


def test_batches_and_tiles_as_asked():
    spy = Spy(tile=224)
    denoise(spy, np.zeros((300, 600, 3), np.uint8), batch_size=3)
    assert {shape[2:] for shape, *_ in spy.seen} == {(224, 224)} and {shape[0] for shape, *_ in spy.seen} == {3, 1}
    spy = Spy(multiple=16)
    denoise(spy, np.zeros((100, 100, 3), np.uint8))
    assert spy.seen[0][0] == (1, 3, 112, 112)


def test_progress_bar_only_when_asked(capsys):
    denoise(nn.Identity(), np.zeros((9, 9, 3), np.uint8))
    assert capsys.readouterr().err == ""
    denoise(nn.Identity(), np.zeros((9, 9, 3), np.uint8), progress=True)
    assert "1/1" in capsys.readouterr().err


# --- several threads, and networks that are broken

@pytest.mark.parametrize("training", [False, True])
def test_eight_threads_denoise_with_one_hybrid(training):
    """Images of several sizes at once: each gets what it gets alone, and the modes are what they were."""
    torch.manual_seed(0)
    model = HybridViTUNet(4, join="attention", blocks=(2, 5)).train(training)
    for weight in (model.head.weight, model.project.attention.out_proj.weight):
        torch.nn.init.normal_(weight)  # zeros at the start: the tokens would not count
    modes = [module.training for module in model.modules()]
    images = [torch.rand(3, 24 + 16 * (n % 3), 40 + 8 * (n % 4)) for n in range(24)]
    alone = [denoise(model, image) for image in images]
    assert not torch.equal(alone[0], model.eval()(images[0][None], torch.zeros(1, 384, 2, 3))[0]), "the ViT has a say"
    model.train(training)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: denoise(model, image), images))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert [module.training for module in model.modules()] == modes


def test_modes_are_put_back_by_the_last_thread_that_leaves():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()).train()
    model[0].eval()
    with evaluating(model):
        with evaluating(model, freeze=True):  # another thread, of another pace
            assert not any(weight.requires_grad for weight in model.parameters())
        assert not model.training and all(weight.requires_grad for weight in model.parameters())
    first, second = evaluating(model), evaluating(model[1])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert model.training and not model[0].training and not model[1].training, "somebody still needs it in eval mode"
    second.__exit__(None, None, None)
    assert model.training and not model[0].training and model[1].training


def poisoned(model, name, value):
    with torch.no_grad():
        dict([*model.named_parameters(), *model.named_buffers()])[name].view(-1)[-1] = value
    return model


@pytest.mark.parametrize("make, name, value", [
    (lambda: UNet(2), "decoder.1.0.weight", np.nan), (lambda: UNet(2).half(), "head.bias", np.inf),
    (lambda: DenseDAE(2, skip=True), "gate", -np.inf), (lambda: HybridViTUNet(4), "vit.mean", np.nan),
    (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), "1.running_var", np.nan)])
def test_weights_that_are_not_finite_are_refused_by_name(make, name, value):
    check_finite_weights(make())
    model = poisoned(make(), name, value)
    with pytest.raises(ValueError, match=f"^wanted finite weights in {type(model).__name__}, got 1 .* in {name}$"):
        denoise(model, PICTURE)


PICTURE = np.zeros((16, 16, 3), np.float32)
BAD = PICTURE.copy()
BAD[2, 3, 1] = np.nan


@pytest.mark.parametrize("call, error, message", [
    (lambda: denoise("unet", PICTURE), TypeError, "torch.nn.Module.*got str"),
    (lambda: denoise(nn.Identity(), [[0.0]]), TypeError, "numpy array .* or a torch tensor.*list"),
    (lambda: denoise(nn.Identity(), PICTURE[..., 0]), ValueError, r"\(H, W, 3\).*got \(16, 16\)"),
    (lambda: denoise(nn.Identity(), PICTURE[..., :2]), ValueError, r"\(H, W, 3\).*got \(16, 16, 2\)"),
    (lambda: denoise(nn.Identity(), PICTURE[:0]), ValueError, r"at least 1, got \(0, 16, 3\)"),
    (lambda: denoise(nn.Identity(), torch.zeros(16, 16, 3)), ValueError, r"\(3, H, W\).*got \(16, 16, 3\)"),
    (lambda: denoise(nn.Identity(), torch.zeros(1, 3, 16, 16)), ValueError, r"\(3, H, W\).*got \(1, 3, 16, 16\)"),
    (lambda: denoise(nn.Identity(), PICTURE.astype(np.int64)), TypeError, "floating point.*uint8, got int64"),
    (lambda: denoise(nn.Identity(), torch.zeros(3, 8, 8, dtype=torch.int32)), TypeError, "got torch.int32"),
    (lambda: denoise(nn.Identity(), BAD), ValueError, "1 NaN or infinite"),
    (lambda: denoise(nn.Identity(), torch.full((3, 4, 4), torch.inf)), ValueError, "48 NaN or infinite"),
    (lambda: denoise(nn.Identity(), PICTURE, tile=100), ValueError, "multiple of 8.*got 100"),
    (lambda: denoise(nn.Identity(), PICTURE, tile=0), ValueError, "multiple of 8.*got 0"),
    (lambda: denoise(nn.Identity(), PICTURE, tile=-8), ValueError, "multiple of 8.*got -8"),
    (lambda: denoise(nn.Identity(), PICTURE, tile=64, overlap=64), ValueError, r"0\.\.56.*tiles of 64, got 64"),
    (lambda: denoise(nn.Identity(), PICTURE, overlap=-1), ValueError, r"overlap.*got -1"),
    (lambda: denoise(nn.Identity(), PICTURE, batch_size=0), ValueError, "batch_size.*got 0"),
    (lambda: denoise(DenseDAE(4), PICTURE, tile=64), ValueError, "tile must be 56.*DenseDAE"),
    (lambda: denoise(CrackSegmenter(4), PICTURE), ValueError, "CrackSegmenter returned .1, 1, 16, 16"),
])
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- memory

MEASURE = """
import resource, sys, numpy as np, torch
from helpers.denoise import denoise
torch.set_num_threads(1)
image = np.zeros((int(sys.argv[1]), int(sys.argv[2]), 3), sys.argv[3])
image += 1  # touch every page
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = denoise(torch.nn.Identity(), image)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert abs(output - 1).max() < 1e-5
print((peak - before) * (1 if sys.platform == "darwin" else 1024) / image.nbytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_is_the_result_and_a_band():
    run = subprocess.run([sys.executable, "-c", MEASURE, "6000", "2000", "float32"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 2.0  # the result and a band; a padded copy, weights or a float64 copy would be more


# --- from a shell

@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A data folder with an untrained unet (which returns its input) and a segmenter."""
    (tmp_path / "data" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    save(UNet(width=4), "unet", {"architecture": "UNet", "arguments": {"width": 4}})
    save(CrackSegmenter(width=4), "segmenter", {"architecture": "CrackSegmenter", "arguments": {"width": 4}})
    return tmp_path


def picture(path, height=20, width=30, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    array = np.stack([255 * y / height, 255 * x / width, 0 * x + 90], axis=-1).astype(np.uint8)
    Image.fromarray(array).save(path, **options)
    return array


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_one_photograph(checkpoints, capsys):
    array = picture(checkpoints / "a.png")
    assert run(checkpoints / "a.png", checkpoints / "new" / "out.png") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(checkpoints / "new" / "out.png")), array)
    out, err = capsys.readouterr()
    assert "30 x 20 pixels, unet" in out and err == ""
    assert run(checkpoints / "a.png", checkpoints / "new") == 0  # a folder that is there
    assert (checkpoints / "new" / "a.png").is_file()
    assert sorted(path.name for path in (checkpoints / "new").iterdir()) == ["a.png", "out.png"]  # nothing half done


def test_default_is_the_unet_and_another_has_to_be_named(checkpoints, capsys):
    picture(checkpoints / "a.png")
    save(UNet(width=4), "hybrid", {"architecture": "UNet", "arguments": {"width": 4}})
    assert run(checkpoints / "a.png", checkpoints / "b.png") == 0
    assert "pixels, unet," in capsys.readouterr().out
    assert run(checkpoints / "a.png", checkpoints / "hybrid.png", "--model", "hybrid") == 0
    assert "pixels, hybrid," in capsys.readouterr().out


@pytest.mark.parametrize("name", ["out.jpg", "out.tif", "out.webp", "out.bmp", "out.ppm", "OUT.PNG"])
def test_result_has_the_size_and_stands_upright(checkpoints, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(checkpoints / "a.jpg", exif=exif, quality=95)
    assert run(checkpoints / "a.jpg", checkpoints / name) == 0
    result, shown = read_photo(checkpoints / name), read_photo(checkpoints / "a.jpg")
    assert result.shape == shown.shape == (30, 20, 3)
    assert np.abs(result - shown).mean() < 0.02


def test_never_overwrites_without_force_and_never_its_input(checkpoints, capsys):
    picture(checkpoints / "a.png")
    (checkpoints / "out.png").write_bytes(b"precious")
    assert run(checkpoints / "a.png", checkpoints / "out.png") == 1
    assert "out.png is there already (--force" in capsys.readouterr().err
    assert (checkpoints / "out.png").read_bytes() == b"precious"
    assert run(checkpoints / "a.png", checkpoints / "out.png", "--force") == 0
    assert Image.open(checkpoints / "out.png").size == (30, 20)
    before = (checkpoints / "a.png").read_bytes()
    (checkpoints / "link.png").symlink_to(checkpoints / "a.png")
    (checkpoints / "hard.png").hardlink_to(checkpoints / "a.png")
    for target in ("a.png", "link.png", "hard.png", "."):
        assert run(checkpoints / "a.png", checkpoints / target, "--force") == 1
        assert "never overwritten" in capsys.readouterr().err
    assert (checkpoints / "a.png").read_bytes() == before


def test_a_folder_goes_on_after_what_cannot_be_read(checkpoints, capsys):
    folder = checkpoints / "in"
    for name in ("a.png", "b.jpg", "d.png", "d.jpg"):
        picture(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("not a picture")
    assert run(folder, checkpoints / "out") == 1
    out, err = capsys.readouterr()
    assert sorted(path.name for path in (checkpoints / "out").iterdir()) == ["a.png", "b.png", "d.png"]
    assert len(out.splitlines()) == 3
    lines = err.splitlines()
    assert len(lines) == 4
    for name in ("broken.jpg", "empty.png", "notes.txt", "d.png"):
        assert any(line.startswith(str(folder / name)) for line in lines), err
    assert run(folder, checkpoints / "out2", "--model", "segmenter") == 1  # no denoiser: says so of each
    assert "CrackSegmenter returned" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["none.png", "out.png"], "there is no .*none.png"),
    (["a.png", "out.gif"], "OUT must .*out.gif"),
    (["a.png", "out"], "OUT must .*out"),
    (["in", "in"], "another folder"),
    (["in", "a.png"], "another folder, got .*a.png"),
    (["in", "new.png"], "another folder, got .*new.png"),
    (["nothing", "out"], "no images in .*nothing"),
    (["a.png", "out.png", "--model", "nonesuch"], "no checkpoint 'nonesuch'.*segmenter, unet"),
    (["a.png"], "required: OUT"),
])
def test_misuse_is_status_2(checkpoints, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(checkpoints)
    picture(checkpoints / "a.png")
    picture(checkpoints / "in" / "a.png")
    (checkpoints / "nothing").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert not (checkpoints / "out.png").exists()


def test_a_changed_checkpoint_and_a_full_disk_are_status_1(checkpoints, capsys, monkeypatch):
    picture(checkpoints / "a.png")

    def full(*_, **__):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert run(checkpoints / "a.png", checkpoints / "out.png") == 1
    err = capsys.readouterr().err
    assert "a.png" in err and "No space left" in err
    assert [path.name for path in checkpoints.iterdir() if "out" in path.name] == []
    weights = checkpoints / "data" / "checkpoints" / "unet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert run(checkpoints / "a.png", checkpoints / "out.png") == 1
    assert "sha256 differs" in capsys.readouterr().err


def test_as_a_command(checkpoints):
    picture(checkpoints / "a.png")
    command = [sys.executable, "-m", "helpers.denoise", "a.png", "b.png"]
    ran = subprocess.run(command, cwd=checkpoints, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and "a.png -> b.png" in ran.stdout


def kinds_of_files(folder):
    """Write every kind of picture that is read in bytes, and some that go through `read_photo`."""
    array = RNG.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    rgb, profile = Image.fromarray(array), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = Image.fromarray(array // 2 + 60)
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("jpg", "png", "tif"):
            yield rgb.save(folder / f"{orientation}.{suffix}", exif=exif) or folder / f"{orientation}.{suffix}"
    for name, image, options in (("grey.png", rgb.convert("L"), {}), ("palette.png", rgb.quantize(9), {}),
                                 ("alpha.png", rgb.convert("RGBA"), {}), ("icc.png", wide, {"icc_profile": profile}),
                                 ("cmyk.jpg", rgb.convert("CMYK"), {}), ("bad_icc.png", rgb, {"icc_profile": b"no"})):
        image.save(folder / name, **options)
        yield folder / name
    deep = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    deep.save(folder / "deep.png")
    yield folder / "deep.png"


@pytest.mark.filterwarnings("ignore:.*colour profile cannot be used")
def test_bytes_are_what_read_photo_reads(tmp_path):
    for path in kinds_of_files(tmp_path):
        got = read_photo_uint8(path)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, np.round(read_photo(path) * 255), err_msg=path.name)


@pytest.mark.skipif(not (data_dir() / "checkpoints" / "unet.safetensors").is_file(), reason="unet is not trained yet")
def test_shipped_unet_gives_back_5_db(tmp_path, monkeypatch):
    """Through files, as a person would: a real photograph, noise of 50/255, the command, the gain in PSNR."""
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    clean = skimage_data.brick()[100:350, 60:385, None].repeat(3, axis=2)  # no multiple of 8
    noisy = np.clip(clean + RNG.normal(0, 50, clean.shape), 0, 255).round().astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "noisy.png")
    assert run(tmp_path / "noisy.png", tmp_path / "out.png", "--model", "unet") == 0
    denoised = np.asarray(Image.open(tmp_path / "out.png"))

    def psnr(picture):
        return -10 * np.log10(np.mean((picture / 255 - clean / 255) ** 2))
    assert psnr(denoised) > psnr(noisy) + 5


def test_fast_is_bfloat16_and_nearly_the_same(unet, monkeypatch):
    image = np.random.default_rng(3).random((40, 56, 3), np.float32)
    exact = denoise(unet, image)
    for has_it in (False, True):
        monkeypatch.setattr("helpers.denoise.bfloat16_is_fast", lambda device, has_it=has_it: has_it)
        output = denoise(unet, image, fast=True)
        assert output.dtype == np.float32 and np.array_equal(output, exact) != has_it
        assert np.abs(output - exact).max() < 0.05
