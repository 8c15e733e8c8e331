"""The ablation and the student's report: arms that can be built, figures by their definitions, runs that are kept."""

import json

import numpy as np
import pytest
import torch

from helpers.data import Crops, Item
from lab import ablation, report_student
from lab.cost import weights

ITEMS = [Item(f"{source}-{i}", f"{source}-{i}", f"{source}-{i}", source, True) for source in "ab" for i in range(9)]


def table(values):
    return {"mse": list(values), "mse_crack": [*values[:-1], float("nan")], "mse_rest": list(values)}


def test_the_rivals_are_at_least_as_large_as_what_they_rival():
    vit = 5_524_416  # ViT-Tiny without its head
    hybrid = 2_630_691  # trained weights of the original layout, width 32
    assert weights(ablation.make_model("wide", 0, None)) >= hybrid
    assert weights(ablation.make_model("deep", 0, None)) >= 0.95 * (hybrid + vit)


def test_a_seed_fixes_the_weights():
    first, again, other = (ablation.make_model("unet", seed, None).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.0.0.weight"], other["encoder.0.0.weight"])


def test_differences_are_paired_weigh_sources_alike_and_list_the_seeds():
    base = np.linspace(1, 2, 18)
    tables = {"student": [table(base * 0.9), table(base * 0.8)], "wide": [table(base), table(base)]}
    found = ablation.compare(tables, ITEMS, "student", "wide", "mse")
    assert found["percent_by_seed"] == [-10, -20]
    assert found["percent"] == pytest.approx(-15)
    assert found["percent_low"] < -15 < found["percent_high"] < 0
    assert ablation.compare(tables, ITEMS, "student", "wide", "mse_crack")["n"] == 17  # a tile without a crack


def test_rows_hold_the_sources_and_their_mean():
    rows = ablation.rows_of("unet", 1, table(np.r_[np.full(9, 0.01), np.full(9, 0.001)]), ITEMS)
    assert [row["source"] for row in rows] == ["a", "b", "mean"]
    assert [row["psnr"] for row in rows] == pytest.approx([20, 30, 25])
    assert rows[-1]["mse"] == pytest.approx(0.0055)


def test_a_run_that_is_complete_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    path = ablation.run_path("unet", 0, 600).with_suffix(".json")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    monkeypatch.setattr(ablation, "make_model", lambda *arguments: pytest.fail("it was trained again"))
    ablation.train_arm("unet", 0, 600, None)
    with pytest.raises(pytest.fail.Exception):  # another number of steps is another run
        ablation.train_arm("unet", 0, 601, None)


def test_an_arm_is_trained_tested_and_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    monkeypatch.delenv("CRACK_PHOTOS", raising=False)
    sheet = (np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), np.zeros((40, 40), bool))
    crops = ablation.open_dataset("test", photos=False, length=4)
    small = ablation.replace(ablation.BUDGET, batch_size=2, crop=32)
    monkeypatch.setattr(ablation, "BUDGET", small)
    monkeypatch.setattr(ablation, "ARMS", {arm: ablation.Arm(arm, "UNet", {"width": 2}, seeds=(0,))
                                           for arm in ("student", "wide")})
    monkeypatch.setattr(ablation, "open_dataset", lambda *words, **options: crops)
    monkeypatch.setattr(ablation, "training_data", lambda recipe: (
        Crops({"drawn": [sheet]}, recipe.steps * recipe.batch_size, recipe.crop, recipe.sigma, recipe.seed),
        None, "drawn"))
    for arm in ablation.ARMS:
        ablation.train_arm(arm, 0, 2, None)
    for path in (tmp_path / "runs" / "ablation").glob("student*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {f"shuffled_{figure}": content[figure] for figure in ablation.FIGURES}))
    monkeypatch.setattr(ablation, "compare_joins", lambda: [])
    ablation.report(2)
    results = json.loads((tmp_path / "results" / "vit_ablation.json").read_text())
    assert {row["method"] for row in results["rows"]} == {"student", "wide", ablation.SHUFFLED}
    same = next(d for d in results["differences"] if d["a"] == "student" and d["b"] == "wide" and d["figure"] == "mse")
    assert same["difference"] == 0  # the same network from the same seed on the same crops


def test_joins_are_held_against_the_network_they_start_from(monkeypatch):
    noisy = ablation.open_dataset("test", photos=False, length=6)
    monkeypatch.setattr(ablation, "open_dataset", lambda *words, **options: noisy)
    monkeypatch.setattr(ablation.checkpoints, "checkpoint_path", lambda name: ablation.data_dir() / "README.md")
    scale = {"unet": 0.5, "hybrid_try_gated": 0.1}
    monkeypatch.setattr(ablation.checkpoints, "load", lambda name: lambda x: x * (1 - scale.get(name, 0)))
    rows = {(row["join"], row["set"]): row for row in ablation.compare_joins()}
    assert set(rows) == {(join, name) for join in ablation.JOINS_TRIED for name in ("photos", "drawn")}
    assert rows["concat", "drawn"]["percent"] == 0 != rows["gated", "drawn"]["percent"]


def test_agreement_of_tokens():
    tokens = torch.eye(4)[None] * 3
    cosine, retrieval = report_student.agreement(tokens, torch.eye(4)[None])
    assert cosine.tolist() == [1] and retrieval.tolist() == [1]
    cosine, retrieval = report_student.agreement(tokens.roll(1, dims=1), torch.eye(4)[None])
    assert cosine.tolist() == [0] and retrieval.tolist() == [0]


def test_patches_are_crack_from_a_twentieth_on():
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[:4, :4] = True  # 16 of 256 pixels
    mask[16:19, 16:19] = True  # 9 of 256
    assert np.flatnonzero(report_student.is_crack(mask)).tolist() == [0]
