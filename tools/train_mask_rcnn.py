"""Trains a Mask R-CNN on the pseudo labels of a CIM run (CIM+), and goes on where it was stopped.

The pseudo labels come from tools/generate_pseudo_labels.py; annotated masks are never looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib.config import load_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.engine.build import KEEP_IN_MEMORY, build_refine_trainer, share_threads
from lib.engine.checkpoint import load_checkpoint, seed_everything
from lib.engine.distributed import Ranks
from lib.engine.runs import newest_checkpoint, newest_run
from lib.engine.training import HOW_IT_ENDS, TrainingRun, exit_code, train
from lib.refine.data import open_pseudo_labels
from lib.refine.network import build_mask_rcnn
from lib.refine.training import refinement_depends_on


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=HOW_IT_ENDS)
    parser.add_argument("--run", type=Path, metavar="DIR", help="of CIM; default: the newest")
    parser.add_argument("--outputs", type=Path, metavar="DIR", default=Path("Outputs"))
    parser.add_argument(
        "--pseudo-labels", type=Path, metavar="FILE", help="default: those of the run"
    )
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="default: the run's config.yaml")
    add_dataset_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: <run>/mask_rcnn; one with checkpoints is gone on with",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, ranks: Ranks) -> int:
    cim = ranks.from_first(args.run if args.run is not None else newest_run(args.outputs))
    config = load_config(args.cfg or cim / "config.yaml", args.set)
    refine = config.refine
    dataset = dataset_from_args(args)
    labels = args.pseudo_labels or cim / "pseudo_labels" / f"{dataset.name}.json"
    if not labels.is_file():
        raise FileNotFoundError(
            f"{labels}: no such pseudo labels; make them with scripts/generate_msrcnn_label.sh"
        )
    data = open_pseudo_labels(labels, dataset.images, refine.score_thresh, KEEP_IN_MEMORY)
    training = TrainingRun(
        folder=args.output or cim / "mask_rcnn",
        config=config,
        settings=refine,
        trained_with=refinement_depends_on(config, data.coco),
        class_names=data.coco.class_names,
        train_size=len(data.labelled()),
        ranks=ranks,
    )
    state = training.open()

    at_most = refine.solver.images_per_update if ranks.count == 1 else 1
    lanes = share_threads(args.device, args.threads, at_most)
    seed_everything(config.run.seed)
    model = build_mask_rcnn(
        refine.model,
        refine.test,
        data.coco.num_classes,
        cim_network(cim) if refine.model.weights == "cim" and state is None else None,
        pretrained=state is None,
    )
    trainer = build_refine_trainer(config, model, ranks.device, lanes, ranks)
    training.begin(trainer, state)
    samples = training.samples(data, trainer)
    count = sum(map(len, data.instances.values()))
    training.announce(
        f"{data.coco.path}, {count} pseudo labels on {training.train_size} images",
        f"Mask R-CNN, {refine.model.backbone} with a feature pyramid",
        refine.model.weights,
        trainer,
    )
    max_iter = refine.solver.max_iter
    stopped_by = train(trainer, samples, training.folder, max_iter, config.run, training.about)
    return training.end(trainer, stopped_by, next_tool="tools/test_mask_rcnn.py")


def cim_network(run: Path) -> dict[str, Any]:
    return load_checkpoint(newest_checkpoint(run))["model"]


if __name__ == "__main__":
    sys.exit(main())
