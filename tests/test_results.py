"""The tables of data/results/ hold together, and hold what the JSON files held that they were converted from."""

import gzip
import json
import subprocess

import numpy as np
import pytest

from helpers.project import ROOT, data_dir, results
from lab.regimes import SIGMAS
from lab.tables import KEYS, save_table

ITEM = ("name", "photo", "group", "source", "has_mask")
TABLES = sorted(path.name.split(".")[0] for path in (ROOT / "data" / "results").glob("*.csv*"))


def rows(name):
    """Return a table as dicts, None where a value is missing."""
    table = results(name).astype(object)
    return table.where(table.notna(), None).to_dict("records")


def old(name, *tables):
    """Return the JSON file of that name as revision 8521fab has it, from which the tables were converted.

    The test is skipped without git history, and where one of the `tables` was measured again since.
    """
    made = results("provenance").query("table in @tables")["command"]
    if len(made) == 0 or not made.str.startswith("python scripts/").all():
        pytest.skip(f"{', '.join(tables)} measured again since")
    done = subprocess.run(["git", "-C", str(ROOT), "show", f"8521fab:data/results/{name}.json"], capture_output=True,
                          encoding="utf-8")
    if done.returncode:
        pytest.skip("no git history with revision 8521fab")
    return json.loads(done.stdout)


def values(row, *without):
    """Return a row without what is missing, and without some columns."""
    return {key: value for key, value in row.items() if value is not None and key not in without}


def same(found, expected):
    """Compare two lists of rows value by value, order included; a value that is missing is as good as None."""
    assert [values(row) for row in found] == [values(row) for row in expected]


def settings(table):
    return {row["setting"]: row["value"] for row in rows("settings") if row["table"] == table}


def columns(found, *key):
    """Return {key: {column: values}} of rows, in their order: what the JSON files called "per_item"."""
    gathered = {}
    for row in found:
        part = gathered.setdefault("|".join(str(row[name]) for name in key), {})
        for name, value in row.items():
            part.setdefault(name, []).append(value)
    return gathered


def items_of(part, names=ITEM):
    return [list(item) for item in zip(*(part[name] for name in names), strict=True)]


def test_surfaces():
    was = old("surfaces", "surfaces", "trained_on")
    same(rows("trained_on"), was["rows"])
    found, statistics = rows("surfaces"), was["statistics"]
    for kind in ("drawn", "photos"):
        assert {(row["source"], row["figure"]): [row["low"], row["median"], row["high"]] for row in found
                if row["set"] == kind} == {(source, figure): quantiles for source, figures in statistics[kind].items()
                                           for figure, quantiles in figures.items()}
    inside = {source: {row["figure"]: [photo["source"] for photo in found if photo["set"] == "photos"
                                       and photo["figure"] == row["figure"]
                                       and photo["low"] <= row["median"] <= photo["high"]]
                       for row in found if (row["set"], row["source"]) == ("drawn", source)}
              for source in statistics["drawn"]}
    assert inside == statistics["inside"]
    assert settings("surfaces") == {key: str(statistics[key]) for key in ("drawings", "first_seed", "passed")}
    readme = (data_dir() / "results" / "README.md").read_text(encoding="utf-8")
    assert all(words in readme for words in statistics["definitions"].values())


def test_student():
    was = old("student", "student", "student_differences", "student_items")
    same(rows("student"), was["rows"])
    same(rows("student_differences"), was["differences"])
    parts = columns(rows("student_items"), "method", "block")
    for key, lines in was["per_item"].items():
        way, figure = key.split("|")
        mine = {key: part for key, part in parts.items() if key.startswith(f"{way}|")}
        assert [list(tile) for tile in zip(*(part[figure] for part in mine.values()), strict=True)] == lines
        assert all(items_of(part) == was["items"] for part in mine.values())
    assert settings("student") == {key: str(was[key]) for key in ("teacher", "student_sha256", "sigma", "probe_tiles")}


