"""A small data set made by hand, and settings that train on it in a second: for tests of tools."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np

from lib.prm.clusters import ClusterStore
from lib.proposals.regions import encode
from lib.proposals.store import ProposalStore
from lib.structures import Clusters

TOOLS = Path(__file__).parents[1] / "tools"
SIZE = (40, 56)
NAMES = ["sub/a.png", "b.png", "c.png", "d.png", "e.png"]
SETTINGS = """
model:
  backbone: resnet18
  backbone_args: {widths: [4, 4, 8, 8], depths: [1, 1, 1, 1], strides: [1, 2, 1, 1]}
  weights: random
  fuse_channels: 4
  hidden_dim: 8
  num_stages: 2
solver: {base_lr: 0.01, max_iter: 4, steps: [3], warmup_iters: 2, images_per_update: 2}
input: {train_scales: [48, 64], train_flips: [none, horizontal], num_workers: 0}
test: {scales: [48, 64], flips: [none, horizontal], score_thresh: 0.0}
run: {checkpoint_period: 2, log_period: 1}
"""


def tool(name):
    """A tool, or one of its commands (`prm train`), as a function of its other arguments."""
    file, *command = name.split()
    main = importlib.import_module(f"tools.{file}").main
    return lambda arguments=(): main([*command, *arguments])


def masks():
    cells = np.zeros((6, *SIZE), bool)
    for n in range(6):
        top, left = divmod(n, 3)
        cells[n, top * 18 : top * 18 + 16, left * 17 : left * 17 + 15 + n] = True
    return np.concatenate([cells, cells[:1] | cells[1:2], cells.any(0, keepdims=True)])


def make_place():
    """Fills the working directory: five images, one in a sub-folder, the last without a label."""
    rng = np.random.default_rng(0)
    Path("images/sub").mkdir(parents=True)
    proposals, clusters = (
        ProposalStore("data/proposals/mine"),
        ClusterStore("data/clusters/mine"),
    )
    for number, name in enumerate(NAMES):
        cv2.imwrite(f"images/{name}", rng.integers(256, size=(*SIZE, 3), dtype=np.uint8))
        proposals.save(name, encode(masks()))
        if number < 4:
            column = np.array([1 + number % 2, -1, 0, 0, 1 + number % 2, -1, 1 + number % 2, 0])
            cluster = np.where(column > 0, 1, 2) * (column >= 0)
            clusters.save(name, Clusters(cluster, column))
    write_json_file(range(4))
    Path("small.yaml").write_text(SETTINGS)


def write_json_file(labelled, categories=((7, "cat"), (9, "dog"))):
    content = {
        "images": [
            {"id": 100 + n, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for n, name in enumerate(NAMES)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": n, "image_id": 100 + n, "category_id": categories[n % 2][0]} for n in labelled
        ],
    }
    Path("mine.json").write_text(json.dumps(content))


DATA = ["--json", "mine.json", "--images", "images"]
