"""Opening ViTs of several kinds, their normalisation, their blocks, tokens and grids."""

import hashlib
import json
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    ResNetConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTMSNConfig,
)
from transformers.models.auto import MODEL_MAPPING

from helpers.project import ROOT
from helpers.vit import BUILT_IN, extra_tokens, open_vit, patch_grid, vit_blocks

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8,
         "image_size": 32}
DINO = {key: value for key, value in SIZES.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
KINDS = {"vit": (ViTConfig(**SIZES), 1), "deit": (DeiTConfig(**SIZES), 2), "vit_msn": (ViTMSNConfig(**SIZES), 1),
         "dinov2": (Dinov2Config(**DINO), 1),
         "registers": (Dinov2WithRegistersConfig(**DINO, num_register_tokens=3), 4),
         "dinov3": (DINOv3ViTConfig(**SIZES, num_register_tokens=2), 3)}
DEEP = ViTConfig(**{**SIZES, "num_hidden_layers": 12})
PREPROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}


def save_vit(folder, config=KINDS["vit"][0], seed=0, preprocessor=PREPROCESSOR, model=None):
    """Write a tiny random ViT in Hugging Face layout."""
    torch.manual_seed(seed)
    model = model or MODEL_MAPPING[type(config)](config)
    model.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    config, extra = KINDS[request.param]
    return open_vit(save_vit(tmp_path / request.param, config)), extra


def test_every_kind_gives_a_grid_of_its_patches(kind):
    vit, extra = kind
    tokens = vit(torch.rand(2, 3, 32, 32))
    assert extra_tokens(vit) == extra and tokens.shape == (2, extra + 16, 16)
    grid = patch_grid(tokens, vit)
    assert grid.shape == (2, 16, 4, 4)
    torch.testing.assert_close(grid[1, :, 2, 3], tokens[1, extra + 2 * 4 + 3])


def test_every_kind_takes_other_sizes(kind):
    vit, extra = kind
    for height, width, rows, columns in ((48, 24, 6, 3), (24, 40, 3, 5), (33, 17, 5, 3)):
        tokens = vit(torch.rand(1, 3, height, width))
        assert patch_grid(tokens, vit, (height, width)).shape == (1, 16, rows, columns)


def test_blocks_take_and_give_tokens_in_order(kind):
    vit, extra = kind
    blocks = vit_blocks(vit)
    assert len(blocks) == 3 and vit_blocks(vit.model) is blocks
    picture, seen = torch.rand(1, 3, 32, 32), []
    handles = [block.register_forward_hook(lambda *call: seen.append(call[-1])) for block in blocks]
    last = vit(picture)
    for handle in handles:
        handle.remove()
    assert all(isinstance(tokens, torch.Tensor) and tokens.shape == last.shape for tokens in seen)
    given = vit(picture, blocks=(0, 2, None, -1, 1))
    assert not torch.equal(given[2], given[3]), "after the last block comes the final normalisation"
    for tokens, wanted in zip(given, (seen[0], seen[2], last, seen[2], seen[1]), strict=True):
        assert torch.equal(tokens, wanted), "to the last bit"


def test_a_patch_moves_its_own_token_most(tmp_path):
    vit = open_vit(save_vit(tmp_path / "vit"))
    clean = torch.full((1, 3, 24, 40), 0.5)
    changed = clean.clone()
    changed[..., 8:16, 24:32] = torch.rand(3, 8, 8)
    first = [patch_grid(vit(picture, blocks=(0,))[0], vit, (24, 40)) for picture in (clean, changed)]
    move = (first[0] - first[1]).norm(dim=1)[0]
    assert move.shape == (3, 5) and divmod(int(move.argmax()), 5) == (1, 3)


