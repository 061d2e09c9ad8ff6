import itertools
import json
import logging
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.data.coco import CocoImages
from lib.data.loader import CimDataset, TrainSampler, train_loader
from lib.proposals.regions import encode
from lib.proposals.store import ProposalStore
from lib.structures import Clusters

SIZES = {"a": (20, 30), "b": (24, 16), "c": (20, 20), "d": (18, 22)}
LABELS = {"a": [1], "b": [1, 2], "c": [], "d": [2]}


class FakeClusters:
    def load(self, file_name, num_proposals):
        assert num_proposals == 3
        return Clusters(np.array([1, 0, 2]), np.array([2, -1, 0]))


def masks_of(size):
    height, width = size
    masks = np.zeros((3, height, width), bool)
    masks[0, 2:9, 3:13] = True
    masks[1, :, : width // 2] = True
    masks[2, -1, -1] = True
    return masks


@pytest.fixture
def made(tmp_path):
    """Four images (c has no label) with three proposals each."""
    images, annotations = [], []
    store = ProposalStore(tmp_path / "proposals")
    rng = np.random.default_rng(0)
    for number, (name, size) in enumerate(SIZES.items()):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        images.append(
            {"id": 10 + number, "file_name": f"{name}.png", "height": size[0], "width": size[1]}
        )
        for label in LABELS[name]:
            annotations.append(
                {"id": len(annotations), "image_id": 10 + number, "category_id": label}
            )
        store.save(f"{name}.png", encode(masks_of(size)))
    categories = [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path


def dataset_of(folder, clusters=None, **options):
    store = ProposalStore(folder / "proposals")
    return CimDataset(CocoImages(folder / "set.json"), folder, store, clusters, **options)


def test_a_sample_without_changes(made):
    sample = dataset_of(made).load(0, 30, "none")
    assert (sample.image_id, sample.file_name) == (10, "a.png")
    assert sample.image.shape == (3, 20, 30) and sample.image.dtype == torch.float32
    assert sample.boxes.tolist() == [[3, 2, 13, 9], [0, 0, 15, 19], [29, 19, 29, 19]]
    assert sample.boxes.dtype == torch.float32
    assert sample.roi_masks.shape == (3, 7, 7) and sample.roi_masks.dtype == torch.float32
    assert sample.roi_masks.unique().tolist() == [1]
    assert sample.membership.dtype == torch.bool and sample.areas.dtype == torch.int64
    assert sample.areas.sum() == 600
    sizes = (sample.membership * sample.areas).sum(1)
    assert sizes.tolist() == [70, 300, 1]
    assert sample.image_labels.tolist() == [1, 0]
    assert sample.cluster_id.tolist() == [0, 0, 0]
    assert sample.cluster_column.tolist() == [-1, -1, -1]
    assert sample.cluster_id.dtype == sample.cluster_column.dtype == torch.int64


def test_mirrored_and_scaled(made):
    dataset = dataset_of(made, FakeClusters())
    sample = dataset.load(0, 60, "both")
    assert sample.image.shape == (3, 40, 60)
    # First W - x2 - 1 and H - y2 - 1 at the image's own size, then times 2.
    assert sample.boxes.tolist()[0] == [(30 - 13 - 1) * 2, (20 - 9 - 1) * 2, 26 * 2, 17 * 2]
    assert sample.cluster_id.tolist() == [1, 0, 2]
    assert sample.cluster_column.tolist() == [2, -1, 0]
    plain = dataset.load(0, 30, "none")
    assert torch.equal(dataset.load(0, 30, "both").image, plain.image.flip(1, 2))
    assert torch.equal(dataset.load(0, 30, "vertical").image, plain.image.flip(1))
    assert torch.equal(sample.membership, plain.membership)


def test_roi_masks_are_mirrored_with_the_image(made):
    masks = masks_of(SIZES["a"])
    masks[0, 2:5, 3:8] = False
    ProposalStore(made / "proposals").save("a.png", encode(masks))
    plain = dataset_of(made).load(0, 30, "none").roi_masks
    flipped = dataset_of(made).load(0, 30, "horizontal").roi_masks
    assert torch.equal(flipped, plain.flip(2))
    assert not torch.equal(flipped, plain)


def test_samples_do_not_share_labels_with_the_data_set(made):
    dataset = dataset_of(made)
    dataset.load(0, 30).image_labels.zero_()
    assert dataset.load(0, 30).image_labels.tolist() == [1, 0]


def test_small_sets_are_read_once(made):
    pixels = sum(height * width for height, width in SIZES.values())
    keeping = dataset_of(made, memory_limit=7 * pixels)
    reading = dataset_of(made, memory_limit=7 * pixels - 1)
    first = keeping.load(0, 30, "both")
    reading.load(0, 30)
    (made / "a.png").unlink()
    assert torch.equal(keeping.load(0, 30, "both").image, first.image)
    assert torch.equal(keeping.load(0, 30).boxes, torch.tensor(keeping.read(0).proposals.boxes))
    with pytest.raises(FileNotFoundError):
        reading.load(0, 30)


def test_sampler_epochs_are_whole():
    sampler = TrainSampler(5, (8, 9, 10), ("none", "both"), seed=4)
    assert sampler.epoch_length == 10
    items = list(itertools.islice(sampler, 3000))
    for start in range(0, 3000, 10):
        epoch = [(index, flip) for index, _, flip in items[start : start + 10]]
        assert sorted(epoch) == sorted(itertools.product(range(5), ("none", "both")))
    assert items[:10] != items[10:20]
    counts = Counter(scale for _, scale, _ in items)
    assert set(counts) == {8, 9, 10}
    assert all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 25])
