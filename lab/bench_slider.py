"""What a move of the explorer's threshold slider costs beside computing the map anew and drawing a figure.

Processor seconds of this process on one thread (`lab.cost.median_seconds`). A move is the message of the slider as a
kernel handles it: threshold, blend, numbers, PNG, and the new state of the widgets; sending that to a browser is not in
it.
"""

import io
from itertools import count

import matplotlib.pyplot as plt

from app.explorer import CamExplorer, models_here
from helpers.cam import activation_map, show_cam
from helpers.data import open_dataset
from lab.cost import median_seconds

MOVE_MS, RATIO = 16, 15  # what is aimed at: at most, at least


def bench_slider(seconds=1.0):
    """Print milliseconds of a move and of recomputing and drawing, and their ratio, for every network there is."""
    sample = open_dataset("test", photos=False, length=1)[0]
    print(f"{'one image, 224 x 224':28}{'move ms':>10}{'all shown ms':>14}{'recomputed ms':>15}{'times faster':>14}")
    for name, model in models_here().items():
        explorer, moves = CamExplorer({name: model}, [sample]), count()

        def move(band=explorer.band, moves=moves):
            band.set_state({"value": [0.3 + 0.004 * (next(moves) % 100), 0.9]})  # never where it stood

        def recompute(model=model, layer=explorer.layer.value):
            cam = activation_map(model, sample.noisy, layer)
            figure = show_cam(sample.noisy, cam, sample.mask.numpy())
            figure.savefig(io.BytesIO(), format="png")
            plt.close(figure)

        one, slow = median_seconds(move, least=seconds), median_seconds(recompute, least=seconds)
        explorer.second.value, explorer.by.value, explorer.outline.value = "TokenNorm", "quantile", True
        most = median_seconds(move, least=seconds)
        print(f"{f'{name}, {explorer.layer.value}':28}{1000 * one:10.2f}{1000 * most:14.2f}{1000 * slow:15.1f}"
              f"{slow / one:14.0f}", flush=True)
    print(f"aims: a move under {MOVE_MS} ms, at least {RATIO} times faster; all shown: two methods, quantiles, outline")
