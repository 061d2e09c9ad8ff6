"""Keys of the configuration that have changed their names; finished runs have the old ones.

Apart from lib/config.py, so that reading a checkpoint needs no pydantic.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

RENAMED = {
    "loss.refine_iou": "loss.refine_integrity",
    "prm.trunk": "prm.backbone",
    "prm.trunk_args": "prm.backbone_args",
    "prm.trunk_lr_factor": "prm.backbone_lr_factor",
    "refine.score_thresh": "pseudo_labels.score_thresh",
}
"""Old to new, each `section.key`."""


def with_new_keys(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy whose renamed keys have their new names."""
    content = {k: dict(v) if isinstance(v, Mapping) else v for k, v in content.items()}
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if isinstance(content.get(section), dict) and key in content[section]:
            logger.warning("%s: %s is called %s now", source, old, new)
            content.setdefault(new_section, {})[new_key] = content[section].pop(key)
    return content