def test_sampler_is_taken_up_anywhere(start):
    def stream(start, seed=4):
        return itertools.islice(TrainSampler(5, (8, 9), ("none", "both"), seed, start), 40)

    whole = list(stream(0))
    assert list(stream(start))[: 40 - start] == whole[start:]
    assert list(stream(0, seed=5)) != whole


def test_sampler_is_shared_out():
    def stream(start, step):
        return TrainSampler(5, (8, 9), ("none", "both"), 4, start, step)

    whole = list(itertools.islice(stream(6, 1), 40))
    shares = [list(itertools.islice(stream(6 + rank, 4), 10)) for rank in range(4)]
    assert [shares[n % 4][n // 4] for n in range(40)] == whole


@pytest.mark.parametrize(
    "bad",
    [
        {"num_images": 0},
        {"scales": ()},
        {"flips": ()},
        {"start": -1},
        {"step": 0},
        {"flips": ("none", "left")},
    ],
)
def test_sampler_refuses(bad):
    good = {"num_images": 2, "scales": (8,), "flips": ("none",), "seed": 0}
    with pytest.raises(ValueError, match="training needs at least one|unknown flips"):
        TrainSampler(**{**good, **bad})


def take(made, count, **options):
    stream = train_loader(dataset_of(made), (16, 24), ("none", "horizontal"), seed=3, **options)
    return list(itertools.islice(stream, count))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_stream(made, num_workers):
    samples = take(made, 13, num_workers=num_workers)
    # Six to an epoch: a, b and d twice, c (no label) never.
    assert Counter(s.file_name for s in samples[:6]) == {"a.png": 2, "b.png": 2, "d.png": 2}
    assert {max(s.image.shape) for s in samples} == {16, 24}
    later = take(made, 6, num_workers=num_workers, start=7)
    for one, other in zip(samples[7:], later, strict=True):
        assert one.file_name == other.file_name
        assert torch.equal(one.image, other.image)


AFTER_A_POOL = """
import cv2, numpy as np, sys
from pathlib import Path
from tests.data.test_loader import take
cv2.setNumThreads(4)
cv2.GaussianBlur(np.zeros((1500, 1500, 3), np.uint8), (0, 0), 9)
print(len(take(Path(sys.argv[1]), 3, num_workers=2)))
"""


def test_workers_start_after_opencv_has_used_its_threads(made):
    """A pool of threads does not survive a fork: a worker that touched it would wait for ever."""
    command = [sys.executable, "-c", AFTER_A_POOL, str(made)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=180)
    assert done.stdout == "3\n", done.stderr


def test_workers_do_not_change_the_stream(made):
    for one, other in zip(take(made, 8), take(made, 8, num_workers=2), strict=True):
        assert one.file_name == other.file_name
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.boxes, other.boxes)


def test_workers_start_although_opencv_has_used_threads(made):
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (3000, 3000), interpolation=cv2.INTER_CUBIC)
        time.sleep(0.5)  # until the threads sleep as well
        assert len(take(made, 2, num_workers=1)) == 2
    finally:
        cv2.setNumThreads(before)


