"""Samples, noise, data sets and training crops: what is fixed stays fixed, and no noise comes twice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from helpers.data import Crops, ImageDataset, Sample, open_dataset, renoised
from helpers.noise import add_noise, choose_sigma
from surfaces import built_in
from surfaces.draw import KINDS, draw_surface
from surfaces.training_images import photo_pool


@pytest.fixture(autouse=True)
def without_photographs(monkeypatch):
    monkeypatch.delenv("CRACK_PHOTOS", raising=False)


@pytest.fixture
def folder(tmp_path):
    """Twelve photographs in one folder, two of them larger than a tile, all with masks."""
    for i in range(12):
        height, width = (448, 460) if i < 2 else (224, 240)
        picture = np.full((height, width, 3), 100 + i, np.uint8)
        crack = np.zeros((height, width), np.uint8)
        crack[100] = 255
        for path, array in ((tmp_path / "walls" / "images" / f"{i:02d}.png", picture),
                            (tmp_path / "walls" / "masks" / f"{i:02d}.png", crack)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return tmp_path / "walls"


def residual(sample):
    return (sample.noisy - sample.clean).numpy()


# --- noise

def test_noise_has_the_standard_deviation_and_is_clipped():
    grey = torch.full((3, 200, 200), 0.5)
    for sigma in (0, 15, 25):
        noisy = add_noise(grey, sigma, torch.Generator().manual_seed(1))
        assert abs(255 * noisy.std().item() - sigma) < 0.3
        assert abs(noisy.mean().item() - 0.5) < 0.002
    dark = add_noise(torch.zeros(3, 200, 200), 50)
    assert dark.min() == 0 and dark.max() <= 1
    assert abs((dark == 0).float().mean().item() - 0.5) < 0.01  # half of the noise is cut off at black
    assert add_noise(torch.ones(3, 200, 200), 50).max() == 1


def test_noise_follows_its_generator_and_leaves_its_input():
    clean = torch.rand(2, 3, 16, 16)
    before = clean.clone()
    for make in (lambda seed: torch.Generator().manual_seed(seed), np.random.default_rng):
        a, b, c = (add_noise(clean, 50, make(seed)) for seed in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)
    torch.manual_seed(3)
    a = add_noise(clean, 50)
    torch.manual_seed(3)
    assert torch.equal(a, add_noise(clean, 50))
    assert torch.equal(clean, before)
    assert add_noise(clean.double(), 50, np.random.default_rng(0)).dtype == torch.float64


@pytest.mark.parametrize("sigma", [-1, float("nan"), float("inf"), 256, (5, 60), None, "much"])
def test_noise_refuses_an_impossible_sigma(sigma):
    with pytest.raises(ValueError, match="sigma must be a number"):
        add_noise(torch.zeros(3, 8, 8), sigma)


def test_noise_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="floating-point tensor.*uint8"):
        add_noise(torch.zeros(3, 8, 8, dtype=torch.uint8), 50)
    with pytest.raises(TypeError, match="floating-point tensor"):
        add_noise(np.zeros((8, 8, 3), np.float32), 50)


def test_a_level_is_the_number_itself_or_uniform_in_its_range():
    rng = np.random.default_rng(0)
    assert choose_sigma(25, rng) == choose_sigma((25, 25), rng) == 25
    assert rng.random() == np.random.default_rng(0).random()  # a number takes nothing from the generator
    levels = [choose_sigma((5, 60), rng) for _ in range(2000)]
    assert 5 <= min(levels) < 6 and 59 < max(levels) <= 60 and abs(np.mean(levels) - 32.5) < 1
    with pytest.raises(ValueError, match="sigma must be"):
        choose_sigma((60, 5), rng)


# --- built-in surfaces

def test_built_in_splits():
    valid, test, train = (open_dataset(split) for split in ("valid", "test", "train"))
    assert (len(train), len(valid), len(test)) == (2000, 64, 120)
    names = [item.name for dataset in (train, valid, test) for item in dataset.items]
    assert len(set(names)) == len(names)
    assert {item.source for item in valid.items} == set(KINDS)
    textures = [item for item in test.items if item.source == "photo-texture"]
    assert len(textures) == 24 and {item.group for item in textures} == {"gravel", "brick"}
    assert not any("grass" in item.name for item in test.items)


def test_seeds_of_splits_and_sheets_never_meet():
    most = built_in.BLOCK // 2 - 1
    starts = [built_in.TEST_SEEDS, built_in.VALID_SEEDS, built_in.TEXTURE_SEEDS, built_in.train_seed(0, 0)]
    assert all(after - before >= 1000 for before, after in zip(starts, starts[1:], strict=False))
    # each seed has a block: first its pictures, then its sheets, then the next seed's pictures
    assert built_in.train_seed(0, most) < built_in.train_seed(0, 0, sheet=True)
    assert built_in.train_seed(0, most, sheet=True) < built_in.train_seed(1, 0)
    for seed, index in ((-1, 0), (0, most + 1), (0, -1)):
        with pytest.raises(ValueError, match="seed of at least 0 and an index below"):
            built_in.train_seed(seed, index)


def test_a_built_in_sample():
    dataset = open_dataset("test", sigma=25)
    sample = dataset[1]
    assert isinstance(sample, Sample)
    assert sample._fields == ("clean", "noisy", "mask", "has_mask", "name", "photo", "group", "source", "sigma")
    for picture in (sample.clean, sample.noisy):
        assert picture.shape == (3, 224, 224) and picture.dtype == torch.float32
        assert 0 <= picture.min() and picture.max() <= 1
    assert sample.mask.shape == (224, 224) and sample.mask.dtype == torch.bool
    item = dataset.items[1]
    assert sample[3:] == (item.has_mask, item.name, item.photo, item.group, item.source, 25.0)
    assert 15 < 255 * residual(sample).std() < 26
    image, mask = dataset.clean(1)
    kind, seed = sample.name.split("-")
    drawn, drawn_mask = draw_surface(kind, int(seed))
    np.testing.assert_array_equal(image, drawn)
    np.testing.assert_array_equal(mask, drawn_mask)
    np.testing.assert_array_equal(sample.clean.permute(1, 2, 0).numpy(), image)


def test_texture_tiles_have_a_crack_that_is_darker():
    test = open_dataset("test")
    seen = set()
    for i in range(96, 120):
        image, mask = test.clean(i)
        seen.add(image.tobytes())
        assert image.shape == (224, 224, 3) and image.dtype == np.float32 and mask.dtype == bool
        assert 0.003 <= mask.mean() < 0.4
        assert image[mask].mean() < image[~mask].mean()
    assert len(seen) == 24


def test_valid_and_test_pictures_do_not_depend_on_the_seed_but_train_ones_do():
    for split, same in (("valid", True), ("test", True), ("train", False)):
        a, b = open_dataset(split, seed=0), open_dataset(split, seed=1)
        assert (a.items[5] == b.items[5]) is same
        assert not np.array_equal(residual(a[5]), residual(b[5]))


def test_noise_of_valid_and_test_is_fixed_by_seed_name_and_sigma(folder):
    whole, part = open_dataset("test"), open_dataset("test", length=7)
    place = [item.name for item in whole.items].index(part.items[3].name)
    assert place != 3
    assert torch.equal(whole[place].noisy, part[3].noisy)  # the order does not matter
    a, b = open_dataset("test", sigma=50)[0], open_dataset("test", sigma=25)[0]
    assert abs(np.corrcoef(residual(a).ravel(), residual(b).ravel())[0, 1]) < 0.05


def test_another_level_is_what_the_data_set_would_have_drawn(folder):
    for photos in (False, folder):
        sample, other = (open_dataset("test", photos, sigma=sigma)[1] for sigma in (50, 15))
        assert renoised(sample, 50) is sample.noisy
        assert torch.equal(renoised(sample, 15), other.noisy)
        assert not torch.equal(renoised(sample, 15), sample.noisy)
    seeded = open_dataset("test", sigma=50, seed=4)[3]  # its own level keeps its own noise, whatever the seed
    assert renoised(seeded, 50) is seeded.noisy
    with pytest.raises(ValueError, match="sigma must be .* got -1"):
        renoised(sample, -1)


def test_noise_of_train_is_fixed_by_seed_and_number():
    dataset = open_dataset("train", length=5)
    again = [open_dataset("train", length=5)[i] for i in (4, 0)]
    assert torch.equal(dataset[4].noisy, again[0].noisy) and torch.equal(dataset[0].noisy, again[1].noisy)


def test_a_range_of_sigma():
    dataset = open_dataset("valid", sigma=(5, 60))
    levels = [dataset[i].sigma for i in range(20)]
    assert all(5 <= level <= 60 for level in levels) and max(levels) - min(levels) > 20
    assert dataset[3].sigma == levels[3]


def test_shortened_splits_are_spread_over_the_sources():
    for split, sources in (("test", 6), ("valid", 5)):
        dataset = open_dataset(split, length=24)
        assert len(dataset) == len(dataset.items) == 24
        assert len({item.source for item in dataset.items}) == sources
    assert len(open_dataset("valid", length=1000)) == 64
    assert len(open_dataset("train", length=2500)) == 2500


@pytest.mark.parametrize("arguments, message", [
    ({"split": "tset"}, "split must be one of train, valid, test, got 'tset'"),
    ({"split": "test", "sigma": -3}, "sigma must be .* got -3"),
    ({"split": "test", "sigma": (60, 5)}, r"sigma must be .* got \(60, 5\)"),
    ({"split": "test", "sigma": (1, 2, 3)}, "sigma must be"),
    ({"split": "test", "length": 0}, "length must be a whole number of at least 1, got 0"),
    ({"split": "test", "length": 2.5}, "length must be a whole number of at least 1, got 2.5"),
    ({"split": "test", "seed": -1}, "seed must be a whole number of at least 0, got -1"),
])
def test_open_dataset_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(**arguments)


def test_every_data_set_is_an_image_dataset(folder):
    for dataset in (open_dataset("valid"), open_dataset("valid", folder)):
        assert isinstance(dataset, ImageDataset)
        image, mask = dataset.clean(0)
        assert image.dtype == np.float32 and mask.dtype == bool and image.shape == (*mask.shape, 3)
    with pytest.raises(NotImplementedError):
        ImageDataset(dataset.items, "valid", 50, 0)[0]


def test_indices():
    dataset = open_dataset("valid", length=3)
    assert dataset[-1].name == dataset[2].name
    for index in (3, -4):
        with pytest.raises(IndexError, match="outside of 3"):
            dataset[index]
    assert [sample.name for sample in dataset] == [item.name for item in dataset.items]


# --- photographs

def test_photographs_are_cut_into_tiles_of_one_split(folder):
    splits = {split: open_dataset(split, folder) for split in ("train", "valid", "test")}
    photos = {split: {item.photo for item in dataset.items} for split, dataset in splits.items()}
    assert sum(len(names) for names in photos.values()) == 12  # no photograph in two splits
    assert sum(len(dataset) for dataset in splits.values()) == 10 + 2 * 4
    sample = splits["test"][0]
    assert sample.clean.shape == (3, 224, 224) and sample.source == "walls" and sample.has_mask
    assert sample.clean.unique().tolist() == [np.float32(100 + int(sample.photo)) / 255]
    names = [item.name for dataset in splits.values() for item in dataset.items]
    assert "00_r0c0" in names and "00_r1c1" in names


def test_photographs_come_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("CRACK_PHOTOS", str(folder))
    assert open_dataset("train").items[0].source == "walls"
    assert open_dataset("test", photos=False).items[0].source == KINDS[0]
    monkeypatch.setenv("CRACK_PHOTOS", "")
    assert open_dataset("test").items[0].source == KINDS[0]
    monkeypatch.setenv("CRACK_PHOTOS", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_dataset("test")


def test_train_repeats_tiles_but_never_noise(folder):
    once = open_dataset("train", folder)
    dataset = open_dataset("train", folder, length=2 * len(once))
    assert len(dataset) == 2 * len(once)
    first, second = dataset[0], dataset[len(once)]
    assert first.name == second.name and torch.equal(first.clean, second.clean)
    assert abs(np.corrcoef(residual(first).ravel(), residual(second).ravel())[0, 1]) < 0.05
    assert len(open_dataset("test", folder, length=1000)) == len(open_dataset("test", folder))


def test_photographs_without_masks(folder):
    for path in (folder / "masks").iterdir():
        path.unlink()
    (folder / "masks").rmdir()
    sample = open_dataset("test", folder)[0]
    assert not sample.has_mask and not sample.mask.any() and sample.mask.shape == (224, 224)
    assert all(mask is None for _, mask in photo_pool(folder)["walls"])


def test_a_truncated_photograph_is_named_when_read(folder):
    dataset = open_dataset("train", folder)
    path = dataset.tiles[0].photo.path
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"{path.name}: wanted a whole image"):
        dataset[0]
    with pytest.raises(ValueError, match=f"{path.name}: wanted a whole image"):
        photo_pool(folder)


# --- loading

def test_samples_collate():
    batch = default_collate([open_dataset("valid")[i] for i in range(3)])
    assert isinstance(batch, Sample)
    assert batch.clean.shape == batch.noisy.shape == (3, 3, 224, 224) and batch.mask.shape == (3, 224, 224)
    assert batch.has_mask.tolist() == [True] * 3 and batch.sigma.tolist() == [50] * 3
    assert len(batch.name) == 3 and all(isinstance(name, str) for name in batch.name)


@pytest.mark.parametrize("kind", ["drawn", "photographs", "crops"])
def test_workers_give_the_same_samples_in_the_same_order(kind, folder):
    if kind == "drawn":
        dataset = open_dataset("train", length=8)
    elif kind == "photographs":
        dataset = open_dataset("train", folder, length=8)
    else:
        dataset = Crops({"grey": grey_pool(2)}, 8, size=32)
    alone = [batch.noisy for batch in DataLoader(dataset, batch_size=2)]
    shared = [batch.noisy for batch in DataLoader(dataset, batch_size=2, num_workers=2)]
    assert torch.equal(torch.cat(alone), torch.cat(shared))
    noise = torch.cat([batch.noisy - batch.clean for batch in DataLoader(dataset, batch_size=2, num_workers=2)])
    correlation = np.corrcoef(noise.flatten(1).numpy())
    assert np.abs(correlation - np.eye(8)).max() < 0.1  # no two workers with the same noise


# --- crops

def grey_pool(count, height=40, width=50):
    """Pictures whose pixels say where they are: red the row, green the column, blue the picture."""
    y, x = np.mgrid[:height, :width]
    return [(np.stack([y, x, np.full_like(y, i)], axis=-1).astype(np.uint8), (y + x) % 3 == 0) for i in range(count)]


def test_crops_are_windows_flipped_and_turned_with_their_masks():
    crops = Crops({"a": grey_pool(3)}, 400, size=16, sigma=0)
    turns, places, pictures = set(), set(), set()
    for sample in crops:
        row, column, picture = (255 * sample.clean).round().int().numpy()
        assert row.max() - row.min() == column.max() - column.min() == 15
        assert len(np.unique(np.stack([row.ravel(), column.ravel()]), axis=1).T) == 256  # every pixel once
        np.testing.assert_array_equal(sample.mask.numpy(), (row + column) % 3 == 0)
        assert torch.equal(sample.clean, sample.noisy)
        steps = (row[1, 0] - row[0, 0], row[0, 1] - row[0, 0], column[1, 0] - column[0, 0], column[0, 1] - column[0, 0])
        turns.add(tuple(map(int, steps)))
        places.add((int(row.min()), int(column.min())))
        pictures.add(int(picture[0, 0]))
    assert len(turns) == 8 and pictures == {0, 1, 2}
    assert min(p[0] for p in places) == 0 and max(p[0] for p in places) == 24  # up to both edges
    assert min(p[1] for p in places) == 0 and max(p[1] for p in places) == 34


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5))
def test_a_crop_depends_on_seed_and_number_alone(index, seed):
    pool = {"a": grey_pool(3), "b": grey_pool(1)}
    a = Crops(pool, 10**6 + 1, size=16, seed=seed)[index]
    b = Crops(pool, 2 * 10**6, size=16, seed=seed)[index]
    other = Crops(pool, 10**6 + 1, size=16, seed=seed + 1)[index]
    assert a.name == b.name and a.sigma == b.sigma and 5 <= a.sigma <= 60
    assert torch.equal(a.noisy, b.noisy) and torch.equal(a.mask, b.mask)
    assert not torch.equal(a.noisy, other.noisy)


def test_crops_give_sources_their_weights_whatever_their_size():
    pool = {"few": grey_pool(1), "many": grey_pool(30), "none": grey_pool(2)}

    def shares(**options):
        sources = [sample.source for sample in Crops(pool, 600, size=16, **options)]
        return [sources.count(source) / 600 for source in pool]

    np.testing.assert_allclose(shares(), [1 / 3] * 3, atol=0.08)
    np.testing.assert_allclose(shares(weights={"few": 3, "many": 1, "none": 0}), [0.75, 0.25, 0], atol=0.08)


def test_crops_without_masks_and_in_batches():
    crops = Crops({"a": [(grey_pool(1)[0][0], None)], "b": grey_pool(1)}, 40, size=24)
    assert {(sample.source, sample.has_mask, bool(sample.mask.any())) for sample in crops} == {
        ("a", False, False), ("b", True, True)}
    batch = next(iter(DataLoader(crops, batch_size=8)))
    assert batch.clean.shape == (8, 3, 24, 24) and batch.mask.dtype == torch.bool
    assert crops[-1].name == crops[39].name
    with pytest.raises(IndexError):
        crops[40]


def test_crops_refuse():
    class Lazy:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return grey_pool(1)[index]

    with pytest.raises(ValueError, match="image 1 of b: wanted at least 45 x 45 pixels for a crop, got 40 x 50"):
        Crops({"a": grey_pool(1, 64, 64), "b": grey_pool(1, 64, 64) + grey_pool(1)}, 10, size=45)
    with pytest.raises(ValueError, match="image 0 of lazy: wanted at least 45 x 45"):
        Crops({"lazy": Lazy()}, 10, size=45)[0]
    for wrong in ({}, {"a": []}):
        with pytest.raises(ValueError, match="pools must hold images"):
            Crops(wrong, 10)
    for options in ({"length": 0}, {"length": 5, "size": 0}, {"length": 5, "seed": -1}):
        with pytest.raises(ValueError, match="wanted length and size above 0"):
            Crops({"a": grey_pool(1)}, **options)
    for weights in ({"b": 1}, {"a": -1}, {"a": 0}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="weights must be"):
            Crops({"a": grey_pool(1)}, 5, size=16, weights=weights)
    with pytest.raises(ValueError, match="sigma must be"):
        Crops({"a": grey_pool(1)}, 5, size=16, sigma=(60, 5))


def test_crops_change_colours_of_the_share_asked_for():
    grey = [(np.full((64, 64, 3), (200, 120, 40), np.uint8), None)]
    plain, some = (Crops({"a": grey}, length=200, size=64, sigma=0, colour=share) for share in (0.0, 0.5))
    changed = [not torch.equal(plain[i].clean, some[i].clean) for i in range(200)]
    assert 60 < sum(changed) < 140
    saturations = [float(some[i].clean.amax() - some[i].clean.amin()) for i in range(200)]
    assert min(saturations) < 0.4 < float(plain[0].clean.amax() - plain[0].clean.amin()) < 0.8 < max(saturations)
    with pytest.raises(ValueError, match="colour must be a share in 0..1, got 2"):
        Crops({"a": grey}, length=1, size=64, colour=2)


def sigmas(power, high=80, count=4000):
    grey = [(np.full((8, 8, 3), 128, np.uint8), None)]
    samples = Crops({"grey": grey}, count, size=8, sigma=(0, high), sigma_power=power)
    return np.array([samples[i].sigma for i in range(count)])


def test_weak_noise_comes_more_often_with_a_power_above_one():
    even, weak = sigmas(1.0), sigmas(1.5)
    np.testing.assert_allclose(weak, 80 * (even / 80) ** 1.5)  # the same draw, bent
    assert np.mean(even) == pytest.approx(40, abs=1.5) and np.mean(weak) == pytest.approx(80 / 2.5, abs=1.5)
    assert np.mean(weak < 15) == pytest.approx((15 / 80) ** (1 / 1.5), abs=0.03)
    assert 0 <= weak.min() < 1 and 78 < weak.max() < 80


def test_a_power_of_one_draws_what_numpy_calls_uniform():
    for seed in range(50):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        assert choose_sigma((5, 60), one) == other.uniform(5.0, 60.0)


@pytest.mark.parametrize("power", [0, -1, float("nan"), float("inf")])
def test_impossible_powers_are_refused(power):
    with pytest.raises(ValueError, match="sigma_power above 0, got"):
        Crops({"grey": [(np.zeros((8, 8, 3), np.uint8), None)]}, 1, size=8, sigma_power=power)
