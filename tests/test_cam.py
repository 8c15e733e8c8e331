"""Maps: equal to the library's, the same for features and their negative, and the network left as it was."""

import gc
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.contour import ContourSet
from PIL import Image
from pytorch_grad_cam.utils import svd_on_activations
from scipy.stats import spearmanr
from sklearn.decomposition import KernelPCA
from torch import nn
from transformers import ViTConfig, ViTModel

from helpers import cam as cam_module
from helpers.cam import activation_map, layer_features, layers_of, overlay, show_cam, threshold_cam
from helpers.cam_methods import (
    GRADIENT_FREE,
    METHODS,
    SIGN_RULES,
    TARGETS,
    kernel_projection,
    orient,
    principal_map,
    project,
    token_norm,
)
from helpers.losses import BatchAttention
from helpers.models import UNet
from helpers.vit import ViT

matplotlib.use("Agg")
DECOMPOSING = [name for name in METHODS if "Eigen" in name or "KPCA" in name]


class TinyViT(ViT):
    """A ViT of 2 blocks for pictures of 32 x 32, a grid of 4 x 4, random weights, wrapped like the real one."""

    def __init__(self):
        config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32,
                           image_size=32, patch_size=8)
        super().__init__(ViTModel(config, add_pooling_layer=False), [0.5] * 3, [0.5] * 3, "tiny", "")


class TinyHybrid(UNet):
    """A U-Net beside a frozen ViT whose tokens are computed without gradients."""

    def __init__(self):
        super().__init__(4)
        self.vit = TinyViT()

    def forward(self, noisy):
        with torch.no_grad():
            brightness = self.vit(noisy).mean()
        return super().forward(noisy) + brightness


def _unet():
    torch.manual_seed(0)
    unet = UNet(4)
    nn.init.normal_(unet.head.weight)  # zero at the start: nothing would depend on any layer
    return unet


@pytest.fixture(scope="module")
def unet():
    return _unet()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return TinyViT()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _features(channels=12, side=14, seed=0, batch=2):
    """Features with one strong component, as (B, C, h, w) float32."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((batch, channels, side, side))
    features[:, 0] *= 3
    features[:, 1, 2:4, 3:6] += 8
    return features.astype(np.float32)


def _same_line(a, b):
    """The largest difference of two maps up to the sign, relative to the larger map's maximum."""
    return min(np.abs(a - b).max(), np.abs(a + b).max()) / max(np.abs(a).max(), np.abs(b).max())


# the decompositions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [5, 60, 300])  # fewer and more channels than the 196 positions
def test_principal_component_is_the_librarys(channels):
    features = _features(channels)
    theirs = svd_on_activations.get_2d_projection(features)
    ours = project(torch.from_numpy(features)).numpy()
    assert max(_same_line(*pair) for pair in zip(theirs, ours, strict=True)) < 1e-4


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_principal_component_survives_any_scale(scale):
    features = torch.from_numpy(_features())
    assert _same_line(project(features * scale).numpy() / scale, project(features).numpy()) < 1e-4


def test_kernel_component_of_a_small_grid_is_the_librarys():
    features = _features()
    theirs = svd_on_activations.get_2d_projection_kernel(features)
    ours = [kernel_projection(picture).numpy() for picture in torch.from_numpy(features)]
    assert max(_same_line(*pair) for pair in zip(theirs, ours, strict=True)) < 1e-4


def test_nystroem_ranks_positions_like_the_exact_map():
    losses = []
    for seed in range(4):
        features = _features(16, 28, seed, 1)[0]
        tokens = features.reshape(16, -1).T.astype(float)
        exact = KernelPCA(1, kernel="sigmoid", random_state=0).fit_transform(tokens - tokens.mean(0))[:, 0]
        quick = kernel_projection(torch.from_numpy(features)).flatten()
        losses.append(1 - abs(spearmanr(exact, quick)[0]))
    assert np.median(losses) <= 0.02 and max(losses) <= 0.05
    assert max(losses) > 0  # it is the approximation that was measured


def test_constant_features_have_an_empty_map():
    constant = torch.ones(1, 3, 4, 4)
    assert not principal_map(constant).any()
    assert not kernel_projection(constant[0]).any()
    assert not token_norm(constant).any()


