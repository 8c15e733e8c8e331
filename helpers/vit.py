"""Open a Vision Transformer; bring its tokens to a grid; join them to the feature maps of another network.

    vit = open_vit()                              # the built-in one, or that of DENOISE_VIT
    tokens = vit(images)                          # (B, 3, 224, 224) to (B, 197, 192)
    grid = patch_grid(tokens, vit, (224, 224))    # (B, 192, 14, 14)

An image of 224 x 224 becomes 14 x 14 patches of 16 x 16 pixels, each a token of C numbers; a class token is put in
front, by some models others too. Every block of the network gives the tokens anew, (B, N, C).

Sources: ViT, Dosovitskiy et al. (ICLR 2021, arXiv:2010.11929); DeiT, Touvron et al. (arXiv:2012.12877); DINOv2, Oquab
et al. (arXiv:2304.07193); register tokens, Darcet et al. (arXiv:2309.16588).
"""

import hashlib
import inspect
import math
import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from helpers.project import data_dir
from surfaces.pretrained import find_pretrained, read_normalisation, read_weight_files

BUILT_IN = "vit-tiny-surfaces"
# Tokens before the patches: class and distillation token, registers. Other kinds have no plain grid of tokens.
EXTRA_TOKENS = {"vit": 1, "deit": 2, "vit_msn": 1, "dinov2": 1, "dinov2_with_registers": 1, "dinov3_vit": 1}


class ViT(nn.Module):
    """A Vision Transformer that takes images in [0, 1], from several threads at once, and normalises them as it wants.

    Attributes:
        model: the network of the library `transformers`; `config` is its configuration.
        name: the built-in one's, a folder's or that on the Hub.
        sha256: of the weights' files, or of the tensors where they are random.
        resize: what is done with images of another size than the network's own. "positions": position embeddings are
            interpolated, so that pixels, and noise, keep their size (but for a stretch to a whole number of patches);
            "picture": the image is resized to the network's own size.
        channels: C, numbers in a token.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], name: str, sha256: str,
                 resize: str = "positions") -> None:
        super().__init__()
        if resize not in ("positions", "picture"):
            raise ValueError(f"resize must be one of positions, picture, got {resize!r}")
        self.model, self.config, self.name, self.sha256, self.resize = model, model.config, name, sha256, resize
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.channels = self.config.hidden_size
        # DINO interpolates its position embeddings unasked
        takes = inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def forward(self, images: Tensor, blocks: Sequence[int | None] | None = None) -> Tensor | list[Tensor]:
        """Return the last tokens of images (B, 3, H, W) in [0, 1], of any size; or a list of those after given blocks.

        Tokens are (B, N, C) with class and register tokens, which `patch_grid` takes off. `blocks` are counted like
        ``vit_blocks(vit)``, negative ones from the end; None among them stands for the last tokens, after the final
        normalisation. Images or blocks that cannot be raise ValueError.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"a ViT takes images of shape (B, 3, H, W), got {tuple(images.shape)}")
        depth = self.config.num_hidden_layers
        if wrong := [n for n in blocks or () if n is not None and not -depth <= n < depth]:
            raise ValueError(f"blocks must be in 0..{depth - 1}, got {', '.join(map(str, wrong))}")
        # only a whole number of patches fits
        size = tuple(n * p for n, p in zip(_grid(self, images.shape[-2:]), _pair(self.config.patch_size), strict=True))
        if size != tuple(images.shape[-2:]):  # or of the network's own size, where the image is to be resized
            images = interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        output = self.model((images - self.mean) / self.std, output_hidden_states=blocks is not None, **self._options)
        if blocks is None:
            return output.last_hidden_state  # (B, N, C)
        # hidden_states[0] is what enters the first block, so what leaves block n is the one after
        return [output.last_hidden_state if n is None else output.hidden_states[1 + n % depth] for n in blocks]

    def freeze(self, freeze: bool | int, used: Sequence[int] | None = None) -> list[str]:
        """Freeze all weights (True), none (False) or the embeddings and first n blocks (n); return the frozen names.

        What the tokens that are `used` (numbers of blocks; None: the last ones) do not depend on is frozen too. A block
        that is not there raises ValueError.
        """
        blocks = vit_blocks(self)
        if used is not None and not (used and all(-len(blocks) <= n < len(blocks) for n in used)):
            raise ValueError(f"blocks must be numbers in 0..{len(blocks) - 1}, got {list(used)}")
        if not isinstance(freeze, bool) and not (isinstance(freeze, int) and 0 < freeze < len(blocks)):
            raise ValueError(f"freeze_vit must be True, False or a number in 1..{len(blocks) - 1}, got {freeze!r}")
        self.requires_grad_(freeze is False)
        if not isinstance(freeze, bool):  # embeddings and the first blocks stay frozen
            blocks[freeze:].requires_grad_(True)
        if used is not None:  # behind the last block that is used nothing has a say
            blocks[max(n % len(blocks) for n in used) + 1:].requires_grad_(False)
        for name, part in self.model.named_children():
            if "norm" in name:  # the final normalisation, by whatever name
                part.requires_grad_(freeze is not True and used is None)
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return [name for name in self.state_dict() if name not in trained]


