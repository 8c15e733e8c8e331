"""The figures and tables that the notebooks share.

    show_outputs(sample, {"unet": denoised})                      # clean, noisy, output, with scores and a zoom
    show_scores(scores)                                           # a table's methods as rows of dots, sources apart
    show_table(scores, best="max")                                # the same as numbers, the best in bold

Images come in one order and one colour range; images and outputs are numpy (H, W, 3) or torch (3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats

from helpers.metrics import Image, as_image, as_numpy, psnr, ssim

if TYPE_CHECKING:
    import pandas

    from helpers.data import Sample

# Okabe and Ito's colours: apart for colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
Inset = tuple[int, int, int]  # y, x, side of a square window in pixels


def use_small_figures(quality: int = 85) -> None:
    """Make a notebook save its figures as JPEG: noise has no patterns, and as PNG a page of it weighs megabytes.

    Each figure also gets its words (`described`) as alternative text. `quality` is of 100.
    """
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": quality})
    if shell := get_ipython():
        # the formatter's own way to draw is kept; all that is added is the metadata beside the bytes
        formatter = shell.display_formatter.formatters["image/jpeg"]
        draw = formatter.lookup_by_type(Figure)
        formatter.for_type(Figure, lambda figure: (draw(figure), {"alt": described(figure)}))


def described(figure: Figure) -> str:
    """Return what a figure shows, for those who do not see it: its titles, axes and legends, or what else is written.

    >>> figure, axis = plt.subplots()
    >>> _ = axis.plot([1, 2], label="U-Net"), axis.set(xlabel="step", ylabel="loss"), axis.legend()
    >>> described(figure)
    'loss over step: U-Net'
    >>> plt.close(figure)
    """
    found = [figure.get_suptitle()]  # in the order in which an eye meets them
    for axis in figure.axes:
        over = " over ".join(label for label in (axis.get_ylabel(), axis.get_xlabel()) if label)
        legend = axis.get_legend()
        lines = ", ".join(text.get_text() for text in legend.get_texts()) if legend else ""
        # a diagram has neither title nor labels: the words in its boxes say what it is
        written = ", ".join(text.get_text() for text in axis.texts) if not (axis.get_title() or over) else ""
        found.append(": ".join(part for part in (axis.get_title(), over, lines, written) if part))
    return "; ".join(" ".join(words.split()) for words in found if words)


def crack_inset(mask: np.ndarray, side: int = 56) -> Inset:
    """Return (y, x, side): the square window of a mask (H, W) bool with most crack, the middle where there is none."""
    height, width = mask.shape
    side = min(side, height, width)
    if not mask.any():  # something must be enlarged
        return (height - side) // 2, (width - side) // 2, side
    # the sums over all windows at once, from the four corners of each in the integral image
    area = np.pad(np.cumsum(np.cumsum(mask, 0), 1), ((1, 0), (1, 0)))  # (H + 1, W + 1)
    sums = area[side:, side:] - area[:-side, side:] - area[side:, :-side] + area[:-side, :-side]
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(y), int(x), side


def show_images(images: Sequence[Image], titles: Sequence[str] | None = None, columns: int | None = None,
                inset: Inset | None = None, size: float = 2.3, cmap: str = "gray",
                suptitle: str | None = None) -> Figure:
    """Show images in a grid.

    Args:
        images: numpy (H, W, 3), torch (3, H, W) or (H, W) arrays; values outside [0, 1] are clipped.
        titles: one line or two per image; `suptitle` is the whole figure's.
        columns: images per row, all in one row where None.
        inset: (y, x, side) of a window drawn enlarged in each image's lower right corner.
        size, cmap: inches per image, and the colour map of the (H, W) arrays.
    """
    columns = columns or len(images)
    rows = -(-len(images) // columns)  # rounded up
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.35) * rows), squeeze=False,
                                layout="constrained")
    for axis in axes.flat:  # also of those places in the last row that stay empty
        axis.axis("off")
    # one range for all: what is brighter in one image is brighter on the page; no smoothing between pixels
    options = {"cmap": cmap, "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    for axis, image, title in zip(axes.flat, images, titles or [""] * len(images), strict=False):
        image = as_numpy(image).astype(float) if image.ndim == 2 else as_image(image, clip=True)
        axis.imshow(image, **options)
        axis.set_title(title, fontsize=9)
        if inset:
            # a frame around the window, and the window again, enlarged, in a corner
            y, x, side = inset
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor="white", linewidth=0.8))
            window = axis.inset_axes([0.53, 0.0, 0.47, 0.47])
            window.imshow(image[y : y + side, x : x + side], **options)
            window.set(xticks=[], yticks=[])
            window.spines[:].set(color="white", linewidth=1.2)
    if suptitle:
        figure.suptitle(suptitle, fontsize=10)
    return figure


def show_outputs(sample: Sample, outputs: Mapping[str, Image], errors: Iterable[str] = (), columns: int | None = None,
                 size: float = 2.3) -> Figure:
    """Show clean, noisy and every output (a dict by name) of one Sample, with PSNR, SSIM and the crack enlarged.

    The error of each output named in `errors` is shown too, 5 times enlarged around mid grey; `columns` and `size` are
    those of `show_images`.
    """
    clean = as_image(sample.clean)
    images, titles = [clean], ["clean"]
    for name, image in {f"noisy, σ = {sample.sigma:.0f}/255": sample.noisy, **outputs}.items():
        images.append(image)
        titles.append(f"{name}\n{psnr(image, sample.clean):.1f} dB · SSIM {ssim(image, sample.clean):.2f}")
    for name in errors:
        # too bright is above mid grey, too dark below: the sign of an error says what was taken away
        images.append(0.5 + 5 * (as_image(outputs[name], clip=True) - clean))
        titles.append(f"error of {name}\n× 5 around mid grey")
    return show_images(images, titles, columns=columns, inset=crack_inset(sample.mask.numpy()), size=size)


def show_table(frame: pandas.DataFrame | pandas.Series, digits: int = 2, best: str | None = None) -> Markdown:
    """Return a DataFrame (or Series) as a Markdown table: floats with `digits` digits, a missing value as a dash.

    The index becomes the first column or columns; an unnamed index of plain numbers is left out. Whole numbers and
    text stay as they are. With `best` "max" or "min" that value of each column of numbers is bold; ValueError for
    another word.

    >>> import pandas
    >>> frame = pandas.DataFrame({"method": ["bm3d", "unet"], "dB": [25.6, 26.25], "n": [179, 179]})
    >>> print(show_table(frame.set_index("method"), digits=1, best="max").data)
    | method | dB | n |
    | --- | --- | --- |
    | bm3d | 25.6 | **179** |
    | unet | **26.2** | **179** |
    """
    if best not in (None, "max", "min"):
        raise ValueError(f'best must be "max", "min" or None, got {best!r}')
    frame = frame.to_frame() if frame.ndim == 1 else frame
    if frame.index.nlevels > 1 or frame.index.name or frame.index.dtype.kind not in "iu":
        frame = frame.reset_index(names=None if any(frame.index.names) else "")
    columns = []  # of finished cells: the heading, the line below it, the values
    for name, values in frame.items():
        numbers = [value for value in values if isinstance(value, (float, int, np.number)) and value == value]
        wanted = {"max": max, "min": min}[best](numbers) if best and numbers else None
        cells = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name), "---"]
        for value in values:
            # NaN and None are no measurement; 0.0 is added so that a rounded -0.001 does not read -0.00
            missing = value is None or value != value
            text = f"{round(value, digits) + 0.0:.{digits}f}" if isinstance(value, (float, np.floating)) else str(value)
            cells.append("–" if missing else f"**{text}**" if value == wanted else text)
        columns.append(cells)
    # a bar in a name would end its cell
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in zip(*columns, strict=True)]
    return Markdown("\n".join(f"| {line} |" for line in lines))


def show_scores(scores: pandas.DataFrame, label: str = "PSNR in dB", title: str | None = None,
                axis: Axes | None = None) -> Axes:
    """Show scores as dots, one colour and marker per source, the mean of sources as a bar; the largest mean on top.

    Args:
        scores: a row per method (its index) and a column per source, NaN where nothing was measured, as
            ``pivot_table(index="method", columns="source", values=...)`` gives; the column "mean", where there is none,
            is the mean of the others. Methods without a mean stand below. ValueError where there is no value at all.
        label: of the horizontal axis, with its unit.
        axis: where to draw; a new figure where None.
    """
    if "mean" not in scores:
        scores = scores.assign(mean=scores.mean(axis=1))
    scores = scores.astype(float).sort_values("mean", kind="stable", na_position="first")
    if not scores.notna().to_numpy().any():  # what a query for a sigma that was not measured gives
        raise ValueError(f"scores need at least one value, got none in {scores.shape[0]} rows")
    if axis is None:
        _, axis = plt.subplots(figsize=(7.5, 0.32 * len(scores) + 1.1), layout="constrained")
    positions = np.arange(len(scores))  # from below, so that the best stands on top
    axis.barh(positions, scores["mean"], color="#DDDDDD", label="mean of sources", height=0.7)
    # sources apart: a mean alone would hide a method that is good on one kind of surface only
    for colour, marker, source in zip(COLOURS, "os^Dvp*X", scores.columns.drop("mean"), strict=False):
        axis.plot(scores[source].to_numpy(), positions, marker, color=colour, label=source, markersize=5)
    axis.set_yticks(positions, list(scores.index))
    low, high = np.nanmin(scores.to_numpy()), np.nanmax(scores.to_numpy())
    pad = 0.05 * (high - low) or 0.5  # bars may start above zero: what counts are the differences
    axis.set(xlabel=label, xlim=(low - pad, high + pad), title=title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower right")
    return axis


def show_history(history: Sequence[Mapping[str, float]], figure: str = "psnr", label: str = "PSNR on validation in dB",
                 axis: Axes | None = None) -> Axes:
    """Show a training's history (of `fit`): `figure` against seconds, the training loss in grey on its own axis."""
    if axis is None:
        _, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    seconds = [line["seconds"] for line in history]
    axis.plot(seconds, [line[figure] for line in history], "o-", color=COLOURS[0], markersize=4)
    axis.set(xlabel="seconds of training", ylabel=label)
    axis.spines["top"].set_visible(False)
    loss = axis.twinx()  # another quantity on another scale: what can be compared is when each of the two flattens
    loss.plot(seconds, [line["loss"] for line in history], color=COLOURS[7], linewidth=1)
    loss.set_ylabel("training loss", color=COLOURS[7])
    loss.spines["top"].set_visible(False)
    return axis


def in_words(difference: float, low: float | None, high: float | None, covered: float | None = None, unit: str = "",
             digits: int = 2) -> str:
    """A difference and its interval as text; where the interval leaves sources out, their difference without them too.

    >>> in_words(0.5, 0.25, 0.75), in_words(-3, -4, -1, -2.5, " %", 1)
    ('+0.50 [+0.25, +0.75]', '-3.0 % (sources with an interval: -2.5 % [-4.0, -1.0])')
    >>> in_words(1, None, None)
    '+1.00 (no interval)'
    """
    text = f"{difference:+.{digits}f}{unit}"  # a sign always: it says which of the two is ahead
    if low is None or np.isnan(low):
        return f"{text} (no interval)"
    span = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    if covered is None or np.isclose(covered, difference, rtol=1e-6):  # the interval is about all sources
        return f"{text} {span}"
    return f"{text} (sources with an interval: {covered:+.{digits}f}{unit} {span})"
