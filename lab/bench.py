"""What the fast ways save, as ratios measured in one run.

On the CPU, one thread is used and its processor time counted, so that other programs do not disturb the ratios; on a
GPU it is the time on the clock. The timer is `lab.cost.median_seconds`.

    python -m lab.bench losses       the regional sharpness loss: pooled, unfolded, and in a loop over windows;
                                     what the CAM-weighted loss adds to a training step of the hybrid
    python -m lab.bench cam          EigenCAM and KPCA_CAM beside pytorch-grad-cam's own
    python -m lab.bench denoise      the networks in float32 and in bfloat16
    python -m lab.bench slider       a move of the explorer's slider beside a map computed anew in a new figure
"""

import argparse
from functools import partial

import torch
from torch import nn

from helpers.cam import layers_of
from helpers.checkpoints import load
from helpers.denoise import denoise
from helpers.losses import NEIGHBOURS, CamWeightedLoss, CombinedLoss, RegionalSharpnessLoss, window_scores
from helpers.models import HybridViTUNet
from helpers.project import pick_device
from helpers.vit import open_vit
from lab.cost import median_seconds, peak_memory


def compare(title, works, device, seconds, slow=()):
    """Print time and memory of `works`, {name: function}, with their ratios to the first; return {name: seconds}.

    Each is timed for `seconds`; the `slow` ones once after a warm-up, and watching their memory would take too long.
    """
    print(title)
    times = {name: median_seconds(work, device, 0 if name in slow else seconds) for name, work in works.items()}
    memory = {name: peak_memory(work, device) / 1e6 for name, work in works.items() if name not in slow}
    first = next(iter(works))
    print(f"{'':36}{'ms':>10}{'peak MB':>10}{'time':>10}{'memory':>10}")
    for name, time in times.items():
        peak, ratio = (f"{memory[name]:.1f}", f"{memory[name] / memory[first]:.1f}x") if name in memory else ("", "")
        print(f"{name:36}{1000 * time:10.1f}{peak:>10}{time / times[first]:9.1f}x{ratio:>10}")
    return times


# The regional sharpness loss ------------------------------------------------------------------------------------------

LOOPS = ("loop over files and windows", "loop, each window cut out once")


def unfolded_scores(images, window, step):
    """The window scores (B, windows) of (B, C, H, W) by unfolding: every window's differences are laid out."""
    views = images.unfold(2, window, step).unfold(3, window, step)  # (B, C, rows, columns, window, window), no copy
    pairs = (views[..., 1:] - views[..., :-1], views[..., 1:, :] - views[..., :-1, :],
             views[..., 1:, 1:] - views[..., :-1, :-1], views[..., 1:, :-1] - views[..., :-1, 1:])
    total = sum(pair.abs().sum((-2, -1)) for pair in pairs)  # (B, C, rows, columns)
    return total.mean(1).flatten(1) / sum(pair[0, 0, 0, 0].numel() for pair in pairs)


def looped_scores(images, window, step):
    """The same in a loop over images and windows, every pair taken from the batch, as one would write it first."""
    scores, pairs = [], 2 * window * (window - 1) + 2 * (window - 1) ** 2
    for index in range(len(images)):
        for top in range(0, images.shape[2] - window + 1, step):
            for left in range(0, images.shape[3] - window + 1, step):
                total, bottom, right = 0, top + window, left + window
                for down, along in NEIGHBOURS:
                    there = slice(left + max(along, 0), right - max(-along, 0))
                    here = slice(left + max(-along, 0), right - max(along, 0))
                    total = total + (images[index, :, top + down:bottom, there]
                                     - images[index, :, top:bottom - down, here]).abs().sum()
                scores.append(total / (pairs * images.shape[1]))
    return torch.stack(scores).view(len(images), -1)


def careful_scores(images, window, step):
    """The same loop with each window cut out of its image once, which spares the backward pass most of its work."""
    scores = []
    for image in images:
        for top in range(0, image.shape[1] - window + 1, step):
            for left in range(0, image.shape[2] - window + 1, step):
                view = image[:, top:top + window, left:left + window]
                pairs = (view[:, :, 1:] - view[:, :, :-1], view[:, 1:] - view[:, :-1],
                         view[:, 1:, 1:] - view[:, :-1, :-1], view[:, 1:, :-1] - view[:, :-1, 1:])
                scores.append(torch.cat([pair.flatten(1) for pair in pairs], 1).abs().mean())
    return torch.stack(scores).view(len(images), -1)


