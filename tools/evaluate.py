"""Compare detections with annotated masks: average precision, as a table and as metrics.json."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.config import load_config
from lib.engine.runs import run_of
from lib.evaluation.coco_eval import EVALUATORS, evaluate_segm, format_metrics
from lib.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, cli.Command(evaluate, options), argv)


def options(parser: cli.Parser) -> None:
    cli.add_config_arguments(parser, help="gives test.iou_thresholds (default: the run's)")
    parser.add_argument("--coco", action="store_true", help="also AP at IoU 0.5:0.95 and by size")
    parser.add_argument("--per-class", action="store_true", help="a row for every class")
    parser.add_argument("--evaluator", choices=EVALUATORS, default=EVALUATORS[0])
    cli.add_result_arguments(parser)
    cli.add_dataset_arguments(parser, needs_images=False)


def evaluate(args: cli.Namespace) -> None:
    dataset = cli.dataset_from_args(args)
    detections = cli.detections_from_args(args, dataset.name)
    config = load_config(args.cfg or config_of(detections), args.set)

    print(f"{detections} against {dataset.json}")
    evaluation = evaluate_segm(
        dataset.json, detections, config.test.iou_thresholds, args.coco, args.evaluator
    )
    print(
        f"{evaluation['num_detections']} detections, {evaluation['num_objects']} objects "
        f"on {evaluation['num_images']} images\n"
    )
    print(format_metrics(evaluation, args.per_class))
    target = detections.with_name("metrics.json")
    write_json(target, evaluation, indent=2)
    print(f"\nwritten: {target}")


def config_of(detections: Path) -> Path | None:
    run = run_of(detections)
    return run / "config.yaml" if run and (run / "config.yaml").is_file() else None


if __name__ == "__main__":
    sys.exit(main())