def open_vit(source: str | os.PathLike[str] | None = None, resize: str = "positions", seed: int | None = None) -> ViT:
    """Open a Vision Transformer: frozen, in eval mode, float32, on the CPU, without a pooler.

    Weights are read from safetensors files in the folder alone, and code that comes with a model is never run.

    Args:
        source: None for `DENOISE_VIT`, where that is not set for the built-in one; a folder in Hugging Face layout
            (config.json, preprocessor_config.json, model.safetensors); or a name on the Hub, "owner/model", the only
            case in which anything is fetched. Kinds: ViT, ViT-MSN, DeiT, DINOv2 with or without registers, DINOv3.
        resize: "positions" or "picture", see `ViT`.
        seed: take random weights of this seed instead of the trained ones (a control).

    Raises FileNotFoundError where it is not to be had, and says what to do; ValueError for another kind of network,
    broken files or an unknown `resize`.

    >>> open_vit()(torch.rand(1, 3, 224, 224)).shape
    torch.Size([1, 197, 192])
    """
    from transformers import MODEL_MAPPING, AutoConfig  # takes seconds, so only who opens a ViT waits for it

    folder, name = find_pretrained(source, data_dir() / "models" / BUILT_IN)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config._attn_implementation = "sdpa"  # torch's own; a name of the Hub would fetch and run code
        if config.model_type not in EXTRA_TOKENS:  # before any weight is read
            raise ValueError(f"wanted a ViT of the kinds {', '.join(EXTRA_TOKENS)}, got {config.model_type!r}")
        kind = MODEL_MAPPING[type(config)]
        options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
        if seed is None:
            contents, digest = read_weight_files(folder)  # of the very bytes that are used
            weights = {key: tensor for content in contents for key, tensor in load(content).items()}
            model = _with_weights(kind, config, weights, options)
        else:
            with torch.random.fork_rng(devices=[]):  # the global generator is left alone
                torch.manual_seed(seed)
                model = kind(config, **options).float()
            # sorted, since the names of tensors differ between versions
            hashes = sorted(hashlib.sha256(t.contiguous().numpy().tobytes()).digest()
                            for t in model.state_dict().values())
            name, digest = f"{name} with random weights {seed}", hashlib.sha256(b"".join(hashes)).hexdigest()
        return ViT(model, *read_normalisation(folder), name, digest, resize).eval().requires_grad_(False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"{name} cannot be opened as a ViT: {error}") from error


def vit_blocks(vit: nn.Module) -> nn.ModuleList:
    """Return the blocks of a `ViT`, or of a network of `transformers` (5 or later), as an ``nn.ModuleList``.

    A block takes tokens and returns tokens, both (B, N, C). Raises TypeError or ValueError where there are none.
    """
    if not hasattr(vit, "config"):
        raise TypeError(f"wanted a ViT of open_vit or of transformers, got {type(vit).__name__}")
    depth = vit.config.num_hidden_layers
    for module in vit.modules():  # the list has another name in every kind
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(vit).__name__} has no list of {depth} blocks, wanted a ViT of transformers 5 or later")


