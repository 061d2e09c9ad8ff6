"""Variants of the method on the embedded data set, each with several seeds.

PRM, clusters and CIM are trained anew with every seed. The variants of one seed share its PRM and
clusters and are compared seed by seed. All share images and proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lib.analysis.ablation import PLUS, REFERENCE, VARIANTS, write_comparison
from lib.config import load_config
from lib.files import read_json
from lib.pipeline.runner import run_steps, side_by_side
from lib.pipeline.steps import Chain

_SHARED = ("shapes", "proposals", "prm", "clusters")
"""Steps that variants share, run before any of them."""


class Training(NamedTuple):
    """One variant with one seed and a number of updates; None takes the configured one."""

    variant: str
    seed: int
    updates: int | None = None

    @property
    def name(self) -> str:
        return self.variant + (f"-{self.updates}" if self.updates else "")


@dataclass(frozen=True)
class Ablation:
    """A comparison of variants. Fields are named like the options of `tools/study.py ablation`."""

    variants: Sequence[str]
    seeds: Sequence[int]
    updates: Sequence[int] | None
    """Lengths of training; None is the configured one. The learning rate drops accordingly."""
    split: str
    images: Sequence[int] | None
    """Numbers to train with and to score; None is all."""
    cfg: Path
    set: Sequence[str]
    data_root: Path
    output: Path
    jobs: int
    """Trainings at a time, each on one thread."""

    def compare(self) -> str:
        """Trains and measures what is missing; returns the table, which is also written."""
        data = self._data()
        run_steps([*data.to("proposals"), *self._scored(data).to("proposals", done=["shapes"])])
        trainings = [
            Training(variant, seed, updates)
            for updates in self.updates or [None]
            for variant in self.variants
            for seed in self.seeds
        ]
        plus = [t for t in trainings if t.variant == PLUS]
        first = [t._replace(variant=REFERENCE) if t.variant == PLUS else t for t in trainings]
        side_by_side(self._prepare, self.seeds, self.jobs)
        side_by_side(self._measure, dict.fromkeys(first), self.jobs)
        side_by_side(self._measure_plus, plus, self.jobs)
        table: dict[str, dict[str, dict[str, float]]] = {}
        for training in trainings:
            metrics = read_json(self._scored(self._of(training)).result("evaluate"))["metrics"]
            table.setdefault(training.name, {})[str(training.seed)] = metrics
        result = self.output / self.split
        text = write_comparison(table, self.seeds, f"shapes {self.split}", result)
        return f"\n{text}\n\nwritten: {result}.json, .md and .svg"

    def _prepare(self, seed: int) -> None:
        """PRM and clusters of one seed."""
        steps = self._of(Training(REFERENCE, seed)).to("clusters", done=_SHARED[:2])
        run_steps(steps, log=self.output / f"logs/seed{seed}.log")

    def _measure(self, training: Training) -> None:
        chain = self._of(training)
        steps = [
            *chain.to("train", done=_SHARED),
            *self._scored(chain).to("evaluate", done=[*_SHARED, "train"]),
        ]
        run_steps(steps, log=self._log(training))

    def _measure_plus(self, training: Training) -> None:
        """Trains a Mask R-CNN on what CIM finds on the training images, and measures it."""
        run = self._of(training).run
        cim = self._of(training._replace(variant=REFERENCE))
        test = self._scored(replace(cim, run=run))
        steps = [
            *replace(cim, options={"refine": ("--output", str(run))}).to(
                "refine", done=[*_SHARED, "train"]
            ),
            *test.to("refine_test"),
            *test.to("evaluate", done=["test"]),
        ]
        run_steps(steps, log=self._log(training))

    def _data(self) -> Chain:
        """The chain of the training images, without a run."""
        counts: tuple[str, ...] = ()
        if self.images:
            counts = ("--train", f"{self.images[0]}", f"--{self.split}", f"{self.images[1]}")
        overrides, options = tuple(self.set), {"shapes": counts}
        return Chain("shapes_train", (), self.data_root, self.cfg, overrides, options=options)

    def _scored(self, chain: Chain) -> Chain:
        """The same on the images that are scored."""
        return replace(chain, name=f"shapes_{self.split}", data=())

    def _of(self, training: Training) -> Chain:
        """The chain of one training on the training images."""
        overrides = (*self.set, *VARIANTS.get(training.variant, ()), "run.seed", f"{training.seed}")
        if training.updates:
            solver = load_config(self.cfg, self.set).solver
            steps = [round(step * training.updates / solver.max_iter) for step in solver.steps]
            overrides += ("solver.max_iter", f"{training.updates}", "solver.steps", f"{steps}")
        chain, folder = self._data(), self.output / f"intermediate/seed{training.seed}"
        places = ("--prm", f"{folder / 'prm.pth'}", "--clusters", f"{folder / 'clusters'}")
        return replace(
            chain,
            data=("--dataset", chain.name, *places),
            overrides=overrides,
            run=self.output / training.name / f"seed{training.seed}",
        )

    def _log(self, training: Training) -> Path:
        return self.output / f"logs/{training.name}-seed{training.seed}.log"
