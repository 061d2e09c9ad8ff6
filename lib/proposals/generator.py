"""Generators of proposals: what they have in common, and the built-in one.

Which one makes the proposals is chosen by name, `proposals.generator` in a configuration. A further
one is a file with a subclass of `Generator`, whose fields are its options, and its line in
`lib.config.ProposalConfig`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from lib.proposals.features import FEATURES_RECIPE, NETWORK, FindFeatures
from lib.proposals.generate import generate_proposals, generate_settings
from lib.provenance import Memory
from lib.structures import Regions

Generate = Callable[[np.ndarray], Regions]
"""From (H, W, 3) uint8 RGB to its proposals, best first."""
FindPoints = Callable[[np.ndarray, int], np.ndarray]
"""From (H, W, 3) uint8 RGB and a number to (K, 2) float64, at most that many points on objects: x
and y from 0 to 1."""


class Generator(ABC):
    """Makes the proposals of any image."""

    on_device: ClassVar[bool] = False
    """Works in this process on its device, not in several processes or on a cluster."""
    prm: str | None = None
    """File of a trained PRM, whose peaks it wants to be given."""
    features: bool = False
    """It wants to be given feature maps of images."""

    @abstractmethod
    def record(self, max_proposals: int, memory: Memory) -> dict[str, Any]:
        """Everything but the image that its proposals depend on, see lib/provenance.py.

        Args:
            memory: keeps the fingerprints of files that were read.

        Raises:
            FileNotFoundError, ValueError: it cannot work with these options, or not here.
        """

    @abstractmethod
    def open(
        self,
        max_proposals: int,
        device: str = "cpu",
        find_points: FindPoints | None = None,
        find_features: FindFeatures | None = None,
    ) -> Generate:
        """Makes the function from images to proposals.

        Args:
            max_proposals: of an image.
            device: where `on_device` generators work.
            find_points: of its `prm`.
            find_features: of a network, if it wants `features`.

        Raises:
            FileNotFoundError, ValueError: as `record`.
        """


@dataclass(frozen=True)
class Trees(Generator):
    """The built-in generator (lib/proposals/generate.py): nothing is learned from masks."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `generate_proposals`."""
    features: bool = False
    """A network's feature maps help to rank the masks (lib/proposals/features.py)."""

    def record(self, max_proposals: int, memory: Memory) -> dict[str, Any]:
        ranked_by = {"features": [NETWORK, FEATURES_RECIPE]} if self.features else {}
        return generate_settings(max_proposals, self.options) | ranked_by

    def open(
        self,
        max_proposals: int,
        device: str = "cpu",
        find_points: FindPoints | None = None,
        find_features: FindFeatures | None = None,
    ) -> Generate:
        generate_settings(max_proposals, self.options)  # checks them
        options = {**self.options, "find_features": find_features}
        return partial(generate_proposals, max_proposals=max_proposals, **options)
