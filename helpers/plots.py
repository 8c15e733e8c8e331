"""The figures that the notebooks share: pictures in one order and one range, and results with their sources apart."""


from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats

from helpers.metrics import as_image, as_numpy, psnr, ssim

if TYPE_CHECKING:
    import pandas

# Okabe and Ito's colours: apart for colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def use_small_figures(quality=85):
    """Make a notebook save its figures as JPEG: noise has no patterns, and as PNG a page of it weighs megabytes."""
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": quality})
    if shell := get_ipython():
        formatter = shell.display_formatter.formatters["image/jpeg"]
        draw = formatter.lookup_by_type(Figure)
        formatter.for_type(Figure, lambda figure: (draw(figure), {"alt": described(figure)}))


def described(figure):
    """Return what a figure shows, for those who do not see it: its titles, axes and legends, or what else is
    written in it.

    Example:
        >>> figure, axis = plt.subplots()
        >>> _ = axis.plot([1, 2], label="U-Net"), axis.set(xlabel="step", ylabel="loss"), axis.legend()
        >>> described(figure)
        'loss over step: U-Net'
        >>> plt.close(figure)
    """
    found = [figure.get_suptitle()]
    for axis in figure.axes:
        over = " over ".join(label for label in (axis.get_ylabel(), axis.get_xlabel()) if label)
        legend = axis.get_legend()
        lines = ", ".join(text.get_text() for text in legend.get_texts()) if legend else ""
        written = ", ".join(text.get_text() for text in axis.texts) if not (axis.get_title() or over) else ""
        found.append(": ".join(part for part in (axis.get_title(), over, lines, written) if part))
    return "; ".join(" ".join(words.split()) for words in found if words)


def crack_inset(mask, side=56):
    """Return (y, x, side): the square window of a mask (H, W) with the most crack, the middle where there is none."""
    height, width = mask.shape
    side = min(side, height, width)
    if not mask.any():
        return (height - side) // 2, (width - side) // 2, side
    area = np.pad(np.cumsum(np.cumsum(mask, 0), 1), ((1, 0), (1, 0)))  # (H + 1, W + 1) integral picture
    sums = area[side:, side:] - area[:-side, side:] - area[side:, :-side] + area[:-side, :-side]
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(y), int(x), side


def show_images(pictures, titles=None, columns=None, inset=None, size=2.3, cmap=None, suptitle=None):
    """Show pictures in a grid.

    Args:
        pictures: list of numpy (H, W, 3), torch (3, H, W) or (H, W) arrays; values outside [0, 1] are clipped.
        titles: one line or two per picture.
        columns: pictures per row, all in one row where None.
        inset: (y, x, side) of a window drawn enlarged in each picture's lower right corner.
        size: inches per picture.
        cmap: colour map of the (H, W) arrays, grey where None.
        suptitle: title of the whole figure.

    Returns:
        The matplotlib figure.
    """
    columns = columns or len(pictures)
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.35) * rows), squeeze=False,
                                layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles or [""] * len(pictures), strict=False):
        picture = as_numpy(picture).astype(float) if picture.ndim == 2 else as_image(picture, clip=True)
        options = {"cmap": cmap or "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        axis.imshow(picture, **options)
        axis.set_title(title, fontsize=9)
        if inset:
            _draw_inset(axis, picture, inset, options)
    if suptitle:
        figure.suptitle(suptitle, fontsize=10)
    return figure


def _draw_inset(axis, picture, inset, options):
    y, x, side = inset
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor="white", linewidth=0.8))
    window = axis.inset_axes([0.53, 0.0, 0.47, 0.47])
    window.imshow(picture[y : y + side, x : x + side], **options)
    window.set(xticks=[], yticks=[])
    for edge in window.spines.values():
        edge.set(color="white", linewidth=1.2)


def score_title(name, denoised, clean):
    """Return "name, then PSNR and SSIM", the title that every output carries."""
    return f"{name}\n{psnr(denoised, clean):.1f} dB · SSIM {ssim(denoised, clean):.2f}"


def show_outputs(sample, outputs, errors=(), columns=None, size=2.3):
    """Show clean, noisy and every output of one Sample, with scores, the crack enlarged, and errors where wanted.

    Args:
        sample: a `Sample`.
        outputs: dict from name to denoised picture.
        errors: names of outputs whose error (5 times enlarged around mid grey) is shown too.
    """
    pictures = [sample.clean, sample.noisy]
    titles = ["clean", score_title(f"noisy, σ = {sample.sigma:.0f}/255", sample.noisy, sample.clean)]
    for name, denoised in outputs.items():
        pictures.append(denoised)
        titles.append(score_title(name, denoised, sample.clean))
    clean = as_image(sample.clean)
    for name in errors:
        pictures.append(0.5 + 5 * (as_image(outputs[name], clip=True) - clean))
        titles.append(f"error of {name}\n× 5 around mid grey")
    return show_images(pictures, titles, columns=columns, inset=crack_inset(sample.mask.numpy()), size=size)


def table(rows, columns, digits=2):
    """Return rows (dicts) as a Markdown table; `columns` maps a row's key to its heading. No value shows as a dash."""
    def cell(value):
        if value is None or (isinstance(value, float) and not np.isfinite(value)):
            return "–"
        return f"{round(value, digits) + 0.0:.{digits}f}" if isinstance(value, (float, np.floating)) else str(value)
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in rows]
    return Markdown("\n".join(lines))


