"""Print `MATCHED` of helpers/losses.py: what makes each loss term's gradient as long as MSE's.

    python -m lab.match_losses                        from blurred images: provisional
    python -m lab.match_losses --checkpoint hybrid    from the MSE checkpoint's output at sigma 50

Gradients are taken with respect to the output, over all validation images at once; photographs of CRACK_PHOTOS, where
set, are as many as there are synthetic ones. Copy the printed lines into the module.
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from helpers.checkpoints import load
from helpers.data import open_dataset
from helpers.losses import (
    CamWeightedLoss,
    FrequencyLoss,
    RegionalSharpnessLoss,
    Scale,
    Term,
    WaveletLoss,
)
from helpers.project import env_path
from lab.controls import local_contrast
from lab.provenance import git_revision

BLUR = 1.5  # pixels: about what MSE leaves of fine texture at sigma 50


class CharbonnierLoss(Term):
    """The mean of sqrt(e^2 + epsilon^2) - epsilon over the errors e: absolute error, smooth at zero."""

    key = "charbonnier"

    def __init__(self, epsilon: float = 1e-3, scale: Scale = "matched") -> None:
        super().__init__(scale)
        self.epsilon = epsilon

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        return (torch.hypot(denoised - clean, denoised.new_tensor(self.epsilon)) - self.epsilon).mean()


class MSSSIMLoss(Term):
    """1 - MS-SSIM by torchmetrics (extra `dev`), 11 x 11 Gaussian windows: five scales from 176 pixels on, else fewer.

    Images under 11 pixels are refused. Its (x + 1) / 2 normalisation keeps gradients finite.
    """

    key, betas = "ms_ssim", (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al.'s weights of the scales

    def value(self, denoised: Tensor, clean: Tensor) -> Tensor:
        from torchmetrics.functional import image  # seconds to import, and only a reference

        # each scale halves the image, and its window must still fit; torchmetrics refuses what does not
        side = min(denoised.shape[-2:])
        scales = [n for n in range(1, 6) if side // max(2 ** (n - 1), (n - 1) ** 2) >= 11]
        if not scales:
            raise ValueError(f"MS-SSIM needs at least 11 x 11 pixels, got {denoised.shape[-2]} x {denoised.shape[-1]}")
        betas = [beta / sum(self.betas[:scales[-1]]) for beta in self.betas[:scales[-1]]]
        ms_ssim = image.multiscale_structural_similarity_index_measure
        return 1 - ms_ssim(denoised, clean, data_range=1.0, betas=tuple(betas), normalize="simple")


def matched_constant(term: Callable[[Tensor, Tensor], Tensor], denoised: Tensor, clean: Tensor) -> float:
    """Return the factor that makes `term`'s gradient as long as MSE's, both with respect to `denoised`, over the batch.

    For a constant of `MATCHED` the term must have ``scale=1.0``.

    Raises:
        ValueError: the term's or MSE's gradient is zero or not finite (equal images, NaN).

    Example:
        >>> clean, denoised = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
        >>> four = lambda denoised, clean: 4 * nn.functional.mse_loss(denoised, clean)
        >>> round(matched_constant(four, denoised, clean), 4)
        0.25
    """
    def length(loss):
        leaf = denoised.detach().clone().requires_grad_()
        return float(torch.autograd.grad(loss(leaf, clean), leaf)[0].double().norm())
    wanted, got = length(nn.functional.mse_loss), length(term)
    if not (0 < wanted < math.inf and 0 < got < math.inf):
        raise ValueError("gradients must be finite and not zero to be matched, "
                         f"got norms {wanted} (MSE) and {got} (term)")
    return wanted / got


def make_terms() -> dict[str, Term]:
    """Return every term of `MATCHED` without a constant; the attention of "cam" is local contrast."""
    terms = [*(RegionalSharpnessLoss(match=match, scale=1.0) for match in ("sorted", "aligned", "pixel")),
             FrequencyLoss(scale=1.0), FrequencyLoss(2.0, scale=1.0), FrequencyLoss(phase=True, scale=1.0),
             WaveletLoss(scale=1.0), CamWeightedLoss(attention=local_contrast, scale=1.0),
             CharbonnierLoss(scale=1.0), MSSSIMLoss(scale=1.0)]
    return {term.key: term for term in terms}


@torch.no_grad()
def validation_images(checkpoint: str | None, length: int) -> tuple[Tensor, Tensor]:
    """Return denoised and clean validation images (B, 3, H, W), `length` per data set; blurred for no checkpoint."""
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
    parser.add_argument("--checkpoint", help="name of a trained denoiser (without it: blurred images)")
    parser.add_argument("--length", type=int, default=32, help="images of each data set")
    options = parser.parse_args()
    denoised, clean = validation_images(options.checkpoint, options.length)
    print(f"# {len(clean)} validation images, {options.checkpoint or f'blurred with sigma {BLUR}'}, "
          f"revision {git_revision()}")
    for key, term in make_terms().items():
        print(f'    "{key}": {matched_constant(term, denoised, clean):.4g},', flush=True)


if __name__ == "__main__":
    main()
