"""The figures: the right window, the right order, labelled axes."""

import math

import matplotlib
import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from helpers import plots  # noqa: E402
from helpers.data import Sample  # noqa: E402
from helpers.metrics import psnr  # noqa: E402
from helpers.plots import (  # noqa: E402
    crack_inset,
    show_history,
    show_images,
    show_outputs,
    show_scores,
    show_table,
)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@settings(deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)), st.integers(1, 16))
def test_inset_holds_the_most_crack(mask, side):
    y, x, inside = crack_inset(mask, side)
    height, width = mask.shape
    assert inside == min(side, height, width)
    assert 0 <= y <= height - inside and 0 <= x <= width - inside
    most = max(mask[i:i + inside, j:j + inside].sum()
               for i in range(height - inside + 1) for j in range(width - inside + 1))
    assert mask[y:y + inside, x:x + inside].sum() == most


def test_inset_without_crack_is_in_the_middle():
    assert crack_inset(np.zeros((100, 60), bool), side=20) == (40, 20, 20)


def picture():
    return np.random.default_rng(0).random((12, 16, 3)).astype(np.float32)


def shown(figure):
    """Return the arrays in a figure's axes, insets left out."""
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def test_numpy_torch_and_flat_arrays_are_shown_alike():
    array, flat = picture(), np.eye(12, 16, dtype=bool)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy()).requires_grad_()
    figure = show_images([array, tensor, flat, torch.from_numpy(flat)], titles=["a", "b", "c", "d"])
    assert isinstance(figure, Figure)
    images = shown(figure)
    np.testing.assert_array_equal(images[0], array)
    np.testing.assert_array_equal(images[1], array)
    np.testing.assert_array_equal(images[2], flat)
    np.testing.assert_array_equal(images[3], flat)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "d"]
    assert all(axis.images[0].get_clim() == (0, 1) for axis in figure.axes)
    figure.canvas.draw()


def test_values_outside_are_clipped():
    assert [(image.min(), image.max()) for image in shown(show_images([picture() * 4 - 2]))] == [(0, 1)]


def test_grid_has_the_columns_wanted_and_hides_what_is_left():
    figure = show_images([picture()] * 5, columns=3, suptitle="five")
    assert len(figure.axes) == 6 and len(shown(figure)) == 5
    assert figure.get_suptitle() == "five"
    assert not any(axis.axison for axis in figure.axes)


def test_inset_enlarges_the_window():
    array = picture()
    axis = show_images([array], inset=(2, 3, 5)).axes[0]
    np.testing.assert_array_equal(axis.child_axes[0].images[0].get_array(), array[2:7, 3:8])
    assert axis.patches[0].get_bbox().bounds == (2.5, 1.5, 5, 5)


def test_nothing_is_closed_and_nothing_is_shown():
    before = plt.figure()
    figure = show_images([picture()])
    assert set(plt.get_fignums()) == {before.number, figure.number}


def test_outputs_come_in_order_with_their_scores():
    clean = torch.full((3, 24, 32), 0.5)
    noisy = clean + 0.1
    sample = Sample(clean, noisy, torch.eye(24, 32).bool(), True, "a", "a", "a", "road", 25.0)
    outputs = {"blur": clean + 0.01, "unet": clean - 0.02}
    figure = show_outputs(sample, outputs, errors=["unet"])
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles[0] == "clean" and titles[1].startswith("noisy, σ = 25/255\n20.0 dB · SSIM ")
    assert titles[2].startswith("blur\n40.0 dB") and titles[3].startswith(f"unet\n{psnr(clean - 0.02, clean):.1f} dB")
    assert titles[4] == "error of unet\n× 5 around mid grey"
    np.testing.assert_allclose(shown(figure)[4], 0.4, atol=1e-5)


def test_a_frame_as_a_table_has_dashes_digits_and_the_best_in_bold():
    frame = pandas.DataFrame({"method": ["unet", "bm3d", "noisy"], "psnr": [26.123, None, 14.4], "n": [3, 40, 5],
                              "bias": [-0.001, 0.0, math.nan], "note": ["a | b", None, "worst"]})
    assert show_table(frame.iloc[:, :-1]).data.splitlines() == [
        "| method | psnr | n | bias |", "| --- | --- | --- | --- |", "| unet | 26.12 | 3 | 0.00 |",
        "| bm3d | – | 40 | 0.00 |", "| noisy | 14.40 | 5 | – |"]
    best = show_table(frame.set_index("method")[["psnr", "n", "note"]], digits=1, best="max").data.splitlines()
    assert best[0] == "| method | psnr | n | note |" and best[2] == r"| unet | **26.1** | 3 | a \| b |"
    assert best[3] == "| bm3d | – | **40** | – |"
    assert "**14.4**" in show_table(frame, digits=1, best="min").data
    with pytest.raises(ValueError, match="got 'most'"):
        show_table(frame, best="most")