def test_cams():
    was = old("cams", *(table for table in TABLES if table.startswith("cams")))
    for table, part in (("cams", "rows"), *((f"cams_{part}", part) for part in
                                            ("signs", "choice", "evidence", "iou", "sanity"))):
        same(rows(table), was[part])
    same(rows("cams_differences"), [{**row, "source": row.get("source", "mean")} for row in was["differences"]])
    cuts = rows("cams_interventions")
    same([values(row, "network", "layer") for row in cuts if row["network"] == "hybrid"], was["tokens"])
    same([{"stage": row["layer"], **values(row, "network", "layer", "replacement")} for row in cuts
          if row["network"] == "unet"], was["features"])
    assert {(row["network"], row["replacement"]) for row in cuts} == {
        ("hybrid", "mean"), ("hybrid", "swapped"), ("unet", "zero")}
    parts = columns(rows("cams_items"), "network", "layer", "method")
    assert {key.removeprefix("student|") if "|setting|" in key else key: part["auc"] for key, part in parts.items()
            } == was["per_item"]
    assert all(items_of(part, ITEM[:4]) == was["items"] for part in parts.values())
    assert settings("cams") == {"teacher": was["teacher"], "best": was["best"],
                                **{f"sha256 of {network}": digest for network, digest in was["digests"].items()}}


def test_ablation():
    was = old("vit_ablation", *(table for table in TABLES if table.startswith("ablation")))
    same(rows("ablation"), was["rows"])
    arms = {}
    for row in rows("ablation_runs"):
        arm = arms.setdefault(row["method"], {key: row[key] for key in ("says", "trained", "weights")}
                              | {"seeds": 0, "seconds": [], "loss": []})
        assert row["seed"] == arm["seeds"]
        arm["seeds"] += 1
        arm["seconds"].append(row["seconds"])
        arm["loss"].append(row["loss"])
    assert arms == was["arms"]
    seeds = [f"percent_seed_{n}" for n in range(3)]
    same([{**values(row, *seeds), "percent_by_seed": [row[seed] for seed in seeds if row[seed] is not None]}
          for row in rows("ablation_differences")], was["differences"])
    same([{**row, "arguments": json.loads(row["arguments"]), "percent_by_seed": [float(f"{row['percent']:.3g}")]}
          for row in rows("ablation_joins")], was["joins"])
    parts = columns(rows("ablation_items"), "method", "seed")
    assert list(parts) == list(was["per_item"])
    for key, part in parts.items():
        assert items_of(part) == was["items"]
        assert {figure: part[figure] for figure in was["per_item"][key]} == was["per_item"][key]
    budget = dict(was["budget"])
    low, high = budget.pop("sigma")
    assert settings("ablation") == {key: str(value) for key, value in (
        {**budget, "primary": was["primary"], "sigma_low": low, "sigma_high": high}).items()}


def test_losses():
    was = old("losses", *(table for table in TABLES if table.startswith("losses")))
    same(rows("losses"), was["rows"])
    same(rows("losses_at_rise"), was["at_rise"])
    same(rows("losses_differences"), was["differences"])
    runs = {row["run"]: row for row in rows("losses") if row["run"]}
    histories = {}
    for row in rows("losses_history"):
        line = values(row, "run", "term", "term_value")
        histories.setdefault(row["run"], []).append(
            line | ({row["term"]: row["term_value"]} if row["term_value"] is not None else {}))
    assert [{"name": name, "term": runs[name]["method"], "a": runs[name]["a"], "seed": runs[name]["seed"],
             "start": runs[name]["start"], "history": history} for name, history in histories.items()] == was["runs"]
    parts = columns(rows("losses_items"), "set", "run")
    for key, part in parts.items():
        assert items_of(part, ("group", "photo", "source")) == was["items"][key.split("|")[0]]
        assert part["item"] == list(range(len(part["item"])))
    assert {f"{key}|{figure}": part[figure] for key, part in parts.items()
            for figure in ("mse", "aligned_numerator")} == was["per_item"]
    plain = ("base", "winner", "rival", "unsharp_radius", "data", "start_sha256")
    assert settings("losses") == {key: str(value) for key, value in {
        **{key: was[key] for key in plain}, **was["budget"],
        **{f"run shipped as {name}": run for name, run in was["shipped"].items()}}.items()}
    assert was["rises"] == list(dict.fromkeys(row["rise"] for row in rows("losses_at_rise")))


