"""The whole method on the embedded data set: data, proposals, training, masks, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
    pictures = test.result("pictures")
    paths = {
        "run": run,
        "checkpoints": train.result("train"),
        "detections": test.result("test"),
        "pseudo_labels": train.result("pseudo_labels"),
        "pictures": pictures,
        "overview": pictures / "overview.png",
        "gallery": test.result("gallery"),
        "curves": run / "tensorboard",
    }
    metrics = read_json(test.result("evaluate"))["metrics"]
    total = round(sum(seconds.values()), 2)
    summary = {
        "metrics": metrics,
        "seconds": {**seconds, "total": total},
        "proposal_recall": read_json(test.result("recall")),
        "paths": {name: str(path) for name, path in paths.items()},
    }
    write_json(run / "summary.json", summary, indent=2)
    return f"""
Mask AP on the test images, in percent
{"  ".join(f"{name.upper():>6}" for name in metrics)}
{"  ".join(f"{100 * value:6.1f}" for value in metrics.values())}

Done in {duration(total)}. Look at:
  {paths["overview"]}  detections beside the true masks
  {paths["gallery"]}  everything, in a browser
  {paths["pseudo_labels"]}  masks for the training images, as COCO json
  {paths["checkpoints"]}  the trained network
  {run / "summary.json"}  all of this"""
