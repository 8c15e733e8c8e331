"""Is a training the same whether broken off, spread over processes or left alone, and does it stop when it must?"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from helpers import training
from helpers.checkpoints import CheckpointError, read_tensors, save_tensors
from helpers.data import Crops, Sample
from helpers.metrics import psnr
from helpers.models import UNet
from helpers.training import Run, TrainingError, fit, learning_rate, validate
from lab.runs import AcceleratedRun, fingerprint

BATCH = 4


def network(**arguments):
    torch.manual_seed(1)
    return UNet(**{"width": 4, "predict": "image", "stages": 1, **arguments})


def crops(steps=12, seed=0):
    picture = (255 * np.random.default_rng(5).random((40, 40, 3))).astype(np.uint8)
    return Crops({"random": [(picture, None)]}, steps * BATCH, size=16, sigma=50, seed=seed)


class Changed(Dataset):
    """A data set whose item `at` goes through `change` first."""

    def __init__(self, dataset, at, change):
        self.dataset, self.at, self.change = dataset, at, change

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.change(self.dataset[index]) if index == self.at else self.dataset[index]


def interrupt(sample):
    raise KeyboardInterrupt


def kill(sample):
    os.kill(os.getpid(), signal.SIGKILL)


def spoil(sample):
    return sample._replace(clean=sample.clean * float("nan"))


def run(data=None, model=None, folder=None, identity=None, **options):
    """Fit the tiny network and return it with the history: in `folder`, or shared among the processes there are."""
    model = model or network()
    options = {"batch_size": BATCH, "every": 3, "progress": False, "precision": "no", **options}
    if folder or "RANK" in os.environ:
        options["run"] = AcceleratedRun(folder, identity)
    return model, fit(model, data or crops(), **options)


def unbroken(tmp_path):
    return run(valid=crops(1, seed=9), folder=tmp_path / "unbroken")


def without_time(history):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in history]


def assert_same(model, other):
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def assert_resumes(folder, tmp_path, **options):
    """Go on in `folder`; weights, history and the best must be those of the run that was never broken off."""
    model, history = run(valid=crops(1, seed=9), folder=folder, **options)
    expected, lines = unbroken(tmp_path)
    assert_same(model, expected)
    assert without_time(history) == without_time(lines)
    best, wanted = (read_tensors(place / "best.safetensors")[0] for place in (folder, tmp_path / "unbroken"))
    assert all(torch.equal(best[name], wanted[name]) for name in wanted)


def step_of(path):
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def python(code, **variables):
    """Start Python on `code` with this module at hand; return the process."""
    tests = Path(__file__).resolve().parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DENOISE_DEVICE": "cpu", **variables}
    return subprocess.Popen([sys.executable, "-c", code], env=variables, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(autouse=True)
def on_one_core_of_the_cpu(monkeypatch):
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the same order as in the processes that are started with one thread
    yield
    torch.set_num_threads(threads)


# Broken off


def test_killed_run_ends_with_the_same_weights(tmp_path):
    code = ("import sys; from test_training import *; "
            "run(Changed(crops(), 8 * BATCH, kill), valid=crops(1, seed=9), folder=sys.argv[1])")
    process = python(code.replace("sys.argv[1]", repr(str(tmp_path / "killed"))))
    _, errors = process.communicate(timeout=900)
    assert process.returncode == -signal.SIGKILL, errors
    assert step_of(tmp_path / "killed" / "state.safetensors") == 6
    assert_resumes(tmp_path / "killed", tmp_path)


def test_ctrl_c_leaves_a_state_that_resumes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Changed(crops(), 8 * BATCH, interrupt), valid=crops(1, seed=9), folder=tmp_path / "run")
    assert step_of(tmp_path / "run" / "state.safetensors") == 6
    assert_resumes(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("options", [{"ema": 0}, {"precision": "bf16"}, {"workers": 1}, {"optimizer": "muon"}], ids=str)
def test_resumes_without_average_in_bfloat16_with_workers_and_with_muon(tmp_path, options):
    broken = {**options, "workers": 0}  # the interrupt must come in this process
    with pytest.raises(KeyboardInterrupt):
        run(Changed(crops(), 8 * BATCH, interrupt), folder=tmp_path, **broken)
    assert_same(run(folder=tmp_path, **options)[0], run(**options)[0])


def test_seconds_go_on_counting_after_a_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Changed(crops(), 8 * BATCH, interrupt), folder=tmp_path)
    seconds = [line["seconds"] for line in run(folder=tmp_path)[1]]
    assert seconds == sorted(seconds)


def test_finished_run_is_only_read(tmp_path):
    model, history = run(folder=tmp_path)
    again, lines = run(Changed(crops(), 0, interrupt), folder=tmp_path)
    assert_same(again, model)
    assert lines == history


@pytest.mark.parametrize("options", [{"steps": 6}, {"lr": 1e-4}, {"seed": 3}, {"optimizer": "muon"}, {"ema": 0},
                                     {"weight_decay": 0.1}, {"clip": 0.5}, {"schedule": "constant"}], ids=str)
def test_run_with_other_settings_is_not_gone_on_with(tmp_path, options):
    run(folder=tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    [(name, value)] = options.items()
    with pytest.raises(CheckpointError, match=f"holds another run, with {name} .* .wanted {value!r}.: go on with that"):
        run(folder=tmp_path, **options)
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("other", [{"data": "b"}, {"data": "a", "loss": "mse"}, {"data": {"a": 1}}], ids=str)
def test_run_of_another_identity_is_not_gone_on_with(tmp_path, finished, other):
    data = crops() if finished else Changed(crops(), 8 * BATCH, interrupt)
    try:
        run(data, folder=tmp_path, identity={"data": "a"})
    except KeyboardInterrupt:
        assert not finished
    assert AcceleratedRun(tmp_path, {"data": "a"}).is_complete() == finished
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="holds another run, with (data|loss) .*wanted"):
        run(folder=tmp_path, identity=other)
    with pytest.raises(CheckpointError, match="holds another run"):
        AcceleratedRun(tmp_path, other).is_complete()
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_fingerprint_tells_data_apart(tmp_path):
    """Seeds, noise, sizes, numbers of samples, and a photograph of which no crop was looked at."""
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    same = fingerprint(crops(), [tmp_path / "a.png"])
    assert fingerprint(crops(), [tmp_path / "a.png"]) == same
    others = [fingerprint(crops(seed=1), [tmp_path / "a.png"]), fingerprint(crops(steps=13), [tmp_path / "a.png"]),
              fingerprint(crops(), [tmp_path / "b.png"]), fingerprint(crops()),
              fingerprint(Changed(crops(), 7, lambda s: s._replace(mask=~s.mask)), [tmp_path / "a.png"])]
    (tmp_path / "a.png").write_bytes(b"two")
    others.append(fingerprint(crops(), [tmp_path / "a.png"]))
    assert len({same, *others}) == 7


def test_a_state_that_is_none_is_named(tmp_path):
    save_tensors({"a": torch.zeros(1)}, tmp_path / "state.safetensors", {"step": "3"})
    with pytest.raises(CheckpointError, match="state.safetensors is no state of a run: KeyError"):
        run(folder=tmp_path)


def test_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    """The state of step 6 cannot be written: that of step 3 stays, nothing half done lies about, and it resumes."""
    from helpers import checkpoints
    written = []

    def serialize(tensors, metadata, real=checkpoints.serialize):
        written.append(metadata)
        if metadata["step"] == "6" and "identity" in metadata:
            raise OSError(28, "No space left on device")
        return real(tensors, metadata)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "serialize", serialize)
        with pytest.raises(OSError, match="No space left"):
            run(valid=crops(1, seed=9), folder=tmp_path / "run")
    assert len(written) >= 3 and step_of(tmp_path / "run" / "state.safetensors") == 3
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"state.safetensors", "best.safetensors"}
    assert_resumes(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_stopped_while_the_state_is_written_leaves_the_old_one(tmp_path, how):
    """Ctrl-C, or a kill, at the moment when the new state would take the old one's name."""
    code = f"""import os, signal
from test_training import *
rename, calls = os.replace, []
def replace(source, target):
    calls.append(target)
    if len(calls) == 4:  # best and state of step 3, best of step 6, and now its state
        kill(None) if {how == "kill"} else interrupt(None)
    rename(source, target)
os.replace = replace
run(valid=crops(1, seed=9), score=lambda model, valid: {{"score": len(calls)}}, folder={str(tmp_path / "run")!r})"""
    process = python(code)
    _, errors = process.communicate(timeout=900)
    assert process.returncode != 0 and ("KeyboardInterrupt" in errors or how == "kill"), errors
    assert step_of(tmp_path / "run" / "state.safetensors") == 3
    left = [path.name for path in (tmp_path / "run").iterdir() if ".part" in path.name]
    assert bool(left) == (how == "kill")
    model, _ = run(folder=tmp_path / "run")
    assert_same(model, run()[0])
    assert not [path.name for path in (tmp_path / "run").iterdir() if ".part" in path.name], "stale files are removed"


