"""Checkpoint files: written whole or not at all, read without executing anything.

The layout is the published one, `{'model', 'step', 'train_size', 'batch_size', 'optimizer'}`, with
further keys of ours beside it (`class_names`, `config`, `rng`).
"""

from __future__ import annotations

import logging
import os
import pickle
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.files import atomic_file
from lib.provenance import MadeFrom, changes, listed
from lib.renamed import with_new_keys

logger = logging.getLogger(__name__)

_NAME = re.compile(r"model_step(\d+)\.pth")
_FEW = 4
"""Keys of each kind that an error message lists."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text names the file, the fault and the remedy."""


def checkpoint_folder(run: Path) -> Path:
    return run / "ckpt"


def save_checkpoint(folder: Path, content: Mapping[str, Any], keep: int | None = None) -> Path:
    """Writes `folder/model_step<content['step']>.pth`, then removes all but the `keep` newest.

    Raises:
        OSError: it could not be written: a full disk, a folder that is not writable. What was there
            is left as it was.
    """
    path = folder / f"model_step{content['step']}.pth"
    try:
        for half in folder.glob(".model_step*.part"):  # of a process that was killed while writing
            half.unlink(missing_ok=True)
        with atomic_file(path) as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes its name
    except (OSError, RuntimeError) as error:
        # torch.save turns an error of the system into one of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        before = list_checkpoints(folder)
        last = f"{before[-1]} is whole" if before else "there is none before it"
        raise OSError(
            f"{path}: the checkpoint could not be written ({cause.strerror or cause}), {last}; "
            "make room, or the folder writable, and run the same command again"
        ) from error
    if keep is not None:
        for old in list_checkpoints(folder)[:-keep]:
            if old != path:
                old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by iteration, oldest first; [] without the folder."""
    found = [path for path in folder.glob("model_step*.pth") if _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The number in a checkpoint's file name."""
    return int(_NAME.fullmatch(path.name)[1])


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, published or ours.

    A bare state dict is taken as well. Prefixes `module.` are removed from the names in 'model'.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, truncated, or holding anything but tensors and plain
            values (nothing in the file is ever executed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to execute what is in the file.
        raise CheckpointError(
            f"{path}: not a readable checkpoint: damaged, or holding more than tensors and plain "
            "values (which would have to be executed); copy or download it again"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason}); copy or download it again"
        ) from error
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected a checkpoint")
    if "model" not in content:
        content = {"model": content}
    state = content["model"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: its 'model' is not a mapping of names to tensors")
    content["model"] = {name.removeprefix("module."): value for name, value in state.items()}
    return content


def load_model(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    num_classes: int | None = None,
) -> None:
    """Copies `state` into `model`: every name and every shape must agree.

    Args:
        source: what messages call the state, usually its file.
        num_classes: the classes of the data set, to say in words when the state has others.

    Raises:
        CheckpointError: lists a few of the missing, the unexpected and the wrongly shaped.
    """
    own = model.state_dict()
    shapes = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own
        if name in state and state[name].shape != own[name].shape
    }
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "wrongly shaped": [
            f"{name} is {_shape(found)}, expected {_shape(expected)}"
            for name, (found, expected) in shapes.items()
        ],
    }
    if not any(faults.values()):
        model.load_state_dict(state, strict=True)
        return
    other = _other_num_classes(shapes, num_classes)
    if other is not None and not (faults["missing"] or faults["unexpected"]):
        raise CheckpointError(
            f"{source}: the checkpoint has {other} classes, the data set has {num_classes}; "
            "use the data set that it was trained on, or train on this one"
        )
    told = "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:_FEW])}{', ...' if names[_FEW:] else ''})"
        for kind, names in faults.items()
        if names
    )
    raise CheckpointError(
        f"{source} does not fit the model: {told}; use the configuration that the checkpoint was "
        "trained with"
    )


def _other_num_classes(
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], num_classes: int | None
) -> int | None:
    """Number of classes of a state that differs from the model only in the rows of its heads."""
    rows = {(s[:1], o[:1]) if s[1:] == o[1:] else None for s, o in shapes.values()}
    if num_classes is None or len(rows) != 1 or None in rows:
        return None
    ((found, expected),) = rows
    return found[0] - 1 if expected == (num_classes + 1,) else None


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


MADE_FROM = "made_from"
"""The key of a checkpoint that holds its record, see lib/provenance.py."""


def find_resumable(
    run: Path, made_from: MadeFrom, overwrite: bool = False
) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, to resume from; None if training begins anew.

    Args:
        made_from: the record of the training.
        overwrite: begin anew, with a warning, where the run was made from something else.

    Raises:
        ValueError: the run was made from something else; the text lists a few differences.
        CheckpointError: none of its checkpoints can be read.
    """
    checkpoints = list_checkpoints(checkpoint_folder(run))
    if not checkpoints:
        return None
    for path in reversed(checkpoints):  # a disk may have lost newer ones
        try:
            state = load_checkpoint(path)
            break
        except CheckpointError as error:
            if path == checkpoints[0]:
                raise
            logger.warning("%s; resuming from the checkpoint before it", error)
    before = state.get(MADE_FROM)
    different = changes(before and with_new_keys(before, str(run)), made_from)
    if different and not overwrite:
        raise ValueError(
            f"{run}: its training cannot be resumed, it was begun with other settings or data: "
            f"{listed(different)}; name another --output, give what it was begun with, or "
            "--overwrite to begin anew"
        )
    if different:
        logger.warning("%s: out of date, trained anew: %s", run, listed(different))
        return None
    return state


def seed_everything(seed: int) -> None:
    """Seeds torch (all devices), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """State of the global generators of torch, numpy and Python, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, keys.tolist(), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():  # asking creates a context, even if training is on the CPU
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned; for CUDA only with the same number of devices."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(tuple(state["numpy"]))
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
