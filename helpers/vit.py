"""Open a Vision Transformer from the built-in folder, another folder or the Hub; bring its tokens to a grid.

A picture of 224 x 224 becomes 14 x 14 patches of 16 x 16 pixels, each a token of C numbers; a class token is put in
front, by some models others too. Every block of the network gives the tokens anew, (B, N, C).

Sources: ViT, Dosovitskiy et al. (ICLR 2021, arXiv:2010.11929); DeiT, Touvron et al. (arXiv:2012.12877); DINOv2, Oquab
et al. (arXiv:2304.07193); register tokens, Darcet et al. (arXiv:2309.16588).
"""

import hashlib
import inspect
import json
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import interpolate
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging

from helpers.project import data_dir

BUILT_IN = "vit-tiny-surfaces"
# Tokens before the patches: class and distillation token, registers. Other kinds have no plain grid of tokens.
EXTRA_TOKENS = {"vit": 1, "deit": 2, "vit_msn": 1, "dinov2": 1, "dinov2_with_registers": 1, "dinov3_vit": 1}
FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json",
         "model-*.safetensors"]
RESIZE = ("positions", "picture")


class ViT(nn.Module):
    """A Vision Transformer that takes pictures in [0, 1] and normalises them as its own preprocessor says.

    Attributes:
        model: the network of the library `transformers`; `config` is its configuration.
        name: what it was opened as: the built-in one's name, a folder's name or a Hub name.
        sha256: of its weights: of the file where there is one, else of the tensors when it was made.
        resize: what is done with pictures of another size than the network's own. "positions": the position embeddings
            are interpolated, so that pixels, and noise, keep their size (a picture that does not divide into patches is
            stretched to the next size that does); "picture": the picture is resized to the network's own size.
        grid: rows and columns of patches of the latest picture.
    """

    def __init__(self, model, mean, std, name, sha256, resize="positions"):
        super().__init__()
        if resize not in RESIZE:
            raise ValueError(f"resize must be one of {', '.join(RESIZE)}, got {resize!r}")
        self.model, self.config, self.name, self.sha256, self.resize = model, model.config, name, sha256, resize
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.patch_size, self.channels = _pair(self.config.patch_size), self.config.hidden_size
        self.grid = None
        self._options = {"interpolate_pos_encoding": True} if _takes(model.forward, "interpolate_pos_encoding") else {}

    def forward(self, pictures, blocks=None):
        """Return the last tokens, after the final normalisation; or a list of the tokens after the given blocks.

        Args:
            pictures: (B, 3, H, W) in [0, 1], of any size.
            blocks: numbers of blocks, counted from 0 like ``vit_blocks(vit)[0]``; negative ones from the end; None
                among them stands for the last tokens, after the final normalisation.

        Returns:
            (B, N, C) with class and register tokens (`patch_grid` takes them off), or a list of such.

        Raises:
            ValueError: no pictures; a block that is not there.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
            raise ValueError(f"a ViT takes pictures of shape (B, 3, H, W), got {tuple(pictures.shape)}")
        size = _pair(self.config.image_size)
        if self.resize == "positions":
            size = tuple(math.ceil(n / p) * p for n, p in zip(pictures.shape[-2:], self.patch_size, strict=True))
        if size != tuple(pictures.shape[-2:]):
            pictures = interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=True)
        self.grid = tuple(n // p for n, p in zip(size, self.patch_size, strict=True))
        pictures = (pictures - self.mean) / self.std
        if blocks is None:
            return self.model(pictures, **self._options).last_hidden_state
        return self._after(pictures, blocks)

    def _after(self, pictures, blocks):
        layers, kept = vit_blocks(self), {}
        if wrong := [n for n in blocks if n is not None and not -len(layers) <= n < len(layers)]:
            raise ValueError(f"blocks must be in 0..{len(layers) - 1}, got {', '.join(map(str, wrong))}")
        numbers = [n if n is None else n % len(layers) for n in blocks]
        handles = [layers[n].register_forward_hook(lambda *call, n=n: kept.update({n: call[-1]}))
                   for n in set(numbers) - {None}]
        try:
            kept[None] = self.model(pictures, **self._options).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        return [kept[n] for n in numbers]


def open_vit(source=None, resize="positions", seed=None):
    """Open a Vision Transformer: frozen, in eval mode, float32, on the CPU, without a pooler.

    Args:
        source: None for `DENOISE_VIT`, where that is not set for the built-in one; a folder in Hugging Face layout
            (config.json, preprocessor_config.json, model.safetensors); or a name on the Hub, "owner/model". Nothing is
            fetched unless such a name is given. Kinds: ViT, ViT-MSN, DeiT, DINOv2 with or without registers, DINOv3.
        resize: "positions" or "picture", see `ViT`.
        seed: take random weights of this seed instead of the trained ones (a control).

    Returns:
        A `ViT`. ``.requires_grad_(True).train()`` makes it trainable.

    Raises:
        FileNotFoundError: it is not there, or not to be had offline; says what to do.
        ValueError: not a ViT of these kinds, files that are broken, an unknown `resize`.

    Example:
        >>> vit = open_vit("WinKawaks/vit-tiny-patch16-224")  # doctest: +SKIP
        >>> vit(torch.rand(1, 3, 224, 224)).shape             # doctest: +SKIP
        torch.Size([1, 197, 192])
    """
    folder, name = _find(source)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type not in EXTRA_TOKENS:
            raise ValueError(f"wanted a ViT of the kinds {', '.join(EXTRA_TOKENS)}, got {config.model_type!r}")
        mean, std = _normalisation(folder)
        options = {"add_pooling_layer": False} if _takes(MODEL_MAPPING[type(config)], "add_pooling_layer") else {}
        if seed is None:
            model, digest = _trained(folder, options), _sha256_of_files(folder)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = MODEL_MAPPING[type(config)](config, **options).float()
            name, digest = f"{name} with random weights {seed}", _sha256_of_tensors(model)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{name} cannot be opened as a ViT: {error}") from error
    return ViT(model, mean, std, name, digest, resize).eval().requires_grad_(False)


def vit_blocks(vit):
    """Return the blocks of a `ViT`, or of a network of `transformers` (5 or later), as an ``nn.ModuleList``.

    A block takes tokens and returns tokens, both (B, N, C).

    Raises:
        TypeError: it is no ViT.
        ValueError: there is no list of as many blocks as the configuration says.
    """
    if not hasattr(vit, "config"):
        raise TypeError(f"wanted a ViT of open_vit or of transformers, got {type(vit).__name__}")
    depth = vit.config.num_hidden_layers
    for module in vit.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(vit).__name__} has no list of {depth} blocks, wanted a ViT of transformers 5 or later")


def extra_tokens(vit):
    """Return how many tokens stand before the patches' (class, distillation, registers), by the configuration."""
    kind = vit.config.model_type
    if kind not in EXTRA_TOKENS:
        raise ValueError(f"wanted a ViT of the kinds {', '.join(EXTRA_TOKENS)}, got {kind!r}")
    return EXTRA_TOKENS[kind] + (getattr(vit.config, "num_register_tokens", 0) or 0)


