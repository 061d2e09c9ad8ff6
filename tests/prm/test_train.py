import math

import cv2
import numpy as np
import pytest
import torch

from lib.config import PRMConfig
from lib.data.coco import ImageRecord
from lib.prm import train
from lib.prm.images import SquareImages, iterate_batches
from lib.prm.network import PeakResponseNet
from lib.prm.train import (
    average_precisions,
    epoch_batches,
    is_finished,
    prm_made_from,
    scaled_base_lr,
    score_images,
    train_prm,
)

TRUNK = {"widths": [8, 16], "depths": [1, 1], "strides": [1, 2], "stem_pool": False}
RECIPE = PRMConfig(
    epochs=4, images_per_update=4, base_lr=0.05, backbone_lr_factor=1.0, schedule="cosine"
)


def make_images(folder, count: int = 12, **options) -> SquareImages:
    """Grey noise with a red square (class 0), a green one (class 1), or both."""
    rng = np.random.default_rng(0)
    records = []
    for n in range(count):
        image = rng.integers(60, 90, size=(40, 56, 3), dtype=np.uint8)
        labels = np.array([n % 3 != 1, n % 3 != 0], np.float32)
        for c in np.flatnonzero(labels):
            y, x = rng.integers(4, 20), rng.integers(4, 14) + 22 * c
            image[y : y + 14, x : x + 14, 2 - c] = 230  # OpenCV writes BGR
        cv2.imwrite(str(folder / f"{n}.png"), image)
        records.append(ImageRecord(n, f"{n}.png", 40, 56, labels))
    return SquareImages(records, folder, 32, **options)


def make_net() -> PeakResponseNet:
    torch.manual_seed(0)
    return PeakResponseNet(2, PRMConfig(backbone="resnet18", backbone_args=TRUNK, upsample=2))


def test_training_learns_what_is_in_the_images(tmp_path):
    images = make_images(tmp_path)
    net = make_net()
    recipe = RECIPE.model_copy(update={"epochs": 12})
    train_prm(net, images, recipe, 3, tmp_path / "state.pth", {})
    scores = score_images(net, images, batch_size=5)
    assert scores.shape == (12, 2)
    np.testing.assert_array_equal(average_precisions(scores, images.image_labels.numpy()), 1.0)