def test_comparison():
    was = old("comparison", "hybrids_interventions", "legibility_of_clean", "familiar_vectors")
    names = {"hybrid": "hybrid_attention"}  # since then
    same(rows("hybrids_interventions"), [{**row, "method": names.get(row["method"], row["method"])}
                                         for row in was["tokens"]])
    assert {row["source"]: row["legibility"] for row in rows("legibility_of_clean")} == was["legibility of clean"]
    familiar = was["familiar"]
    assert [list(row.values()) for row in rows("familiar_vectors")] == familiar["known"]
    assert settings("familiar") == {"vit_sha256": familiar["vit"], "test_tiles": str(familiar["test tiles"]),
                                    "test_tiles_unlike": str(familiar["test tiles unlike"])}


def test_seconds():
    was = old("seconds", "seconds")
    same(rows("seconds"), was["rows"])
    assert settings("seconds") == {"live_seconds": str(was["live_seconds"])}


@pytest.mark.parametrize(("name", "tables"), [
    ("surfaces", ["surfaces", "trained_on"]), ("student", ["student", "student_differences", "student_items"]),
    ("cams", [table for table in TABLES if table.startswith("cams")]),
    ("vit_ablation", [table for table in TABLES if table.startswith("ablation")]),
    ("losses", [table for table in TABLES if table.startswith("losses")]),
    ("comparison", ["hybrids_interventions", "legibility_of_clean", "familiar_vectors"]), ("seconds", ["seconds"])])
def test_provenance(name, tables):
    was = old(name, *tables)
    runs = [was, *was.get("updates", [])] if tables[0] != "hybrids_interventions" else [was]
    for table in tables:
        same([values(row, "table") for row in rows("provenance") if row["table"] == table], [
            {**{key: run[key] for key in ("command", "revision", "seed", "date", "machine")},
             "methods": " ".join(run["methods"]) if "methods" in run else None} for run in runs])


def test_every_table_has_its_key_explanation_and_provenance():
    assert sorted([*KEYS, "familiar_vectors"]) == TABLES
    readme = (data_dir() / "results" / "README.md").read_text(encoding="utf-8")
    assert {row["table"] for row in rows("provenance")} == set(TABLES) - {"settings", "provenance"}
    for table in TABLES:
        assert f"`{table}`" in readme, table
        unexplained = [column for column in results(table).columns
                       if f"`{column}`" not in readme and not column.startswith("channel_")]
        assert not unexplained, (table, unexplained)


@pytest.mark.parametrize("table", KEYS)
def test_no_two_rows_have_the_same_key(table):
    assert not results(table).duplicated(KEYS[table].split()).any()


SHARES = {"auc", "auc_either", "ap", "ap_over_oracle", "patch_ap", "prevalence", "iou", "ssim", "mse", "mse_crack",
          "mse_rest", "legibility", "legibility_outside", "cosine", "retrieval", "probe_ap", "spearman", "p", "p_holm",
          "random_p", "auc encoder 2", "auc bottleneck", "auc decoder 2"}
SPANS = [("low", "covered", "high"), ("percent_low", "percent_covered", "percent_high"), ("low", "median", "high"),
         ("random_low", "random_covered", "random_high")]