def test_scores_stand_in_order_with_every_source_and_the_mean_of_what_is_there():
    scores = pandas.DataFrame({"road": [28.5, 14.5, math.nan], "wall": [24.0, 14.75, math.nan]},
                              index=["unet", "noisy", "not measured"])
    axis = show_scores(scores, title="a title")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["not measured", "noisy", "unet"]
    assert [bar.get_width() for bar in axis.patches][1:] == [14.625, 26.25] and axis.get_title() == "a title"
    assert {line.get_label(): list(line.get_xdata()[1:]) for line in axis.lines} == {
        "road": [14.5, 28.5], "wall": [14.75, 24.0]}
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"road", "wall", "mean of sources"}
    low, high = axis.get_xlim()
    assert low < 14.5 and high > 28.5 and axis.get_xlabel() == "PSNR in dB"
    axis.figure.canvas.draw()
    given = show_scores(scores.assign(mean=[1.0, 2.0, 3.0]))  # a mean that is there is not computed anew
    assert [label.get_text() for label in given.get_yticklabels()] == ["unet", "noisy", "not measured"]
    assert list(scores.columns) == ["road", "wall"]  # what was handed in stays as it is


def test_scores_of_methods_with_other_sources_go_into_the_axis_given():
    scores = pandas.DataFrame({"road": [math.nan, 2.0], "mean": [1.0, 2.0]}, index=["a", "b"])
    _, axis = plt.subplots()
    assert show_scores(scores, label="a label", axis=axis) is axis and axis.get_xlabel() == "a label"
    assert np.isnan(axis.lines[0].get_xdata()[0]) and axis.lines[0].get_xdata()[1] == 2.0


@pytest.mark.parametrize("scores", [pandas.DataFrame(), pandas.DataFrame({"road": [math.nan]}, index=["unet"])])
def test_scores_without_any_value_are_refused(scores):
    with pytest.raises(ValueError, match=f"at least one value, got none in {len(scores)} rows"):
        show_scores(scores)


def test_history_has_both_axes_labelled():
    history = [{"step": 1, "seconds": 0.5, "loss": 0.02, "psnr": 20.0},
               {"step": 2, "seconds": 1.5, "loss": 0.01, "psnr": 24.0}]
    axis = show_history(history)
    loss = next(other for other in axis.figure.axes if other is not axis)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("seconds of training", "PSNR on validation in dB")
    assert loss.get_ylabel() == "training loss"
    assert list(axis.lines[0].get_ydata()) == [20, 24] and list(loss.lines[0].get_ydata()) == [0.02, 0.01]
    axis.figure.canvas.draw()


def test_colours_are_apart():
    assert len(set(plots.COLOURS)) == len(plots.COLOURS) == 8


def test_a_data_frame_is_shown_with_its_index_and_dashes():
    frame = pandas.DataFrame({("psnr", 15): [1.005, np.nan], ("psnr", 50): [-0.001, 3.0], ("n", ""): [4, 5]},
                             index=pandas.Index(["a", "b"], name="method"))
    assert plots.show_table(frame).data.split("\n") == [
        "| method | psnr 15 | psnr 50 | n |", "| --- | --- | --- | --- |", "| a | 1.00 | 0.00 | 4 |",
        "| b | – | 3.00 | 5 |"]
    assert plots.show_table(pandas.DataFrame({"x": [1.25]}), digits=1).data.split("\n")[2] == "| 1.2 |"
    named = plots.show_table(pandas.Series({"a": 0.5}, name="share")).data
    assert named.split("\n")[::2] == ["|  | share |", "| a | 0.50 |"]
    both = pandas.DataFrame({"x": [0.5]}, index=pandas.MultiIndex.from_tuples([("a", 1)], names=["net", "k"]))
    assert plots.show_table(both).data.split("\n") == ["| net | k | x |", "| --- | --- | --- |", "| a | 1 | 0.50 |"]