def test_kernel_and_gamma_matter():
    features = torch.from_numpy(_features())[0]
    maps = [kernel_projection(features, *options) for options in (("sigmoid",), ("rbf",), ("rbf", 1.0), ("linear",))]
    assert all(_same_line(a.numpy(), b.numpy()) > 0.01 for i, a in enumerate(maps) for b in maps[:i])
    assert _same_line(maps[-1].numpy(), project(features[None])[0].numpy()) < 1e-4  # a linear kernel is plain PCA


# signs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*SIGN_RULES, "auto"])
@given(seed=st.integers(0, 1000), channels=st.integers(1, 8), side=st.integers(2, 9))
@settings(max_examples=15, deadline=None)
def test_features_and_their_negative_give_one_map(rule, seed, channels, side):
    features = torch.from_numpy(_features(max(channels, 2), max(side, 4), seed)[:, :channels])
    map = project(features)
    torch.testing.assert_close(orient(map, features, rule), orient(-map, -features, rule))
    torch.testing.assert_close(principal_map(features, rule), principal_map(-features, rule), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", SIGN_RULES)
def test_every_rule_turns_a_few_odd_positions_up(rule):
    features = torch.zeros(1, 3, 9, 9)
    features[:, :, 4, 3:6] = -1.0
    map = orient(project(features), features, rule)
    assert map[0, 4, 4] > 0 > map[0, 0, 0]


def test_an_undecided_rule_falls_back():
    map = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])  # symmetric: no skewness, mean and median agree
    for rule in SIGN_RULES:
        torch.testing.assert_close(orient(map, map[:, None], rule), orient(-map, -map[:, None], rule))


@pytest.mark.parametrize("method", DECOMPOSING)
def test_a_layer_and_its_negative_give_one_map(method, pictures):
    class Negative(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.body, self.head, self.factor = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 3, 1, bias=False), factor
            self.layer = nn.Identity()

        def forward(self, x):
            return self.head(self.factor * self.layer(self.factor * self.body(x)))

    torch.manual_seed(1)
    plus, minus = Negative(1), Negative(-1)
    minus.load_state_dict(plus.state_dict())
    maps = [activation_map(model, pictures[0], model.layer, method, "mean").raw for model in (plus, minus)]
    np.testing.assert_allclose(*maps, atol=1e-4 * np.abs(maps[0]).max())


# activation_map -------------------------------------------------------------------------------------------------------


