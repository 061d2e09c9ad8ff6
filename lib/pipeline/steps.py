"""The steps in their order: purpose, command line, what each needs and makes.

Quickstart, label_my_images, the ablation and the drivers of scripts/ take their steps from here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Words = tuple[str, ...]
"""A part of a command line."""


class Kind(NamedTuple):
    """A step of any chain."""

    name: str
    why: str
    """One line in plain words, for the reader of the terminal."""
    command: str
    """Tool and options; `{...}` are the parts that `Chain` fills in."""
    needs: tuple[str, ...] = ()
    """Steps whose results it reads."""
    makes: str = ""
    """Place of its result."""


STEPS = (
    Kind(
        "shapes",
        "Draw the embedded data set: small images of objects whose class shows in one small part. "
        "Training sees which classes an image contains, and nothing else.",
        "tools/data.py shapes --root {root} {options}",
        makes="{root}/shapes",
    ),
    Kind(
        "proposals",
        "Cut every image into candidate masks. Nothing is learned yet.",
        "tools/proposals.py make {data} {options} {device} {threads} {settings}",
        needs=("shapes",),
        makes="{root}/proposals/{name}",
    ),
    Kind(
        "recall",
        "Count the objects that have a good candidate. No later step can find the others.",
        "tools/proposals.py recall {data} {options} --output {run}/recall.json",
        needs=("proposals",),
        makes="{run}/recall.json",
    ),
    Kind(
        "prm",
        "Train a classifier on the image labels. The peaks of its response maps show where "
        "objects are.",
        "tools/prm.py train {data} {overwrite} {options} {device} {threads} {settings}",
        needs=("shapes",),
        makes="{root}/prm/{name}.pth",
    ),
    Kind(
        "clusters",
        "Group the candidates around what the PRM responds to: the first rough hints.",
        "tools/prm.py clusters {data} {options} {device} {settings}",
        needs=("proposals", "prm"),
        makes="{root}/clusters/{name}",
    ),
    Kind(
        "train",
        "Train CIM: find complete instances among the candidates and learn from them.",
        "{launch} tools/train_net.py {data} {output} {overwrite} {options} {device} {threads} "
        "{settings}",
        needs=("proposals", "clusters"),
        makes="{run}/ckpt",
    ),
    Kind(
        "test",
        "Score the candidates of every image.",
        "{launch} tools/test_net.py --run {run} {data} {options} {device} {threads} {settings}",
        needs=("proposals", "train"),
        makes="{run}/test/{name}/detections.json",
    ),
    Kind(
        "evaluate",
        "Compare the detections with the true masks: average precision.",
        "tools/evaluate.py --run {run} {data} {options} {settings}",
        needs=("test",),
        makes="{run}/test/{name}/metrics.json",
    ),
    Kind(
        "submission",
        "The true masks are not public: write the file to upload to COCO's server.",
        "tools/export.py submission --run {run} {data}",
        needs=("test",),
    ),
    Kind(
        "masks",
        "Score the candidates of every image for the classes that it is labelled with.",
        "{launch} tools/test_net.py --run {run} {data} --image-labels {options} {device} {threads} "
        "{settings}",
        needs=("proposals", "train"),
        makes="{run}/test/{name}/detections_image_labels.json",
    ),
    Kind(
        "pseudo_labels",
        "Keep the confident masks as a COCO file, which other detectors can be trained on.",
        "tools/generate_pseudo_labels.py --run {run} {data} {options} {settings}",
        needs=("masks",),
        makes="{run}/pseudo_labels/{name}.json",
    ),
    Kind(
        "refine",
        "Train a second network on the pseudo labels (CIM+).",
        "{launch} tools/refine.py train --run {run} {data} {overwrite} {options} {settings}",
        needs=("pseudo_labels",),
    ),
    Kind(
        "refine_test",
        "Detect objects with that network.",
        "{launch} tools/refine.py test --run {run} {data} {options} {settings}",
        makes="{run}/test/{name}/detections.json",
    ),
    Kind(
        "relabel",
        "Take what that network finds, of the classes that each image shows, as new labels.",
        "tools/generate_pseudo_labels.py --detections {run}/test/{name}/detections.json {data} "
        "--select adaptive {options} {settings}",
        makes="{run}/pseudo_labels/{name}.json",
    ),
    Kind(
        "pictures",
        "Draw the results over the images.",
        "tools/look.py pictures {of_run} {data} {options}",
        needs=("test",),
        makes="{run}/visual/{name}",
    ),
    Kind(
        "gallery",
        "Make a page to browse all of it in a browser: the worst images first.",
        "tools/look.py gallery {of_run} {data} {options}",
        needs=("test",),
        makes="{run}/gallery/{name}/index.html",
    ),
)
"""Every step there is, in the order in which a chain runs them."""

_BY_NAME = {kind.name: kind for kind in STEPS}


class Step(NamedTuple):
    """A step of one chain, ready to run."""

    name: str
    of: str
    """The data set's name."""
    why: str
    command: Words
    """Tool, seen from the project's folder, and arguments."""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.of})"


@dataclass(frozen=True)
class Chain:
    """The steps of one data set, and what their command lines have in common."""

    name: str
    """Of the data set."""
    data: Words = ()
    """Options that name the data set, without --data-root; () for one that is known by name."""
    root: Path = Path("data")
    cfg: Path | None = None
    """None leaves it to the tools."""
    overrides: Words = ()
    """KEY VALUE of the configuration."""
    run: Path | None = None
    """The run folder. None, for training alone: a new one."""
    launch: Words = ()
    """tools/launch.py with its options, for the steps that several processes share."""
    device: str | None = None
    threads: int | None = None
    overwrite: bool = False
    """Train anew what was trained with other data or settings, instead of stopping there."""
    options: Mapping[str, Words] = field(default_factory=dict)
    """Further options by the step's name."""

    def to(self, *goals: str, done: Collection[str] = ()) -> list[Step]:
        """The steps that make the results of `goals`, in order.

        Args:
            done: steps to leave out, with what only they need.
        """
        wanted: set[str] = set()
        todo = list(goals)
        while todo:
            name = todo.pop()
            if name not in done and name not in wanted:
                wanted.add(name)
                todo += _BY_NAME[name].needs
        return [self._step(kind) for kind in STEPS if kind.name in wanted]

    def result(self, name: str) -> Path:
        """The place of a step's result, unless an option of that step says otherwise."""
        return Path(_BY_NAME[name].makes.format(root=self.root, run=self.run, name=self.name))

    def _step(self, kind: Kind) -> Step:
        config = ("--cfg", str(self.cfg)) if self.cfg else ()
        parts = {
            "{launch}": self.launch,
            "{data}": (*(self.data or ("--dataset", self.name)), "--data-root", str(self.root)),
            "{of_run}": ("--run", str(self.run)) if self.run else (),
            "{output}": ("--output", str(self.run)) if self.run else (),
            "{overwrite}": ("--overwrite",) if self.overwrite else (),
            "{options}": self.options.get(kind.name, ()),
            "{device}": ("--device", self.device) if self.device else (),
            "{threads}": ("--threads", str(self.threads)) if self.threads else (),
            # --set takes all words that follow, so this stands last.
            "{settings}": (*config, "--set", *self.overrides) if self.overrides else config,
        }
        places = {"root": self.root, "run": self.run, "name": self.name}
        words: list[str] = []
        for word in kind.command.split():
            words += parts[word] if word in parts else [word.format(**places)]
        return Step(kind.name, self.name, kind.why, tuple(words))