def test_run_of_another_network_is_not_gone_on_with(tmp_path):
    run(folder=tmp_path)
    with pytest.raises(CheckpointError, match="another network"):
        run(model=network(width=8), folder=tmp_path)


def test_broken_state_is_named(tmp_path):
    run(folder=tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="state.safetensors"):
        run(folder=tmp_path)


# Numbers that are none


def test_nan_loss_names_the_step_and_leaves_the_last_good_state(tmp_path):
    with pytest.raises(TrainingError, match="loss is nan at step 8 of 12.*last good state"):
        run(Changed(crops(), 7 * BATCH + 1, spoil), valid=crops(1, seed=9), folder=tmp_path / "run")
    tensors, _ = read_tensors(tmp_path / "run" / "state.safetensors")
    assert step_of(tmp_path / "run" / "state.safetensors") == 6
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert_resumes(tmp_path / "run", tmp_path)


def test_gradient_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path):
    def loss(denoised, clean):
        return torch.sqrt((denoised - denoised.detach()).abs().mean())  # 0, with the gradient 0 * infinity

    for clip in (1.0, 0):
        model = network()
        with pytest.raises(TrainingError, match="gradient's norm is nan at step 1 of 12"):
            run(model=model, loss=loss, every=1, clip=clip, folder=tmp_path)
        assert_same(model, network())
    assert not list(tmp_path.iterdir())


