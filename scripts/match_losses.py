"""Print `MATCHED` of helpers/terms.py: what makes each loss term's gradient as long as MSE's.

    python scripts/match_losses.py                        from blurred pictures: provisional
    python scripts/match_losses.py --checkpoint hybrid    from the MSE checkpoint's output at sigma 50

Gradients are taken with respect to the output, over all validation pictures at once; photographs of CRACK_PHOTOS, where
set, have as many as there are drawn ones. Copy the printed lines into the module.
"""

import argparse

import torch
from torchvision.transforms.functional import gaussian_blur

from helpers import losses
from helpers.checkpoints import load
from helpers.data import open_dataset
from helpers.project import env_path, git_revision

BLUR = 1.5  # pixels: about what MSE leaves of fine texture at sigma 50


def make_terms():
    """Return every term of `MATCHED` without a constant; the attention of "cam" is local contrast."""
    terms = [*(losses.RegionalSharpnessLoss(match=match, scale=1.0) for match in ("sorted", "aligned", "pixel")),
             losses.FrequencyLoss(scale=1.0), losses.FrequencyLoss(2.0, scale=1.0),
             losses.FrequencyLoss(phase=True, scale=1.0), losses.WaveletLoss(scale=1.0),
             losses.CamWeightedLoss(attention=losses.local_contrast, scale=1.0),
             losses.CharbonnierLoss(scale=1.0), losses.MSSSIMLoss(scale=1.0)]
    return {term.key: term for term in terms}


@torch.no_grad()
def pictures(checkpoint, length):
    """Return denoised and clean validation pictures (B, 3, H, W)."""
    sets = [open_dataset("valid", photos=False, sigma=50, length=length)]
    if env_path("CRACK_PHOTOS"):
        sets.append(open_dataset("valid", sigma=50, length=length))
    samples = [dataset[index] for dataset in sets for index in range(len(dataset))]
    clean = torch.stack([sample.clean for sample in samples])
    if not checkpoint:
        return gaussian_blur(clean, 4 * int(BLUR + 1) + 1, BLUR), clean
    model = load(checkpoint)
    return torch.cat([model(sample.noisy[None]) for sample in samples]), clean


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="name of a trained denoiser (without it: blurred pictures)")
    parser.add_argument("--length", type=int, default=32, help="pictures of each data set")
    options = parser.parse_args()
    denoised, clean = pictures(options.checkpoint, options.length)
    print(f"# {len(clean)} validation pictures, {options.checkpoint or f'blurred with sigma {BLUR}'}, "
          f"revision {git_revision()}")
    for key, term in make_terms().items():
        print(f'    "{key}": {losses.matched_constant(term, denoised, clean):.4g},', flush=True)


if __name__ == "__main__":
    main()