def test_layers_are_named_in_the_order_of_the_picture(unet, vit):
    assert list(layers_of(vit)) == ["block 0", "block 1"]
    assert list(layers_of(unet)) == [*(f"encoder {i}" for i in (1, 2, 3)), "bottleneck",
                                     *(f"decoder {i}" for i in (3, 2, 1))]
    assert list(layers_of(TinyHybrid())) == [*layers_of(vit), *layers_of(unet)]
    with pytest.raises(ValueError, match="Linear has neither"):
        layers_of(nn.Linear(2, 2))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_maps_every_stage(method, unet, pictures):
    for layer, factor in (("encoder 1", 1), ("bottleneck", 8), ("decoder 2", 2)):
        found = activation_map(unet, pictures[0, :, :, :24], layer, method, "mean")
        assert found.map.shape == (32, 24) and found.raw.shape == (32 // factor, 24 // factor)
        assert found.map.dtype == found.raw.dtype == np.float32
        assert 0 <= found.map.min() and found.map.max() <= 1
        assert (found.layer, found.method) == (layer, method)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_maps_a_vit_or_says_why_not(method, vit, pictures):
    if method in ("GradCAMPlusPlus", "XGradCAM"):
        with pytest.raises(ValueError, match="negative"):
            activation_map(vit, pictures[0], "block 1", method)
        return
    found = activation_map(vit, pictures[0], "block 1", method)
    assert found.map.shape == (32, 32) and found.raw.shape == (4, 4) and found.raw.any()


@pytest.mark.parametrize("method", ["EigenCAM", "GradCAM", "HiResCAM"])
def test_the_map_is_the_librarys(method, unet, pictures):
    import pytorch_grad_cam

    layer = unet.encoder[1]
    theirs = getattr(pytorch_grad_cam, method)(unet, [layer])(pictures[:1].clone(), [lambda output: output.mean()])[0]
    ours = activation_map(unet, pictures[0], layer, method)
    if method == "EigenCAM":  # its sign is the solver's choice; ours may be the other one
        features = unet.encoder[1](unet.pool(unet.encoder[0](pictures[:1]))).detach().numpy()
        assert _same_line(svd_on_activations.get_2d_projection(features)[0], ours.raw) < 1e-4
        ours = activation_map(unet, pictures[0], layer, method, sign="library")
    np.testing.assert_allclose(ours.map, theirs, atol=1e-4)
    unet.zero_grad()


@pytest.mark.parametrize("method", ["EigenCAM", "KPCA_CAM", "LayerCAM", "SegEigenCAM"])
def test_a_batch_gives_the_maps_of_its_pictures(method, unet, pictures, monkeypatch):
    monkeypatch.setattr(cam_module, "BATCH", 2)
    together = activation_map(unet, pictures, "decoder 3", method)
    assert len(together) == 3
    for picture, found in zip(pictures, together, strict=True):
        alone = activation_map(unet, picture.permute(1, 2, 0).numpy(), "decoder 3", method)
        np.testing.assert_allclose(found.raw, alone.raw, atol=2e-3 * np.abs(alone.raw).max())


def test_targets_change_gradient_methods_only(unet, pictures):
    half = np.zeros((32, 32), bool)
    half[:, :16] = True
    targets = [*TARGETS, half, ("norm", half)]
    maps = [activation_map(unet, pictures[0], "encoder 2", "HiResCAM", target).raw for target in targets]
    assert all(not np.allclose(a / np.abs(a).max(), b / np.abs(b).max(), atol=1e-3)
               for i, a in enumerate(maps) for b in maps[:i])
    near, far = np.abs(maps[3][:, :4]).sum(), np.abs(maps[3][:, 12:]).sum()
    assert near > 50 * far  # the right-hand side has little to say about the left half of the output
    for method in GRADIENT_FREE:
        plain = activation_map(unet, pictures[0], "encoder 2", method)
        with pytest.warns(UserWarning, match=f"{method} uses no gradient: the target has no effect"):
            normed = activation_map(unet, pictures[0], "encoder 2", method, "norm")
        np.testing.assert_array_equal(plain.raw, normed.raw)


def test_the_default_target_is_silent(unet, pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        activation_map(unet, pictures[0], "bottleneck")


@pytest.mark.parametrize("change, words", [
    ({"layer": "encoder 9"}, "layer must be one of encoder 1"),
    ({"layer": nn.Conv2d(3, 3, 1)}, "no part of the UNet"),
    ({"method": "ScoreCAM"}, "method must be one of EigenCAM"),
    ({"target": "crack"}, "target must be mean, norm, residual"),
    ({"target": np.zeros((32, 32), bool)}, "at least one pixel"),
    ({"target": np.ones((16, 32), bool)}, "region must be bool"),
    ({"sign": "mask"}, 'sign must be "auto" or one of'),
    ({"image": np.zeros((3, 32, 32))}, "numpy \\(H, W, 3\\).*got \\(3, 32, 32\\)"),
    ({"image": torch.zeros(32, 32, 3)}, "torch \\(3, H, W\\).*got \\(32, 32, 3\\)"),
    ({"image": torch.zeros(3, 20, 32)}, "multiples of 8"),
    ({"image": torch.zeros(3, 8, 8), "layer": "bottleneck"}, "at least 2 x 2"),
])
def test_refusals_say_what_was_wanted(change, words, unet, pictures):
    call = {"image": pictures[0], "layer": "encoder 2", "method": "EigenCAM", "target": "mean", "sign": "auto"} | change
    with pytest.raises(ValueError, match=words):
        activation_map(unet, **call)


def test_what_makes_no_sense_is_refused(vit, pictures):
    with pytest.raises(ValueError, match="needs a denoiser"):
        activation_map(vit, pictures[0], "block 0", "GradCAM", "residual")
    with pytest.raises(ValueError, match="needs a gradient"):
        activation_map(TinyHybrid(), pictures[0], "block 0", "GradCAM")
    assert activation_map(TinyHybrid(), pictures[0], "block 0").raw.shape == (4, 4)
    with pytest.raises(ValueError, match="needs a gradient"):  # its head is zero, so nothing depends on anything
        activation_map(UNet(4), pictures[0], "encoder 2", "GradCAM")


def _state(model):
    return ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()],
            [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()])


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", ["EigenCAM", "GradCAM"])
def test_the_network_is_left_as_it_was(method, fails, pictures):
    unet = _unet().train()
    unet.decoder.eval()
    unet.bottleneck.requires_grad_(False)
    unet(pictures).mean().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in unet.parameters()]
    before = _state(unet)
    if fails:
        with pytest.raises(ValueError):
            activation_map(unet, pictures[:, :, :20], "encoder 2", method)
    else:
        with torch.no_grad():  # a caller's mode must not matter
            activation_map(unet, pictures, "encoder 2", method)
    assert _state(unet) == before
    for parameter, gradient in zip(unet.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("method", ["EigenCAM", "GradCAM"])
def test_500_maps_leave_nothing_behind(method):
    torch.manual_seed(0)
    model, picture = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)), torch.rand(3, 8, 8)

    def tensors():
        gc.collect()
        return sum(type(item) is torch.Tensor for item in gc.get_objects())

    for _ in range(5):
        activation_map(model, picture, model[1], method)
    tracemalloc.start()
    try:
        before, held = tensors(), tracemalloc.get_traced_memory()[0]
        for _ in range(500):
            activation_map(model, picture, model[1], method)
        assert tensors() - before <= 2
        assert tracemalloc.get_traced_memory()[0] - held < 200_000  # 400 bytes a map would fail
    finally:
        tracemalloc.stop()
    assert not any(module._forward_hooks for module in model.modules())


