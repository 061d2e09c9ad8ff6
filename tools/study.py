"""Studies: an ablation; steps, mined instances, pseudo labels beside the truth; a failed update."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from lib import command_line as cli
from lib.analysis.ablation import PLUS, VARIANTS
from lib.analysis.instance_quality import GOOD_IOU, TIGHT_IOU
from lib.analysis.instances import (
    Rows,
    analyse_checkpoint,
    analyse_clusters,
    known_images,
    seeds_table,
)
from lib.analysis.labels import label_quality
from lib.analysis.replay import Replayed, load_failed_update, not_finite, replay_update
from lib.analysis.steps import analyse_steps
from lib.config import config_from, load_config
from lib.data.coco import CocoImages
from lib.engine.build import open_test_data, open_training_data
from lib.engine.checkpoint import list_checkpoints
from lib.engine.inference import check_detections
from lib.engine.runs import checkpoint_folder, detections_of_run, find_checkpoint
from lib.evaluation.coco_files import check_results, read_ground_truth
from lib.evaluation.pseudo_labels import select
from lib.files import read_json, write_json
from lib.pipeline.ablation import Ablation

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TAUGHT = (
    "good",
    "weighed good",
    "drawn good",
    "weighed tight",
    "coverage",
    "weighed coverage",
    "weighed purity",
    "noise",
)
HEADS = ("ap50", "ap75", "ap50 by cls", "ap75 by cls", "good", "tight", "coverage", "purity")
"""Measures of the tables, in percent; the JSON has all."""
MATCHED = ("recall", "precision")


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        "ablation": cli.Command(ablation, ablation_options),
        "instances": cli.Command(instances, instances_options),
        "steps": cli.Command(steps, steps_options),
        "labels": cli.Command(labels, labels_options),
        "replay": cli.Command(replay, replay_options),
    }
    return cli.run_tool(__doc__, commands, argv)


def ablation_options(parser: cli.Parser) -> None:
    names = [*VARIANTS, PLUS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--updates",
        nargs="+",
        type=int,
        metavar="N",
        help="also the length is varied; the learning rate drops at the same part of it "
        "(default: as configured)",
    )
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument(
        "--images", nargs=2, type=int, metavar="N", help="to train with and to score (default: all)"
    )
    cli.add_config_arguments(
        parser, CONFIGS / "resnet18_shapes.yaml", "default: configs/resnet18_shapes.yaml"
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path("Outputs/ablation"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")


def ablation(args: cli.Namespace) -> None:
    """Compare variants of the method on the embedded data set, several seeds each.

    A seed stands for the whole chain: PRM, clusters and CIM are trained anew with it; the variants
    of one seed share its PRM and clusters, so that they are compared seed by seed. The images and
    proposals are the same for all. Run again, it trains only what is missing. docs/ablation.md
    says what the variants are.
    """
    chosen = {field.name: getattr(args, field.name) for field in fields(Ablation)}
    print(Ablation(**chosen).compare())


def instances_options(parser: cli.Parser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="run folders: the seeds of one variant")
    parser.add_argument("--last", action="store_true", help="only the last checkpoint of each run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON file for the numbers")
    cli.add_device_arguments(parser)
    cli.add_dataset_arguments(parser, default="shapes_val")


def instances(args: cli.Namespace) -> None:
    """Compare mined instances and detections with the truth: what do stages learn from, and what?

    For every checkpoint of the given runs: the instances that each stage is taught are mined on a
    data set that training has not seen, and compared with its true masks; so are the detections
    and, with --clusters, the clusters of proposals that the training of one seed begins with.
    docs/ablation.md says what the columns mean.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dataset = cli.dataset_from_args(args)
    coco = CocoImages(dataset.json)
    if args.clusters is None:
        data = open_test_data(dataset, coco)
    else:
        data = open_training_data(dataset, coco, with_clusters=True)
    images = known_images(data)
    truth = read_json(dataset.json)
    taught: dict[str, Rows] = {}
    heads: dict[str, Rows] = {}
    for run in args.runs:
        config = load_config(run / "config.yaml")
        newest = find_checkpoint(run)
        taught[str(run)], heads[str(run)] = {}, {}
        if args.clusters is not None:
            taught[str(run)]["before"] = {"clusters": analyse_clusters(images)}
        for path in [newest] if args.last else list_checkpoints(checkpoint_folder(run)):
            step = path.stem.removeprefix("model_step")
            taught[str(run)][step], heads[str(run)][step] = analyse_checkpoint(
                path, config, data, images, truth, args.device
            )
    if args.output:
        content = {"dataset": dataset.name, "taught": taught, "heads": heads}
        write_json(args.output, content, indent=1)
    tables = {
        "What the stages are taught": seeds_table(list(taught.values()), TAUGHT, "instances"),
        "What the heads detect": seeds_table(list(heads.values()), HEADS),
    }
    print("\n\n".join(f"{title}\n\n{text}" for title, text in tables.items() if text))


