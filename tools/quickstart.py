#!/usr/bin/env python3
"""The whole method on the embedded data set: data, proposals, peaks, training, masks, a gallery.

Every stage is one of the ordinary tools, called as a user would call it, and is left out when it
has been done; what was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.engine.runs import start_logging
from lib.engine.stages import Stage, run_stages
from lib.files import read_json, write_json

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "resnet18_shapes.yaml"


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

    start_logging()
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
) -> list[Stage]:
    """The method, in the order of the data."""
    common = ["--cfg", str(config), "--set", *overrides]
    place = ["--data-root", str(data)]
    train = ["--dataset", "shapes_train", *place]
    test = ["--dataset", "shapes_test", *place]
    of_run = ["--run", str(run)]
    return [
        Stage(
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
        Stage(
            "proposals",
            "Cut every image into candidate masks by merging superpixels; no learning involved.",
            ["make_proposals.py", *train, *common],
        ),
        Stage(
            "proposals_test",
            "The same for the test images.",
            ["make_proposals.py", *test, *common],
        ),
        Stage(
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
        Stage(
            "prm",
            "Train a classifier on the image-level labels; the peaks of its response maps tell "
            "where objects are.",
            # Operations on images this small are not worth splitting among threads.
            ["train_prm.py", *train, *common, "--threads", "1"],
        ),
        Stage(
            "clusters",
            "Group the candidates around every peak (AGPL): first, rough hints.",
            ["assign_clusters.py", *train, *common],
        ),
        Stage(
            "train",
            "Train CIM: mine complete instances among the candidates, stage by stage.",
            ["train_net.py", *train, *common, "--output", str(run)],
        ),
        Stage(
            "test",
            "Score the candidates of the test images, which training never saw.",
            ["test_net.py", *of_run, *test],
        ),
        Stage(
            "evaluate",
            "Compare with the true masks, used here for the first time: average precision.",
            ["evaluate.py", *of_run, *test],
        ),
        Stage(
            "pseudo_labels",
            "Turn the scores on the training images into masks to train other detectors with.",
            ["test_net.py", *of_run, *train, "--image-labels"],
        ),
        Stage(
            "export",
            "Keep the confident ones as a COCO file.",
            ["generate_pseudo_labels.py", *of_run, *train],
        ),
        Stage(
            "pictures",
            "Draw what was found beside what is there.",
            ["visualize.py", *of_run, *test, "--compare", "--limit", "24"],
        ),
        Stage(
            "gallery",
            "Make a page to browse it all: the worst images first, and what the method saw.",
            ["gallery.py", *of_run, *test],
        ),
    ]


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