def test_batch_attention_agrees_with_the_map(unet, pictures):
    for method in ("EigenCAM", "TokenNorm", "CentredTokenNorm"):
        attention = BatchAttention(_unet(), "encoder 1", method)
        maps = attention(pictures)
        assert maps.shape == (3, 32, 32) and not maps.requires_grad
        for found, expected in zip(maps, activation_map(unet, pictures, "encoder 1", method), strict=True):
            np.testing.assert_allclose(found.numpy(), expected.map, atol=1e-4)
        assert not any(module._forward_hooks for module in attention.modules())


# thresholds and pictures ----------------------------------------------------------------------------------------------


def test_threshold_keeps_the_band():
    cam = np.array([[0.0, 0.3, 0.4], [0.5, 0.9, 1.0]], np.float32)
    np.testing.assert_allclose(threshold_cam(cam), [[0, 0, 0], [0.2, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(threshold_cam(cam, rescale=False), [[0, 0, 0.4], [0.5, 0.9, 0]])
    np.testing.assert_array_equal(threshold_cam(cam, 0, 1, rescale=False), cam)


def test_constant_and_empty_bands():
    constant = np.full((3, 4), 0.5, np.float32)
    assert (threshold_cam(constant) == 1).all() and (threshold_cam(constant, by="quantile") == 1).all()
    assert (threshold_cam(constant, rescale=False) == 0.5).all()
    assert not threshold_cam(constant, 0.6, 0.9).any() and not threshold_cam(constant, by="otsu").any()
    assert not threshold_cam(np.zeros((3, 4)), by="quantile").any()
    assert (threshold_cam(np.zeros((3, 4)), 0, 1) == 1).all()


def test_quantile_and_otsu():
    cam = np.linspace(0, 1, 101, dtype=np.float32).reshape(1, -1) ** 3
    assert np.count_nonzero(threshold_cam(cam, 0.9, 1, rescale=False, by="quantile")) == 11
    cut = np.where(cam < 0.3, 0, cam)  # as the library's cut at zero does: most values are 0
    assert np.count_nonzero(threshold_cam(cut, 0.1, 1, by="quantile", rescale=False)) == np.count_nonzero(cut)
    two = np.array([[0.1, 0.12, 0.8, 0.9]], np.float32)
    assert (threshold_cam(two, by="otsu", rescale=False) > 0).tolist() == [[False, False, True, True]]


def test_otsu_of_hardly_any_contrast():
    cam = np.array([[3.36e-43, 0.0]], np.float32)
    assert threshold_cam(cam, by="otsu", rescale=False).tolist() == [[cam[0, 0], 0]]


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=32)),
       st.floats(0, 1), st.floats(0, 1), st.sampled_from(["value", "quantile", "otsu"]))
