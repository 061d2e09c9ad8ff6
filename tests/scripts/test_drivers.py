"""What the four drivers run, in which order and with which arguments; the tools are stand-ins."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVERS = ("train_CIM", "eval_CIM", "generate_msrcnn_label", "visual_result_mmcv", "refine_msrcnn")

STAND_IN = f"""#!/usr/bin/env bash
# Notes down a tool's command line; fails for the tool named in FAILING. `python -c` is real.
if [ "$1" = -c ]; then exec {shlex.quote(sys.executable)} "$@"; fi
printf '%s\\n' "$*" >> "$CALLS"
[ "$(basename "$1")" != "$FAILING" ]
"""


@pytest.fixture
def drive(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(script, *arguments, root=ROOT, failing="none", **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CIM_VENV": "none",
            "CALLS": str(calls),
            "FAILING": failing,
            **variables,
        }
        process = subprocess.run(
            ["bash", str(root / "scripts" / f"{script}.sh"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        return process, calls.read_text().splitlines()

    return run


@pytest.mark.parametrize("script", DRIVERS)
def test_they_are_bash_and_say_how_to_call_them(script):
    path = ROOT / "scripts" / f"{script}.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    usage = path.read_text()
    for word in ("cfg_file", "output_file", "dataset", "iter_time", f"bash scripts/{script}.sh"):
        assert word in usage


def test_train_makes_what_is_missing_first(drive):
    process, calls = drive("train_CIM")
    assert process.returncode == 0, process.stderr
    config = "--cfg configs/resnet18_shapes.yaml"
    data = "--dataset shapes_train --data-root data"
    assert calls == [
        "tools/make_shapes.py --root data",
        f"tools/make_proposals.py {config} {data} --set",
        f"tools/train_prm.py {config} {data} --if-needed --set",
        f"tools/assign_clusters.py {config} {data} --set",
        f"tools/train_net.py {config} {data} --set",
    ]
    assert "== Training CIM\n   python tools/train_net.py" in process.stdout


def test_train_on_voc_from_outside(drive):
    _, calls = drive(
        "train_CIM",
        "run.seed",
        "7",
        cfg_file="configs/resnet50_voc.yaml",
        dataset="voc2012trainaug",
        output_file="Outputs/mine",
        iter_time="100",
        data_root="/big disk",
    )
    data = "--dataset voc2012trainaug --data-root /big disk"
    assert [call.split()[0] for call in calls] == [
        "tools/make_proposals.py",
        "tools/train_prm.py",
        "tools/assign_clusters.py",
        "tools/train_net.py",
    ]
    assert calls[-1] == (
        f"tools/train_net.py --cfg configs/resnet50_voc.yaml {data} --output Outputs/mine "
        "--set run.seed 7 solver.max_iter 100"
    )


def test_train_with_points_needs_no_peak_response_network(drive):
    _, calls = drive("train_CIM", points="data/points", dataset="voc2012trainaug")
    tools = [call.split()[0] for call in calls]
    assert "tools/train_prm.py" not in tools
    assert "--points data/points" in calls[tools.index("tools/assign_clusters.py")]


def test_several_gpus(drive):
    process, calls = drive("train_CIM", gpus="4")
    assert process.returncode == 0, process.stderr
    launch = "tools/launch.py --standalone --nproc-per-node 4"
    assert calls[-1].startswith(f"{launch} tools/train_net.py --cfg ")
    assert not any("launch.py" in call for call in calls[:-1])
    for script in ("eval_CIM", "generate_msrcnn_label"):
        _, calls = drive(script, gpus="4", output_file="Outputs/a")
        assert [c for c in calls if "launch.py" in c] == [calls[-2]]
        assert calls[-2].startswith(f"{launch} tools/test_net.py ")
    _, calls = drive("refine_msrcnn", gpus="4", output_file="Outputs/a")
    together = [call.removeprefix(launch).split()[0] for call in calls if call.startswith(launch)]
    assert together == [f"tools/{n}.py" for n in ("test_net", "train_mask_rcnn", "test_mask_rcnn")]


def test_several_machines(drive):
    process, calls = drive("train_CIM", nnodes="2", gpus="8", output_file="Outputs/a")
    assert process.returncode != 0
    assert "nnodes= needs rdzv=host:port" in process.stderr
    meet = {"nnodes": "2", "gpus": "8", "rdzv": "first:29400"}
    process, calls = drive("train_CIM", **meet)
    assert process.returncode != 0
    assert "nnodes= needs output_file=" in process.stderr
    assert not calls
    process, calls = drive("train_CIM", **meet, output_file="Outputs/a")
    assert process.returncode == 0, process.stderr
    (call,) = calls  # what it needs was made before
    assert call.startswith(
        "tools/launch.py --nproc-per-node 8 --nnodes 2 --rdzv-backend c10d "
        "--rdzv-id cim --rdzv-endpoint first:29400 tools/train_net.py --cfg "
    )
    _, calls = drive("train_CIM", prepare_only="yes")
    assert calls[-1].startswith("tools/assign_clusters.py")
    _, calls = drive("eval_CIM", **meet, output_file="Outputs/a")
    assert [c.split(" --")[0] for c in calls] == ["tools/launch.py", "tools/evaluate.py"]
    _, calls = drive("refine_msrcnn", **meet, output_file="Outputs/a")
    assert [c.split(" --")[0].removeprefix("tools/") for c in calls] == [
        "launch.py",
        "generate_pseudo_labels.py",
        "launch.py",
        "launch.py",
        "evaluate.py",
    ]


def test_own_data(drive):
    _, calls = drive("train_CIM", json="my.json", images="pictures")
    assert len(calls) == 4  # no embedded data set
    assert all("--json my.json --images pictures" in call for call in calls)
    process, calls = drive("train_CIM", json="my.json")
    assert process.returncode != 0
    assert "json= needs images=" in process.stderr
    assert not calls


def test_own_images_with_labels(drive):
    _, calls = drive("train_CIM", images="my pictures", labels="l.csv", name="mine")
    assert len(calls) == 4
    assert all("--images my pictures --labels l.csv --name mine --data-root" in c for c in calls)
    process, calls = drive("train_CIM", labels="l.csv")
    assert process.returncode != 0
    assert "labels= needs images=" in process.stderr
    assert not calls


def test_a_failing_step_ends_it(drive):
    process, calls = drive("train_CIM", failing="train_prm.py")
    assert process.returncode != 0
    assert calls[-1].startswith("tools/train_prm.py")


def test_eval(drive):
    process, calls = drive("eval_CIM", output_file="Outputs/a", iter_time="500")
    assert process.returncode == 0, process.stderr
    config = "--cfg Outputs/a/config.yaml"
    data = "--dataset shapes_test --data-root data"
    assert calls == [
        "tools/make_shapes.py --root data",
        f"tools/make_proposals.py {config} {data} --set",
        f"tools/test_net.py {config} --run Outputs/a --step 500 {data} --set",
        f"tools/evaluate.py {config} --run Outputs/a {data} --per-class --set",
    ]


def test_eval_on_coco(drive):
    _, calls = drive("eval_CIM", output_file="Outputs/a", dataset="coco2017val")
    assert "--coco" in calls[-1].split()
    process, calls = drive("eval_CIM", output_file="Outputs/a", dataset="coco2017test")
    assert process.returncode == 0
    data = "--dataset coco2017test --data-root data"
    assert calls[-2].startswith("tools/test_net.py")
    assert calls[-1] == f"tools/make_submission.py --run Outputs/a {data}"
    assert "COCO's server" in process.stdout


def test_pseudo_labels(drive):
    _, calls = drive("generate_msrcnn_label", "test.flips", "[none]", output_file="Outputs/a")
    data = "--dataset shapes_train --data-root data"
    assert calls[-2:] == [
        f"tools/test_net.py --cfg Outputs/a/config.yaml --run Outputs/a {data} --image-labels "
        "--set test.flips [none]",
        f"tools/generate_pseudo_labels.py --run Outputs/a {data} --score-thresh 0.3 "
        "--segmentation compressed",
    ]


def test_refinement(drive):
    process, calls = drive("refine_msrcnn", "run.seed", "7", output_file="Outputs/a")
    assert process.returncode == 0, process.stderr
    config = "--cfg Outputs/a/config.yaml"
    train = "--dataset shapes_train --data-root data"
    test = "--run Outputs/a/mask_rcnn --dataset shapes_test --data-root data"
    assert calls[-4:] == [
        f"tools/generate_pseudo_labels.py --run Outputs/a {train} --score-thresh 0.3 "
        "--segmentation compressed",
        f"tools/train_mask_rcnn.py {config} --run Outputs/a {train} --set run.seed 7",
        f"tools/test_mask_rcnn.py {config} {test} --set run.seed 7",
        f"tools/evaluate.py {config} {test} --per-class --set run.seed 7",
    ]


def test_refinement_of_own_data(drive):
    own = {"json": "my.json", "images": "pictures", "output_file": "Outputs/a"}
    test = {"test_json": "held.json", "test_images": "held"}
    _, calls = drive("refine_msrcnn", **own, **test, score_thresh="0.5")
    assert "--json my.json --images pictures" in calls[-3]
    assert "--score-thresh 0.5" in calls[-4]
    assert "--json held.json --images held" in calls[-2]
    process, calls = drive("refine_msrcnn", **own, test_dataset="coco2017test")
    assert process.returncode == 0
    assert calls[-1].startswith("tools/test_mask_rcnn.py")


def test_pictures(drive):
    _, calls = drive("visual_result_mmcv", "--limit", "3", output_file="Outputs/a")
    data = "--dataset shapes_test --data-root data"
    assert calls == [f"tools/visualize.py --run Outputs/a {data} --limit 3"]
    _, calls = drive("visual_result_mmcv", output_file="Outputs/a", iter_time="500")
    assert [call.split()[0] for call in calls] == ["tools/test_net.py", "tools/visualize.py"]
    _, calls = drive("visual_result_mmcv", "--gallery", "--limit", "3", output_file="Outputs/a")
    assert calls == [f"tools/gallery.py --run Outputs/a {data} --limit 3"]
    _, calls = drive("visual_result_mmcv", "--detections", "some.json", dataset="coco2017val")
    assert calls == [
        "tools/visualize.py --dataset coco2017val --data-root data --detections some.json"
    ]


@pytest.fixture
def project(tmp_path):
    """Another place with the same scripts and no Outputs."""
    scripts = tmp_path / "project" / "scripts"
    scripts.mkdir(parents=True)
    for path in (ROOT / "scripts").glob("*.sh"):
        (scripts / path.name).write_bytes(path.read_bytes())
    return scripts.parent


def test_without_a_run_they_say_what_to_do(project, drive):
    process, calls = drive("eval_CIM", root=project)
    assert process.returncode != 0
    assert "error: Outputs: no run with a checkpoint" in process.stderr
    assert not calls


def test_the_newest_run_is_found(project, drive):
    for age, name in ((2, "old"), (1, "new")):
        run = project / "Outputs" / "small" / name
        (run / "ckpt").mkdir(parents=True)
        (run / "ckpt" / "model_step5.pth").touch()
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (1e9 - age, 1e9 - age))
    _, calls = drive("visual_result_mmcv", root=project)
    assert calls[0].startswith("tools/visualize.py --run Outputs/small/new ")
