"""Runs that several processes share and that go on where they were killed, on top of `helpers.training.fit`.

    run = AcceleratedRun(data_dir() / "runs" / "mine", identity={"data": fingerprint(crops), "loss": "mse"})
    history = fit(model, crops, valid, run=run)

`accelerate` moves the work to the GPU and splits it over processes (`accelerate launch`, `torchrun`). The state lies in
``state.safetensors``, the weights that scored best in ``best.safetensors``, each written in one piece. What a run *is*
(its identity: recipe, architecture, loss, data and the settings of `fit`) is kept with it, and a run of another
identity is refused.
"""

import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration

from helpers.checkpoints import CheckpointError, read_tensors, save_tensors
from helpers.project import plain
from helpers.training import Run

SAMPLED = 64  # samples that the fingerprint of a data set is made of, besides the bytes of the files


def fingerprint(dataset, files=()):
    """Return a sha256 of what is trained on: some samples spread over the run, and every byte of `files`.

    The samples (pixels, noise, names) tell seeds, noise, crop sizes, shares of the sources and drawings; the files,
    with their names, tell photographs of which no sample was taken.
    """
    digest, count = hashlib.sha256(), min(SAMPLED, len(dataset))
    for index in (k * len(dataset) // count for k in range(count)):
        sample = dataset[index]
        for part in (sample.clean, sample.noisy, sample.mask):
            digest.update(part.contiguous().numpy().tobytes())
        digest.update(repr((len(dataset), index, sample.name, sample.source, sample.sigma)).encode())
    for path in map(Path, files):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def refuse_another(found, wanted, where):
    """Raise CheckpointError, naming what differs, where the identity `found` in `where` is not the one that is wanted.

    Keys that `wanted` does not have are not compared.
    """
    if other := [f"{key} {found.get(key)!r} (wanted {value!r})" for key, value in wanted.items()
                 if key not in found or found[key] != value]:
        raise CheckpointError(f"{where} holds another run, with {', '.join(other)}: go on with that, or remove it")


class AcceleratedRun(Run):
    """A run on accelerate's devices and processes, with its state on disk.

    Args:
        folder: where the run is kept, ``state.safetensors`` and ``best.safetensors``; None: nowhere.
        identity: dict of plain values, what makes this run another one than the next: recipe, architecture, loss,
            fingerprint of the data. `fit` adds its own settings.
    """

    def __init__(self, folder=None, identity=None):
        super().__init__()
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # accelerate takes the current one
        # "no" mixed precision: accelerate would fix it once per process and leave its autocast in the model's forward;
        # `fit` wraps the training step alone. split_batches: a batch of the loader is shared among the processes.
        self.accelerator = Accelerator(mixed_precision="no", cpu=self.device.type == "cpu",
                                       dataloader_config=DataLoaderConfiguration(split_batches=True))
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.processes = self.accelerator.num_processes
        self.folder = None if folder is None else Path(folder)
        self.identity = json.loads(json.dumps(plain(identity or {})))  # as it comes back from disk
        self.digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        self.best = -math.inf
        if folder is not None:
            self.path = self.folder / "state.safetensors"
            self.kept = f"; the last good state is in {folder}"

    def is_complete(self):
        """Return whether the folder holds this run, and its last step was done.

        Raises:
            CheckpointError: it holds a broken state, or a run of another identity.
        """
        if self.folder is None or not self.path.is_file():
            return False
        _, notes = self._read(self.identity)
        return int(notes["step"]) == json.loads(notes["identity"])["steps"]

    def _read(self, wanted):
        """Return the state's tensors and notes; refuse one whose identity is not as `wanted`."""
        tensors, notes = read_tensors(self.path)
        try:
            found = json.loads(notes["identity"])
            int(notes["step"]), float(notes["best"]), json.loads(notes["history"]), found["steps"]
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} is no state of a run: {error!r}") from error
        refuse_another(found, wanted, self.folder)
        return tensors, notes

    def restore(self, model, average, optimizer, settings):
        """Load the state if there is one; return the step it stands at and its history.

        Raises:
            CheckpointError: the file is broken, or of a run with another network, identity or other settings.
            ValueError: a run that is limited by seconds, which cannot resume.
        """
        if self.folder is None:
            return 0, []
        if settings["seconds"] is not None:
            raise ValueError(f"a run limited by seconds cannot resume, and has no folder; got {settings['seconds']}")
        self.model, self.average, self.optimizer = model, average, optimizer
        self.settings = self.identity | settings
        if not self.path.is_file():
            return 0, []
        tensors, notes = self._read(self.settings)

        def pick(prefix):
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        try:
            model.load_state_dict(pick("model."))
            if average:
                average.load_state_dict(pick("average."))
        except RuntimeError as error:
            raise CheckpointError(f"{self.folder} holds a run of another network: {error}") from error
        entries = defaultdict(dict)  # the optimizer's moments, by the number of the weight that they belong to
        for key, value in pick("optimizer.").items():
            index, name = key.split(".")
            entries[int(index)][name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(entries)})
        self.best = float(notes["best"])
        return int(notes["step"]), json.loads(notes["history"])

    def keep(self, step, history):
        """Write the state, before it the weights that it scores where the newest score is the best.

        Raises:
            OSError: they cannot be written, for example on a full disk; the state before is left as it was.
        """
        if self.folder is None:
            return
        score = history[-1].get("psnr", history[-1].get("score"))
        if score is not None and score > self.best:
            self.best = score
            weights = self.average.module if self.average else self.model
            save_tensors(weights.state_dict(), self.folder / "best.safetensors", {"step": str(step)})
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
        save_tensors(tensors, self.path, {"step": str(step), "best": repr(self.best), "history": json.dumps(history),
                                          "identity": json.dumps(self.settings)})

    def prepare(self, model, batches):
        return self.accelerator.prepare(model, batches)

    def backward(self, loss):
        self.accelerator.backward(loss)

    def mean(self, value):
        return float(self.accelerator.reduce(value, "mean"))

    def wait(self):
        """Wait until all processes are here."""
        self.accelerator.wait_for_everyone()

    def finish(self):
        self.wait()
        self.accelerator.free_memory()