@settings(max_examples=60, deadline=None)
def test_threshold_stays_in_range(cam, a, b, by):
    result = threshold_cam(cam, min(a, b), max(a, b), by=by)
    assert result.shape == cam.shape and result.dtype == np.float32 and np.isfinite(result).all()
    assert result.min() >= 0 and result.max() in (0, 1)
    kept = threshold_cam(cam, min(a, b), max(a, b), rescale=False, by=by)
    assert ((kept == 0) | (kept == cam)).all()


@pytest.mark.parametrize("call, words", [
    ({"lower": 0.9, "upper": 0.4}, "0 <= lower <= upper <= 1"), ({"upper": 1.5}, "0 <= lower <= upper <= 1"),
    ({"by": "value?"}, 'by must be "value"'), ({"cam": np.zeros(4)}, "\\(H, W\\)"),
    ({"cam": np.full((2, 2), np.nan)}, "not finite"), ({"cam": np.zeros((0, 3))}, "not empty"),
])
def test_threshold_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        threshold_cam(**({"cam": np.zeros((2, 2))} | call))


def test_overlay_leaves_the_rest_of_the_picture_alone():
    rng = np.random.default_rng(0)
    image = rng.uniform(-0.3, 1.4, (8, 9, 3)).astype(np.float32)
    cam = np.where(rng.random((8, 9)) > 0.5, rng.random((8, 9)), 0).astype(np.float32)
    plain = np.uint8(np.clip(image, 0, 1) * 255 + 0.5)
    result = overlay(image, cam)
    assert result.dtype == np.uint8 and result.shape == (8, 9, 3)
    np.testing.assert_array_equal(result[cam == 0], plain[cam == 0])
    np.testing.assert_array_equal(overlay(image, cam, alpha=0), plain)
    np.testing.assert_array_equal(overlay(torch.from_numpy(image).permute(2, 0, 1), cam), result)
    np.testing.assert_array_equal(overlay(plain, cam), result)
    assert (result[cam > 0] != plain[cam > 0]).any()


def test_overlay_refuses():
    image, cam = np.zeros((4, 5, 3)), np.zeros((4, 5))
    for call, words in (((image, cam.T), "one size"), ((image, cam, 1.5), "alpha"), ((image, cam, 0.5, "no"), "cmap"),
                        ((image[..., 0], cam), "image must be")):
        with pytest.raises(ValueError, match=words):
            overlay(*call)


def test_show_cam_draws_three_panels_a_bar_and_the_outline(unet, pictures):
    mask = np.zeros((32, 32), bool)
    mask[10:14] = True
    found = activation_map(unet, pictures[0], "encoder 2")
    figure = show_cam(pictures[0], found, mask)
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["image", "EigenCAM, encoder 2", "kept: value 0.40 to 0.90"]
    assert "per image" in figure.axes[3].get_ylabel()
    outlined = [any(isinstance(item, ContourSet) for item in axis.get_children()) for axis in figure.axes[:3]]
    assert outlined == [False, True, True]
    assert len(show_cam(pictures[0], found.map).axes) == 4
    matplotlib.pyplot.close("all")


# what an image may be -------------------------------------------------------------------------------------------------


