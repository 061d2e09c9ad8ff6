#!/usr/bin/env python3
"""Does each part help? Variants of the method on the embedded data set, several seeds each.

A seed stands for the whole chain: PRM, clusters and CIM are trained anew with it; the variants of
one seed share its PRM and clusters. The images and proposals are the same for all. What has been
measured already is not measured again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from joblib import Parallel, delayed

from lib.files import read_json, write_json

TOOLS = Path(__file__).resolve().parent
METRICS = ("ap25", "ap50", "ap70", "ap75")
VARIANTS: dict[str, list[str]] = {
    "cim": [],
    "mist": ["mining.labels", "mist"],
    "mil": ["model.num_stages", "0", "loss.pcl", "0"],
    "mil_agpl": ["model.num_stages", "0"],
    "no_integrity": ["loss.refine_iou", "0"],
    "no_anti_noise": ["mining.anti_noise", "false"],
    "no_cascade": ["mining.thresh_step", "0"],
    "no_agpl": ["loss.pcl", "0"],
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["cim", "mist", "mil"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--cfg", type=Path, default=TOOLS.parent / "configs/resnet18_shapes.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path("Outputs/ablation"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    args = parser.parse_args(argv)

    for split in ("train", args.split):
        run_tool("make_shapes.py", "--root", args.data_root)
        run_tool("make_proposals.py", *dataset(args, split), "--cfg", args.cfg, "--set", *args.set)
    parallel = Parallel(n_jobs=args.jobs, backend="threading")
    parallel(delayed(prepare_seed)(args, seed) for seed in args.seeds)
    parallel(delayed(measure)(args, v, seed) for seed in args.seeds for v in args.variants)

    table = {
        variant: [read_json(metrics_file(args, variant, s))["metrics"] for s in args.seeds]
        for variant in args.variants
    }
    write_json(args.output / f"{args.split}.json", table, indent=2)
    print(render(table, args.seeds))
    return 0


def dataset(args: argparse.Namespace, split: str) -> list[str | Path]:
    return ["--dataset", f"shapes_{split}", "--data-root", args.data_root]


def prepare_seed(args: argparse.Namespace, seed: int) -> None:
    """PRM and clusters of one seed."""
    settings = ["--cfg", args.cfg, "--set", *args.set, "run.seed", seed]
    log = args.output / f"seed{seed}.log"
    place = [*dataset(args, "train"), *intermediate(args, seed)]
    run_tool("train_prm.py", *place, *settings, log=log)
    run_tool("assign_clusters.py", *place, *settings, log=log)


def intermediate(args: argparse.Namespace, seed: int) -> list[str | Path]:
    folder = args.output / "intermediate" / f"seed{seed}"
    return ["--prm", folder / "prm.pth", "--clusters", folder / "clusters"]


def measure(args: argparse.Namespace, variant: str, seed: int) -> None:
    """Trains, tests and evaluates one variant with one seed."""
    metrics = metrics_file(args, variant, seed)
    if metrics.is_file():
        return
    run = args.output / variant / f"seed{seed}"
    log = args.output / f"{variant}-seed{seed}.log"
    overrides = [*args.set, *VARIANTS[variant], "run.seed", seed]
    train = [*dataset(args, "train"), *intermediate(args, seed)]
    test = dataset(args, args.split)
    run_tool(
        "train_net.py", *train, "--cfg", args.cfg, "--output", run, "--set", *overrides, log=log
    )
    run_tool("test_net.py", "--run", run, *test, log=log)
    run_tool("evaluate.py", "--detections", metrics.with_name("detections.json"), *test, log=log)


def metrics_file(args: argparse.Namespace, variant: str, seed: int) -> Path:
    return args.output / variant / f"seed{seed}" / "test" / f"shapes_{args.split}" / "metrics.json"


def run_tool(tool: str, *arguments: str | int | Path, log: Path | None = None) -> None:
    """Runs one tool on one thread; its output goes to `log` where one is named."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if log is None:
        code = subprocess.run(command, env=environment).returncode
    else:
        print(f"{tool} ({log.stem}): output in {log}", flush=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            code = subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            ).returncode
    if code:
        where = f"; see {log}" if log else ""
        raise SystemExit(f"error: {tool} ended with code {code}{where}")


def render(table: dict[str, list[dict[str, float]]], seeds: Sequence[int]) -> str:
    """The mean and, after +-, the sample standard deviation over the seeds."""
    lines = [f"{'variant':<16}" + "".join(f"{m.upper():>16}" for m in METRICS)]
    for variant, runs in table.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} +- {spread:.3f}".rjust(16))
        lines.append(f"{variant:<16}" + "".join(cells))
    lines.append(f"{len(seeds)} seeds: {', '.join(map(str, seeds))}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
