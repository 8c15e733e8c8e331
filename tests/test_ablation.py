"""The ablation and the student's report: arms that can be built, figures by their definitions, runs that are kept."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.checkpoints import CheckpointError
from helpers.data import Crops, Item, open_dataset
from helpers.project import results
from lab import ablation, report_student
from lab.aggregate import item_rows, source_rows
from lab.cost import weights
from lab.train import TrainingData

ABLATION_RUNS = list(results("ablation_runs"))
ITEMS = [Item(f"{source}-{i}", f"{source}-{i}", f"{source}-{i}", source, True) for source in "ab" for i in range(9)]


def tiles(method, seed, values):
    columns = {"mse": list(values), "mse_crack": [*values[:-1], float("nan")], "mse_rest": list(values)}
    return item_rows(ITEMS, columns, method=method, seed=seed)


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
    both = pd.concat([tiles("student", 0, base * 0.9), tiles("student", 1, base * 0.8), tiles("wide", 0, base),
                      tiles("wide", 1, base), tiles("wide", 2, base * 7)])  # a seed that the other has not
    found = ablation.compare(both, "student", "wide", "mse")
    assert {key: value for key, value in found.items() if "seed" in key} == {
        "percent_seed_0": -10, "percent_seed_1": -20}
    assert found["percent"] == pytest.approx(-15)
    assert found["percent_low"] < -15 < found["percent_high"] < 0
    assert ablation.compare(both, "student", "wide", "mse_crack")["n"] == 17  # a tile without a crack


def test_rows_hold_the_sources_and_their_mean():
    rows = ablation.rows_of(tiles("unet", 1, np.r_[np.full(9, 0.01), np.full(9, 0.001)]))
    assert list(rows["source"]) == ["a", "b", "mean"]
    assert list(rows["psnr"]) == pytest.approx([20, 30, 25])
    assert rows["mse"].iloc[-1] == pytest.approx(0.0055)


def test_the_stored_rows_and_differences_follow_from_the_tiles(same_rows):
    items = results("ablation_items")
    same_rows(ablation.rows_of(items), "ablation", "method seed source")
    found = ablation.differences(items)
    same_rows(found, "ablation_differences", "a b figure")


def test_a_run_that_is_complete_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    tiny_arms(monkeypatch, "unet")
    ablation.train_arm("unet", 0, 2, None)
    path = ablation.run_path("unet", 0, 2).with_suffix(".json")
    before = path.read_bytes()
    monkeypatch.setattr(ablation, "fit_recipe", lambda *words, **options: pytest.fail("it was trained again"))
    ablation.train_arm("unet", 0, 2, None)
    with pytest.raises(pytest.fail.Exception):  # another number of steps is another run
        ablation.train_arm("unet", 0, 3, None)
    tiny_arms(monkeypatch, "unet", seed=1)  # other images
    with pytest.raises(CheckpointError, match="unet-0-2.json holds another run, with fingerprint"):
        ablation.train_arm("unet", 0, 2, None)
    assert path.read_bytes() == before


def tiny_arms(monkeypatch, *arms, seed=0):
    """Let the ablation have these arms, all of one tiny U-Net, and few small images."""
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    monkeypatch.delenv("CRACK_PHOTOS", raising=False)
    sheet = (np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8), np.zeros((40, 40), bool))
    crops = open_dataset("test", photos=False, length=4)
    small = ablation.replace(ablation.BUDGET, batch_size=2, crop=32)
    monkeypatch.setattr(ablation, "BUDGET", small)
    monkeypatch.setattr(ablation, "ARMS", {arm: ablation.Arm(arm, "UNet", {"width": 2}, seeds=(0,)) for arm in arms})
    monkeypatch.setattr(ablation, "open_dataset", lambda *words, **options: crops)
    monkeypatch.setattr(ablation, "training_data", lambda recipe: TrainingData(
        Crops({"drawn": [sheet]}, recipe.steps * recipe.batch_size, recipe.crop, recipe.sigma, recipe.seed),
        None, "drawn", []))


def test_an_arm_is_trained_tested_and_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    tiny_arms(monkeypatch, "student", "wide")
    for arm in ablation.ARMS:
        ablation.train_arm(arm, 0, 2, None)
    for path in (tmp_path / "runs" / "ablation").glob("student*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {f"shuffled_{figure}": content[figure] for figure in ablation.FIGURES}))
    monkeypatch.setattr(ablation, "compare_joins", lambda: [])
    ablation.report(2)
    assert set(results("ablation")["method"]) == {"student", "wide", ablation.SHUFFLED}
    same = results("ablation_differences").query("a == 'student' and b == 'wide' and figure == 'mse'")
    assert list(same["difference"]) == [0]  # the same network from the same seed on the same crops
    runs = results("ablation_runs")
    assert list(runs) == ABLATION_RUNS and list(runs["says"]) == ["student", "wide"]
    assert set(results("provenance")["table"]) == {f"ablation{part}" for part in (
        "", "_items", "_differences", "_runs")}
    budget = results("settings").set_index("setting")["value"]
    assert (budget["steps"], budget["sigma_low"], budget["data"]) == ("2", "5", "drawn")


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


def test_the_stored_rows_of_the_student_follow_from_its_tiles():
    items = results("student_items")  # four decimals of what was averaged
    stored = results("student").set_index(["method", "block", "source"])
    found = source_rows(items, ["method", "block"]).set_index(["method", "block", "source"])
    assert set(found.index.get_level_values("method")) == set(report_student.WAYS)
    np.testing.assert_allclose(found, stored.loc[found.index, list(found)], atol=5e-5)
    differences = pd.DataFrame(report_student.differences(items)).set_index(["against", "figure", "block"])
    stored = results("student_differences").set_index(["against", "figure", "block"])
    assert list(differences.index) == list(stored.index) and list(differences["unit"]) == list(stored["unit"])
    np.testing.assert_allclose(differences["difference"], stored["difference"], atol=1e-4)
    assert differences["covered"].between(differences["low"], differences["high"]).all()


def test_the_student_is_reported_per_way_block_and_source():
    rng, crack = np.random.default_rng(0), np.array([True, False, False, True])
    def tile(has_crack):
        ways = ("teacher, clean", *report_student.WAYS, *report_student.CONSTANTS)
        found = {way: {"cosine": rng.random(2, np.float32), "retrieval": rng.random(2)} for way in ways}
        for way in ways[:4]:  # the probe is right in block 0 and wrong in the last
            found[way] |= {"probe": [1.0 * crack, 1.0 - crack]} | ({"auc": np.array([0.5, 0.75])} if has_crack else {})
        return found
    measured, names = [tile(i % 9 < 5) for i in range(18)], ["block 0", "last"]
    figures = report_student.frame_of(measured, ITEMS, names)
    rows = report_student.rows_of(figures, measured, [crack] * 18, ITEMS)
    assert list(rows) == list(results("student"))
    assert list(rows["source"][:3]) == ["a", "b", "mean"] and list(rows["n"][:3]) == [9, 9, 18]
    student = rows.query("method == 'student, noisy' and source == 'mean'").set_index("block")
    assert student["auc"].to_dict() == {"block 0": 0.5, "last": 0.75}
    assert student["probe_ap"].to_dict() == {"block 0": 1.0, "last": pytest.approx(0.5)}
    assert rows.query("method == 'mean token'")[["auc", "probe_ap"]].isna().all(axis=None)
    items = report_student.items_of(figures)
    assert list(items) == list(results("student_items")) and len(items) == 3 * 18 * 2
    assert items["cosine"].iloc[0] == round(float(measured[0]["teacher, noisy"]["cosine"][0]), 4)


def test_patches_are_crack_from_a_twentieth_on():
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[:4, :4] = True  # 16 of 256 pixels
    mask[16:19, 16:19] = True  # 9 of 256
    assert np.flatnonzero(report_student.is_crack(mask)).tolist() == [0]
