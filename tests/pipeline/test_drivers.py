"""The steps that the drivers run, their order and arguments."""

from __future__ import annotations

import itertools
import os

import pytest

from lib.pipeline.drivers import driver_steps


def calls(driver, *words, **variables):
    return [" ".join(step.command) for step in driver_steps(driver, variables, words)]


def tool(command):
    """The tool of a command line, with its sub-command."""
    return " ".join(itertools.takewhile(lambda word: not word.startswith("-"), command.split()))


def tools(commands):
    return [tool(command) for command in commands]


def test_train_makes_what_is_missing_first():
    config = "--cfg configs/resnet18_shapes.yaml"
    data = "--dataset shapes_train --data-root data"
    assert calls("train_CIM") == [
        "tools/data.py shapes --root data",
        f"tools/proposals.py make {data} {config}",
        f"tools/prm.py train {data} --if-needed {config}",
        f"tools/prm.py clusters {data} {config}",
        f"tools/train_net.py {data} {config}",
    ]


def test_train_on_voc_from_outside():
    commands = calls(
        "train_CIM",
        *("run.seed", "7"),
        cfg_file="configs/resnet50_voc.yaml",
        dataset="voc2012trainaug",
        output_file="Outputs/mine",
        iter_time="100",
        data_root="/big disk",
    )
    assert tools(commands) == [
        "tools/proposals.py make",
        "tools/prm.py train",
        "tools/prm.py clusters",
        "tools/train_net.py",
    ]
    assert commands[-1] == (
        "tools/train_net.py --dataset voc2012trainaug --data-root /big disk --output Outputs/mine "
        "--cfg configs/resnet50_voc.yaml --set run.seed 7 solver.max_iter 100"
    )
    (step, *_) = driver_steps("train_CIM", {"dataset": "x", "data_root": "/big disk"}, [])
    assert "/big disk" in step.command  # one word


def test_empty_variables_and_those_of_others_do_not_count():
    assert calls("train_CIM", points="", gpus="", test_json="x", score_thresh="1") == calls(
        "train_CIM"
    )


def test_overwrite_is_for_trainings():
    commands = calls("train_CIM", overwrite="yes")
    with_it = [command for command in commands if " --overwrite " in command]
    assert tools(with_it) == ["tools/prm.py train", "tools/train_net.py"]
    assert calls("train_CIM", "--overwrite", "run.seed", "7") == calls(
        "train_CIM", "run.seed", "7", overwrite="yes"
    )
    commands = calls("refine_msrcnn", overwrite="yes", output_file="Outputs/a")
    with_it = [command for command in commands if " --overwrite " in command]
    assert tools(with_it) == ["tools/refine.py train"]


def test_train_with_points_needs_no_peak_response_network():
    commands = calls("train_CIM", points="data/points", dataset="voc2012trainaug")
    assert "tools/prm.py train" not in tools(commands)
    assert "--points data/points" in commands[tools(commands).index("tools/prm.py clusters")]


def test_several_gpus():
    commands = calls("train_CIM", gpus="4")
    launch = "tools/launch.py --standalone --nproc-per-node 4"
    assert commands[-1].startswith(f"{launch} tools/train_net.py --dataset ")
    assert not any("launch.py" in command for command in commands[:-1])
    for driver in ("eval_CIM", "generate_msrcnn_label"):
        commands = calls(driver, gpus="4", output_file="Outputs/a")
        assert [c for c in commands if "launch.py" in c] == [commands[-2]]
        assert commands[-2].startswith(f"{launch} tools/test_net.py ")
    commands = calls("refine_msrcnn", gpus="4", output_file="Outputs/a")
    together = [tool(c.removeprefix(launch).strip()) for c in commands if c.startswith(launch)]
    assert together == ["tools/test_net.py", "tools/refine.py train", "tools/refine.py test"]


def test_several_machines():
    with pytest.raises(ValueError, match="nnodes= needs rdzv=host:port"):
        calls("train_CIM", nnodes="2", gpus="8", output_file="Outputs/a")
    meet = {"nnodes": "2", "gpus": "8", "rdzv": "first:29400"}
    with pytest.raises(ValueError, match="nnodes= needs output_file="):
        calls("train_CIM", **meet)
    (command,) = calls("train_CIM", **meet, output_file="Outputs/a")  # the rest was made before
    assert command.startswith(
        "tools/launch.py --nproc-per-node 8 --nnodes 2 --rdzv-backend c10d "
        "--rdzv-id cim --rdzv-endpoint first:29400 tools/train_net.py --dataset "
    )
    assert calls("train_CIM", prepare_only="yes")[-1].startswith("tools/prm.py clusters")
    commands = calls("eval_CIM", **meet, output_file="Outputs/a")
    assert tools(commands) == ["tools/launch.py", "tools/evaluate.py"]
    commands = calls("refine_msrcnn", **meet, output_file="Outputs/a")
    assert [tool.removeprefix("tools/") for tool in tools(commands)] == [
        "launch.py",
        "generate_pseudo_labels.py",
        "launch.py",
        "launch.py",
        "evaluate.py",
    ]


