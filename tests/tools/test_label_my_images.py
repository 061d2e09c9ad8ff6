"""From a folder of images to masks and a gallery, by the driver, with the real tools."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from lib.data.coco import CocoImages
from lib.data.shapes import make_shapes
from lib.pipeline.drivers import driver_steps
from tools import label_my_images as tool

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
    assert "train         about" in said
    assert "[1/7] proposals (my photos): " in said and "left in all." in said
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
    *given, _, driver = shlex.split(next(n for n in said.splitlines() if "output_file=" in n))
    assert driver == "scripts/refine_msrcnn.sh"
    steps = driver_steps("refine_msrcnn", dict(word.split("=", 1) for word in given), [])
    assert [step.name for step in steps][-3:] == ["refine", "refine_test", "relabel"]
    assert {step.of for step in steps} == {"my photos"}

    made = [out / "ckpt/model_step3.pth", out / "data/prm/my photos.pth"]
    before = [path.stat().st_mtime_ns for path in made]
    again = drive(photos.parent, *arguments, iter_time="3")
    assert again.returncode == 0, again.stderr
    assert [path.stat().st_mtime_ns for path in made] == before
    assert json.loads((out / "pseudo_labels.json").read_text()) == labels

    # Other labels than those that the networks were trained with.
    folders = sorted(path for path in photos.iterdir() if path.is_dir())
    image = next(folders[0].iterdir())
    image.rename(folders[1] / image.name)
    history = (out / "history.jsonl").read_text()
    long = json.dumps({"iteration": 3, "seconds": 1500.0})  # as if it had taken more than an hour
    (out / "history.jsonl").write_text(long + "\n")
    other = drive(photos.parent, *arguments, iter_time="3")
    assert other.returncode == 2
    assert "image_labels changed; give --overwrite to train anew" in other.stderr
    assert [path.stat().st_mtime_ns for path in made] == before
    (out / "history.jsonl").write_text(history)
    anew = drive(photos.parent, *arguments, iter_time="3")
    assert "image_labels changed; trained anew" in anew.stderr
    assert anew.returncode == 0, anew.stderr
    assert all(path.stat().st_mtime_ns != time for path, time in zip(made, before, strict=True))
    labels = json.loads((out / "pseudo_labels.json").read_text())
    names = {category["id"]: category["name"] for category in labels["categories"]}
    (number,) = [i["id"] for i in labels["images"] if i["file_name"].endswith(image.name)]
    of_image = {names[a["category_id"]] for a in labels["annotations"] if a["image_id"] == number}
    assert of_image == {folders[1].name}


@pytest.mark.slow
def test_a_preview_lies_by_itself(photos, tmp_path):
    overrides = [str(word) for pair in SHORT.items() for word in pair]
    words = [f"images={photos}", f"labels={photos}", "output=out", "iter_time=2", "preview=1"]
    process = drive(tmp_path, *words, "cfg_file=configs/custom_scratch.yaml", *overrides)
    said = process.stdout + process.stderr
    assert process.returncode == 0, said
    assert "This was a preview: masks of 12 of 12 images" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"data", "preview"}
    assert {path.name for path in (tmp_path / "out/data").iterdir()} <= {"custom", "fingerprints"}
    preview = tmp_path / "out/preview"
    assert (preview / "ckpt/model_step2.pth").is_file()
    assert (preview / "pseudo_labels.json").is_file() and (preview / "gallery/index.html").is_file()


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


def test_an_output_among_the_images_is_refused(photos, capsys):
    words = ["--images", str(photos), "--labels", str(photos), "--output", str(photos / "out")]
    assert tool.main([*words, "--device", "cpu"]) == 2
    assert "out: the output would lie in" in capsys.readouterr().err
    assert not (photos / "out").exists()


def test_without_weights_the_way_out_is_told(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    words = ["--images", str(photos), "--labels", str(photos), "--output", str(tmp_path / "out")]
    words += ["--device", "cpu"]
    assert tool.main([*words, "--cfg", str(ROOT / "configs/custom.yaml")]) == 2
    said = capsys.readouterr().err
    assert "the ImageNet weights cannot be downloaded" in said
    assert "configs/custom_scratch.yaml" in said


def offline(*args, **kwargs):
    raise OSError("no network")