# The best beside the last


def test_best_on_validation_is_kept_beside_the_last(tmp_path):
    scores, seen = iter([1.0, 3.0, 2.0, 2.5]), []

    def score(model, valid):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": next(scores)}

    model, history = run(valid=crops(1), score=score, folder=tmp_path)
    assert [line["score"] for line in history] == [1.0, 3.0, 2.0, 2.5]
    assert step_of(tmp_path / "best.safetensors") == 6 and step_of(tmp_path / "state.safetensors") == 12
    best, _ = read_tensors(tmp_path / "best.safetensors")
    assert all(torch.equal(best[name], seen[1][name]) for name in best)
    assert all(torch.equal(value, seen[3][name]) for name, value in model.state_dict().items())


def test_without_validation_there_is_no_best(tmp_path):
    run(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_validate_weighs_sources_equally_and_puts_the_mode_back():
    def sample(source, error):
        clean = torch.full((3, 16, 16), 0.5)
        return Sample(clean, clean + error, torch.zeros(16, 16, dtype=torch.bool), False, "a", "a", "a", source, 0.0)

    dataset = [sample("wall", 0.1), sample("wall", 0.1), sample("wall", 0.1), sample("road", 0.01)]
    model = network(predict="noise").train()  # starts as the identity
    scores = validate(model, dataset)
    assert scores == pytest.approx({"psnr": 30, "wall": 20, "road": 40}, abs=1e-3)
    assert scores["road"] == pytest.approx(psnr(dataset[3].noisy, dataset[3].clean))
    assert model.training


# What a step does


def test_learning_rate_at_the_corners():
    assert [learning_rate(p, 2.0, warmup=0.1) for p in (0, 0.05, 0.1, 1)] == pytest.approx([0, 1, 2, 0.02])


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1e-6, 1))
def test_learning_rate_rises_then_falls(a, b, peak):
    first, second = sorted((a, b))
    rates = learning_rate(first, peak), learning_rate(second, peak)
    assert 0 <= min(rates) and max(rates) <= peak * (1 + 1e-9)
    if second <= 0.05:
        assert rates[0] <= rates[1]
    if first >= 0.05:
        assert rates[0] >= rates[1] >= 0.01 * peak * (1 - 1e-9)