def plain_scores(image, window, step):
    """The same of one image as a nested list (C, H, W), pair by pair, in Python without any array."""
    channels, height, width = len(image), len(image[0]), len(image[0][0])
    scores = []
    for top in range(0, height - window + 1, step):
        for left in range(0, width - window + 1, step):
            total, pairs = 0.0, 0
            for down, right in NEIGHBOURS:
                for y in range(top, top + window - down):
                    for x in range(left + max(-right, 0), left + window - max(right, 0)):
                        for channel in image:
                            total += abs(channel[y + down][x + right] - channel[y][x])
                        pairs += 1
            scores.append(total / (pairs * channels))
    return scores


def bench_losses(options):
    """Forward and backward of the regional sharpness loss, batch 8 at 224 x 224, windows of 32."""
    device, window = pick_device(), 32
    generator = torch.Generator().manual_seed(0)
    clean, denoised = torch.rand(2, 8, 3, 224, 224, generator=generator).to(device)
    gradients = {}

    def step(name, loss):
        def work():
            leaf = denoised.clone().requires_grad_()
            loss(leaf).backward()
            gradients[name] = leaf.grad
        return work

    def by(scores):
        def loss(leaf):
            got, wanted = (scores(x, window, window // 2).sort(1, descending=True).values for x in (leaf, clean))
            return (got - wanted).abs().mean()
        return loss

    pooled = RegionalSharpnessLoss(window, scale=1.0)
    works = {"pooled difference maps (ours)": step("pooled", lambda leaf: pooled(leaf, clean)),
             "unfolded windows": step("unfolded", by(unfolded_scores)),
             LOOPS[0]: step("loop", by(looped_scores)), LOOPS[1]: step("careful loop", by(careful_scores))}
    times = compare(f"{bench_losses.__doc__} On {device.type}.", works, device, options.seconds, slow=LOOPS)

    # the same in plain Python: of one image, which stands for the 16 of a batch's outputs and targets
    image, found, first = denoised[0].tolist(), [], next(iter(times.values()))
    one = median_seconds(lambda: found.append(plain_scores(image, window, window // 2)), least=0)
    seconds = 2 * len(denoised) * one
    print(f"{'loop over windows and pairs *':36}{1000 * seconds:10.1f}{'':10}{seconds / first:9.1f}x\n"
          f"* plain Python, scores without gradients; one image timed, times {2 * len(denoised)}")

    # what was compared must be the same thing
    wanted = torch.tensor(found[-1])
    torch.testing.assert_close(window_scores(denoised[:1], window).flatten().cpu(), wanted, rtol=1e-4, atol=0)
    for name, gradient in gradients.items():
        error = (gradient - gradients["pooled"]).norm() / gradients["pooled"].norm()
        if not error < 1e-3:
            raise SystemExit(f"{name} and pooled do not agree: gradients differ by {float(error):.2g}")
    bench_step()


def bench_step():
    """A training step of the hybrid (width 32, batch 8 at 224 x 224), float32."""
    device = pick_device()
    try:
        vit = open_vit()
    except FileNotFoundError as error:
        print(f"\nNo training step: {error}")
        return
    model = HybridViTUNet(width=32, vit=open_vit()).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    clean, noisy = torch.rand(2, 8, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)

    def step(loss):
        def work():
            optimizer.zero_grad()
            loss(model(noisy), clean).backward()
            optimizer.step()
        return work

    weighted = CombinedLoss({"cam": (CamWeightedLoss(vit, layer=list(layers_of(vit))[7]), 0.2)})
    works = {"MSE": step(CombinedLoss({})), "MSE and CAM-weighted": step(weighted)}
    print()
    step(nn.MSELoss())()  # the first step also makes the optimizer's state
    compare(f"{bench_step.__doc__} On {device.type}.", works, device, 0, slow=tuple(works))


# The rest, each in a module of its own --------------------------------------------------------------------------------


def bench_cam(options):
    """The maps: see bench_cam.py."""
    from lab.bench_cam import bench_cam as run  # its measurements are processes of their own

    run()


def bench_slider(options):
    """The explorer: see bench_slider.py."""
    from lab.bench_slider import bench_slider as run  # widgets and figures, which the others do without

    run(options.seconds)


def bench_denoise(options):
    """Denoise an image of 768 x 768 in float32 and, where the processor has it, in bfloat16."""
    device, image = pick_device(), torch.rand(3, 768, 768, generator=torch.Generator().manual_seed(0))
    models = {name: load(name).to(device) for name in ("unet_classic", "unet", "hybrid")}
    compare(bench_denoise.__doc__, {f"{name}{', fast' if fast else ''}": partial(denoise, model, image, fast=fast)
                                    for name, model in models.items() for fast in (False, True)}, device, 0)


BENCHES = {"denoise": bench_denoise, "losses": bench_losses, "cam": bench_cam, "slider": bench_slider}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--seconds", type=float, default=1, help="how long each is timed (the median call counts)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    BENCHES[options.bench](options)


if __name__ == "__main__":
    main()
