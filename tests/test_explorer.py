"""The explorer without a browser: what a slider changes, what is computed once, what is said when something fails."""

import re

import cv2
import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from app import explorer as module
from app.explorer import CamExplorer, encode_png, models_here, noisy_image
from helpers.cam import activation_map, overlay, threshold_cam
from helpers.checkpoints import OtherViTError
from helpers.data import Sample, open_dataset
from helpers.metrics import crack_auc, darkness_map
from helpers.models import UNet
from helpers.project import ROOT
from surfaces.files import write_new

matplotlib.use("Agg")


def sample(name="wall", has_mask=True, sigma=50.0):
    """A sample of 32 x 32 with a dark line across it."""
    clean = torch.full((3, 32, 32), 0.7)
    clean[:, 14:17] = 0.1
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[14:17] = has_mask
    noisy = (clean + sigma / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    return Sample(clean, noisy, mask, has_mask, name, name, name, "own", sigma)


@pytest.fixture
def explorer(tmp_path):
    torch.manual_seed(0)
    models = {"small": UNet(4, stages=2), "large": UNet(8)}
    for model in models.values():
        model.requires_grad_(False).apply(lambda part: [w.normal_(0, 0.3) for w in part.parameters(recurse=False)])
    return CamExplorer(models, [sample(), sample("floor"), sample("sky", has_mask=False)], folder=tmp_path)


@pytest.fixture
def computed(monkeypatch):
    """The (layer, method) of every map that is computed from here on."""
    calls = []

    def counted(model, image, layer, method, *options):
        calls.append((layer, method))
        return activation_map(model, image, layer, method, *options)

    monkeypatch.setattr(module, "activation_map", counted)
    return calls


def decoded(image):
    """What an image widget shows: (H, W, 3) uint8."""
    return cv2.imdecode(np.frombuffer(image.value, np.uint8), cv2.IMREAD_COLOR_RGB)


def words(widget):
    return re.sub("<[^>]*>", " ", widget.value).strip()


def state(explorer):
    images = explorer.maps[: 1 if explorer.second.value is None else 2]
    return bytes(explorer.plain.value), [bytes(image.value) for image in images], explorer.line.value


def all_parts(widget):
    return [widget, *(part for child in getattr(widget, "children", ()) for part in all_parts(child))]


# --- the slider


def test_the_slider_changes_picture_and_line_and_computes_nothing(explorer, computed, monkeypatch):
    monkeypatch.setattr(module, "crack_auc", None)  # nor any area under a curve
    monkeypatch.setattr(plt, "figure", None)
    before = state(explorer)
    explorer.band.set_state({"value": [0.1, 0.95]})  # as the browser's message does
    after = state(explorer)
    assert after[0] == before[0] and after[1][0] != before[1][0] and after[2] != before[2]
    assert computed == [] and words(explorer.message) == ""


def test_what_is_shown_is_what_the_helpers_give(explorer):
    explorer.band.value = (0.2, 0.8)
    cam = activation_map(explorer.models["small"], explorer.samples[0].noisy, explorer.layer.value)
    wanted = overlay(explorer.samples[0].noisy, threshold_cam(cam, 0.2, 0.8))
    np.testing.assert_array_equal(decoded(explorer.maps[0]), wanted)
    np.testing.assert_array_equal(decoded(explorer.plain), overlay(explorer.samples[0].noisy, np.zeros((32, 32))))


def test_the_numbers_are_those_of_the_band_and_of_the_whole_map(explorer):
    explorer.band.value = (0.5, 1)
    one, mask = explorer.samples[0], explorer.samples[0].mask.numpy()
    cam = activation_map(explorer.models["small"], one.noisy, explorer.layer.value)
    kept = (cam.map >= 0.5) & (cam.map <= 1)
    hits = (kept & mask).sum()
    wanted = [f"{100 * kept.mean():.1f} %", f"{100 * hits / mask.sum():.1f} %", f"{hits / kept.sum():.2f}",
              f"{hits / (kept | mask).sum():.2f}", f"{crack_auc(cam.raw, mask):.2f}",
              f"{crack_auc(darkness_map(one.noisy.movedim(0, -1)), mask):.2f}"]
    assert re.findall(r'colspan="1">([^<]*)</td>', explorer.line.value)[1:] == wanted


def test_quantiles_otsu_opacity_and_outline(explorer, computed):
    explorer.by.value, explorer.band.value = "quantile", (0.9, 1)
    assert 0.09 < float(re.search(r"([\d.]+) %", explorer.line.value)[1]) / 100 < 0.11
    explorer.by.value = "otsu"
    assert explorer.band.disabled
    explorer.by.value, explorer.opacity.value = "value", 0
    np.testing.assert_array_equal(decoded(explorer.maps[0]), decoded(explorer.plain))
    explorer.outline.value = True
    cyan = (decoded(explorer.maps[0]) == (0, 255, 255)).all(-1)
    assert cyan[[13, 17]].all() and cyan.sum() == 2 * 32  # a line above the crack and one below it
    assert computed == [] and words(explorer.message) == ""


# --- maps


def test_every_map_is_computed_once(explorer, computed):
    first = state(explorer)
    explorer.method.value = "KPCA_CAM"
    explorer.layer.value = "encoder 1"
    assert computed == [("bottleneck", "KPCA_CAM"), ("encoder 1", "KPCA_CAM")]
    explorer.layer.value = "bottleneck"
    explorer.method.value = "EigenCAM"
    assert len(computed) == 2 and state(explorer) == first


def test_it_says_that_it_is_computing_and_stops_saying_so(explorer):
    said = []
    explorer.message.observe(lambda change: said.append(change.new), "value")
    explorer.method.value = "GradCAM"
    assert "Computing GradCAM, small, bottleneck" in said[0] and words(explorer.message) == ""


def test_what_has_no_effect_is_greyed_out_and_makes_no_second_map(explorer, computed):
    assert explorer.target.disabled and not explorer.sign.disabled
    explorer.target.value = "norm"
    assert computed == [] and words(explorer.message) == ""
    explorer.method.value = "GradCAM"
    assert not explorer.target.disabled and explorer.sign.disabled
    explorer.sign.value = "skewness"
    assert computed == [("bottleneck", "GradCAM")]


def test_another_branch_brings_its_layers(explorer, computed):
    explorer.branch.value = "large"
    assert explorer.layer.options[2] == "encoder 3" and explorer.layer.value == "bottleneck"
    assert computed == [("bottleneck", "EigenCAM")]


def test_a_second_method_stands_beside_the_first_under_the_same_slider(explorer):
    assert explorer._frames[2].layout.display == "none"
    explorer.second.value = "TokenNorm"
    assert explorer._frames[2].layout.display == "flex" and explorer.line.value.count("<tr>") == 3
    before = state(explorer)[1]
    explorer.band.value = (0.05, 0.95)
    assert all(old != new for old, new in zip(before, state(explorer)[1], strict=True))


def test_noise_is_that_of_the_data_sets():
    as_fifty, as_fifteen = (open_dataset("test", photos=False, sigma=s, length=1)[0] for s in (50, 15))
    assert torch.equal(noisy_image(as_fifty, 15).noisy, as_fifteen.noisy)
    assert noisy_image(as_fifty, 50).noisy is as_fifty.noisy
    assert torch.equal(noisy_image(as_fifty, 0).noisy, as_fifty.clean)


def test_a_picture_without_a_mask_says_so(explorer):
    explorer.picture.value, explorer.outline.value = 2, True
    assert "there is no mask to compare with" in words(explorer.line) and words(explorer.message) == ""
    empty = sample()._replace(mask=torch.zeros(32, 32, dtype=torch.bool))
    assert "there is no crack" in words(CamExplorer(explorer.models, [empty]).line)


def test_memory_is_bounded(explorer):
    assert explorer._map_of.cache_info().maxsize == 64 and explorer._image_of.cache_info().maxsize == 16


# --- when something fails


def test_an_error_is_shown_in_words_and_the_last_picture_stays(explorer, monkeypatch):
    before = state(explorer)
    real, answers = activation_map, iter([ValueError("this <layer> gives no grid"), RuntimeError("out of memory")])
    monkeypatch.setattr(module, "activation_map", lambda *_: (_ for _ in ()).throw(next(answers)))
    explorer.layer.value = "encoder 1"
    assert words(explorer.message) == "this &lt;layer&gt; gives no grid (The last picture stays.)"
    explorer.method.value = "GradCAM"
    assert words(explorer.message) == "RuntimeError: out of memory (The last picture stays.)"
    assert state(explorer) == before
    explorer.band.value = (0.1, 0.5)  # slides the map that is still shown
    assert state(explorer)[1][0] != before[1][0] and "EigenCAM, small, bottleneck" in explorer.line.value
    monkeypatch.setattr(module, "activation_map", real)
    explorer.layer.value = "decoder 1"
    assert words(explorer.message) == "" and "GradCAM, small, decoder 1" in explorer.line.value


def test_reset_sets_everything_back(explorer, computed):
    before = state(explorer)
    for name, value in {"picture": 1, "branch": "large", "layer": "encoder 2", "method": "TokenNorm",
                        "second": "EigenCAM", "by": "quantile", "sigma": 15, "opacity": 0.9, "outline": True,
                        "band": (0.7, 0.8), "target": "norm", "sign": "largest"}.items():
        getattr(explorer, name).value = value
    made = len(computed)
    explorer.reset()
    assert state(explorer) == before and explorer.branch.value == "small" and explorer.band.value == (0.4, 0.9)
    assert len(computed) == made


def test_networks_and_samples_are_needed():
    with pytest.raises(ValueError, match="got 0 and 1"):
        CamExplorer({}, [sample()])


# --- saving, grid, page


def test_saving_overwrites_nothing_and_says_where(explorer):
    first, shown = explorer.save(), bytes(explorer.maps[0].value)
    explorer.second.value = "TokenNorm"
    next(part for part in all_parts(explorer) if getattr(part, "description", "") == "Save picture").click()
    second = first.with_stem(first.stem + "-2")
    assert first.name == "wall-EigenCAM-small-bottleneck-0.40-0.90.png" and first.read_bytes() == shown
    assert cv2.imread(str(second)).shape == (32, 64, 3) and str(second) in words(explorer.message)
    assert sorted(first.parent.iterdir()) == [second, first]


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_new(tmp_path / "a.png", "no bytes")
    assert list(tmp_path.iterdir()) == []
    assert write_new(tmp_path / "a.png", b"1").name == "a.png" and write_new(tmp_path / "a.png", b"2").name == "a-2.png"


def test_png_is_lossless():
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR_RGB),
                                  picture)