def test_bytes_and_pil_images_are_brought_to_0_to_1(unet, pictures):
    levels = (pictures[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    wanted = activation_map(unet, torch.from_numpy(levels / 255).permute(2, 0, 1).float(), "encoder 2")
    for image in (levels, torch.from_numpy(levels).permute(2, 0, 1), Image.fromarray(levels), levels / 255):
        np.testing.assert_allclose(activation_map(unet, image, "encoder 2").raw, wanted.raw, atol=1e-5)
        np.testing.assert_array_equal(overlay(image, wanted), overlay(levels, wanted))
    grey = Image.fromarray(levels[..., 0])
    assert activation_map(unet, grey, "encoder 2").raw.shape == (16, 16)
    assert len(activation_map(unet, np.stack([levels, levels]), "encoder 2")) == 2


@pytest.mark.parametrize("image, error, words", [
    (np.full((32, 32, 3), 255.0), ValueError, r"must lie in .0, 1..*got 255 to 255; values of 0 to 255 must be"),
    (torch.full((3, 32, 32), 1.51), ValueError, r"got 1.51 to 1.51"),
    (np.full((32, 32, 3), -0.6, np.float32), ValueError, r"got -0.6 to -0.6"),
    (np.zeros((32, 32, 3), np.int64), TypeError, "floating point in .0, 1. or uint8, got torch.int64"),
    (torch.zeros(3, 32, 32, dtype=torch.bool), TypeError, "got torch.bool"),
    (np.full((32, 32, 3), np.inf), ValueError, "3072 values that are not finite"),
])
def test_values_that_are_no_image_are_refused_by_maps_and_overlays(image, error, words, unet):
    with pytest.raises(error, match=words):
        activation_map(unet, image, "encoder 2")
    with pytest.raises(error, match=words):
        overlay(image, np.zeros((32, 32)))
    with pytest.raises(error, match=words):
        show_cam(image, np.zeros((32, 32)))
    matplotlib.pyplot.close("all")


def test_a_denoisers_output_a_little_outside_is_taken_and_clipped_on_the_screen(unet, pictures):
    output = pictures[0] * 1.6 - 0.3
    assert output.min() < -0.2 and output.max() > 1.2
    assert np.isfinite(activation_map(unet, output, "encoder 2").raw).all()
    plain = overlay(output, np.zeros((32, 32)))
    np.testing.assert_array_equal(plain, overlay(output.clamp(0, 1), np.zeros((32, 32))))


def test_overlay_takes_one_image_and_leaves_it_as_it_is(pictures):
    levels = np.full((32, 32, 3), 7, np.uint8)
    overlay(levels, np.ones((32, 32)))
    assert (levels == 7).all()
    with pytest.raises(ValueError, match="wanted one image, got a batch of 3"):
        overlay(pictures, np.zeros((32, 32)))


# images of several sizes ----------------------------------------------------------------------------------------------


def test_a_vits_map_has_the_grid_of_its_image_whatever_was_seen_before(vit, pictures):
    wide = torch.rand(3, 16, 64)  # as many patches as a square of 32 x 32
    alone = activation_map(vit, wide, "block 1").raw
    assert alone.shape == (2, 8)
    vit(pictures)
    np.testing.assert_array_equal(activation_map(vit, wide, "block 1").raw, alone)
    assert activation_map(vit, pictures[0], "block 1", "GradCAM").raw.shape == (4, 4)
    assert activation_map(vit, wide, "block 1", "GradCAM").raw.shape == (2, 8)
    assert layer_features(vit, wide[None])["block 0"].shape == (1, 24, 2, 8)


def test_features_of_eight_threads_do_not_mix(vit):
    images = [torch.rand(1, 3, 16 + 8 * (n % 3), 32 + 8 * (n % 2)) for n in range(24)]
    alone = [layer_features(vit, image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: layer_features(vit, image), images))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("size", [(32, 72), (48, 24)])
def test_a_network_of_transformers_has_maps_of_its_own_grid(size):
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32,
                       image_size=size, patch_size=8)
    torch.manual_seed(0)
    network, image = ViTModel(config, add_pooling_layer=False), torch.rand(3, *size)
    assert list(layers_of(network)) == ["block 0", "block 1"]
    raw = activation_map(network, image, "block 1").raw
    tokens = network(image[None]).last_hidden_state
    assert raw.shape == (size[0] // 8, size[1] // 8) and tokens.shape[1] == 1 + raw.size
    block = layer_features(network, image[None], ["block 1"])["block 1"]
    np.testing.assert_allclose(principal_map(block)[0].numpy(), raw, atol=1e-5)
