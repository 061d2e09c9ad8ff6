"""VOC 2012, CIM-p and COCO 2017 from the published files to exported labels, by a user's commands.

The commands are run by a shell (tests/docs/rehearsal.py), the scripts among them whole; the tools
that these start are called here, one after the other, instead of in a process each. Everything is
published but the size of the images and networks.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from lib.data.coco import CocoImages
from lib.prm.clusters import ClusterStore
from lib.proposals.store import ProposalStore
from tests.devkits import (
    COCO_IDS,
    cob_masks,
    picture,
    write_cob_array,
    write_cob_cells,
    write_cob_pickle,
    write_coco,
    write_coco_test,
    write_label_assign,
    write_sbd,
    write_voc,
)
from tests.docs.rehearsal import Rehearsal
from tests.in_process import run_tools_here

SMALL = {
    "model.backbone": "resnet18",
    "model.backbone_args": "{widths: [4, 8], depths: [1, 1], strides: [1, 2]}",
    "model.weights": "random",
    "model.fuse_channels": 4,
    "model.hidden_dim": 16,
    "prm.backbone": "resnet18",
    "prm.backbone_args": "{widths: [4, 8], depths: [1, 1], strides: [1, 2]}",
    "prm.weights": "random",
    "prm.image_size": 64,
    "prm.epochs": 1,
    "input.train_scales": "[48, 64]",
    "input.num_workers": 0,
    "solver.images_per_update": 2,
    "test.scales": "[48, 64]",
}
TRAIN = {"2007_000032": picture((40, 56), (1, 15)), "2007_000039": picture((48, 36), (20,))}
VAL = {"2007_000033": picture((40, 48), (7,)), "2007_000042": picture((44, 44), (15, 1))}
SBD = {"2008_000002": picture((44, 40), (3, 3), void=False)}


@pytest.fixture
def user(tmp_path, monkeypatch, capsys):
    """Runs commands in a project folder with an empty `data`; gives back what they print."""
    rehearsal = Rehearsal(tmp_path, ())
    monkeypatch.chdir(rehearsal.project)
    run_tools_here(monkeypatch)
    small = " ".join(shlex.quote(str(word)) for pair in SMALL.items() for word in pair)

    def run(commands: str) -> str:
        capsys.readouterr()
        calls, fault = rehearsal.run(commands.replace("SMALL", small))
        assert not fault
        for call in calls:
            if call.program == "python":
                name, *arguments = call.arguments
                tool = importlib.import_module(f"tools.{Path(name).stem}")
                with monkeypatch.context() as given:
                    for variable, value in call.exported.items():
                        given.setenv(variable, value)
                    assert tool.main(arguments) == 0, f"{call}\n{capsys.readouterr().err}"
        return capsys.readouterr().out

    return run


def read(path):
    return json.loads(Path(path).read_text())


def weights(run):
    return torch.load(f"{run}/ckpt/model_step2.pth", weights_only=True)["model"]


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def matrices(dataset, json_file, num_classes):
    """The stored clusters in the published form, in another order than the images."""
    store, proposals = ClusterStore(f"data/clusters/{dataset}"), ProposalStore("data/proposals")
    for image in reversed(CocoImages(json_file).images):
        count = len(ProposalStore(proposals.folder / dataset).load(image.file_name))
        clusters = store.load(image.file_name, count)
        matrix = np.zeros((count, num_classes + 1), np.int64)
        rows = np.flatnonzero(clusters.number)
        matrix[rows, clusters.column[rows]] = clusters.number[rows]
        assert matrix.any()
        yield image.image_id, matrix


def assert_pseudo_labels(labels, truth):
    """Objects of the image-level classes, with masks of their image's size."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    assert labels["images"] == truth["images"] and labels["categories"] == truth["categories"]
    pairs = {(a["image_id"], a["category_id"]) for a in labels["annotations"]}
    wanted = {(a["image_id"], a["category_id"]) for a in truth["annotations"] if not a["iscrowd"]}
    assert pairs == wanted
    for annotation in labels["annotations"]:
        assert annotation["segmentation"]["size"] == sizes[annotation["image_id"]]
        assert coco_mask.area(annotation["segmentation"]) == annotation["area"] > 0


def forget_clusters():
    for folder in ("data/clusters", "data/prm"):
        shutil.rmtree(folder)