def steps_options(parser: cli.Parser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON file for the numbers")
    cli.add_dataset_arguments(parser)


def steps(args: cli.Namespace) -> None:
    """Say how good proposals, PRM and clusters are, beside true masks: which step loses objects?

    For any data set whose json has masks, after its clusters are made. A proposal is good for an
    object from IoU 0.5 on, tight from 0.75 on; docs/photographs.md has figures to compare with.
    """
    dataset = cli.dataset_from_args(args)
    coco = CocoImages(dataset.json)
    data = open_training_data(dataset, coco, with_clusters=True)
    images = known_images(data)
    measures = analyse_steps(images, dataset.prm if dataset.prm.is_file() else None)
    if args.output:
        write_json(args.output, measures, indent=1)
    for name, value in measures.items():
        share = name not in ("clusters an image", "IoU of the best proposal")
        text = "-" if value is None else f"{value:.1%}" if share else f"{value:.2f}"
        print(f"{name:<36} {text:>6}")


def labels_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        help="run folders, or files of detections: the seeds of one variant",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON file for the numbers")
    cli.add_config_arguments(parser)
    cli.add_dataset_arguments(parser, needs_images=False)


def labels(args: cli.Namespace) -> None:
    """Compare pseudo labels with the true masks: recall and precision, by both rules of selection.

    The detections on the training images are those that tools/generate_pseudo_labels.py takes. The
    true masks of the data set's json are read for this report alone. Rows are all images, images
    by their number of objects, and classes; a match needs an IoU of 0.5 or 0.75.
    """
    dataset = cli.dataset_from_args(args)
    config = load_config(args.cfg, args.set).pseudo_labels
    rules = [config.model_copy(update={"select": rule}) for rule in ("score", "adaptive")]
    truth = read_ground_truth(dataset.json)
    of_runs: dict[str, Rows] = {}
    for run in args.runs:
        path = run if run.is_file() else detections_of_run(run, dataset.name, image_labels=True)
        check_detections(path, dataset.json)
        found = check_results(read_json(path), truth, str(path))
        of_rules = {how.select: label_quality(select(found, truth, how), truth) for how in rules}
        groups = sorted({group for quality in of_rules.values() for group in quality})
        of_runs[str(run)] = {
            group: {rule: of[group] for rule, of in of_rules.items() if group in of}
            for group in groups
        }
    if args.output:
        settings = config.model_dump(mode="json", include={"score_thresh", "relative_thresh"})
        content = {"dataset": dataset.name, "settings": settings, "runs": of_runs}
        write_json(args.output, content, indent=1)
    columns = [f"{measure} {iou:g}" for iou in (GOOD_IOU, TIGHT_IOU) for measure in MATCHED]
    print(seeds_table(list(of_runs.values()), columns, "labels", of="pseudo labels"))


def replay_options(parser: cli.Parser) -> None:
    parser.add_argument("file", type=Path, help="failed_update.pt of a run")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY VALUE", help="changes of its configuration"
    )
    cli.add_device_arguments(parser, threads=False)


def replay(args: cli.Namespace) -> None:
    """Compute a training's failed update again and say where the first NaN or infinity came up.

    The file is failed_update.pt of a run that ended so: the weights before the update and its
    images.
    """
    failed = load_failed_update(args.file)
    config = config_from(failed["config"], str(args.file), args.set)
    images = replay_update(failed, config, args.file, args.device)
    print(f"{args.file}: {failed['told']}\n")
    bad = not_finite(failed["model"])
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        print(f"The weights were not finite before: {', '.join(bad[:5])}{more}\n")

    for image, before in zip(images, failed["losses"], strict=True):
        print_replayed(image, before)


def print_replayed(image: Replayed, before: dict[str, float]) -> None:
    print(f"{image.file_name:<14} now          in training")
    for name, values in image.losses.items():
        stages = f"  by stage {' '.join(f'{v:g}' for v in values)}" if len(values) > 1 else ""
        print(f"  {name:<12} {sum(values):<12g} {before[name]:<12g}{stages}")
    print(f"  first not finite: {image.first_output or 'nothing up to the losses'}")
    print(f"  on the way back:  {image.first_gradient or 'nothing'}; norm {image.grad_norm:g}")


if __name__ == "__main__":
    sys.exit(main())