def test_interrupted_training_ends_with_the_same_numbers(tmp_path, monkeypatch):
    images = make_images(tmp_path)
    whole = make_net()
    train_prm(whole, images, RECIPE, 3, tmp_path / "whole.pth", {"data": 1})

    real, calls = train.class_scores, []

    def interrupted(response):
        calls.append(None)
        if len(calls) == 8:  # in the middle of the third epoch of three updates
            raise KeyboardInterrupt
        return real(response)

    monkeypatch.setattr(train, "class_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_prm(make_net(), images, RECIPE, 3, tmp_path / "part.pth", {"data": 1})
    resumed = make_net()
    train_prm(resumed, images, RECIPE, 3, tmp_path / "part.pth", {"data": 1})
    assert len(calls) == 8 + 6
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name

    other = (images, RECIPE, 3, tmp_path / "part.pth", {"data": 2})
    with pytest.raises(ValueError, match="part.pth: begun from something else: data was 1, is 2"):
        train_prm(make_net(), *other)
    train_prm(make_net(), *other, overwrite=True)
    assert len(calls) == 8 + 6 + 12


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    images = make_images(tmp_path)
    images.image_labels[:] = 1
    net = make_net()
    net.classifier[0].weight.data.fill_(math.inf)
    with pytest.raises(FloatingPointError, match=r"epoch 1.*\d\.png.*prm\.base_lr"):
        train_prm(net, images, RECIPE, 3, tmp_path / "state.pth", {})
    assert not (tmp_path / "state.pth").exists()


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no images with labels"):
        train_prm(make_net(), SquareImages([], tmp_path, 32), RECIPE, 3, tmp_path / "state.pth", {})


def test_epochs_are_drawn_from_seed_and_epoch():
    recipe = PRMConfig(images_per_update=4, flips=("none", "vertical", "both"))
    first = epoch_batches(11, recipe, 5, epoch=0)
    assert first == epoch_batches(11, recipe, 5, epoch=0)
    assert first != epoch_batches(11, recipe, 5, epoch=1)
    assert first != epoch_batches(11, recipe, 6, epoch=0)
    assert [len(indices) for indices, _ in first] == [len(flips) for _, flips in first] == [4, 4]
    assert len({index for indices, _ in first for index in indices}) == 8
    drawn = {
        f for epoch in range(9) for _, flips in epoch_batches(11, recipe, 5, epoch) for f in flips
    }
    assert drawn == {"none", "vertical", "both"}
    (few,) = epoch_batches(3, recipe, 5, epoch=0)
    assert sorted(few[0]) == [0, 1, 2]


def test_learning_rate():
    assert train._lr_factor("constant", 0.7) == 1
    assert train._lr_factor("cosine", 0) == 1
    assert train._lr_factor("cosine", 0.5) == pytest.approx(0.5)
    assert train._lr_factor("cosine", 1) == pytest.approx(0)


def slow_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    order = np.argsort(-scores)
    hits, total = 0, 0.0
    for rank, n in enumerate(order, start=1):
        if labels[n]:
            hits += 1
            total += hits / rank
    return total / hits


def test_the_rate_grows_with_the_classes_where_that_is_wanted():
    assert scaled_base_lr(PRMConfig(base_lr=0.02), num_classes=80) == 0.02
    recipe = PRMConfig(base_lr=0.02, base_lr_classes=7)
    assert [scaled_base_lr(recipe, n) for n in (2, 7, 70)] == [0.02, 0.02, pytest.approx(0.2)]


def test_average_precision():
    scores = np.array([[0.9, 1.0, 0.0], [0.8, 1.0, 0.0], [0.7, 1.0, 0.0], [0.6, 1.0, 0.0]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
    # Ranks 1 and 3: (1 + 2/3) / 2. All equal: the one hit is as good as the fourth. No image: NaN.
    np.testing.assert_allclose(average_precisions(scores, labels), [5 / 6, 0.25, np.nan])
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(30, 4)), rng.integers(2, size=(30, 4))
    expected = [slow_average_precision(scores[:, c], labels[:, c]) for c in range(4)]
    np.testing.assert_allclose(average_precisions(scores, labels), expected)


@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_squeezed_mirrored_and_normalised(tmp_path, limit, workers):
    images = make_images(tmp_path, count=3, memory_limit=limit)
    assert images.keeps == bool(limit)
    batches = [([2, 0], ["none", "horizontal"]), ([1, 1], ["vertical", "both"])]
    for _ in range(2):
        first, second = iterate_batches(images, batches, workers)
        assert first.shape == second.shape == (2, 3, 32, 32)
        plain = images.batch([0, 1], ["none", "none"])
        torch.testing.assert_close(first[1], plain[0].flip(2))
        torch.testing.assert_close(second[0], plain[1].flip(1))
        torch.testing.assert_close(second[1], plain[1].flip(1, 2))
    square = cv2.resize(cv2.imread(str(tmp_path / "2.png"))[..., ::-1], (32, 32)) / 255
    expected = (square - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(first[0].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(tmp_path, workers):
    images = make_images(tmp_path, count=3, memory_limit=0)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:-40])
    with pytest.raises(ValueError) as caught:
        list(iterate_batches(images, [([0, 1], ["none", "none"])], workers))
    assert str(caught.value).startswith(f"{tmp_path / '1.png'}: the image is")


def test_the_record_tells_trainings_apart(tmp_path):
    records = make_images(tmp_path, count=3).records
    content = {record.file_name: f"content {n}" for n, record in enumerate(records)}
    before = prm_made_from(RECIPE, 3, records, content)
    assert prm_made_from(RECIPE, 3, make_images(tmp_path, count=3).records, content) == before
    same = RECIPE.model_copy(update={"peak_thresh": 3.0})  # of the clusters alone
    assert prm_made_from(same, 3, records, content) == before
    (tmp_path / "weights.pth").write_text("weights")
    others = [
        prm_made_from(RECIPE.model_copy(update={"epochs": 5}), 3, records, content),
        prm_made_from(RECIPE, 4, records, content),
        prm_made_from(RECIPE, 3, records[:2], content),
        prm_made_from(RECIPE, 3, records[::-1], content),
        prm_made_from(RECIPE, 3, records, {**content, "1.png": "another"}),
    ]
    weights = RECIPE.model_copy(update={"weights": str(tmp_path / "weights.pth")})
    others.append(prm_made_from(weights, 3, records, content))
    (tmp_path / "weights.pth").write_text("others")
    others.append(prm_made_from(weights, 3, records, content))
    records[1].image_labels[0] = 1 - records[1].image_labels[0]
    others.append(prm_made_from(RECIPE, 3, records, content))
    assert all(record != before for record in others) and others[-2] != others[-3]


def test_what_is_finished_and_up_to_date(tmp_path, caplog):
    path = tmp_path / "prm.pth"
    assert not is_finished(path, {}, 2, overwrite=False)
    made_from = {"image_labels": "a", "run": {"seed": 3}}
    content = {"model": make_net().state_dict(), "made_from": made_from}
    torch.save(content, path)
    assert is_finished(path, made_from, 2, overwrite=False)
    assert is_finished(path, made_from, 2, overwrite=True)
    assert not caplog.text
    other = {**made_from, "run": {"seed": 4}}
    for now, num_classes, fault in (
        (other, 2, "made from something else: run.seed was 3, is 4"),
        (made_from, 3, "a PRM of 2 classes, the data set has 3"),
    ):
        with pytest.raises(ValueError, match=f"{fault}; give --overwrite to train anew"):
            is_finished(path, now, num_classes, overwrite=False)
        assert not is_finished(path, now, num_classes, overwrite=True)
        assert f"{fault}; trained anew" in caplog.text

    torch.save({"model": content["model"], "made_from": {"images and labels": "old"}}, path)
    assert is_finished(path, made_from, 2, overwrite=False)
    assert "does not say what it was made from (published, or of an earlier" in caplog.text
    assert not is_finished(path, made_from, 2, overwrite=True)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a PRM checkpoint"):
        is_finished(path, made_from, 2, overwrite=False)
