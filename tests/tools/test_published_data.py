"""From published files to what training reads: prepare, import, check, clusters."""

import json

import numpy as np
import pytest

from lib.data.coco import CocoImages
from lib.prm.clusters import ClusterStore
from lib.proposals.store import ProposalStore
from tests.devkits import (
    cob_masks,
    picture,
    write_cob_cells,
    write_cob_pickle,
    write_label_assign,
    write_sbd,
    write_voc,
)
from tests.small_training import tool


@pytest.fixture
def data(tmp_path):
    """A data root with VOC2012 and its json files, and COB's files for trainaug."""
    train = {"2007_000032": picture((9, 14), (1, 15)), "2007_000039": picture((12, 8), (20,))}
    val = {"2007_000033": picture((10, 12), (7,))}
    sbd = {"2008_000002": picture((11, 10), (3, 3), void=False)}
    voc = write_voc(tmp_path / "devkit", train, val, sbd)
    root = tmp_path / "data"
    root.mkdir()
    (root / "VOC2012").symlink_to(voc)
    given = ["--voc", str(root / "VOC2012"), "--sbd", str(write_sbd(tmp_path, sbd, {}))]
    assert tool("data voc")([*given, "--jobs", "1"]) == 0
    for name, one in {**train, **sbd}.items():
        write_cob_cells(tmp_path / "COB" / f"{name}.mat", cob_masks(one))
    return root


def dataset(root):
    return ["--dataset", "voc2012trainaug", "--data-root", str(root), "--jobs", "1"]


def imported(root, *options):
    source = ["--format", "cob", "--source", str(root.parent / "COB")]
    return tool("proposals import")([*source, *dataset(root), *options])


def test_import_does_what_is_missing_and_check_reports(data, capsys):
    lost = data.parent / "COB" / "2007_000039.mat"
    content = lost.read_bytes()
    lost.unlink()
    assert imported(data) == 1
    out, err = capsys.readouterr()
    assert "10 proposals of 2 images stored; left out: 0 empty masks, 0 duplicates" in out
    assert "1 of 3 images failed:\n  2007_000039.jpg: " in err
    assert tool("proposals check")(dataset(data)) == 1
    out = capsys.readouterr().out
    assert "images without proposals: 1\n  2007_000039.jpg" in out
    assert "2 of 3 images have readable proposals" in out
    assert "recall of 4 objects (all)" in out  # of the images that have proposals

    store = ProposalStore(data / "proposals" / "voc2012trainaug")
    before = store.path("2007_000032.jpg").stat().st_mtime_ns
    lost.write_bytes(content)
    assert imported(data) == 0
    assert "2 of 3 images have proposals already" in capsys.readouterr().out
    assert store.path("2007_000032.jpg").stat().st_mtime_ns == before
    assert imported(data) == 0  # nothing left to do
    assert imported(data, "--overwrite") == 0
    assert store.path("2007_000032.jpg").stat().st_mtime_ns > before
    capsys.readouterr()

    assert tool("proposals check")(dataset(data)) == 0
    out = capsys.readouterr().out
    assert "proposals an image: 3 at least, 5 median, 5 at most, 13 in all" in out
    assert "images of another size than their image: 0" in out
    assert "recall of 5 objects (all): 1.000 at IoU 0.5, 1.000 at IoU 0.75" in out
    assert "recall of 5 objects (small)" in out and "large" not in out


def test_published_clusters_and_proposals(data, tmp_path, capsys):
    assert imported(data) == 0
    path = tmp_path / "label_assign.pkl"
    matrix = np.zeros((5, 21))
    matrix[[0, 2], 1], matrix[1, 15], matrix[4, 0] = 1, 2, 3
    other = np.zeros((5, 21))
    single = np.zeros((3, 21))
    indexes = ["2008_000002", 2007000039, "2007_000032", 5]
    write_label_assign(path, zip(indexes, [other, single, matrix, other], strict=True))
    capsys.readouterr()
    assert tool("prm import")(["--source", str(path), *dataset(data)]) == 0
    out = capsys.readouterr().out
    assert "clusters of 3 images stored" in out and "has 1 more images" in out
    clusters = ClusterStore(data / "clusters" / "voc2012trainaug").load("2007_000032.jpg", 5)
    assert clusters.number.tolist() == [1, 2, 1, 0, 3]
    assert clusters.column.tolist() == [1, 15, 1, -1, 0]

    store = ProposalStore(data / "proposals" / "voc2012trainaug")
    images = CocoImages(data / "VOC2012/annotations/voc_2012_trainaug.json").images
    stored = {i.image_id: store.load(i.file_name) for i in reversed(images)}
    published = [(i, p.roi_masks, p.boxes) for i, p in stored.items()]
    write_cob_pickle(path, published)
    assert tool("proposals check")([*dataset(data), "--published", str(path)]) == 0
    assert "3 of 3 images agree" in capsys.readouterr().out
    first, *others = published
    write_cob_pickle(path, [(*first[:2], first[2][::-1]), *others])
    assert tool("proposals check")([*dataset(data), "--published", str(path)]) == 1
    assert "images differ: 1\n  2008_000002.jpg: " in capsys.readouterr().out


def test_bad_input_is_one_line_and_2(data, tmp_path, capsys):
    refused = tmp_path / "refused.pkl"
    refused.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    pickled = ["--format", "pickle", "--source", str(refused)]
    for name, args, text in [
        ("prm import", ["--source", str(refused), *dataset(data)], "the global os.system"),
        ("proposals import", [*pickled, *dataset(data)], "the global os.system"),
        ("proposals import", [*pickled[:3], "nowhere", *dataset(data)], "nowhere: no such file"),
        ("proposals check", ["--dataset", "nothing"], "no data set is called nothing"),
        ("prm import", ["--source", "nowhere.pkl", *dataset(data)], "nowhere.pkl"),
    ]:
        capsys.readouterr()
        assert tool(name)(args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and text in line


def test_test_images_without_annotations(tmp_path, capsys):
    """COCO test-dev: a json with images and categories alone."""
    content = {
        "images": [{"id": 1, "file_name": "000000000001.jpg", "height": 9, "width": 14}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "image_info.json"
    path.write_text(json.dumps(content))
    write_cob_cells(tmp_path / "COCO_val2014_000000000001.mat", cob_masks(picture((9, 14), (1,))))
    given = ["--json", str(path), "--images", str(tmp_path), "--data-root", str(tmp_path)]
    source = ["--format", "cob", "--source", str(tmp_path)]
    assert tool("proposals import")([*source, *given, "--jobs", "1"]) == 0
    assert tool("proposals check")([*given, "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 images have readable proposals" in out and "has no masks" in out
