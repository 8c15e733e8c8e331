"""Opening ViTs of several kinds, their normalisation, their blocks, tokens and grids."""

import hashlib
import json

import pytest
import torch
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
    for tokens, wanted in zip(given, (seen[0], seen[2], last, seen[2], seen[1]), strict=True):
        torch.testing.assert_close(tokens, wanted)


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
    from safetensors.torch import load_file, save_file

    path = save_vit(tmp_path / "vit") / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "layer" in name))
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match="1 of its weights are missing"):
        open_vit(tmp_path / "vit")


def test_what_fits_no_grid_is_refused(tmp_path):
    vit = open_vit(save_vit(tmp_path / "vit"))
    with pytest.raises(ValueError, match="13 tokens, 1 of them no patches, are no grid of 4 x 4, that of an image of 32 x 32"):
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