def extra_tokens(vit: nn.Module) -> int:
    """Return how many tokens stand before the patches' (class, distillation, registers), by the configuration."""
    kind = vit.config.model_type
    if kind not in EXTRA_TOKENS:
        raise ValueError(f"wanted a ViT of the kinds {', '.join(EXTRA_TOKENS)}, got {kind!r}")
    return EXTRA_TOKENS[kind] + (getattr(vit.config, "num_register_tokens", 0) or 0)


def patch_grid(tokens: Tensor, vit: nn.Module, size: Sequence[int] | None = None) -> Tensor:
    """Bring a ViT's tokens to the grid of its patches, without class and register tokens.

    `tokens` (B, N, C) are what `vit`, a `ViT` or a network of `transformers`, or one of its blocks gave; `size` (H, W)
    that of the images in pixels, which tokens do not tell; None for images of the network's own size. Returns
    (B, C, h, w); raises ValueError where so many tokens are no such grid.

    >>> patch_grid(torch.zeros(2, 1 + 6 * 8, 192), open_vit(), (96, 128)).shape
    torch.Size([2, 192, 6, 8])
    """
    extra = extra_tokens(vit)
    if tokens.ndim != 3:
        raise ValueError(f"tokens must be (B, N, C), got {tuple(tokens.shape)}")
    size = _pair(vit.config.image_size) if size is None else tuple(size)
    height, width = _grid(vit, size)  # never guessed from the number of tokens
    if extra + height * width != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens, {extra} of them no patches, are no grid of {height} x {width}, "
                         f"that of an image of {size[0]} x {size[1]}; wanted size=(H, W) of the image that they are of")
    return tokens[:, extra:].transpose(1, 2).unflatten(2, (height, width))  # (B, C, h, w)