def test_history_has_a_line_per_every_steps_and_the_last():
    class Loss(nn.MSELoss):
        def forward(self, denoised, clean):
            self.parts = {"doubled": 2 * super().forward(denoised, clean).detach()}
            return super().forward(denoised, clean)

    data, model = crops(), network()
    with torch.no_grad():  # with a rate of zero the losses are those of the untrained network
        losses = [nn.functional.mse_loss(model(torch.stack([data[i].noisy for i in batch])),
                                         torch.stack([data[i].clean for i in batch])).item()
                  for batch in np.arange(12 * BATCH).reshape(12, BATCH)]
    _, history = run(data, model, loss=Loss(), lr=0.0, every=5)
    assert [line["step"] for line in history] == [5, 10, 12]
    assert [list(line) for line in history] == 3 * [["step", "loss", "lr", "seconds", "doubled"]]
    wanted = [np.mean(losses[:5]), np.mean(losses[5:10]), np.mean(losses[10:])]
    assert [line["loss"] for line in history] == pytest.approx(wanted, rel=1e-5)
    assert [line["doubled"] for line in history] == pytest.approx([2 * loss for loss in wanted], rel=1e-5)


def test_rate_of_every_step_follows_the_schedule():
    _, history = run(every=1, lr=0.01)
    assert [line["lr"] for line in history] == pytest.approx([learning_rate(step / 12, 0.01) for step in range(1, 13)])


def captured(register, capture, **options):
    """Run with an optimizer hook; return what `capture(parameters)` gave at every step, and the network."""
    values = []
    handle = register(lambda optimizer, *_: values.append(capture(optimizer.param_groups[0]["params"])))
    try:
        return values, run(**options)[0]
    finally:
        handle.remove()


def test_gradients_are_clipped_to_the_norm_and_keep_their_direction():
    def gradient(parameters):
        return torch.cat([p.grad.flatten() for p in parameters])

    free, _ = captured(register_optimizer_step_pre_hook, gradient, clip=0)
    clipped, _ = captured(register_optimizer_step_pre_hook, gradient, clip=1e-3)
    assert all(vector.norm() > 2e-3 for vector in free)
    assert all(vector.norm().item() == pytest.approx(1e-3, rel=1e-2) for vector in clipped)
    assert nn.functional.cosine_similarity(free[0], clipped[0], dim=0).item() == pytest.approx(1, abs=1e-5)


def test_average_equals_the_one_written_out():
    weights, model = captured(register_optimizer_step_post_hook, lambda ps: [p.detach().clone() for p in ps], ema=0.3)
    average = weights[0]
    for n, current in enumerate(weights[1:], 1):
        keep = min(0.3, (1 + n) / (10 + n))
        average = [keep * a + (1 - keep) * c for a, c in zip(average, current, strict=True)]
    for p, a, last in zip(model.parameters(), average, weights[-1], strict=True):
        torch.testing.assert_close(p.detach(), a, rtol=1e-5, atol=1e-7)
        assert not torch.equal(p, last)


