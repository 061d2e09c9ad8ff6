"""The whole method on the embedded data set: data, proposals, training, masks, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.files import read_json, write_json
from lib.pipeline.runner import duration, run_steps
from lib.pipeline.steps import Chain


def quickstart(
    run: Path,
    root: Path,
    cfg: Path,
    images: tuple[int, int],
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> str:
    """Runs all steps and writes `<run>/summary.json`; returns that in words.

    Args:
        run: the run folder.
        root: takes the images and what is made from them.
        images: numbers to train and to test with.
        overwrite: train anew what was trained with other data or settings.

    Raises:
        SystemExit: a step failed.
    """
    train = Chain(
        "shapes_train",
        root=root,
        cfg=cfg,
        overrides=tuple(overrides),
        run=run,
        overwrite=overwrite,
        options={
            "shapes": ("--train", f"{images[0]}", "--test", f"{images[1]}"),
            "recall": ("--counts", "20", "60"),
            "prm": ("--threads", "1"),  # images this small are not worth splitting among threads
            "pictures": ("--compare", "--limit", "24"),
        },
    )
    test = replace(train, name="shapes_test")
    steps = [
        *train.to("proposals"),
        *test.to("recall"),
        *train.to("train"),
        *test.to("evaluate", done=["train"]),
        *train.to("pseudo_labels", done=["train"]),
        *test.to("pictures", "gallery", done=["test"]),
    ]
    seconds = run_steps(list({(step.name, step.command): step for step in steps}.values()))
    summary = _summary(train, test, seconds)
    path = run / "summary.json"
    write_json(path, summary, indent=2)
    return f"{_in_words(summary)}\n  {path}  all of this"


def _summary(train: Chain, test: Chain, seconds: Mapping[str, float]) -> dict[str, Any]:
    paths = {
        "run": train.run,
        "checkpoints": train.result("train"),
        "detections": test.result("test"),
        "pseudo_labels": train.result("pseudo_labels"),
        "pictures": test.result("pictures"),
        "overview": test.result("pictures") / "overview.png",
        "gallery": test.result("gallery"),
        "curves": train.run / "tensorboard",
    }
    return {
        "metrics": read_json(test.result("evaluate"))["metrics"],
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "proposal_recall": read_json(test.result("recall")),
        "paths": {name: str(path) for name, path in paths.items()},
    }


def _in_words(summary: Mapping[str, Any]) -> str:
    metrics, paths = summary["metrics"], summary["paths"]
    lines = [
        "\nMask AP on the test images, in percent",
        "  ".join(f"{name.upper():>6}" for name in metrics),
        "  ".join(f"{100 * value:6.1f}" for value in metrics.values()),
        f"\nDone in {duration(summary['seconds']['total'])}. Look at:",
        f"  {paths['overview']}  detections beside the true masks",
        f"  {paths['gallery']}  everything, in a browser",
        f"  {paths['pseudo_labels']}  masks for the training images, as COCO json",
        f"  {paths['checkpoints']}  the trained network",
    ]
    return "\n".join(lines)
