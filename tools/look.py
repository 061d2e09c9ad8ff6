"""Look at results: pictures, a gallery to browse, and what the method sees in one image."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib import command_line as cli
from lib.analysis.details import detail_layers, inspect_worst
from lib.analysis.explain import explain as explain_figure
from lib.analysis.inspection import Inspector, make_proposals, open_inspector, read_picture
from lib.config import Config, load_config
from lib.data.catalog import Dataset
from lib.data.coco import CocoImages, ImageRecord, read_coco
from lib.data.images import read_record
from lib.data.loader import ReadImage, no_clusters
from lib.engine.checkpoint import checkpoint_folder, list_checkpoints
from lib.engine.runs import results_of_run, run_of
from lib.evaluation.coco_files import by_image, read_ground_truth
from lib.files import read_json, write_json
from lib.prm.assign import samples_made_from
from lib.proposals.store import ProposalStore
from lib.provenance import changes, file_fingerprint, fingerprint
from lib.visualization.collect import collect
from lib.visualization.gallery import write_gallery
from lib.visualization.panels import save_png
from lib.visualization.pictures import draw_pictures

logger = logging.getLogger("look")

FEW = 400
"""Below this many images starting processes takes longer than they save."""


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        "pictures": cli.Command(pictures, pictures_options),
        "gallery": cli.Command(gallery, gallery_options),
        "explain": cli.Command(explain, explain_options),
    }
    return cli.run_tool(__doc__, commands, argv)


def pictures_options(parser: cli.Parser) -> None:
    what = parser.add_argument_group("what to draw", "detections, unless another is named")
    either = what.add_mutually_exclusive_group()
    either.add_argument("--pseudo-labels", action="store_true", help="those of the run")
    either.add_argument("--ground-truth", action="store_true", help="the data set's own masks")
    what.add_argument(
        "--score-thresh", type=float, default=0.3, help="leaves out what is below (default: 0.3)"
    )
    what.add_argument("--image", nargs="+", default=[], metavar="ID|NAME", help="these images only")
    what.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    what.add_argument("--compare", action="store_true", help="the data set's masks beside it")
    what.add_argument("--color-by", choices=("class", "instance"), default="class")
    what.add_argument(
        "--output", type=Path, metavar="DIR", help="default: visual/<data set> in the run"
    )
    what.add_argument(
        "--sheet", type=int, default=12, metavar="N", help="pictures on overview.png (default: 12)"
    )
    cli.add_result_arguments(parser, "COCO result or annotation file")
    cli.add_dataset_arguments(parser)


def pictures(args: cli.Namespace) -> None:
    """Draw detections, pseudo labels or annotations over their images, one PNG file each."""
    dataset = cli.dataset_from_args(args)
    coco = CocoImages(dataset.json, require_annotations=False)
    chosen = coco.find(args.image) if args.image else range(len(coco))
    records = [coco.images[number] for number in chosen[: args.limit]]
    kind, source = picture_source(args, dataset)
    folder = args.output or picture_folder(args, dataset)
    content = read_coco(dataset.json, annotations=False)
    drawn = by_image(read_json(source), content, str(source), args.score_thresh)
    layers = [(kind.replace("_", " "), drawn)]
    if args.compare and kind != "ground_truth":
        truth = by_image(read_json(dataset.json), content, str(dataset.json))
        layers.insert(0, ("ground truth", truth))
    suffix = "" if kind == "detections" else f"_{kind}"
    instances = draw_pictures(
        folder, records, dataset.images, coco, layers, suffix, args.color_by, args.sheet
    )
    limit = "" if kind == "ground_truth" else f" (score {args.score_thresh:g} or more)"
    print(f"{len(records)} pictures with {instances} instances{limit} in {folder}")


def picture_source(args: cli.Namespace, dataset: Dataset) -> tuple[str, Path]:
    """The kind of instances to draw, and the file they are read from."""
    if args.ground_truth:
        return "ground_truth", dataset.json
    if args.pseudo_labels:
        if args.detections:
            return "pseudo_labels", args.detections
        return "pseudo_labels", cli.run_from_args(args) / "pseudo_labels" / f"{dataset.name}.json"
    return "detections", cli.detections_from_args(args, dataset.name)


def picture_folder(args: cli.Namespace, dataset: Dataset) -> Path:
    """A folder in the run that is drawn, or beside a file that is of no run."""
    if args.detections:
        base = run_of(args.detections) or args.detections.parent
    elif args.ground_truth and not args.run:
        base = args.outputs
    else:
        base = cli.run_from_args(args)
    return base / "visual" / dataset.name


def gallery_options(parser: cli.Parser) -> None:
    results = parser.add_argument_group("results", "what a run has, or any COCO files")
    cli.add_run_arguments(results)
    results.add_argument("--detections", type=Path, metavar="FILE", help="COCO results")
    results.add_argument("--pseudo-labels", type=Path, metavar="FILE", help="a COCO json")
    results.add_argument(
        "--ground-truth", action="store_true", help="no run: the data set's own masks alone"
    )
    what = parser.add_argument_group("what to show")
    what.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    what.add_argument(
        "--score-thresh", type=float, default=0.01, help="leaves out what is below (default: 0.01)"
    )
    what.add_argument(
        "--per-image",
        type=int,
        default=30,
        metavar="N",
        help="best instances of each (default: 30)",
    )
    what.add_argument(
        "--details",
        type=int,
        default=60,
        metavar="N",
        help="show what the method sees on the N worst images (default: 60)",
    )
    what.add_argument(
        "--iou", type=float, default=0.5, help="from which a detection hits (default: 0.5)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: in the run's gallery/")
    cli.add_parallel_arguments(parser, None, "one per core if it pays")
    cli.add_device_arguments(parser, threads=False)
    cli.add_dataset_arguments(parser)


def gallery(args: cli.Namespace) -> int:
    """Make a gallery of results: a folder whose index.html opens in any browser, without a server.

    It shows the images of a data set with detections, pseudo labels and true masks, the worst
    images first, filters and zoom, the curves of the run, and, of some images, what the method
    sees on them: proposals, response maps, clusters and mined instances.
    """
    dataset = cli.dataset_from_args(args)
    run = gallery_run(args)
    results = result_files(args, run, dataset)
    config = Config()
    if run is not None and (run / "config.yaml").is_file():
        config = load_config(run / "config.yaml")
    coco = CocoImages(dataset.json, require_annotations=False)
    folder = args.output or (run or args.outputs) / "gallery" / dataset.name
    made_from = gallery_made_from(args, dataset, coco, run, results)
    told = folder / "made_from.json"
    made = told.is_file() and (folder / "index.html").is_file()
    if made and not changes(read_json(told), made_from):
        print(f"up to date; open {folder / 'index.html'} in a browser")
        return 0
    page, pictures = collect(
        dataset,
        coco,
        run,
        results,
        score_thresh=args.score_thresh,
        per_image=args.per_image,
        iou_thresh=args.iou,
        iou_thresholds=config.test.iou_thresholds,
    )
    shown = pictures[: args.limit]
    details = inspect_worst(shown, args.details, run, dataset, coco, args.prm, args.device)
    page = replace(page, layers={**page.layers, **detail_layers(details)})
    jobs = cli.jobs_from_args(args, len(shown), FEW)
    told.unlink(missing_ok=True)
    failures = write_gallery(folder, page, shown, details, jobs)
    if not failures:
        write_json(told, made_from, indent=2)
    print(f"{len(shown) - len(failures)} images; open {folder / 'index.html'} in a browser")
    return cli.report_failures(failures, len(shown))


def gallery_made_from(
    args: cli.Namespace,
    dataset: Dataset,
    coco: CocoImages,
    run: Path | None,
    results: dict[str, Path],
) -> dict[str, Any]:
    """The record of a gallery, see lib/provenance.py."""
    files = {"json": dataset.json, "prm": args.prm or dataset.prm, **results}
    if run is not None:
        files |= {name: run / name for name in ("config.yaml", "history.jsonl")}
        files |= {file.name: file for file in list_checkpoints(checkpoint_folder(run))[-1:]}
    options = ("limit", "score_thresh", "per_image", "details", "iou")
    return {
        "files": {name: file_fingerprint(f) for name, f in files.items() if f.is_file()},
        "samples": fingerprint(samples_made_from(dataset, coco.images, with_missing=True)),
        "options": {name: getattr(args, name) for name in options},
    }


def gallery_run(args: cli.Namespace) -> Path | None:
    """The run that is named, or the newest; None where files are named and there is no run."""
    if args.run is None and (args.detections or args.pseudo_labels or args.ground_truth):
        return None
    return cli.run_from_args(args)


def result_files(args: cli.Namespace, run: Path | None, dataset: Dataset) -> dict[str, Path]:
    """Files by layer: those that are named, and else what the run has on this data set."""
    named = {"detections": args.detections, "pseudo_labels": args.pseudo_labels}
    files = {name: path for name, path in named.items() if path is not None}
    if not files and run is not None:
        files = results_of_run(run, dataset.name)
        if not files:
            logger.warning(
                "%s has no results on %s; make them with tools/test_net.py", run, dataset.name
            )
    return files


def explain_options(parser: cli.Parser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a name or id in the data set, or a file")
    parser.add_argument(
        "--present",
        nargs="+",
        metavar="CLASS",
        help="IMAGE is a file of no data set, and these classes are in it",
    )
    cli.add_run_arguments(parser)
    parser.add_argument(
        "--score-thresh", type=float, default=0.3, help="of detections (default: 0.3)"
    )
    parser.add_argument(
        "--columns", type=int, metavar="N", help="panels side by side (default: as it fits)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="a PNG file, default: <run>/explain/<image>.png"
    )
    cli.add_device_arguments(parser, threads=False)
    cli.add_dataset_arguments(parser)


def explain(args: cli.Namespace) -> None:
    """Show what the method sees in one image, step by step, as one figure.

    The image is one of a data set, by file name or id, or any picture, with --present naming the
    classes that are in it.
    """
    folder = cli.run_from_args(args)
    truth = None
    if args.present is not None:
        if args.dataset or args.json or args.labels:
            raise ValueError("--present is for a picture of no data set; leave out one of them")
        inspector = open_inspector(folder, args.data_root, None, args.prm, args.device)
        read = read_picture(Path(args.image), args.present, inspector)
    else:
        dataset = cli.dataset_from_args(args)
        coco = CocoImages(dataset.json)
        record = coco.images[coco.find([args.image])[0]]
        samples_made_from(dataset, [record], with_missing=True)  # proposals of this image?
        prm = dataset.prm if args.prm or dataset.prm.is_file() else None
        inspector = open_inspector(folder, dataset.root, coco, prm, args.device)
        read = read_with_proposals(
            record, dataset.images, ProposalStore(dataset.proposals), inspector
        )
        truth = true_masks(record, coco)
    if inspector.prm is None:
        logger.warning("no PRM in %s: peaks and clusters are left out", args.data_root)
    seen = inspector(read, with_peak_maps=True, with_detections=True)
    figure = explain_figure(seen, inspector.class_names, truth, args.score_thresh, args.columns)
    target = args.output or folder / "explain" / f"{Path(read.record.file_name).stem}.png"
    save_png(target, figure)
    print(f"written: {target}")


def read_with_proposals(
    record: ImageRecord, folder: Path, store: ProposalStore, inspector: Inspector
) -> ReadImage:
    """An image of a data set; proposals that are not stored are made."""
    image = read_record(record, folder)
    if store.has(record.file_name):
        proposals = store.load(record.file_name, record.size)
    else:
        logger.info("%s has no proposals of it; they are made now", store.folder)
        proposals = make_proposals(image, inspector.config)
    return ReadImage(record, image, proposals, no_clusters(len(proposals)))


def true_masks(record: ImageRecord, coco: CocoImages) -> list[dict[str, Any]] | None:
    """Class index and mask of the objects of an image; None where the data set has no masks."""
    objects = read_ground_truth(coco.path, need_masks=False)["annotations"]
    if not objects:
        return None
    return [
        {**a, "class_idx": coco.category_ids.index(a["category_id"])}
        for a in objects
        if a["image_id"] == record.image_id and not a["iscrowd"]
    ]


if __name__ == "__main__":
    sys.exit(main())