def voc_and_proposals(tmp_path, user):
    """The devkit, SBD and COB's files under data/, prepared, imported and checked."""
    devkit = write_voc(tmp_path, TRAIN, VAL, SBD)
    Path("data/VOC2012").symlink_to(devkit)
    write_sbd(Path("data"), SBD | {"2007_000033": VAL["2007_000033"]}, {})
    for folder, pictures in (("COB_SBD_trainaug", TRAIN | SBD), ("COB_SBD_val", VAL)):
        for name, one in pictures.items():
            write_cob_cells(Path("data") / folder / f"{name}.mat", cob_masks(one))
    said = user("python tools/data.py voc --sbd data/benchmark_RELEASE --jobs 1")
    assert "voc_2012_trainaug.json: 3 images (annotated: 2 by VOC, 1 by SBD) with 5 obj" in said
    said = user("""
        for pair in trainaug:voc2012trainaug val:voc2012sbdval; do
            python tools/proposals.py import --format cob --source data/COB_SBD_${pair%:*} \
                --dataset ${pair#*:} --jobs 1
            python tools/proposals.py check --dataset ${pair#*:} --jobs 1
        done""")
    assert "recall of 5 objects (all): 1.000 at IoU 0.5, 1.000 at IoU 0.75" in said
    assert said.count("images without proposals: 0") == 2


def test_voc(tmp_path, user):
    voc_and_proposals(tmp_path, user)
    made = user("""
        cfg_file=configs/resnet50_voc.yaml dataset=voc2012trainaug output_file=Outputs/peaks \
            iter_time=2 bash scripts/train_CIM.sh SMALL""")
    assert "class mAP on the training labels" in made and "3 images: " in made
    user("output_file=Outputs/peaks dataset=voc2012sbdval bash scripts/eval_CIM.sh")
    metrics = read("Outputs/peaks/test/voc2012sbdval/metrics.json")
    assert list(metrics["metrics"]) == ["ap25", "ap50", "ap70", "ap75"]
    assert (metrics["num_images"], metrics["num_objects"]) == (2, 3)
    assert set(metrics["per_class"]) == {"aeroplane", "car", "person"}
    user("""
        output_file=Outputs/peaks dataset=voc2012trainaug score_thresh=0 \
            bash scripts/generate_msrcnn_label.sh""")
    truth = read("data/VOC2012/annotations/voc_2012_trainaug.json")
    labels = read("Outputs/peaks/pseudo_labels/voc2012trainaug.json")
    assert_pseudo_labels(labels, truth)
    user("""
        output_file=Outputs/peaks dataset=voc2012sbdval \
            bash scripts/visual_result_mmcv.sh --image 2007_000042 --score-thresh 0""")
    assert Path("Outputs/peaks/visual/voc2012sbdval/2007_000042.png").is_file()

    # A published checkpoint, put where a run has its own.
    own = torch.load("Outputs/peaks/ckpt/model_step2.pth", weights_only=True)
    model = {f"module.{name}": tensor for name, tensor in own["model"].items()}
    published = {"model": model, "optimizer": {"state": {}, "param_groups": []}}
    Path("Outputs/published/ckpt").mkdir(parents=True)
    torch.save(
        published | {"step": 89_999, "train_size": 21_164, "batch_size": 1},
        "Outputs/published/ckpt/model_step89999.pth",
    )
    user("""
        cfg_file=configs/resnet50_voc.yaml output_file=Outputs/published dataset=voc2012sbdval \
            bash scripts/eval_CIM.sh SMALL""")
    found = [f"Outputs/{run}/test/voc2012sbdval/detections.json" for run in ("peaks", "published")]
    assert read(found[0]) == read(found[1]) != []

    # The same clusters from the published files: the same training, without a PRM.
    trainaug = "data/VOC2012/annotations/voc_2012_trainaug.json"
    write_label_assign(
        Path("data/label_assign/trainaug.pkl"), matrices("voc2012trainaug", trainaug, 20)
    )
    store = ProposalStore("data/proposals/voc2012trainaug")
    stored = {i.image_id: store.load(i.file_name) for i in CocoImages(trainaug).images}
    write_cob_pickle(
        Path("data/cob/trainaug.pkl"), [(i, p.roi_masks, p.boxes) for i, p in stored.items()]
    )
    forget_clusters()
    said = user("""
        python tools/proposals.py check --dataset voc2012trainaug --jobs 1 \
            --published data/cob/trainaug.pkl
        python tools/prm.py import --dataset voc2012trainaug --jobs 1 \
            --source data/label_assign/trainaug.pkl""")
    assert "3 of 3 images agree" in said and "clusters of 3 images stored" in said
    said = user("""
        cfg_file=configs/resnet50_voc.yaml dataset=voc2012trainaug output_file=Outputs/imported \
            iter_time=2 bash scripts/train_CIM.sh SMALL""")
    assert "the imported clusters of 3 images are kept" in said
    assert not Path("data/prm").exists()
    assert_equal_weights(weights("Outputs/imported"), weights("Outputs/peaks"))


