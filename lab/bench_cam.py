"""Time and peak memory of the maps beside pytorch-grad-cam's own, as ratios in one run.

Every measurement runs in a process of its own, so that one does not pay for another's memory, and on one thread, in
seconds of processor time (`lab.cost.median_seconds`), so that other work on the machine does not count. Memory is the
process's peak as the operating system counts it: what numpy and SciPy take is in it, and torch's own count has not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys

import numpy as np

from helpers.project import ROOT

SHAPES = {(14, 14, 192): True, (56, 56, 128): True, (96, 96, 64): True, (224, 224, 32): False}  # also the library's?
KERNELS = {"EigenCAM": "get_2d_projection", "KPCA_CAM": "get_2d_projection_kernel"}  # the library's functions
MIB = 2**20


def _activations(height, width, channels):
    """Smooth positive features with a falling spectrum, like a ReLU's: (1, C, h, w) float32."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((channels, channels)) * np.geomspace(1, 0.05, channels)
    noise = rng.standard_normal((height * width, channels)) @ basis.T
    noise[:, 0] += np.linspace(-3, 3, height * width) * np.sqrt(channels)
    return np.maximum(noise, 0).T.reshape(1, channels, height, width).astype(np.float32)


def _peak():
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(method, size, own):
    """Return the processor seconds of a map (median) and the first one's peak bytes above what was there."""
    import torch
    from pytorch_grad_cam.utils import svd_on_activations

    from helpers import cam_methods
    from helpers.cam_methods import orient, principal_map
    from lab.cost import median_seconds

    if method == "EigenCAM" and own:
        def run(activations):
            return principal_map(torch.from_numpy(activations)).numpy()
    elif own:
        def run(activations):
            features = torch.from_numpy(activations)
            return orient(cam_methods.kernel_projection(features[0])[None], features).numpy()
    else:
        run = getattr(svd_on_activations, KERNELS[method])
    run(_activations(8, 8, 8))  # loads what is loaded on first use
    activations = _activations(*size)
    # the peak of a process only rises: the first call alone can be seen in it
    before = _peak()
    run(activations)
    peak = _peak() - before
    return {"seconds": median_seconds(lambda: run(activations)), "bytes": peak}


def _in_process(method, size, own):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lab.bench_cam", "--measure", json.dumps([method, size, own])]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return json.loads(output.splitlines()[-1])


def bench_cam():
    """Print and return one row per method and size: seconds, peak MiB, and the library's divided by ours."""
    rows = []
    print("processor seconds on one thread, peak memory above the loaded libraries'")
    print("method    size          ours s   ours MiB  library s  library MiB  times faster  times less memory")
    for size, compare in SHAPES.items():
        for method in KERNELS:
            ours = _in_process(method, size, True)
            row = {"method": method, "size": list(size), "seconds": ours["seconds"], "mib": ours["bytes"] / MIB}
            text = f"{method:<9} {'x'.join(map(str, size)):<12} {row['seconds']:>7.4f} {row['mib']:>10.1f}"
            if compare:
                theirs = _in_process(method, size, False)
                row |= {"library_seconds": theirs["seconds"], "library_mib": theirs["bytes"] / MIB,
                        "faster": theirs["seconds"] / ours["seconds"],
                        "less_memory": theirs["bytes"] / max(ours["bytes"], MIB)}  # under 1 MiB it is not resolved
                text += (f" {row['library_seconds']:>10.3f} {row['library_mib']:>12.1f} {row['faster']:>13.1f}"
                         f" {row['less_memory']:>18.1f}")
            print(text, flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*json.loads(arguments.measure))))
    else:
        bench_cam()