def test_the_global_random_state_is_left_alone(made):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(made, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_without_labels_are_counted_and_said_once(made, caplog):
    with caplog.at_level(logging.WARNING):
        take(made, 20)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{made / 'set.json'}: training leaves out 1 of 4 images, which have no label"]


def test_no_labels_at_all(made):
    content = json.loads((made / "set.json").read_text())
    (made / "set.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match=r"set\.json: none of its 4 images has an image-level"):
        take(made, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_surface_with_the_file(made, num_workers):
    (made / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"^\S*b\.png: no such image; ") as caught:
        take(made, 6, num_workers=num_workers)
    assert "Traceback" not in str(caught.value)


WITH_WORKERS = """
import os, signal, sys
from multiprocessing import active_children
from tests.data.test_loader import dataset_of, train_loader
from pathlib import Path

noted = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda received, frame: noted.append(received))
stream = train_loader(dataset_of(Path(sys.argv[1])), (16,), ("none",), seed=0, num_workers=2)
for _ in range(2):  # one of each worker: both are on their own then
    next(stream)
os.killpg(os.getpgrp(), signal.SIGINT)
os.killpg(os.getpgrp(), signal.SIGTERM)
for _ in range(30):
    next(stream)
print("went on after", noted, flush=True)
if sys.argv[2] == "die":
    os.kill(active_children()[0].pid, signal.SIGKILL)
    for _ in range(30):
        next(stream)
"""


@pytest.mark.parametrize(("end", "code"), [("exit", 0), ("die", 1)])
def test_workers_outlast_signals_to_the_group_but_not_the_main_process(made, end, code):
    done = subprocess.run(
        [sys.executable, "-c", WITH_WORKERS, str(made), end],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "went on after [2, 15]" in done.stdout, done.stderr
    assert done.returncode == code
    assert ("WorkerError: a worker that loads images died" in done.stderr) == (end == "die")


def test_truncated_image_and_wrong_size(made):
    dataset = dataset_of(made)
    whole = (made / "a.png").read_bytes()
    (made / "a.png").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"a\.png: the image is truncated"):
        dataset.load(0, 30)
    (made / "a.png").write_bytes((made / "b.png").read_bytes())
    with pytest.raises(ValueError, match=r"a\.png: the image has 24x16 .* json says 20x30"):
        dataset.load(0, 30)


def test_missing_proposals_and_those_of_another_size(made):
    store = ProposalStore(made / "proposals")
    store.path("a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.npz: .*proposals.py make"):
        dataset_of(made).load(0, 30)
    store.save("a.png", encode(masks_of((30, 20))))
    with pytest.raises(ValueError, match=r"a\.npz: .*30x20.*20x30"):
        dataset_of(made).load(0, 30)


LARGE_SAMPLES = """
import torch
from lib.data.workers import load_ahead

for n, item in enumerate(load_ahead(lambda number: torch.full((2**21,), number), range(12), 2)):
    assert item.shape == (2**21,) and (item == n).all()
print("all there")
"""


def test_samples_need_no_shared_memory():
    """Containers have 64 MB of it by default: here 12 samples of 16 MB go past one of 1 MB."""
    own_shm = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none /dev/shm && "$@"']
    if shutil.which("unshare") is None or subprocess.run([*own_shm, "-", "true"]).returncode:
        pytest.skip("needs the right to mount a small /dev/shm")
    done = subprocess.run(
        [*own_shm, "-", sys.executable, "-c", LARGE_SAMPLES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "all there" in done.stdout, done.stderr