def test_the_grid_shows_what_the_slider_does(explorer):
    explorer.second.value = "TokenNorm"
    figure = explorer.grid(thresholds=[0.2, (0.3, 0.6)])
    assert len(figure.axes) == 6
    explorer.band.value = (0.3, 0.6)
    shown = figure.axes[5].images[0].get_array()
    np.testing.assert_allclose(255 * shown, decoded(explorer.maps[1]), atol=0.01)
    assert figure.axes[1].get_title().startswith("0.20 to 0.90\nkept ")
    with pytest.raises(ValueError, match="lower <= upper"):
        explorer.grid([0.95])
    plt.close("all")


def test_models_here_takes_what_is_there(monkeypatch, tmp_path):
    monkeypatch.delenv("DENOISE_VIT", raising=False)
    assert "U-Net" in models_here()
    def beside_another(name):
        if name == "hybrid_attention":
            raise OtherViTError("it was trained beside another ViT")
        return UNet(4)
    with monkeypatch.context() as patch:
        patch.setattr(module, "load", beside_another)
        assert list(models_here()) == ["ViT", "U-Net"]
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no network to explore"):
        models_here()


def test_the_app_is_committed_without_outputs():
    cells = [c for c in nbformat.read(ROOT / "app" / "explorer.ipynb", as_version=4).cells if c.cell_type == "code"]
    assert [(c.outputs, c.execution_count) for c in cells] == [([], None)] * len(cells)