def show_table(frame: "pandas.DataFrame", digits: int = 2) -> Markdown:
    """Return a DataFrame (or Series) as a Markdown table: floats with `digits` digits, a missing value as a dash.

    Args:
        frame: its index becomes the first column or columns; an unnamed index of plain numbers is left out.
        digits: after the point, of floating-point numbers; whole numbers and text stay as they are.

    Example:
        >>> import pandas
        >>> print(show_table(pandas.DataFrame({"dB": {"unet": 26.251, "bm3d": None}}).rename_axis("method")).data)
        | method | dB |
        | --- | --- |
        | unet | 26.25 |
        | bm3d | – |
    """
    frame = frame.to_frame() if frame.ndim == 1 else frame
    if frame.index.nlevels > 1 or frame.index.name or frame.index.dtype.kind not in "iu":
        frame = frame.reset_index(names=None if any(frame.index.names) else "")

    def cell(value):
        if value is None or value != value:  # NaN differs from itself
            return "–"
        return f"{round(value, digits) + 0.0:.{digits}f}" if isinstance(value, (float, np.floating)) else str(value)

    heads = [" ".join(map(str, column)).strip() if isinstance(column, tuple) else str(column) for column in frame]
    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *rows)))


def pivot(rows, figure="psnr", sigma=50):
    """Return one dict per method with `figure` of each source and of their mean, the largest mean last.

    Methods without a mean (None in the file) come first.

    Raises:
        ValueError: no row of that sigma; says which there are.

    Example:
        >>> pivot([{"method": "unet", "source": "mean", "sigma": 50, "psnr": 26.1}])
        [{'method': 'unet', 'mean': 26.1}]
    """
    methods = {}
    for row in rows:
        if row["sigma"] == sigma:
            methods.setdefault(row["method"], {"method": row["method"]})[row["source"]] = row[figure]
    if not methods:
        raise ValueError(f"no results at sigma {sigma}, there are {sorted({row['sigma'] for row in rows})}")
    return sorted(methods.values(), key=lambda line: -np.inf if line["mean"] is None else line["mean"])


def show_results(rows, figure="psnr", sigma=50, label="PSNR in dB", title=None, axis=None):
    """Show `figure` of every method as dots, one colour and marker per source, the mean of sources as a bar.

    Args:
        rows: the "rows" of a results file.
        axis: where to draw; a new figure where None.

    Returns:
        The matplotlib axis.
    """
    lines = pivot(rows, figure, sigma)
    sources = list(dict.fromkeys(source for line in lines for source in line if source not in ("method", "mean")))
    values = {source: np.array([line.get(source) for line in lines], float) for source in (*sources, "mean")}
    if axis is None:
        _, axis = plt.subplots(figsize=(7.5, 0.32 * len(lines) + 1.1), layout="constrained")
    positions = np.arange(len(lines))
    axis.barh(positions, values["mean"], color="#DDDDDD", label="mean of sources", height=0.7)
    for colour, marker, source in zip(COLOURS, "os^Dvp*X", sources, strict=False):
        axis.plot(values[source], positions, marker, color=colour, label=source, markersize=5)
    axis.set_yticks(positions, [line["method"] for line in lines])
    low, high = np.nanmin(list(values.values())), np.nanmax(list(values.values()))
    pad = 0.05 * (high - low) or 0.5  # bars may start above zero: what counts are the differences
    axis.set(xlabel=label, xlim=(low - pad, high + pad), title=title or f"σ = {sigma}/255")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower right")
    return axis


def show_history(history, figure="psnr", label="PSNR on validation in dB", axis=None):
    """Show a training's history: `figure` against seconds, the training loss in grey on its own axis."""
    if axis is None:
        _, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    seconds = [line["seconds"] for line in history]
    axis.plot(seconds, [line[figure] for line in history], "o-", color=COLOURS[0], markersize=4)
    axis.set(xlabel="seconds of training", ylabel=label)
    axis.spines["top"].set_visible(False)
    loss = axis.twinx()
    loss.plot(seconds, [line["loss"] for line in history], color=COLOURS[7], linewidth=1)
    loss.set_ylabel("training loss", color=COLOURS[7])
    loss.spines["top"].set_visible(False)
    return axis


def in_words(difference, low, high, covered=None, unit="", digits=2):
    """A difference and its interval as text; where the interval leaves sources out, their difference without them too.

    >>> in_words(0.5, 0.25, 0.75), in_words(-3, -4, -1, -2.5, " %", 1)
    ('+0.50 [+0.25, +0.75]', '-3.0 % (sources with an interval: -2.5 % [-4.0, -1.0])')
    >>> in_words(1, None, None)
    '+1.00 (no interval)'
    """
    text = f"{difference:+.{digits}f}{unit}"
    if low is None or np.isnan(low):
        return f"{text} (no interval)"
    span = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    if covered is None or np.isclose(covered, difference, rtol=1e-6):
        return f"{text} {span}"
    return f"{text} (sources with an interval: {covered:+.{digits}f}{unit} {span})"
