"""Going on with an interrupted training, and only with the very same one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.engine.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from lib.engine.runs import checkpoint_folder

logger = logging.getLogger(__name__)

TRAINED_WITH = "trained_with"
"""The key of a checkpoint that holds what the training depends on."""


def find_resumable(run: Path, trained_with: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run that is to be gone on with; None if it has none.

    Args:
        trained_with: nested plain values that the training depends on: settings and data.

    Raises:
        ValueError: the run was trained with something else; the text lists a few differences.
        CheckpointError: none of its checkpoints can be read.
    """
    checkpoints = list_checkpoints(checkpoint_folder(run))
    if not checkpoints:
        return None
    state = _newest_whole(checkpoints)
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


def _newest_whole(checkpoints: Sequence[Path]) -> dict[str, Any]:
    """The content of the last one that can be read; a disk may have lost what came after."""
    *older, newest = checkpoints
    try:
        return load_checkpoint(newest)
    except CheckpointError as error:
        if not older:
            raise
        logger.warning("%s; going on from the checkpoint before it", error)
        return _newest_whole(older)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; sequences as lists."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