def patch_grid(tokens, vit, size=None):
    """Bring a ViT's tokens to the grid of its patches, without class and register tokens.

    Args:
        tokens: (B, N, C), what the ViT or one of its blocks gave.
        vit: the `ViT` they are of, or a network of `transformers`.
        size: (H, W) of the pictures in pixels, as they entered the network; where None the grid is that of the latest
            picture of a `ViT`, and square for other networks.

    Returns:
        (B, C, h, w), h and w computed.

    Raises:
        ValueError: so many tokens are no such grid.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> tiny = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
        >>> patch_grid(torch.zeros(2, 1 + 14 * 14, 8), tiny).shape
        torch.Size([2, 8, 14, 14])
    """
    extra = extra_tokens(vit)
    if tokens.ndim != 3:
        raise ValueError(f"tokens must be (B, N, C), got {tuple(tokens.shape)}")
    count = tokens.shape[1] - extra
    if size is not None:
        grid = tuple(math.ceil(n / p) for n, p in zip(size, _pair(vit.config.patch_size), strict=True))
    else:
        grid = getattr(vit, "grid", None) or (math.isqrt(max(count, 0)),) * 2
    height, width = grid
    if count < 1 or height * width != count:
        raise ValueError(f"{tokens.shape[1]} tokens, {extra} of them no patches, are no grid of {height} x {width}")
    return tokens[:, extra:].transpose(1, 2).unflatten(2, (height, width))  # (B, C, h, w)


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def _takes(function, argument):
    return argument in inspect.signature(function).parameters


def _find(source):
    """Return the folder of a ViT and its name; ask the Hub only where a name was given."""
    source = os.environ.get("DENOISE_VIT", "").strip() if source is None else os.fspath(source)
    folder = Path(source).expanduser() if source else data_dir() / "models" / BUILT_IN
    if (folder / "config.json").is_file():
        return folder, folder.resolve().name
    ways = "a folder in Hugging Face layout or a Hub name such as WinKawaks/vit-tiny-patch16-224"
    if not source:
        raise FileNotFoundError(f"the built-in ViT is not in data/models/{BUILT_IN}: restore it from git, make it with "
                                f"`make train ONLY=student`, or set DENOISE_VIT to {ways}")
    if folder.is_dir():
        raise FileNotFoundError(f"{source} has no config.json: wanted {ways}")
    if source.count("/") != 1 or source[0] in "./~":
        raise FileNotFoundError(f"there is no ViT {source}: wanted {ways}")
    from huggingface_hub import errors, snapshot_download
    try:
        return Path(snapshot_download(source, allow_patterns=FILES)), source
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise FileNotFoundError(f"the ViT {source} is neither a folder nor to be had from the Hub "
                                f"({type(error).__name__}): go online, unset HF_HUB_OFFLINE, or name a folder with "
                                "DENOISE_VIT") from error


def _trained(folder, options):
    """Load the weights; the library's own report of what it left out, a classifier, and its bar are of no interest."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True,
                                                  local_files_only=True, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    # the library would go on with random weights in their place
    if lost := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"{len(lost)} of its weights are missing or of another shape, the first is {lost[0]}")
    return model


def _normalisation(folder):
    """Return mean and standard deviation of pictures in [0, 1] that the preprocessor's settings come to."""
    path = Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError("it has no preprocessor_config.json, which says how pictures are normalised")
    settings = json.loads(path.read_text(encoding="utf-8"))
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    if not settings.get("do_normalize", True):
        return [0.0] * 3, [1 / scale] * 3
    mean, std = settings["image_mean"], settings["image_std"]
    return [m / scale for m in mean], [s / scale for s in std]


def _sha256_of_files(folder):
    """Return the sha256 of the weights' file; of several, over all of them in order."""
    files = sorted(Path(folder).glob("model-*.safetensors"))
    if (Path(folder) / "model.safetensors").is_file():
        files = [Path(folder) / "model.safetensors"]
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()


def _sha256_of_tensors(model):
    """Return a sha256 of all weights that does not depend on their names, which differ between versions."""
    digests = sorted(hashlib.sha256(t.contiguous().numpy().tobytes()).digest() for t in model.state_dict().values())
    return hashlib.sha256(b"".join(digests)).hexdigest()