def test_own_data():
    commands = calls("train_CIM", json="my.json", images="pictures")
    assert len(commands) == 4  # no embedded data set
    assert all("--json my.json --images pictures" in command for command in commands)
    with pytest.raises(ValueError, match="json= needs images="):
        calls("train_CIM", json="my.json")


def test_own_images_with_labels():
    commands = calls("train_CIM", images="my pictures", labels="l.csv", name="mine")
    assert len(commands) == 4
    own = "--images my pictures --labels l.csv --name mine --data-root data"
    assert all(own in command for command in commands)
    with pytest.raises(ValueError, match="labels= needs images="):
        calls("train_CIM", labels="l.csv")


def test_eval():
    config = "--cfg Outputs/a/config.yaml"
    data = "--dataset shapes_test --data-root data"
    assert calls("eval_CIM", output_file="Outputs/a", iter_time="500") == [
        "tools/data.py shapes --root data",
        f"tools/proposals.py make {data} {config}",
        f"tools/test_net.py --run Outputs/a {data} --step 500 {config}",
        f"tools/evaluate.py --run Outputs/a {data} --per-class {config}",
    ]


def test_eval_on_coco():
    commands = calls("eval_CIM", output_file="Outputs/a", dataset="coco2017val")
    assert "--coco" in commands[-1].split()
    steps = driver_steps("eval_CIM", {"output_file": "Outputs/a", "dataset": "coco2017test"}, [])
    data = "--dataset coco2017test --data-root data"
    assert steps[-2].command[0] == "tools/test_net.py"
    assert " ".join(steps[-1].command) == f"tools/export.py submission --run Outputs/a {data}"
    assert "COCO's server" in steps[-1].why


def test_pseudo_labels():
    commands = calls("generate_msrcnn_label", "test.flips", "[none]", output_file="Outputs/a")
    data = "--dataset shapes_train --data-root data"
    assert commands[-2:] == [
        f"tools/test_net.py --run Outputs/a {data} --image-labels --cfg Outputs/a/config.yaml "
        "--set test.flips [none]",
        f"tools/generate_pseudo_labels.py --run Outputs/a {data} --segmentation compressed "
        "--cfg Outputs/a/config.yaml --set test.flips [none]",
    ]
    commands = calls("generate_msrcnn_label", select="adaptive", output_file="Outputs/a")
    assert "--segmentation compressed --select adaptive --cfg" in commands[-1]


def test_refinement():
    commands = calls("refine_msrcnn", "run.seed", "7", output_file="Outputs/a")
    config = "--cfg Outputs/a/config.yaml --set run.seed 7"
    train = "--dataset shapes_train --data-root data"
    test = "--run Outputs/a/mask_rcnn --dataset shapes_test --data-root data"
    assert commands[-4:] == [
        f"tools/generate_pseudo_labels.py --run Outputs/a {train} --segmentation compressed "
        f"{config}",
        f"tools/refine.py train --run Outputs/a {train} {config}",
        f"tools/refine.py test {test} {config}",
        f"tools/evaluate.py {test} --per-class {config}",
    ]


def test_refinement_in_rounds():
    variables = {"output_file": "Outputs/a", "corrected": "c.json"}
    commands = calls("refine_msrcnn", "run.seed", "7", **variables, rounds="3")
    config = "--cfg Outputs/a/config.yaml --set"
    train = "--dataset shapes_train --data-root data"
    test = "--run Outputs/a/mask_rcnn_3 --dataset shapes_test --data-root data"
    first, second = "Outputs/a/mask_rcnn", "Outputs/a/mask_rcnn_2"

    def round_after(run, to):
        found, labels = f"{run}/test/shapes_train/detections.json", f"{run}/pseudo_labels"
        how = "pseudo_labels.relative_thresh 0.7 pseudo_labels.snap_iou 0.7"
        return [
            f"tools/refine.py test --run {run} {train} {config} run.seed 7",
            f"tools/generate_pseudo_labels.py --detections {found} {train} --select adaptive "
            f"{config} {how} run.seed 7",
            f"tools/refine.py train --run Outputs/a {train} --corrected c.json --pseudo-labels "
            f"{labels}/shapes_train.json --output {to} {config} run.seed 7",
        ]

    assert commands[-8:] == [
        *round_after(first, second),
        *round_after(second, "Outputs/a/mask_rcnn_3"),
        f"tools/refine.py test {test} {config} run.seed 7",
        f"tools/evaluate.py {test} --per-class {config} run.seed 7",
    ]
    own = {"json": "my.json", "images": "pictures", "output_file": "Outputs/a"}
    last = calls("refine_msrcnn", **own, rounds="2")[-1]
    assert f"--detections {second}/test/my/detections.json" in last
    assert "snap_iou" not in last
    for rounds in ("0", "two"):
        with pytest.raises(ValueError, match=f"rounds={rounds}, expected the number of trainings"):
            calls("refine_msrcnn", output_file="Outputs/a", rounds=rounds)