@pytest.mark.parametrize("preprocessor, mean, std", [
    (PREPROCESSOR, [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]),
    ({**PREPROCESSOR, "do_rescale": True, "rescale_factor": 2 / 255}, [0.2, 0.25, 0.3], [0.05, 0.1, 0.15]),
    ({**PREPROCESSOR, "do_normalize": False}, [0, 0, 0], [1, 1, 1]),
])
def test_pictures_are_normalised_as_the_preprocessor_says(tmp_path, preprocessor, mean, std):
    vit = open_vit(save_vit(tmp_path / "vit", preprocessor=preprocessor))
    picture = torch.rand(2, 3, 32, 32)
    by_hand = (picture - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(vit(picture), vit.model(by_hand).last_hidden_state)


def test_resizing_the_picture_instead_of_the_positions(tmp_path):
    vit = open_vit(save_vit(tmp_path / "vit"), resize="picture")
    flat = torch.full((1, 3, 48, 80), 0.3)
    torch.testing.assert_close(vit(flat), vit(flat[..., :32, :32]))
    assert patch_grid(vit(flat), vit, (48, 80)).shape == patch_grid(vit(flat), vit).shape == (1, 16, 4, 4)
    assert vit.resize == "picture"
    with pytest.raises(ValueError, match="resize must be one of positions, picture, got 'crop'"):
        open_vit(tmp_path / "vit", resize="crop")


def test_it_comes_frozen_in_eval_mode_and_without_a_pooler_or_classifier(tmp_path, capfd):
    config = ViTConfig(**SIZES, num_labels=7)
    folder = save_vit(tmp_path / "vit", model=ViTForImageClassification(config).half())
    capfd.readouterr()
    vit = open_vit(folder)
    assert capfd.readouterr() == ("", ""), "notebooks show no bars and no reports"
    assert not vit.training and vit.model.pooler is None
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in vit.parameters())
    assert not any("classifier" in name for name, _ in vit.named_parameters())
    vit.requires_grad_(True).train()
    vit(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in vit.parameters())


def test_the_sha256_is_that_of_the_file(tmp_path):
    folder = save_vit(tmp_path / "vit")
    weights = (folder / "model.safetensors").read_bytes()
    assert open_vit(folder).sha256 == hashlib.sha256(weights).hexdigest()
    assert open_vit(save_vit(tmp_path / "other", seed=1)).sha256 != open_vit(folder).sha256


def test_random_weights_are_another_control_for_each_seed(tmp_path):
    folder = save_vit(tmp_path / "vit")
    before = torch.random.get_rng_state()
    one, again, other = (open_vit(folder, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
    picture = torch.rand(1, 3, 32, 32)
    assert torch.equal(one(picture), again(picture)) and one.sha256 == again.sha256
    assert not torch.allclose(one(picture), other(picture)) and one.sha256 != other.sha256
    assert not torch.allclose(one(picture), open_vit(folder)(picture)) and one.name == "vit with random weights 1"


def test_none_is_the_environments_then_the_built_in(tmp_path, monkeypatch):
    monkeypatch.delenv("DENOISE_VIT", raising=False)
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make train ONLY=student") as error:
        open_vit()
    assert str(tmp_path) not in str(error.value) and "DENOISE_VIT" in str(error.value)
    save_vit(tmp_path / "models" / BUILT_IN)
    assert open_vit().name == BUILT_IN
    other = save_vit(tmp_path / "other", seed=1)
    monkeypatch.setenv("DENOISE_VIT", str(other))
    assert open_vit().name == "other"
    assert open_vit(tmp_path / "models" / BUILT_IN).name == BUILT_IN, "what is asked for goes first"


def test_the_hub_is_asked_only_where_a_name_is_given(tmp_path, monkeypatch):
    asked = []
    folder = save_vit(tmp_path / "vit")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append(name) or str(folder))
    assert open_vit("owner/tiny").name == "owner/tiny" and asked == ["owner/tiny"]
    for path in (tmp_path / "nothing", "./no/where", "nothing", "/absolute/nothing"):
        with pytest.raises(FileNotFoundError, match="there is no ViT"):
            open_vit(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        open_vit(tmp_path / "empty")
    assert len(asked) == 1


def test_offline_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name, **options):
        raise LocalEntryNotFoundError("a long story about connections")
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="owner/tiny .* HF_HUB_OFFLINE, or name a folder with DENOISE_VIT"):
        open_vit("owner/tiny")


@pytest.mark.parametrize("harm, complaint", [
    (lambda folder: (folder / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense"), "cannot be opened as a ViT"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be opened as a ViT"),
    (lambda folder: save_vit(folder, ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])), "got 'resnet'"),
])
def test_a_broken_one_is_refused_in_words(tmp_path, harm, complaint):
    folder = save_vit(tmp_path / "vit")
    harm(folder)
    with pytest.raises(ValueError, match=complaint):
        open_vit(folder)


