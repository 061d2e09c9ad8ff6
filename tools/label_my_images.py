"""From a folder of images and their labels to a mask for every object, and pages to look at.

Every step is one of the ordinary tools, called as a user would call it, and is left out when it
has been done; what was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import torch

from lib.command_line import errors_in_a_line
from lib.config import Config, load_config
from lib.data.catalog import Dataset, add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.engine.estimate import estimate_seconds
from lib.engine.runs import start_logging
from lib.engine.stages import Stage, duration, run_stages
from lib.evaluation.pseudo_labels import summarise
from lib.files import read_json, write_json

logger = logging.getLogger("label_my_images")

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PASSES = 17
"""Over every image in the published training on VOC (45,000 updates of 4 of 10,582 images)."""
FEWEST_UPDATES = 500
FEWEST_PRM_UPDATES = 300


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    start_logging()
    return run(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_dataset_arguments(parser)
    parser.set_defaults(data_root=None)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: Outputs/<name>; unless --data-root says otherwise all that is made is in it",
    )
    parser.add_argument(
        "--cfg",
        type=Path,
        metavar="FILE",
        help="default: configs/custom.yaml on a GPU, configs/custom_small.yaml on a CPU",
    )
    parser.add_argument(
        "--updates", type=int, metavar="N", help="of CIM (default: by the number of images)"
    )
    parser.add_argument("--score-thresh", type=float, default=0.3, metavar="X")
    parser.add_argument("--plan", action="store_true", help="say how long it will take, and end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    if args.output is None:
        source = args.name or (Path(args.images).resolve().name if args.images else args.dataset)
        args.output = Path("Outputs") / (source or "own")
    if args.data_root is None:
        args.data_root = str(args.output / "data")
    if args.cfg is None:
        small = torch.device(args.device).type == "cpu"
        args.cfg = CONFIGS / ("custom_small.yaml" if small else "custom.yaml")
    dataset = dataset_from_args(args)
    coco = CocoImages(dataset.json)
    warn_of_few(coco)
    overrides = [*scaled_to(coco, load_config(args.cfg, args.set), args), *args.set]
    config = load_config(args.cfg, overrides)
    pipeline = stages(args, dataset, overrides)
    estimates = plan(args, config, dataset, coco)
    if args.plan:
        return 0
    seconds = run_stages(pipeline, args.output / "stages.json", estimates)
    if seconds is None:
        return 1
    labels = args.output / "pseudo_labels.json"
    logger.info("\nDone, in %s: %s", duration(sum(seconds.values())), summarise(read_json(labels)))
    logger.info("masks, as COCO json: %s", labels)
    logger.info("the images they fit: %s", dataset.images)
    logger.info("to look at: %s", args.output / "gallery" / "index.html")
    return 0


def warn_of_few(coco: CocoImages) -> None:
    """Says where labels tell too little to learn from."""
    labels = [record.image_labels for record in coco.images if record.image_labels.any()]
    if not labels:
        raise ValueError(f"{coco.path}: no image has a label")
    share = sum(labels) / len(labels)
    for name, part in zip(coco.class_names, share, strict=True):
        if part == 1:
            logger.warning(
                "every labelled image shows %s: nothing tells it from what is around it; add "
                "images without it, labelled with what they show (a class 'other' will do)",
                name,
            )
        elif part == 0:
            logger.warning("no image shows %s; nothing can be learned of it", name)
    if len(labels) < 100:
        logger.warning(
            "%d labelled images are few to learn %d classes from; expect rough masks",
            len(labels),
            coco.num_classes,
        )


def scaled_to(coco: CocoImages, config: Config, args: argparse.Namespace) -> list[str]:
    """Settings that follow from the number of images, up to the limits of the configuration."""
    images = len(coco) - coco.without_labels
    updates = args.updates
    if updates is None:
        wanted = math.ceil(PASSES * images / config.solver.images_per_update)
        updates = min(config.solver.max_iter, max(FEWEST_UPDATES, wanted))
    elif updates < 1:
        raise ValueError(f"--updates {updates}: at least 1")
    batch = min(config.prm.images_per_update, images)
    epochs = max(config.prm.epochs, math.ceil(FEWEST_PRM_UPDATES * batch / images))
    return [
        *("solver.max_iter", f"{updates}", "solver.steps", f"[{max(1, updates * 2 // 3)}]"),
        *("prm.epochs", f"{epochs}"),
    ]


def plan(
    args: argparse.Namespace, config: Config, dataset: Dataset, coco: CocoImages
) -> dict[str, float]:
    """Seconds of every stage as measured on a few images; measured once, then remembered."""
    remembered = args.output / "estimates.json"
    made_from: dict[str, Any] = {
        "data": read_json(dataset.json).get("info", {}).get("made_from"),
        "config": config.model_dump(mode="json"),
        "device": args.device,
    }
    if remembered.is_file():
        before = read_json(remembered)
        if not agree(before["made_from"], made_from):
            raise ValueError(
                f"{args.output}: was begun with other images, labels or settings; name another "
                "--output, or remove that folder"
            )
        return before["seconds"]
    logger.info("measuring how long it will take ...")
    try:
        seconds = estimate_seconds(
            config, dataset, coco, args.device, args.threads, joblib.cpu_count()
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; or take configs/custom_scratch.yaml, which starts from nothing and learns "
            "less (docs/CUSTOM.md)"
        ) from error
    seconds |= {"labels": 5.0 + 0.01 * len(coco), "gallery": 10.0 + 0.2 * len(coco)}
    write_json(remembered, {"made_from": made_from, "seconds": seconds}, indent=2)
    logger.info("\n%d images, on %s with %s:", len(coco), args.device, args.cfg)
    for name, value in seconds.items():
        logger.info("  %-10s about %s", name, duration(value))
    logger.info("  %-10s about %s", "in all", duration(sum(seconds.values())))
    return seconds


def agree(before: Any, now: Any) -> bool:
    """Whether two descriptions are equal in all that both say: a newer version may say more."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(agree(before[key], now[key]) for key in before.keys() & now.keys())
    return before == now


