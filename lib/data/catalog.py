"""Data sets by name, and the place of everything that belongs to one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib.data.custom import prepare
from lib.provenance import Memory


@dataclass(frozen=True)
class Dataset:
    """A data set: one COCO json, one folder of images, and what is made from them."""

    name: str
    json: Path
    images: Path
    root: Path = Path("data")
    """The folder of what is made from the images."""
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

    @property
    def memory(self) -> Memory:
        """Remembers fingerprints of files, so that each is read once."""
        return Memory(self.root)

    def fingerprints(self, file_names: Iterable[str]) -> dict[str, str]:
        """Fingerprints of the images, by file name; those that are missing are left out."""
        return self.memory.read(self.images, [*file_names])


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


def named_dataset(name: str, root: str | Path = "data") -> Dataset:
    """A data set of the catalog.

    Raises:
        ValueError: there is none of that name.
    """
    known = catalog(root)
    if name not in known:
        raise ValueError(
            f"no data set is called {name}; known: {', '.join(known)}; for your own give "
            "--images FOLDER and --labels PATH, or --json FILE"
        )
    return known[name]


def own_dataset(
    images: Path | None, json: Path | None, labels: Path | None, name: str | None, root: Path
) -> Dataset:
    """The user's own data set, from a COCO json or from labels, of which a json is made.

    Args:
        images: the folder; may be None where a json is given and no image is opened.
        labels: see `lib.data.custom.prepare`; counts where `json` is None.
        name: None takes that of the json, or of the folder of images.

    Raises:
        ValueError: the name cannot be used.
        FileNotFoundError, ValueError: images or labels cannot be used.
    """
    if name is None:
        name = json.stem if json is not None else images.resolve().name
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"--name becomes a folder's name, got {name!r}")
    if json is not None:
        return Dataset(name, json, images or Path(), root)
    if name in CATALOG:
        raise ValueError(f"{name} is the name of a known data set; give your own another --name")
    json, images = prepare(images, labels, name, root)
    return Dataset(name, json, images, root)