def test_missing_weights_are_never_replaced_by_random_ones(tmp_path):
    path = save_vit(tmp_path / "vit") / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "layer" in name))
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match="1 of its weights are missing"):
        open_vit(tmp_path / "vit")


def test_what_fits_no_grid_is_refused(tmp_path):
    vit = open_vit(save_vit(tmp_path / "vit"))
    with pytest.raises(ValueError, match="13 tokens, 1 of them no patches, are no grid of 4 x 4, that of .* 32 x 32"):
        patch_grid(torch.zeros(1, 13, 16), vit)
    with pytest.raises(ValueError, match="are no grid of 2 x 4"):
        patch_grid(torch.zeros(1, 10, 16), vit, (16, 32))
    with pytest.raises(ValueError, match=r"tokens must be \(B, N, C\), got \(10, 16\)"):
        patch_grid(torch.zeros(10, 16), vit)
    with pytest.raises(ValueError, match=r"images of shape \(B, 3, H, W\), got \(3, 32, 32\)"):
        vit(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match=r"blocks must be in 0..2, got 3, -4"):
        vit(torch.zeros(1, 3, 32, 32), blocks=(0, 3, -4))
    vit.config.model_type = "swin"
    with pytest.raises(ValueError, match="got 'swin'"):
        extra_tokens(vit)


def test_a_network_without_blocks_is_refused():
    odd = nn.Linear(1, 1)
    odd.config = KINDS["vit"][0]
    with pytest.raises(ValueError, match="Linear has no list of 3 blocks"):
        vit_blocks(odd)


# the grid of an image, and several threads ---------------------------------------------------------------------------


def test_the_grid_is_the_images_whatever_was_seen_before(tmp_path):
    vit = open_vit(save_vit(tmp_path / "vit"))
    wide = vit(torch.rand(1, 3, 16, 64))  # as many tokens as an image of 32 x 32 has
    vit(torch.rand(1, 3, 32, 32))
    assert patch_grid(wide, vit, (16, 64)).shape == (1, 16, 2, 8)
    vit(torch.rand(1, 3, 48, 40))
    assert patch_grid(wide, vit, (16, 64)).shape == (1, 16, 2, 8)
    assert not hasattr(vit, "grid") and patch_grid(vit.model(torch.rand(1, 3, 32, 32))[0], vit.model).shape[-1] == 4


