#!/usr/bin/env python3
"""The whole method on the embedded data set: data, proposals, peaks, training, masks, a gallery.

Every stage is one of the ordinary tools, called as a user would call it, and is left out when it
has been done; what was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.files import read_json, write_json

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / "configs" / "resnet18_shapes.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("Outputs/quickstart"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--cfg", type=Path, default=CONFIG)
    parser.add_argument(
        "--images", nargs=2, type=int, default=(400, 200), metavar=("TRAIN", "TEST")
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_args(argv)

    pipeline = stages(args.output, args.data_root, args.cfg, args.images, args.set)
    seconds = run_stages(pipeline, args.output / "stages.json")
    if seconds is None:
        return 1
    summary = summarize(args.output, seconds)
    write_json(args.output / "summary.json", summary, indent=2)
    print_summary(summary, args.output / "summary.json")
    return 0


def stages(
    run: Path, data: Path, config: Path, images: Sequence[int], overrides: Sequence[str]
) -> list[tuple[str, str, list[str]]]:
    """(name, what happens and why, command line) of every stage, in the order of the data."""
    common = ["--cfg", str(config), "--set", *overrides]
    place = ["--data-root", str(data)]
    train = ["--dataset", "shapes_train", *place]
    test = ["--dataset", "shapes_test", *place]
    of_run = ["--run", str(run)]
    return [
        (
            "data",
            "Draw the embedded data set: small images of objects whose class shows in one small "
            "part. Training will see which classes an image contains, and nothing else.",
            [
                "make_shapes.py",
                "--root",
                str(data),
                "--train",
                f"{images[0]}",
                "--test",
                f"{images[1]}",
            ],
        ),
        (
            "proposals",
            "Cut every image into candidate masks by merging superpixels; no learning involved.",
            ["make_proposals.py", *train, *common],
        ),
        (
            "proposals_test",
            "The same for the test images.",
            ["make_proposals.py", *test, *common],
        ),
        (
            "recall",
            "How many objects have a good candidate at all? This bounds everything after it.",
            [
                "proposal_recall.py",
                *test,
                "--counts",
                "20",
                "60",
                "--output",
                str(run / "recall.json"),
            ],
        ),
        (
            "prm",
            "Train a classifier on the image-level labels; the peaks of its response maps tell "
            "where objects are.",
            # Operations on images this small are not worth splitting among threads.
            ["train_prm.py", *train, *common, "--threads", "1"],
        ),
        (
            "clusters",
            "Group the candidates around every peak (AGPL): first, rough hints.",
            ["assign_clusters.py", *train, *common],
        ),
        (
            "train",
            "Train CIM: mine complete instances among the candidates, stage by stage.",
            ["train_net.py", *train, *common, "--output", str(run)],
        ),
        (
            "test",
            "Score the candidates of the test images, which training never saw.",
            ["test_net.py", *of_run, *test],
        ),
        (
            "evaluate",
            "Compare with the true masks, used here for the first time: average precision.",
            ["evaluate.py", *of_run, *test],
        ),
        (
            "pseudo_labels",
            "Turn the scores on the training images into masks to train other detectors with.",
            ["test_net.py", *of_run, *train, "--image-labels"],
        ),
        (
            "export",
            "Keep the confident ones as a COCO file.",
            ["generate_pseudo_labels.py", *of_run, *train],
        ),
        (
            "pictures",
            "Draw what was found beside what is there.",
            ["visualize.py", *of_run, *test, "--compare", "--limit", "24"],
        ),
        (
            "gallery",
            "Make a page to browse it all: the worst images first, and what the method saw.",
            ["gallery.py", *of_run, *test],
        ),
    ]


def run_stages(
    pipeline: Sequence[tuple[str, str, list[str]]], record: Path
) -> dict[str, float] | None:
    """Runs what is not yet done; returns the seconds of every stage, or None after a failure.

    `record` keeps, for every stage, its command, the seconds spent on it so far (interrupted
    attempts included) and whether it is done.
    """
    spent: dict[str, dict] = read_json(record) if record.is_file() else {}
    for number, (name, why, command) in enumerate(pipeline, 1):
        title = f"[{number}/{len(pipeline)}] {name}"
        entry = spent.setdefault(name, {"command": command, "seconds": 0.0, "done": False})
        if entry["command"] != command:
            print(
                f"error: {record} was made with other arguments ({' '.join(entry['command'])}); "
                "name another --output or remove that folder",
                file=sys.stderr,
            )
            return None
        if entry["done"]:
            print(f"{title}: done before, in {entry['seconds']:.0f} s")
            continue
        print(f"\n{title}: {why}", flush=True)
        start = time.monotonic()
        try:
            code = subprocess.run(
                [sys.executable, str(TOOLS / command[0]), *command[1:]]
            ).returncode
            entry["done"] = code == 0
        finally:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - start, 2)
            write_json(record, spent, indent=2)
        if code:
            print(
                f"\nquickstart: {command[0]} ended with code {code}; the reason stands above. "
                "Run the same command again to go on from here.",
                file=sys.stderr,
            )
            return None
    return {name: spent[name]["seconds"] for name, _, _ in pipeline}


def summarize(run: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """What the stages left behind, in one place."""
    return {
        "metrics": read_json(run / "test" / "shapes_test" / "metrics.json")["metrics"],
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "proposal_recall": read_json(run / "recall.json"),
        "paths": {
            name: str(run / path)
            for name, path in {
                "run": ".",
                "checkpoints": "ckpt",
                "detections": "test/shapes_test/detections.json",
                "pseudo_labels": "pseudo_labels/shapes_train.json",
                "pictures": "visual/shapes_test",
                "overview": "visual/shapes_test/overview.png",
                "gallery": "gallery/shapes_test/index.html",
                "curves": "tensorboard",
            }.items()
        },
    }


def print_summary(summary: dict[str, Any], path: Path) -> None:
    metrics, paths = summary["metrics"], summary["paths"]
    print("\nMask AP on the test images, in percent")
    print("  ".join(f"{name.upper():>6}" for name in metrics))
    print("  ".join(f"{100 * value:6.1f}" for value in metrics.values()))
    print(f"\n{summary['seconds']['total']:.0f} s of work in all.")
    for what, name in (
        ("Pictures: detections beside the true masks", "overview"),
        ("Everything to browse, without a server", "gallery"),
        ("Masks for the training images, as COCO json", "pseudo_labels"),
        ("The trained network", "checkpoints"),
    ):
        print(f"{what}: {paths[name]}")
    print(f"All of this: {path}")


if __name__ == "__main__":
    sys.exit(main())
