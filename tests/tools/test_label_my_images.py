"""From a folder of images to masks and a gallery, by the driver, with the real tools."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from lib.data.coco import CocoImages
from lib.data.shapes import make_shapes

ROOT = Path(__file__).parents[2]
SHORT = {
    "prm.epochs": 1,
    "prm.images_per_update": 4,
    "solver.images_per_update": 2,
    "proposals.max_proposals": 20,
    "test.flips": ["none"],
    "input.num_workers": 0,
}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("label", ROOT / "tools/label_my_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder for each class, with a space in its name."""
    root = tmp_path_factory.mktemp("label")
    make_shapes(root, seed=3, num_images={"train": 12, "val": 1, "test": 1})
    coco = CocoImages(root / "shapes/annotations/train.json")
    folder = root / "my photos"
    for record in coco.images:
        name = coco.class_names[record.image_labels.argmax()]
        (folder / name).mkdir(parents=True, exist_ok=True)
        image = cv2.imread(str(root / "shapes/train" / record.file_name))
        cv2.imwrite(str(folder / name / record.file_name), image[:64, :80])
    return folder


def drive(folder, *arguments, **variables):
    return subprocess.run(
        ["bash", str(ROOT / "scripts/label_my_images.sh"), *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CIM_VENV": "none",
            "OMP_NUM_THREADS": "1",
            **variables,
        },
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_from_a_folder_to_masks(photos):
    words = ["images=my photos", "labels=my photos", "output=out", "score_thresh=0"]
    overrides = [str(word) for pair in SHORT.items() for word in pair]
    arguments = [*words, "cfg_file=configs/custom_scratch.yaml", *overrides]
    process = drive(photos.parent, *arguments, iter_time="3")
    said = process.stdout + process.stderr
    assert process.returncode == 0, said
    assert "train      about" in said
    assert "[1/7] proposals: " in said and "left in all)" in said
    out = photos.parent / "out"
    assert (out / "ckpt/model_step3.pth").is_file()
    labels = json.loads((out / "pseudo_labels.json").read_text())
    files = {image["id"]: image["file_name"] for image in labels["images"]}
    names = {category["id"]: category["name"] for category in labels["categories"]}
    assert len(files) == 12
    assert labels["annotations"]
    for annotation in labels["annotations"]:
        assert files[annotation["image_id"]].startswith(f"{names[annotation['category_id']]}/")
    assert (out / "gallery/index.html").is_file()

    again = drive(photos.parent, *arguments, iter_time="3")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done before") == 7
    assert "measuring" not in again.stderr
    other = drive(photos.parent, *arguments, iter_time="4")
    assert other.returncode == 2
    assert "was begun with other images, labels or settings; name another --output" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs images= and labels="),
        (["images=x"], "needs images= and labels="),
        (["images=x", "labels=y", "epochs=3"], "no variable is called epochs"),
        (["images=none", "labels=y"], "none: no such folder of images"),
    ],
)
def test_wrong_words(tmp_path, arguments, message):
    process = drive(tmp_path, *arguments)
    assert process.returncode == 2
    assert message in process.stderr


def test_without_weights_the_way_out_is_told(tool, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    words = ["--images", str(photos), "--labels", str(photos), "--output", str(tmp_path / "out")]
    words += ["--device", "cpu"]
    assert tool.main([*words, "--cfg", str(ROOT / "configs/custom_small.yaml")]) == 2
    said = capsys.readouterr().err
    assert "the ImageNet weights cannot be downloaded" in said
    assert "configs/custom_scratch.yaml" in said


def offline(*args, **kwargs):
    raise OSError("no network")


def test_the_number_of_updates_follows_the_images(tool, photos, tmp_path):
    words = ["--images", str(photos), "--labels", str(photos)]
    args = tool.parse(words)
    coco = CocoImages(photos.parent / "shapes/annotations/train.json")
    for cfg in ("custom", "custom_small", "custom_scratch"):
        config = tool.load_config(ROOT / f"configs/{cfg}.yaml")
        settings = tool.scaled_to(coco, config, args)
        assert settings[:4] == ["solver.max_iter", "500", "solver.steps", "[333]"]
        scaled = tool.load_config(ROOT / f"configs/{cfg}.yaml", settings)
        assert scaled.prm.epochs == 300
    coco.images = coco.images * 100
    coco.without_labels = 0
    config = tool.load_config(ROOT / "configs/custom.yaml")
    assert tool.scaled_to(coco, config, args)[:2] == ["solver.max_iter", "5100"]
    small = tool.load_config(ROOT / "configs/custom_small.yaml")
    assert tool.scaled_to(coco, small, args)[:2] == ["solver.max_iter", "3000"]
    with pytest.raises(ValueError, match="at least 1"):
        tool.scaled_to(coco, config, tool.parse([*words, "--updates", "0"]))


def test_labels_that_tell_nothing_are_named(tool, photos, caplog):
    coco = CocoImages(photos.parent / "shapes/annotations/train.json")
    for record in coco.images:
        record.image_labels[:] = 0
        record.image_labels[1] = 1
    tool.warn_of_few(coco)
    assert f"every labelled image shows {coco.class_names[1]}: nothing tells it" in caplog.text
    assert f"no image shows {coco.class_names[0]}" in caplog.text
    assert "12 labelled images are few to learn 5 classes from" in caplog.text


def test_a_plan_is_that_of_the_same_settings(tool, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "estimate_seconds", lambda *_: {"train": 1.0})
    args = tool.parse(["--images", str(photos), "--labels", str(photos), "--output", f"{tmp_path}"])
    args.data_root, args.cfg = str(tmp_path / "data"), "c.yaml"
    dataset = tool.dataset_from_args(args)
    coco = CocoImages(dataset.json)
    seconds = tool.plan(args, tool.load_config(), dataset, coco)
    path = tmp_path / "estimates.json"
    content = json.loads(path.read_text())
    del content["made_from"]["config"]["solver"]["momentum"]  # as an older version may have it
    path.write_text(json.dumps(content))
    monkeypatch.setattr(tool, "estimate_seconds", None)
    assert tool.plan(args, tool.load_config(), dataset, coco) == seconds
    with pytest.raises(ValueError, match="was begun with other images, labels or settings"):
        tool.plan(args, tool.load_config(None, ["run.seed", "99"]), dataset, coco)