@pytest.mark.parametrize("height, width", [(48, 24), (24, 48), (16, 72), (48, 48)])
def test_without_a_size_the_tokens_of_another_image_are_refused(tmp_path, height, width):
    """(16, 72) has as many patches as a square of 48 x 48: a grid of 6 x 6 would be guessed wrong."""
    vit = open_vit(save_vit(tmp_path / "vit"))
    tokens = vit(torch.rand(1, 3, height, width))
    with pytest.raises(ValueError, match=r"no grid of 4 x 4, that of an image of 32 x 32; wanted size=\(H, W\)"):
        patch_grid(tokens, vit)
    assert patch_grid(tokens, vit, (height, width)).shape == (1, 16, height // 8, width // 8)


def test_eight_threads_with_images_of_several_sizes(kind):
    vit, _ = kind
    images = [torch.rand(1, 3, 16 + 8 * (n % 3), 24 + 8 * (n % 4)) for n in range(32)]

    def grids(image):
        tokens = vit(image, blocks=(0, 2, None))
        return [patch_grid(each, vit, image.shape[-2:]) for each in tokens]
    alone = [grids(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(grids, images))
    assert all(torch.equal(a, b) for one, other in zip(alone, together, strict=True) for a, b in zip(one, other,
                                                                                                    strict=True))


@pytest.mark.parametrize("blocks", [None, (0,), (11, 0, None, -2)])
def test_the_built_in_ones_tokens_are_those_that_its_blocks_give(blocks):
    vit, seen, image = open_vit(), [], torch.rand(1, 3, 224, 208)
    handles = [block.register_forward_hook(lambda *call: seen.append(call[-1])) for block in vit_blocks(vit)]
    with torch.no_grad():
        last = vit(image)
        given = vit(image, blocks) if blocks else [last]
    for handle in handles:
        handle.remove()
    assert all(torch.equal(tokens, last if n is None else seen[n % 12])
               for n, tokens in zip(blocks or [None], given, strict=True))


def test_importing_the_models_does_not_wait_for_transformers():
    script = ("import sys, helpers.models, helpers.vit, helpers.denoise, helpers.checkpoints\n"
              "assert 'transformers' not in sys.modules and 'huggingface_hub' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-500:]


# what is read from a folder ------------------------------------------------------------------------------------------


def shards(folder, count=2, seed=0):
    """Cut the weights of a tiny ViT into files with an index, as large models come; return the index's path."""
    path = save_vit(folder, seed=seed) / "model.safetensors"
    tensors, names = load_file(path), []
    for number in range(count):
        names.append(f"model-{number + 1:05d}-of-{count:05d}.safetensors")
        save_file(dict(list(tensors.items())[number::count]), folder / names[-1], {"format": "pt"})
    weights = {key: names[number % count] for number, key in enumerate(tensors)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    path.unlink()
    return index


def rename(index, new, move=True):
    """Give the first shard of an index another name, in the index and on disk."""
    content = json.loads(index.read_text())
    old = min(content["weight_map"].values())
    content["weight_map"] = {key: new if name == old else name for key, name in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    if move:
        (index.parent / old).rename(index.parent / new)


def test_of_several_files_all_that_are_read_are_hashed(tmp_path):
    one, other = shards(tmp_path / "one"), shards(tmp_path / "other", seed=1)
    whole = open_vit(save_vit(tmp_path / "whole"))
    vit, picture = open_vit(one.parent), torch.rand(1, 3, 32, 32)
    assert torch.equal(vit(picture), whole(picture))
    content = b"".join(path.read_bytes() for path in sorted(one.parent.glob("model-*.safetensors")))
    assert vit.sha256 == hashlib.sha256(content).hexdigest() != open_vit(other.parent).sha256
    for index in (one, other):  # names that no pattern would find
        rename(index, "weights of my own.safetensors")
    assert open_vit(one.parent).sha256 != open_vit(other.parent).sha256
    assert open_vit(one.parent).sha256 != hashlib.sha256().hexdigest()


def test_a_file_beside_the_named_ones_is_neither_read_nor_hashed(tmp_path):
    index = shards(tmp_path / "vit")
    before = open_vit(index.parent)
    (index.parent / "model-00003-of-00003.safetensors").write_bytes(b"nonsense")
    assert open_vit(index.parent).sha256 == before.sha256
    # where there is one file for all, that is read, whatever the index says
    save_vit(tmp_path / "vit", seed=2)
    index.write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    single = (index.parent / "model.safetensors").read_bytes()
    assert open_vit(index.parent).sha256 == hashlib.sha256(single).hexdigest() != before.sha256


def test_a_shard_that_is_named_often_counts_once(tmp_path):
    index = shards(tmp_path / "vit", count=1)
    names = set(json.loads(index.read_text())["weight_map"].values())
    assert len(names) == 1
    assert open_vit(index.parent).sha256 == hashlib.sha256((index.parent / names.pop()).read_bytes()).hexdigest()


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled!",)


@pytest.mark.parametrize("name, words", [
    ("pytorch_model.bin", "weights must be .safetensors files in the folder itself, got 'pytorch_model.bin'"),
    ("../stolen.safetensors", "in the folder itself, got '../stolen.safetensors'"),
    ("sub/../../stolen.safetensors", "in the folder itself"),
    ("sub/model.safetensors", "in the folder itself"),
    ("ABSOLUTE", "in the folder itself, got '/"),
    ("..\\stolen.safetensors", "in the folder itself"),
    ("missing.safetensors", "there is no missing.safetensors"),
    ("", "in the folder itself, got ''"),
    (".safetensors", "in the folder itself, got '.safetensors'"),
])
def test_an_index_that_names_other_files_is_refused(tmp_path, capfd, name, words):
    index = shards(tmp_path / "vit")
    torch.save({"weight": Trap()}, index.parent / "pytorch_model.bin")
    shard = (index.parent / "model-00001-of-00002.safetensors").read_bytes()
    (index.parent / "sub").mkdir()
    for path in (tmp_path / "stolen.safetensors", index.parent / "sub" / "model.safetensors"):
        path.write_bytes(shard)  # it would fit
    rename(index, str(tmp_path / "stolen.safetensors") if name == "ABSOLUTE" else name, move=False)
    with pytest.raises(ValueError, match=re.escape(words)):
        open_vit(index.parent)
    assert "unpickled" not in capfd.readouterr().out


@pytest.mark.parametrize("text", ['{"weight_map": {}}', '{"weight_map": ["model-00001-of-00002.safetensors"]}', "[]",
                                  "{", '{"weight_map": {"a": null}}', "[" * 100_000])
def test_a_broken_index_is_refused(tmp_path, text):
    index = shards(tmp_path / "vit")
    index.write_text(text)
    with pytest.raises(ValueError, match="vit cannot be opened as a ViT"):
        open_vit(index.parent)


def test_weights_that_would_be_unpickled_are_not_read(tmp_path, capfd):
    folder = save_vit(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="there is no model.safetensors"):
        open_vit(folder)
    assert "unpickled" not in capfd.readouterr().out


def test_the_links_of_the_hubs_cache_work_and_others_are_refused(tmp_path):
    source = save_vit(tmp_path / "source")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "12ab", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert open_vit(snapshot).sha256 == open_vit(source).sha256
    (tmp_path / "link").symlink_to(source)  # the folder itself may be one
    assert open_vit(tmp_path / "link").sha256 == open_vit(source).sha256
    (tmp_path / "outside.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is a link that leads out of it"):
        open_vit(source)


@pytest.mark.parametrize("where", ["auto_map", "attention", "quantized"])
def test_code_that_comes_with_a_model_never_runs(tmp_path, monkeypatch, capfd, where):
    """`auto_map` names Python files of the folder; an attention of the Hub and a quantizer are code of others too."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a person who says yes to everything
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    folder = save_vit(tmp_path / "vit")
    (folder / "code.py").write_text("print('it ran')\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}},
               "attention": {"attn_implementation": "kernels-community/flash-attn",
                             "_attn_implementation": "kernels-community/flash-attn"},
               "quantized": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}}[where]
    (folder / "config.json").write_text(json.dumps(config))
    picture = torch.rand(1, 3, 32, 32)
    if where == "quantized":
        with pytest.raises(ValueError, match="vit cannot be opened as a ViT"):
            open_vit(folder)
    else:
        plain = save_vit(tmp_path / "plain")
        assert torch.equal(open_vit(folder)(picture), open_vit(plain)(picture))
        assert torch.equal(open_vit(folder, seed=1)(picture), open_vit(plain, seed=1)(picture))
    config["model_type"] = "of my own"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="vit cannot be opened as a ViT"):
        open_vit(folder)
    assert "it ran" not in capfd.readouterr().out


@pytest.fixture
def distilled(tmp_path, monkeypatch):
    """Train a tiny student of a tiny teacher on noise, and return what `train_student` does with given arguments."""
    import numpy as np

    from lab import student

    (tmp_path / "data").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    teacher = save_vit(tmp_path / "teacher", DEEP)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8)
    pool = [(picture, np.zeros((48, 48), bool)) for picture in pictures]

    def run(count=24, **arguments):
        views = student.Views({"drawn": pool}, 24, 4, sizes=(16, 32))
        valid = student.Crops({"drawn": pool}, 3, 32, 50, seed=1)
        student.train_student(teacher, count, 4, data=(views, valid, "drawn 100 %", []), progress=False, **arguments)
        return views
    return run, tmp_path / "data" / "models" / BUILT_IN


def test_the_student_is_written_and_opens_as_the_built_in_vit(distilled, tmp_path):
    run, folder = distilled
    run()
    vit, teacher = open_vit(), open_vit(tmp_path / "teacher")
    assert vit.name == BUILT_IN and sorted(path.name for path in folder.iterdir()) == [
        "README.md", "card.json", "config.json", "model.safetensors", "preprocessor_config.json"]
    torch.testing.assert_close(vit.mean, teacher.mean)
    torch.testing.assert_close(vit.std, teacher.std)
    for (name, weight), (_, old) in zip(vit.named_parameters(), teacher.named_parameters(), strict=True):
        assert not torch.equal(weight, old.half().float()), f"{name} was not trained"
    config, card = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "card"))
    assert "id2label" not in config and card["sha256"] == vit.sha256 and card["teacher_sha256"] == teacher.sha256
    text = (folder / "README.md").read_text()
    assert "teacher" in text and "Apache-2.0" in text and "24 noisy pictures" in text and str(tmp_path) not in text


def test_a_student_that_was_stopped_goes_on_the_same(distilled, monkeypatch):
    from lab import student

    run, folder = distilled
    run()
    whole = (folder / "model.safetensors").read_bytes()
    for path in (folder.parent.parent / "runs" / "student").iterdir():
        path.unlink()

    class Stopped(Exception):
        pass

    def stop(self, index, get=student.Views.__getitem__):
        if index == 16:
            raise Stopped
        return get(self, index)
    monkeypatch.setattr(student, "fingerprint", lambda views, files: "which reads the views, too")
    with monkeypatch.context() as patch:
        patch.setattr(student.Views, "__getitem__", stop)
        with pytest.raises(Stopped):
            run()
        monkeypatch.setattr(student, "statistics", lambda *words: pytest.fail("they were kept"))
    run()
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_finished_student_is_left_as_it_is_and_another_run_is_refused(distilled, monkeypatch, tmp_path):
    from helpers.checkpoints import CheckpointError
    from lab import student

    run, folder = distilled
    run()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(student, "fit", lambda *words, **options: pytest.fail("trained again"))
    run()
    for options in ({"lr": 1e-5}, {"seed": 4}, {"count": 20}):
        with pytest.raises(CheckpointError, match="student holds another run, with (lr|seed|steps)"):
            run(**options)
    monkeypatch.setattr(student, "fingerprint", lambda views, files: "of another folder")
    with pytest.raises(CheckpointError, match="student holds another run, with fingerprint"):
        run()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("at", [1, 2], ids=["before the first rename", "between the two"])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, at):
    from lab import student

    folder, calls = tmp_path / "vit", []
    for content in ("old", "new"):
        with student.atomic_folder(folder) as part:
            (part / "a").write_text(content)
            (part / "b").write_text(content)
    assert (folder / "a").read_text() == (folder / "b").read_text() == "new"
    with pytest.raises(OSError, match="full"), student.atomic_folder(folder) as part:
        (part / "a").write_text("half")
        raise OSError("full")

    class Killed(BaseException):
        pass

    def kill(source, target, rename=student.os.replace):
        calls.append(target)
        if len(calls) == at:
            raise Killed
        rename(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(student.os, "replace", kill)
        patch.setattr(student.shutil, "rmtree", lambda *words, **options: None)  # a dead process removes nothing
        with pytest.raises(Killed), student.atomic_folder(folder) as part:
            (part / "a").write_text("newest")
    with pytest.raises(OSError, match="full"), student.atomic_folder(folder) as part:  # the next call mends it
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]
    assert (folder / "a").read_text() == (folder / "b").read_text() == "new"


def test_views_are_clean_in_a_tenth_and_of_one_size_per_step(distilled):
    run, _ = distilled
    views = run(count=8)
    samples = [views[index] for index in range(24)]
    assert [sample.noisy.shape[-1] for sample in samples] == ([16] * 4 + [32] * 4) * 3
    assert [index for index in range(24) if torch.equal(samples[index].clean, samples[index].noisy)] == [0, 10, 20]
    assert all(0 <= sample.sigma <= 75 for sample in samples) and samples[10].sigma == 0


def test_the_loss_of_a_student_is_by_the_definition(tmp_path):
    from lab import student

    teacher = open_vit(save_vit(tmp_path / "teacher", DEEP))
    std = torch.rand(6, 2, 16) + 0.5
    sample = student.Crops({"a": [((torch.rand(32, 32, 3) * 255).byte().numpy(), None)]}, 1, 32, 50)[0]
    sample = sample._replace(clean=sample.clean[None], noisy=sample.noisy[None])
    loss = student.Distillation(teacher, std)
    assert loss(teacher, sample._replace(noisy=sample.clean)) == 0
    wanted = 0
    for k, block in enumerate(student.BLOCKS):
        (noisy,), (clean,) = teacher(sample.noisy, [block]), teacher(sample.clean, [block])
        difference = ((noisy - clean)[0] / torch.cat([std[k, :1], std[k, 1:].expand(16, -1)])).abs()
        smooth = torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean(1)
        wanted += (smooth[1:].mean() + 0.1 * smooth[0]) / 6
    torch.testing.assert_close(loss(teacher, sample), wanted)