def test_voc_with_points(tmp_path, user):
    voc_and_proposals(tmp_path, user)
    points = {"2007_000032": "12 20 0 1.0\n45 10 14 1.0\n", "2007_000039": "18.5 24 19 0.9\n"}
    points["2008_000002"] = "10 6 2 1\n30 6 2 1\n"
    Path("data/points").mkdir()
    for name, text in points.items():
        Path(f"data/points/{name}.txt").write_text(text)
    user("""
        cfg_file=configs/resnet50_voc_point.yaml dataset=voc2012trainaug points=data/points \
            output_file=Outputs/points iter_time=2 bash scripts/train_CIM.sh SMALL""")
    assert not Path("data/prm").exists()
    clusters = ClusterStore("data/clusters/voc2012trainaug").load("2007_000032.jpg", 5)
    # Proposals: both objects, their upper halves, the background. The first point is in the first
    # object below its upper half, which is 18 of 37 rows. The second is in the second object and
    # in its upper half, which alone is above 0.7 on average, and exactly half of the object.
    assert clusters.column.tolist() == [1, 0, 0, 15, -1]
    user("output_file=Outputs/points dataset=voc2012sbdval bash scripts/eval_CIM.sh")
    assert read("Outputs/points/test/voc2012sbdval/metrics.json")["num_images"] == 2
    user("""
        output_file=Outputs/points dataset=voc2012trainaug score_thresh=0 \
            bash scripts/generate_msrcnn_label.sh""")
    truth = read("data/VOC2012/annotations/voc_2012_trainaug.json")
    assert_pseudo_labels(read("Outputs/points/pseudo_labels/voc2012trainaug.json"), truth)


def test_coco(tmp_path, user):
    cob = Path("data/COB-COCO")
    train = {9: picture((40, 56), (1, 90)), 25: picture((48, 36), (44,))}
    train[30] = picture((36, 60), (18, 18))
    val = {139: picture((40, 48), (7,)), 285: picture((44, 44), (90, 13))}
    test = {1: picture((40, 44), (1,)), 581918: picture((36, 48), (2, 3))}
    write_coco(Path("data"), "train2017", train, crowd=True)
    write_coco(Path("data"), "val2017", val)
    write_coco_test(Path("data"), test)
    # The files bear the names of the 2014 release, or the number alone.
    for number, (image_id, one) in enumerate({**train, **val, **test}.items()):
        prefix = ("COCO_train2014_", "COCO_val2014_", "")[number % 3]
        write_cob_array(cob / f"{prefix}{image_id:012}.mat", cob_masks(one))
    said = user("""
        for name in coco2017train coco2017val coco2017test; do
            python tools/proposals.py import --format cob --source data/COB-COCO \
                --dataset $name --jobs 1
            python tools/proposals.py check --dataset $name --jobs 1
        done""")
    assert said.count("images without proposals: 0") == 3
    assert "recall of 5 objects (all): 1.000" in said and "dev2017.json has no masks" in said

    def trained(run):
        return user(f"""
            cfg_file=configs/resnet50_coco2017.yaml dataset=coco2017train \
                output_file=Outputs/{run} iter_time=2 bash scripts/train_CIM.sh SMALL""")

    trained("coco")
    user("output_file=Outputs/coco dataset=coco2017val bash scripts/eval_CIM.sh")
    metrics = read("Outputs/coco/test/coco2017val/metrics.json")
    assert {"ap", "ap50", "ap75"} <= metrics["metrics"].keys()
    assert (metrics["num_images"], metrics["num_objects"]) == (2, 3)
    user("output_file=Outputs/coco dataset=coco2017test bash scripts/eval_CIM.sh")
    folder = Path("Outputs/coco/test/coco2017test")
    with zipfile.ZipFile(folder / "detections_test-dev2017_CIM_results.zip") as archive:
        detections = json.loads(archive.read("detections_test-dev2017_CIM_results.json"))
    assert {d["image_id"] for d in detections} == {1, 581918}
    assert {d["category_id"] for d in detections} <= set(COCO_IDS)
    user("""
        output_file=Outputs/coco dataset=coco2017train score_thresh=0 \
            bash scripts/generate_msrcnn_label.sh""")
    annotations = "data/coco2017/annotations/instances_train2017.json"
    assert_pseudo_labels(read("Outputs/coco/pseudo_labels/coco2017train.json"), read(annotations))

    clusters = matrices("coco2017train", annotations, 80)
    write_label_assign(Path("data/label_assign/train.pkl"), clusters)
    forget_clusters()
    said = user("""
        python tools/prm.py import --dataset coco2017train --jobs 1 \
            --source data/label_assign/train.pkl""")
    assert "clusters of 3 images stored" in said
    assert "the imported clusters of 3 images are kept" in trained("imported")
    assert_equal_weights(weights("Outputs/imported"), weights("Outputs/coco"))
