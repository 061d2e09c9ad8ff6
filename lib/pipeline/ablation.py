"""Does each part help? Variants of the method on the embedded data set, several seeds each.

A seed stands for the whole chain: PRM, clusters and CIM are trained anew with it; the variants of
one seed share its PRM and clusters, so that they are compared seed by seed. The images and
proposals are the same for all. What has been measured is not measured again, and what was
interrupted goes on. docs/ablation.md says what the variants are.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from joblib import Parallel, delayed

from lib.analysis.dot_plot import Panel, dot_plot
from lib.analysis.seed_statistics import Table, comparison_table
from lib.config import load_config
from lib.engine.runs import checkpoint_folder
from lib.files import read_json, write_json, write_text

logger = logging.getLogger(__name__)

TOOLS = Path(__file__).resolve().parents[2] / "tools"
METRICS = ("ap25", "ap50", "ap70", "ap75")
COMPARED = ("ap50", "ap75")
"""Metrics whose differences to REFERENCE are told."""
REFERENCE = "cim"
VARIANTS: dict[str, list[str]] = {
    "mil": ["model.num_stages", "0", "loss.pcl", "0"],
    "mil_agpl": ["model.num_stages", "0"],
    "no_agpl": ["loss.pcl", "0"],
    "mist": ["mining.labels", "mist"],
    "no_integrity": [
        "model.integrity",
        "false",
        "mining.complete_by",
        "cls",
        "loss.refine_integrity",
        "0",
    ],
    "no_anti_noise": ["mining.anti_noise", "false"],
    "no_cascade": ["mining.thresh_step", "0"],
    "cim": [],
}
"""Name -> what it changes."""
PLUS = "cim_plus"
"""A Mask R-CNN trained on the pseudo labels of the REFERENCE run of the same seed."""


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
    """Trainings at a time."""


class Training(NamedTuple):
    """One variant with one seed and, where it is not the configured one, a length."""

    variant: str
    seed: int
    updates: int | None

    @property
    def name(self) -> str:
        return self.variant + (f"-{self.updates}" if self.updates else "")


def compare_variants(args: Ablation) -> str:
    """Trains and measures what is missing; returns a table of all, also written to the output."""
    check_settings(args)
    counts = ("--train", args.images[0], f"--{args.split}", args.images[1]) if args.images else ()
    run_tool("data.py", "shapes", "--root", args.data_root, *counts)
    for split in ("train", args.split):
        run_tool(
            "proposals.py", "make", *dataset(args, split), "--cfg", args.cfg, "--set", *args.set
        )
    trainings = [
        Training(variant, seed, updates)
        for updates in args.updates or [None]
        for variant in args.variants
        for seed in args.seeds
    ]
    first = [t._replace(variant=REFERENCE) if t.variant == PLUS else t for t in trainings]
    parallel = Parallel(n_jobs=args.jobs, backend="threading")
    parallel(delayed(prepare_seed)(args, seed) for seed in args.seeds)
    parallel(delayed(measure)(args, training) for training in dict.fromkeys(first))
    parallel(delayed(measure_plus)(args, t) for t in trainings if t.variant == PLUS)

    table: dict[str, dict[str, dict[str, float]]] = {}
    for training in trainings:
        metrics = read_json(metrics_file(args, training))["metrics"]
        table.setdefault(training.name, {})[str(training.seed)] = metrics
    return report(args, table)


def check_settings(args: Ablation) -> None:
    """All that lies in one output folder has the same settings but for the variants.

    Raises:
        ValueError: what lies there was made with others.
    """
    config = load_config(args.cfg, args.set).model_dump(mode="json", exclude={"run"})
    settings = {"data_root": str(args.data_root.absolute()), **config}
    path = args.output / "settings.json"
    if path.is_file() and read_json(path) != settings:
        raise ValueError(
            f"{path}: made with another --cfg, --set or --data-root; name another --output, or "
            "remove that folder"
        )
    write_json(path, settings, indent=1)


def dataset(args: Ablation, split: str) -> list[str | Path]:
    return ["--dataset", f"shapes_{split}", "--data-root", args.data_root]


def prepare_seed(args: Ablation, seed: int) -> None:
    """PRM and clusters of one seed."""
    settings = ["--cfg", args.cfg, "--set", *args.set, "run.seed", seed]
    log = args.output / "logs" / f"seed{seed}.log"
    place = [*dataset(args, "train"), *intermediate(args, seed)]
    run_tool("prm.py", "train", *place, *settings, log=log)
    run_tool("prm.py", "clusters", *place, *settings, log=log)


def intermediate(args: Ablation, seed: int) -> list[str | Path]:
    folder = args.output / "intermediate" / f"seed{seed}"
    return ["--prm", folder / "prm.pth", "--clusters", folder / "clusters"]


def measure(args: Ablation, training: Training) -> None:
    """Trains, tests and evaluates."""
    metrics = metrics_file(args, training)
    if metrics.is_file():
        return
    run, log = run_and_log(args, training)
    train = [*dataset(args, "train"), *intermediate(args, training.seed), "--cfg", args.cfg]
    if not is_trained(args, training):
        overrides = settings(args, training)
        run_tool("train_net.py", *train, "--output", run, "--set", *overrides, log=log)
    test = dataset(args, args.split)
    run_tool("test_net.py", "--run", run, *test, log=log)
    run_tool("evaluate.py", "--detections", metrics.with_name("detections.json"), *test, log=log)


def measure_plus(args: Ablation, training: Training) -> None:
    """Trains a Mask R-CNN on what CIM finds on the training images, tests and evaluates it."""
    metrics = metrics_file(args, training)
    if metrics.is_file():
        return
    run, log = run_and_log(args, training)
    cim, _ = run_and_log(args, training._replace(variant=REFERENCE))
    train, test = dataset(args, "train"), dataset(args, args.split)
    run_tool("test_net.py", "--run", cim, *train, "--image-labels", log=log)
    run_tool("generate_pseudo_labels.py", "--run", cim, *train, log=log)
    settings = ["--cfg", args.cfg, "--set", *args.set, "run.seed", training.seed]
    place = ["--run", cim, *train, "--output", run]
    run_tool("refine.py", "train", *place, *settings, log=log)
    run_tool("refine.py", "test", "--run", run, *test, log=log)
    run_tool("evaluate.py", "--detections", metrics.with_name("detections.json"), *test, log=log)


def settings(args: Ablation, training: Training) -> list[str | int]:
    """Overrides of the configuration."""
    overrides = [*args.set, *VARIANTS[training.variant], "run.seed", training.seed]
    if training.updates:
        solver = load_config(args.cfg, args.set).solver
        steps = [round(step * training.updates / solver.max_iter) for step in solver.steps]
        overrides += ["solver.max_iter", training.updates, "solver.steps", f"{steps}"]
    return overrides


def is_trained(args: Ablation, training: Training) -> bool:
    """Whether the last checkpoint is there: on another split it only needs to be tested."""
    run, _ = run_and_log(args, training)
    updates = training.updates or load_config(args.cfg, args.set).solver.max_iter
    return (checkpoint_folder(run) / f"model_step{updates}.pth").is_file()


def run_and_log(args: Ablation, training: Training) -> tuple[Path, Path]:
    name = f"{training.name}-seed{training.seed}"
    return args.output / training.name / f"seed{training.seed}", args.output / f"logs/{name}.log"


def metrics_file(args: Ablation, training: Training) -> Path:
    run, _ = run_and_log(args, training)
    return run / "test" / f"shapes_{args.split}" / "metrics.json"


def run_tool(tool: str, *arguments: str | int | Path, log: Path | None = None) -> None:
    """Runs one tool on one thread; its output goes to `log` where one is named."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if log is None:
        code = subprocess.run(command, env=environment).returncode
    else:
        logger.info("%s (%s): output in %s", tool, log.stem, log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            code = subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            ).returncode
    if code:
        where = f"; see {log}" if log else ""
        raise ValueError(f"{tool} ended with code {code}{where}")


def report(args: Ablation, table: Table) -> str:
    """Writes the numbers as JSON, as a table and as a plot; returns the table."""
    text = comparison_table(table, METRICS, REFERENCE, COMPARED)
    seeds = [str(seed) for seed in args.seeds]
    panels = [
        Panel(
            f"{metric.upper()}, shapes {args.split}",
            {name: [100 * of_seed[s][metric] for s in seeds] for name, of_seed in table.items()},
        )
        for metric in COMPARED
    ]
    result = args.output / args.split
    write_json(result.with_suffix(".json"), table, indent=1)
    write_text(result.with_suffix(".md"), text + "\n")
    write_text(
        result.with_suffix(".svg"),
        dot_plot(panels, [f"seed {s}" for s in seeds], "Mask AP of variants, in percent"),
    )
    return f"\n{text}\n\nwritten: {result}.json, .md and .svg"