@pytest.mark.parametrize("table", TABLES)
def test_figures_are_in_their_range(table):
    found = results(table)
    for figure in SHARES & set(found):
        assert found[figure].dropna().between(0, 1).all(), figure
    for low, middle, high in (span for span in SPANS if set(span) <= set(found)):
        assert (found[low].isna() == found[high].isna()).all() and (found[low].isna() == found[middle].isna()).all()
        assert (found[middle].between(found[low], found[high]) | found[low].isna()).all(), middle
    if "n" in found:
        assert (found["n"] > 0).all()
    if "sigma" in found:
        assert found["sigma"].isin(SIGMAS if table.startswith("regimes") else [0, 15, 25, 50]).all()


@pytest.mark.parametrize("table", [table for table in TABLES if table.split("_")[-1] != "items" and "source" in results(
    table) and not table.startswith("losses") and "differences" not in table and table != "surfaces"])
def test_sources_weigh_the_same_in_a_mean(table):
    found, by = results(table), [name for name in KEYS[table].split() if name != "source"]
    figures = [name for name in found.select_dtypes("number") if name not in (*by, "n", "sigma", "threshold")]
    groups = found[found["source"] != "mean"].assign(all="all").groupby(["all", *by], dropna=False)
    means = found[found["source"] == "mean"].assign(all="all").set_index(["all", *by])
    expected = groups[figures].mean(skipna=False).loc[means.index]
    np.testing.assert_allclose(means[figures], expected, rtol=2e-3, atol=1e-4)  # some have four digits
    if "n" in found:
        assert (means["n"] == groups["n"].sum().loc[means.index]).all()


@pytest.mark.parametrize("name", ["photos", "photos_items", "synthetic", "synthetic_items", "filters", "unseen",
                                  "unseen_items", "provenance", "settings"])
def test_what_is_read_and_written_again_has_the_same_bytes(name, tmp_path, monkeypatch):
    table, folder = results(name), data_dir() / "results"
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    save_table(name, table)
    path, = (tmp_path / "results").iterdir()
    unpacked = gzip.decompress if path.suffix == ".gz" else bytes
    assert unpacked(path.read_bytes()) == unpacked((folder / path.name).read_bytes())


def test_a_table_reads_back_as_it_was_written(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    wanted = [{"method": "None", "psnr": 0.1 + 0.2, "n": 3, "trained": True},
              {"method": 'σ = 25, then "JPEG"', "psnr": float("nan"), "n": 4, "trained": False, "late": 1e-17}]
    for name in ("some", "some_items"):
        save_table(name, wanted)
        same(rows(name), [values(wanted[0]), values(wanted[1], "psnr")])
    assert results("some").dtypes.astype(str)[["psnr", "n", "trained"]].tolist() == ["float64", "int64", "bool"]
    first = (tmp_path / "results" / "some_items.csv.gz").read_bytes()
    save_table("some_items", wanted)
    assert (tmp_path / "results" / "some_items.csv.gz").read_bytes() == first
    assert gzip.decompress(first).decode() == (tmp_path / "results" / "some.csv").read_text(encoding="utf-8")


def test_what_would_not_read_back_is_refused(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="at least one row.*'some'"):
        save_table("some", [])
    with pytest.raises(ValueError, match=r"must not be empty.*\['method'\]"):
        save_table("some", [{"method": "", "psnr": 1.0}])
    with pytest.raises(ValueError, match=r"needs the columns method, source, sigma.*\['source', 'sigma'\] are missing"):
        save_table("photos", [{"method": "unet", "psnr": 1.0}])
    assert not list((tmp_path / "results").iterdir())


def test_a_table_that_is_not_there_is_named_with_those_that_are(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'photos' in data/results; there: none"):
        results("photos")
    save_table("walls", [{"auc": 0.9}])
    save_table("walls_items", [{"auc": 0.9}])
    (tmp_path / "results" / ".walls.7.part.csv").write_text("half")
    with pytest.raises(FileNotFoundError, match="'photos' in data/results; there: walls, walls_items$"):
        results("photos")
