"""Which data sets there are by name, and where everything that belongs to one lies."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from lib.data.custom import prepare


@dataclass(frozen=True)
class Dataset:
    """A data set: one COCO json, one folder of images, and what is made from them."""

    name: str
    json: Path
    images: Path
    root: Path = Path("data")
    """Where what is made from the images lies."""
    proposals_folder: Path | None = None
    """Takes the place of `<root>/proposals/<name>`."""
    clusters_folder: Path | None = None
    """Takes the place of `<root>/clusters/<name>`."""

    prm_file: Path | None = None
    """Takes the place of `<root>/prm/<name>.pth`."""

    @property
    def proposals(self) -> Path:
        """Folder of a ProposalStore."""
        return self.proposals_folder or self.root / "proposals" / self.name

    @property
    def clusters(self) -> Path:
        """Folder of a ClusterStore."""
        return self.clusters_folder or self.root / "clusters" / self.name

    @property
    def prm(self) -> Path:
        """Checkpoint of the peak response network trained on this data set."""
        return self.prm_file or self.root / "prm" / f"{self.name}.pth"


_FILES = {
    "shapes_train": ("shapes/annotations/train.json", "shapes/train"),
    "shapes_val": ("shapes/annotations/val.json", "shapes/val"),
    "shapes_test": ("shapes/annotations/test.json", "shapes/test"),
    "coco2017train": ("coco2017/annotations/instances_train2017.json", "coco2017/train2017"),
    "coco2017val": ("coco2017/annotations/instances_val2017.json", "coco2017/val2017"),
    "coco2017test": ("coco2017/annotations/image_info_test-dev2017.json", "coco2017/test2017"),
    "voc2012trainaug": ("VOC2012/annotations/voc_2012_trainaug.json", "VOC2012/JPEGImages"),
    "voc2012sbdval": ("VOC2012/annotations/voc_2012_val.json", "VOC2012/JPEGImages"),
}


def catalog(root: str | Path = "data") -> dict[str, Dataset]:
    """The data sets known by name, with everything of theirs under `root`."""
    root = Path(root)
    return {
        name: Dataset(name, root / json, root / images, root)
        for name, (json, images) in _FILES.items()
    }


CATALOG = catalog()


def add_dataset_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds the options that `dataset_from_args` reads.

    Args:
        default: a name of CATALOG to take where neither --dataset nor --json is given.
    """
    group = parser.add_argument_group(
        "data set", "either --dataset, or --images and --json, or --images and --labels"
    )
    group.add_argument(
        "--dataset", metavar="NAME", default=None, help=f"one of {', '.join(CATALOG)}"
    )
    group.add_argument("--json", metavar="FILE", help="any COCO json")
    group.add_argument("--images", metavar="FOLDER", help="the folder that the images lie in")
    group.add_argument(
        "--labels",
        metavar="PATH",
        help="image-level labels: a .csv of rows `file,label`, a .txt of lines `name class-id ...`, "
        "a folder with a sub-folder for each class, or a COCO .json without masks",
    )
    group.add_argument("--name", help="a name for it (default: that of the json, or of --images)")
    group.add_argument("--data-root", metavar="DIR", default="data", help="default: %(default)s")
    group.add_argument("--proposals", metavar="DIR", help="default: <data root>/proposals/<name>")
    group.add_argument("--clusters", metavar="DIR", help="default: <data root>/clusters/<name>")
    group.add_argument("--prm", metavar="FILE", help="default: <data root>/prm/<name>.pth")
    parser.set_defaults(default_dataset=default)


def dataset_from_args(args: argparse.Namespace) -> Dataset:
    """The data set that a command line names.

    For --labels this makes its json in the data root (see `lib.data.custom.prepare`).

    Raises:
        ValueError: an unknown name, or options that do not go together.
        FileNotFoundError, ValueError: --images and --labels cannot be used.
    """
    given = [o for o in ("dataset", "json", "labels") if getattr(args, o) is not None]
    if not given and args.default_dataset is not None and args.images is None:
        dataset = catalog(args.data_root)[args.default_dataset]
    elif len(given) != 1:
        raise ValueError(
            "name a data set: either --dataset NAME, or --images FOLDER with --json FILE or "
            "--labels PATH"
        )
    elif args.dataset is not None:
        dataset = _named_dataset(args)
    else:
        dataset = _own_dataset(args)
    return replace(
        dataset,
        proposals_folder=Path(args.proposals) if args.proposals else None,
        clusters_folder=Path(args.clusters) if args.clusters else None,
        prm_file=Path(args.prm) if args.prm else None,
    )


def _named_dataset(args: argparse.Namespace) -> Dataset:
    if args.images is not None or args.name is not None:
        raise ValueError("--images and --name go with --json or --labels, not with --dataset")
    known = catalog(args.data_root)
    if args.dataset not in known:
        raise ValueError(
            f"no data set is called {args.dataset}; known: {', '.join(known)}; for your own give "
            "--images FOLDER and --labels PATH, or --json FILE"
        )
    return known[args.dataset]


def _own_dataset(args: argparse.Namespace) -> Dataset:
    root = Path(args.data_root)
    if args.images is None:
        option = "--json" if args.labels is None else "--labels"
        raise ValueError(f"{option} needs --images, the folder that the images lie in")
    name = args.name
    if name is None:
        name = Path(args.json).stem if args.json is not None else Path(args.images).resolve().name
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"--name becomes a folder's name, got {name!r}")
    if args.json is not None:
        return Dataset(name, Path(args.json), Path(args.images), root)
    if name in CATALOG:
        raise ValueError(f"{name} is the name of a known data set; give your own another --name")
    json, images = prepare(args.images, args.labels, name, root)
    return Dataset(name, json, images, root)