def test_without_average_the_last_weights_stay():
    weights, model = captured(register_optimizer_step_post_hook, lambda ps: [p.detach().clone() for p in ps], ema=0)
    assert all(torch.equal(p, last) for p, last in zip(model.parameters(), weights[-1], strict=True))


def test_frozen_parameters_stay_and_the_network_is_left_in_eval_mode():
    model = network()
    model.encoder.requires_grad_(False)
    run(model=model)
    start = network()
    assert_same(model.encoder, start.encoder)
    assert not torch.equal(model.head.weight, start.head.weight)
    assert not model.training


def test_weights_lie_in_channels_last():
    seen = []

    def forward(model, sample):
        seen.append(model(sample.noisy).is_contiguous(memory_format=torch.channels_last))
        return nn.functional.mse_loss(model(sample.noisy), sample.clean)

    model, _ = run(forward=forward, steps=1)
    assert model.encoder[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert seen == [True]


@pytest.mark.parametrize("precision, fast, wanted", [("no", True, False), ("bf16", False, True),
                                                     ("auto", True, True), ("auto", False, False)])
def test_precision_is_that_of_the_step_alone(monkeypatch, precision, fast, wanted):
    seen = []

    def forward(model, sample):
        seen.append(model(sample.noisy).dtype == torch.bfloat16)
        return nn.functional.mse_loss(model(sample.noisy).float(), sample.clean)

    monkeypatch.setattr(training, "bfloat16_is_fast", lambda device: fast)
    model, _ = run(forward=forward, steps=2, precision=precision)
    assert seen == [wanted, wanted]
    assert model(torch.zeros(1, 3, 16, 16)).dtype == torch.float32  # nothing is left in the network
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_bfloat16_trains_almost_the_same():
    losses = [run(precision=precision)[1][-1]["loss"] for precision in ("no", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_training_helps():
    class Grey(Dataset):
        def __len__(self):
            return 60 * BATCH

        def __getitem__(self, index):
            noisy = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index))
            return crops()[0]._replace(clean=torch.full((3, 16, 16), 0.5), noisy=noisy)

    _, history = run(Grey(), every=20, lr=1e-2)
    assert history[-1]["loss"] < 0.25 * history[0]["loss"]


# When it stops, and what it refuses


def test_seconds_stop_the_run_and_drive_the_schedule(monkeypatch):
    ticks = iter(range(1000))  # a clock that goes on by a second whenever it is read
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    _, history = run(crops(100), seconds=10, every=4, lr=1.0)
    assert [line["step"] for line in history] == [4, 8, 10]
    assert [line["seconds"] for line in history] == [4, 8, 10]
    assert [line["lr"] for line in history] == pytest.approx([learning_rate(p, 1.0) for p in (0.4, 0.8, 1)])


@pytest.mark.parametrize("options, message", [
    ({"steps": 0}, "steps and batch_size must be at least 1, got 0 and 4"),
    ({"batch_size": 0}, "at least 1, got 48 and 0"),
    ({"batch_size": 49}, "at least 1, got 0 and 49"),
    ({"steps": 13}, "13 steps of 4 take 52 images, the set has 48"),
    ({"seconds": 0}, "seconds must be above 0"),
    ({"seconds": 5, "folder": "runs"}, "cannot resume, and has no folder; got 5"),
    ({"schedule": "linear"}, "schedule must be one of cosine, constant, got 'linear'"),
    ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, got 'sgd'"),
    ({"precision": "fp16"}, 'precision must be "auto", "no" or "bf16", got \'fp16\''),
], ids=str)
def test_impossible_budgets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_batch_that_processes_cannot_share_is_refused():
    three = Run()
    three.processes = 3
    with pytest.raises(ValueError, match="multiple of the 3 processes, got 16"):
        fit(network(), crops(8), batch_size=16, run=three)


def test_constant_schedule_stays_at_the_peak_after_the_warm_up():
    rates = [learning_rate(p, 2.0, schedule="constant") for p in (0, 0.025, 0.05, 0.5, 1)]
    assert rates == pytest.approx([0, 1, 2, 2, 2])
    _, history = run(every=1, lr=0.01, schedule="constant")
    assert [line["lr"] for line in history] == pytest.approx(12 * [0.01])  # the first of 12 steps is past the warm-up


@pytest.mark.parametrize("options", [{}, {"optimizer": "muon", "precision": "bf16"}, {"ema": 0, "clip": 0.01}], ids=str)
def test_accelerate_changes_nothing_in_one_process(tmp_path, options):
    """What `lab` puts under the loop is the same run: weights, average, history, to the last bit."""
    here, lines = run(valid=crops(1, seed=9), lr=3e-3, **options)
    there, others = run(valid=crops(1, seed=9), lr=3e-3, folder=tmp_path, **options)
    assert_same(here, there)
    assert without_time(lines) == without_time(others)


def test_run_is_asked_in_this_order():
    """What a `Run` of one's own may count on."""
    calls = []

    class Told(Run):
        def restore(self, model, average, optimizer, settings):
            calls.append(("restore", settings["steps"], type(average).__name__, type(optimizer).__name__))
            return super().restore(model, average, optimizer, settings)

        def prepare(self, model, batches):
            calls.append(("prepare", len(batches)))
            return model, batches

        def keep(self, step, history):
            calls.append(("keep", step, len(history)))

        def finish(self):
            calls.append(("finish",))
    fit(network(), crops(), batch_size=BATCH, every=6, progress=False, run=Told())
    assert calls == [("restore", 12, "AveragedModel", "AdamW"), ("prepare", 12), ("keep", 6, 1), ("keep", 12, 2),
                     ("finish",)]


def test_prints_nothing_without_the_bar(capfd):
    run(valid=crops(1))
    assert capfd.readouterr() == ("", "")
    run(progress=True)
    assert "12" in capfd.readouterr().err


# Two processes


GRADIENTS = "gradients"


def worker(folder):
    """What each of two processes does: the run, one with a NaN in one share alone, one limited by seconds."""
    rank = os.environ["RANK"]
    gradients, model = captured(register_optimizer_step_pre_hook, lambda ps: [p.grad.clone() for p in ps], ema=0.5,
                                valid=crops(1, seed=9), folder=f"{folder}/run")
    torch.save({"model": model.state_dict(), GRADIENTS: gradients}, f"{folder}/{rank}.pt")
    try:
        run(Changed(crops(), BATCH, spoil))  # the first of a batch goes to process 0 alone
        message = "no error"
    except TrainingError as error:
        message = str(error)
    _, history = run(crops(2000), seconds=0.2)
    Path(f"{folder}/{rank}.json").write_text(json.dumps({"message": message, "steps": history[-1]["step"]}))


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_gradients_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # what `accelerate launch` and torchrun set, without their own seconds
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    code = f"import test_training; test_training.worker({str(tmp_path)!r})"
    processes = [python(code, RANK=str(rank), LOCAL_RANK=str(rank), **variables) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs

    gradients, model = captured(register_optimizer_step_pre_hook, lambda ps: [p.grad.clone() for p in ps], ema=0.5)
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(saved[GRADIENTS]) == len(gradients) == 12
        for step, (ours, theirs) in enumerate(zip(gradients, saved[GRADIENTS], strict=True)):
            for a, b in zip(ours, theirs, strict=True):
                assert (a - b).norm() <= 1e-5 * a.norm() + 1e-9, f"step {step + 1}"
        for name, value in model.state_dict().items():
            torch.testing.assert_close(saved["model"][name], value, rtol=0, atol=1e-6)
    ends = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ends[0] == ends[1]
    assert "loss is nan at step 2 of 12" in ends[0]["message"]
    assert step_of(tmp_path / "run" / "state.safetensors") == 12
    assert math.isfinite(json.loads(state_note(tmp_path / "run", "history"))[-1]["psnr"])


def state_note(folder, name):
    with safe_open(folder / "state.safetensors", "pt") as file:
        return file.metadata()[name]
