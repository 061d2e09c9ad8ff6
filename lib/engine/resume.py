"""Going on with an interrupted training, and only with the very same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.engine.checkpoint import list_checkpoints, load_checkpoint
from lib.engine.runs import checkpoint_folder

TRAINED_WITH = "trained_with"
"""The key of a checkpoint that holds what the training depends on."""


def find_resumable(run: Path, trained_with: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest checkpoint of a run that is to be gone on with; None if it has none.

    Args:
        trained_with: nested plain values that the training depends on: settings and data.

    Raises:
        ValueError: the run was trained with something else; the text lists a few differences.
    """
    checkpoints = list_checkpoints(checkpoint_folder(run))
    if not checkpoints:
        return None
    state = load_checkpoint(checkpoints[-1])
    there, here = _flat(state.get(TRAINED_WITH, {})), _flat(trained_with)
    different = [
        f"{key} is {there.get(key)} there, {here.get(key)} here"
        for key in {**here, **there}
        if there.get(key) != here.get(key)
    ]
    if different:
        raise ValueError(
            f"{run}: its training cannot go on, it was begun with other settings or data: "
            f"{'; '.join(different[:4])}{'; ...' if different[4:] else ''}; name another --output, "
            "or give what it was begun with"
        )
    return state


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; sequences as lists."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