def _grid(vit: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of the patches that an image of `size` (H, W) becomes."""
    if isinstance(vit, ViT) and vit.resize == "picture":
        size = _pair(vit.config.image_size)
    height, width = (math.ceil(n / p) for n, p in zip(size, _pair(vit.config.patch_size), strict=True))
    return height, width


def _pair(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def leave_out(model: nn.Module, names: Sequence[str]) -> None:
    """Keep weights of a network, by name, out of its state dict, and do not miss them when one is loaded."""
    def drop(_: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
        for name in names:
            state.pop(prefix + name, None)  # a prefix comes from a network around it, as of averaged weights

    def fill_in(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        own = dict([*model.named_parameters(), *model.named_buffers()])
        state |= {prefix + name: own[name] for name in names if prefix + name not in state}
    model.register_state_dict_post_hook(drop)
    model.register_load_state_dict_pre_hook(fill_in)


class BesideViT(nn.Module):
    """What denoisers with a ViT have in common: which one it is, what of it is frozen, and its tokens as a grid."""

    def put_beside(self, vit: ViT | str | None, resize: str, seed: int | None, freeze: bool | int,
                   blocks: Sequence[int] | None) -> None:
        """Take an open `ViT` or what `open_vit` takes; tokens are those after `blocks`, None: the last ones."""
        self.vit = vit if isinstance(vit, ViT) else open_vit(vit, resize, seed)
        self.freeze_vit, self.blocks = freeze, None if blocks is None else tuple(blocks)
        # what is not trained is in a file of its own, so it is left out of the state dict
        leave_out(self, [f"vit.{name}" for name in self.vit.freeze(freeze, self.blocks)])
        if self.blocks is not None:
            self.norms = nn.ModuleList(nn.LayerNorm(self.vit.channels) for _ in self.blocks)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but a ViT with frozen weights stays in eval mode."""
        super().train(mode)
        if self.freeze_vit is not False:
            self.vit.eval()
        return self

    def token_grid(self, images: Tensor) -> Tensor:
        """Return the tokens that are joined, as a grid (B, C, h, w); of several blocks one after the other in C."""
        size = images.shape[-2:]
        if self.blocks is None:
            return patch_grid(self.vit(images), self.vit, size)
        tokens = self.vit(images, self.blocks)  # per block (B, N, C)
        return torch.cat([patch_grid(norm(t), self.vit, size) for norm, t in zip(self.norms, tokens, strict=True)], 1)

    def card(self) -> dict[str, Any]:
        """As in `Denoiser`; "vit" says which one it is and what of it is frozen, it is no argument that opens it."""
        card = super().card()
        card["arguments"].pop("vit", None)
        return {**card, "vit": {"name": self.vit.name, "sha256": self.vit.sha256, "frozen": self.freeze_vit}}

    def check_card(self, card: dict[str, Any]) -> None:
        """Raise ValueError where `card`, a checkpoint's, names other weights for the frozen part of the ViT."""
        wanted = card.get("vit") or {}
        if self.freeze_vit is not False and wanted.get("sha256") != self.vit.sha256:
            name = wanted.get("name", "that its card does not name")
            raise ValueError(f"it was trained beside the ViT {name} and would be wrong beside {self.vit.name}, whose "
                             "weights have another sha256: set or unset DENOISE_VIT accordingly")


class ConcatJoin(nn.Sequential):
    """Tokens beside the features, the original's join: (B, F, h, w) and tokens (B, C, g, g) to (B, 3F, h, w)."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__(nn.Conv2d(tokens, 2 * channels, 1), nn.ReLU(inplace=True),
                         nn.Conv2d(2 * channels, 2 * channels, 1))

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        tokens = interpolate(tokens, features.shape[-2:], mode="bilinear", align_corners=False)  # (B, C, h, w)
        return torch.cat([features, super().forward(tokens)], dim=1)  # (B, F + 2F, h, w)


class AttentionJoin(nn.Module):
    """Add what every pixel of the features reads from all tokens; the token at its own place helps it to ask."""

    def __init__(self, channels: int, tokens: int, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(tokens, channels, 1)
        self.ask = nn.Conv2d(2 * channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)  # nothing is added at the start
        nn.init.zeros_(self.attention.out_proj.bias)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        tokens = self.tokens(tokens)  # (B, F, g, g)
        here = interpolate(tokens, features.shape[-2:], mode="bilinear", align_corners=False)  # (B, F, h, w)
        asked = self.ask(torch.cat([features, here], dim=1))  # (B, F, h, w)
        asked = self.norm(asked.flatten(2).transpose(1, 2))  # (B, h * w, F), one question per pixel
        keys = tokens.flatten(2).transpose(1, 2)  # (B, g * g, F), one answer per token
        answer, _ = self.attention(asked, keys, keys, need_weights=False)  # (B, h * w, F)
        return features + answer.transpose(1, 2).unflatten(2, features.shape[-2:])


class FiLM(nn.Module):
    """Modulate features (B, F, h, w) by tokens (B, C, g, g): a factor and a summand per channel and place.

    It starts as the identity. Source: Perez et al., "FiLM: visual reasoning with a general conditioning layer" (2018,
    arXiv:1709.07871), there for a whole image at once.
    """

    def __init__(self, channels: int, tokens: int, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(tokens, hidden, 1)
        self.modulation = nn.Conv2d(hidden, 2 * channels, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        hidden = relu(self.hidden(tokens))  # (B, hidden, g, g): at 1 / 16 of the resolution, where it costs little
        hidden = interpolate(hidden, features.shape[-2:], mode="bilinear", align_corners=False)  # (B, hidden, h, w)
        scale, shift = self.modulation(hidden).chunk(2, dim=1)  # (B, F, h, w) each
        return features * (1 + scale) + shift


JOINS = {"concat": ConcatJoin, "attention": AttentionJoin}  # a way that is only tried adds itself: lab.joins


def _with_weights(kind: Any, config: Any, weights: dict[str, Tensor], options: dict[str, Any]) -> nn.Module:
    """Return the network `kind` with `weights`, whose names the library brings to those of its version."""
    from transformers.utils import logging

    # its report of what was left out, a classifier, and its bar are of no interest
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32,
                                             output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    # the library would go on with random weights in their place
    if lost := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"{len(lost)} of its weights are missing or of another shape, the first is {lost[0]}")
    return model