def stages(args: argparse.Namespace, dataset: Dataset, overrides: Sequence[str]) -> list[Stage]:
    """The way from images to masks, in the order of the data."""
    own = ["--images", str(dataset.images), "--json", str(dataset.json), "--name", dataset.name]
    own += ["--data-root", args.data_root]
    common = [*own, "--cfg", str(args.cfg), "--set", *overrides]
    device = ["--device", args.device]
    threads = [*device, *([] if args.threads is None else ["--threads", f"{args.threads}"])]
    run, labels = ["--run", str(args.output)], str(args.output / "pseudo_labels.json")
    return [
        Stage(
            "proposals",
            "Cut every image into candidate masks; no learning involved.",
            ["make_proposals.py", *common],
        ),
        Stage(
            "prm",
            "Train a classifier on the labels; the peaks of its response maps tell where objects "
            "are.",
            ["train_prm.py", *threads, *common],
        ),
        Stage(
            "clusters",
            "Group the candidates around every peak: first, rough hints.",
            ["assign_clusters.py", *device, *common],
        ),
        Stage(
            "train",
            "Train CIM: mine complete instances among the candidates, stage by stage.",
            ["train_net.py", "--output", str(args.output), *threads, *common],
        ),
        Stage(
            "masks",
            "Score the candidates of every image, for the classes that it is labelled with.",
            ["test_net.py", *run, *own, "--image-labels", *threads],
        ),
        Stage(
            "labels",
            "Keep the confident ones as a COCO file.",
            [
                "generate_pseudo_labels.py",
                *(*run, *own, "--output", labels, "--score-thresh", f"{args.score_thresh}"),
            ],
        ),
        Stage(
            "gallery",
            "Draw them over the images, on a page that opens in any browser.",
            [
                "gallery.py",
                *(*run, *own, "--pseudo-labels", labels),
                *("--output", str(args.output / "gallery")),
            ],
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