def test_refinement_by_another_network(monkeypatch):
    words = ["refine.model.network", "mask2former"]
    monkeypatch.setattr("lib.refine.second_stage.find_spec", lambda name: object())
    commands = calls("refine_msrcnn", *words, output_file="Outputs/a")
    assert "tools/refine.py test --run Outputs/a/mask2former" in commands[-2]
    monkeypatch.setattr("lib.refine.second_stage.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package transformers"):
        calls("refine_msrcnn", *words, output_file="Outputs/a")


def test_refinement_of_own_data():
    own = {"json": "my.json", "images": "pictures", "output_file": "Outputs/a"}
    test = {"test_json": "held.json", "test_images": "held"}
    commands = calls("refine_msrcnn", **own, **test, score_thresh="0.5")
    assert "--json my.json --images pictures" in commands[-3]
    assert "--score-thresh 0.5" in commands[-4]
    assert "--json held.json --images held" in commands[-2]
    commands = calls("refine_msrcnn", **own, test_dataset="coco2017test")
    assert commands[-1].startswith("tools/refine.py test")
    commands = calls("refine_msrcnn", **own)  # nothing to test on: new masks for these images
    found = "Outputs/a/mask_rcnn/test/my/detections.json"
    assert "tools/refine.py test --run Outputs/a/mask_rcnn --json my.json" in commands[-2]
    assert f"tools/generate_pseudo_labels.py --detections {found} --json my.json" in commands[-1]
    assert "--select adaptive" in commands[-1]
    assert "pseudo_labels.relative_thresh 0.7" in commands[-1]
    assert "relative_thresh" not in commands[-2]
    with pytest.raises(ValueError, match="test_json= needs test_images="):
        calls("refine_msrcnn", **own, test_json="held.json")


def test_corrected_labels():
    at = {"output_file": "Outputs/a"}
    for given in (
        {"corrected": "c.json"},
        {"labels": "c.json"},
        {"labels": "c.json", "json": "my.json", "images": "pictures"},
        {"corrected": "c.json", "labels": "tags.csv", "images": "pictures"},
    ):
        train = calls("refine_msrcnn", **given, **at, test_dataset="shapes_test")[-3]
        assert "--corrected c.json" in train
        assert ("--labels tags.csv" in train) == ("tags.csv" in given.values())
    assert not any("--corrected" in c for c in calls("refine_msrcnn", **at))
    with pytest.raises(ValueError, match="labels= and corrected= are both"):
        calls("refine_msrcnn", labels="c.json", corrected="c.json", **at)
    # Beside images alone they are the image-level labels.
    tags = calls("refine_msrcnn", images="pictures", labels="tags.csv", **at)
    assert "--images pictures --labels tags.csv" in tags[-3]
    assert not any("--corrected" in c for c in tags)


def test_pictures():
    data = "--dataset shapes_test --data-root data"
    assert calls("visual_result_mmcv", "--limit", "3", output_file="Outputs/a") == [
        f"tools/look.py pictures --run Outputs/a {data} --limit 3"
    ]
    commands = calls("visual_result_mmcv", output_file="Outputs/a", iter_time="500")
    assert tools(commands) == ["tools/test_net.py", "tools/look.py pictures"]
    commands = calls("visual_result_mmcv", "--gallery", "--limit", "3", output_file="Outputs/a")
    assert commands == [f"tools/look.py gallery --run Outputs/a {data} --limit 3"]
    commands = calls("visual_result_mmcv", "--detections", "some.json", dataset="coco2017val")
    assert commands == [
        "tools/look.py pictures --dataset coco2017val --data-root data --detections some.json"
    ]


def test_without_a_run_they_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Outputs: no run with a checkpoint.*output_file="):
        calls("eval_CIM")


def test_the_newest_run_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in ((2, "old"), (1, "new")):
        run = tmp_path / "Outputs" / "small" / name
        (run / "ckpt").mkdir(parents=True)
        (run / "ckpt" / "model_step5.pth").touch()
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (1e9 - age, 1e9 - age))
    (command,) = calls("visual_result_mmcv")
    assert command.startswith("tools/look.py pictures --run Outputs/small/new ")
