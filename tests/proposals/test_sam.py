"""Proposals of Segment Anything, by tiny networks with random weights: no real ones are tested."""

import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.measure import label

from lib.config import ConfigError, load_config
from lib.files import read_json, write_json
from lib.proposals import sam
from lib.proposals.rle import mask_to_rle, rle_to_mask
from lib.proposals.sam import Sam, distinct, grid, load_model, without_small_parts
from lib.proposals.store import ProposalStore
from lib.provenance import Memory
from tests.proposals.cases import any_masks
from tests.proposals.test_tools import arguments, data  # noqa: F401
from tests.proposals.tiny_sam import SIDE, save_tiny
from tests.small_training import tool

transformers = pytest.importorskip("transformers")
KINDS = ("sam", "sam2", "sam_hq")
LIMITS = {"pred_iou_thresh": 0.61, "stability_thresh": 0.8}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: save_tiny(kind, root / kind) for kind in KINDS}


def picture(height=40, width=50):
    image = np.full((height, width, 3), (160, 90, 40), np.uint8)
    cv2.circle(image, (width // 3, height // 2), height // 4, (20, 200, 60), -1)
    image[: height // 3, width // 2 :] = (30, 30, 200)
    return image


def masks_by_hand(folder, image, points, pred_iou_thresh=0.0, stability_thresh=0.0):
    """All masks at `points` (x, y in pixels), best first: by transformers as its pages show."""
    model = transformers.AutoModelForMaskGeneration.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(
        images=Image.fromarray(image),
        input_points=[[[[float(x), float(y)]] for x, y in points]],
        return_tensors="pt",
    )
    sizes = {k: v for k, v in inputs.items() if k in ("original_sizes", "reshaped_input_sizes")}
    inputs["input_points"] = inputs["input_points"].float()
    pixels, points = inputs["pixel_values"], inputs["input_points"]
    with torch.no_grad():
        out = model(pixel_values=pixels, input_points=points)
    hard = processor.post_process_masks(out.pred_masks, **sizes)[0].flatten(0, 1)
    soft = processor.image_processor.post_process_masks(out.pred_masks, **sizes, binarize=False)
    soft = soft[0].flatten(0, 1)
    found = []
    for mask, logits, iou in zip(hard, soft, out.iou_scores.flatten(), strict=True):
        stability = (logits > 1).sum() / (logits > -1).sum()
        if iou >= pred_iou_thresh and stability >= stability_thresh and mask.any():
            found.append((float(iou * stability), mask.numpy()))
    return [mask for _, mask in sorted(found, key=lambda one: -one[0])]


def greedily(masks, max_iou):
    kept = []
    for mask in masks:
        if all((mask & k).sum() <= max_iou * (mask | k).sum() for k in kept):
            kept.append(mask)
    return np.array(kept)


def pixels_of_grid(side, image):
    height, width = image.shape[:2]
    centres = (np.arange(side) + 0.5) / side
    return [(x * width, y * height) for y in centres for x in centres]


def made(folder, image, limit=1000, **options):
    options = {"points_per_side": 5, "min_area": 0, **LIMITS, **options}
    return Sam(model=str(folder), **options).open(limit)(image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(40, 50), (90, 70)])
def test_the_masks_are_those_of_the_model_called_by_hand(models, kind, size):
    image = picture(*size)
    by_hand = masks_by_hand(models[kind], image, pixels_of_grid(5, image), **LIMITS)
    wanted = greedily(by_hand, 0.8)
    assert 2 <= len(wanted) < len(by_hand)  # limits and duplicates count
    found = made(models[kind], image)
    assert found.size == size
    np.testing.assert_array_equal(found.masks(), wanted)
    np.testing.assert_array_equal(made(models[kind], image, limit=2).masks(), wanted[:2])


@pytest.mark.parametrize(("kind", "size"), [("sam", (40, 50)), ("sam2", (50, 50))])
def test_the_masks_are_those_of_the_pipeline_of_transformers(models, kind, size):
    """Its duplicates are found by boxes, so none are dropped here; and for an image that is not
    square it asks SAM 2 at points that are not on the grid (5.23)."""
    image = picture(*size)
    pipeline = transformers.pipeline("mask-generation", model=str(models[kind]))
    told = pipeline(
        Image.fromarray(image),
        points_per_crop=5,
        points_per_batch=7,
        pred_iou_thresh=0.61,
        stability_score_thresh=0.8,
        crops_nms_thresh=1.0,
    )
    found = made(models[kind], image, max_iou=1.0, points_per_batch=4).masks()
    assert len(found) == len(told["masks"]) > 3
    assert {mask.tobytes() for mask in found} == {np.asarray(m).tobytes() for m in told["masks"]}


def test_points_of_a_prm_are_prompts_too(models):
    image = picture()
    points = np.array([[0.31, 0.52], [0.8, 0.1]])
    asked = []

    def find_points(seen, count):
        asked.append((seen is image, count))
        return points

    options = Sam(str(models["sam"]), points_per_side=1, prm="prm.pth", min_area=0, **LIMITS)
    found = options.open(100, find_points=find_points)(image).masks()
    prompts = [(25, 20), *(points * (50, 40))]
    wanted = greedily(masks_by_hand(models["sam"], image, prompts, **LIMITS), 0.8)
    np.testing.assert_array_equal(found, wanted)
    assert asked == [(True, 32)]
    alone = made(models["sam"], image, points_per_side=1).masks()
    assert len(alone) < len(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (2, 90), (33, 1)])
def test_tiny_and_grey_images_have_proposals(models, kind, size):
    grey = np.full((*size, 3), 90, np.uint8)
    for limits in (LIMITS, {"pred_iou_thresh": 0, "stability_thresh": 0}):
        found = made(models[kind], grey, **limits)
        assert found.size == size and found.num_proposals >= 1
        assert found.membership.any(axis=1).all()


def test_where_nothing_passes_the_whole_image_is_the_proposal(models):
    found = made(models["sam2"], picture(), pred_iou_thresh=1.0)
    assert found.num_proposals == 1 and found.masks().all()


def test_masks_of_large_images_are_made_small_and_enlarged(models):
    image = picture(80, 100)
    found = made(models["sam"], image, long_side=50, min_area=40)
    assert found.size == (80, 100) and found.num_proposals > 1
    np.testing.assert_array_equal(found.areas, np.bincount(found.labels.ravel()))
    small = found.masks()[:, ::2, ::2]
    np.testing.assert_array_equal(found.masks(), small.repeat(2, axis=1).repeat(2, axis=2))
    whole = made(models["sam"], image).masks()
    best = (small[0].repeat(2, 0).repeat(2, 1) & whole).sum((1, 2)) / whole.sum((1, 2))
    assert best.max() > 0.9  # the same masks, coarser


def test_as_many_points_at_once_as_there_is_memory_for(models, monkeypatch):
    network, processor = load_model(str(models["sam"]), torch.float32)
    asked = []

    def counting(**given):
        asked.append(given["input_points"].shape[1])
        return type(network).forward(network, **given)

    monkeypatch.setattr(network, "forward", counting)
    monkeypatch.setattr(sam, "load_model", lambda *_: (network, processor))
    image = picture()

    def batches(**options):
        asked.clear()
        return made("", image, **options), list(asked)

    plenty, at_once = batches(points_per_batch=10)
    assert at_once == [10, 10, 5]
    embedding = 32 * (SIDE // 8) ** 2 * 4  # bytes
    monkeypatch.setattr(sam, "free_memory", lambda: 2 * 3.5 * sam._POINT_MAPS * embedding)
    short, at_once = batches(points_per_batch=10)
    assert at_once == [3] * 8 + [1]
    np.testing.assert_array_equal(short.masks(), plenty.masks())
    monkeypatch.setattr(sam, "free_memory", lambda: 1.0)
    assert batches()[1] == [1] * 25
    monkeypatch.setattr(sam, "free_memory", lambda: 0.0)  # not known
    assert batches()[1] == [25]


def test_a_gpu_without_memory_is_asked_for_less(models, monkeypatch):
    network, processor = load_model(str(models["sam"]), torch.float32)
    asked = []

    def short(**given):
        asked.append(given["input_points"].shape[1])
        if asked[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return type(network).forward(network, **given)

    monkeypatch.setattr(network, "forward", short)
    monkeypatch.setattr(sam, "load_model", lambda *_: (network, processor))
    limit = 7
    found = made("", picture())
    assert asked == [25, 12, 6, 6, 6, 6, 1]
    np.testing.assert_array_equal(found.masks(), made(models["sam"], picture()).masks())
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        made("", picture())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_finds_nearly_the_same(models, kind):
    """As on a GPU: a CPU is refused it, because it is slow there."""
    network, processor = load_model(str(models[kind]), torch.bfloat16)
    assert next(network.parameters()).dtype == torch.bfloat16
    options = Sam(points_per_side=5, min_area=0, max_iou=0.7, **LIMITS)
    half = sam._Prompted(options, 100, network, processor, None)(picture()).masks()
    whole = made(models[kind], picture(), max_iou=0.7).masks()
    overlap = (half[:, None] & whole).sum((2, 3)) / (half[:, None] | whole).sum((2, 3))
    assert np.mean(overlap.max(axis=0)) > 0.8


def test_the_grid_has_x_first():
    np.testing.assert_allclose(grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert grid(1).tolist() == [[0.5, 0.5]]


def test_small_parts_and_holes():
    rows = [
        "........#.",
        ".#######..",
        ".#.####...",
        ".##.###.##",
        ".#####..##",
        ".######.#.",
        "....#####.",
    ]
    mask = np.array([[c == "#" for c in row] for row in rows])
    cleaned = without_small_parts(mask, 3)
    expected = mask.copy()
    expected[2, 2] = expected[3, 3] = True  # one hole of two pixels that touch at a corner
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(without_small_parts(mask, 2), mask)
    assert not without_small_parts(np.eye(3, dtype=bool), 4).any()
    assert without_small_parts(np.eye(3, dtype=bool), 3).sum() == 3
    assert not without_small_parts(np.zeros((2, 3), bool), 3).any()


@settings(max_examples=60, deadline=None)
@given(any_masks(), st.integers(0, 8))
def test_small_parts_as_scikit_image_finds_them(masks, min_area):
    for mask in masks:
        padded = np.pad(mask, 1)
        for value in (False, True):
            parts = label(padded == value, connectivity=2)
            for number in range(1, parts.max() + 1):
                part = parts == number
                if part.sum() < min_area and not (part[0, 0] and not value):
                    padded[part] = not value
        np.testing.assert_array_equal(without_small_parts(mask, min_area), padded[1:-1, 1:-1])


@settings(max_examples=40, deadline=None)
@given(any_masks(), st.floats(0, 1), st.integers(1, 9), st.integers(1, 5))
def test_duplicates_as_by_pairs(masks, max_iou, limit, together):
    masks = masks[masks.any(axis=(1, 2))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam, "_TOGETHER", together)
        kept = distinct([mask_to_rle(mask) for mask in masks], max_iou, limit)
    wanted = []
    for mask in masks:
        ious = [(mask & k).sum() / (mask | k).sum() for k in wanted]
        if len(wanted) < limit and all(iou <= max_iou for iou in ious):
            wanted.append(mask)
    assert [rle_to_mask(rle).tobytes() for rle in kept] == [mask.tobytes() for mask in wanted]


# The tool


def sam_settings(folder, *more):
    options = (
        *("generator", "sam", "sam.model", str(folder), "sam.points_per_side", "4"),
        *("sam.pred_iou_thresh", "0.6", "sam.stability_thresh", "0.8", "sam.min_area", "4"),
    )
    named = [f"proposals.{word}" if n % 2 == 0 else word for n, word in enumerate(options)]
    return ["--device", "cpu", "--set", *named, *more]


def stored(data):  # noqa: F811
    store = ProposalStore(data / "store")
    return store.stored(["a/1.png", "a/2.png", "b/1.png"], Memory(data / "root"))


def test_make_resumes_and_says_what_was_used(models, data, caplog, monkeypatch):  # noqa: F811
    caplog.set_level("INFO")
    make, words = tool("proposals make"), sam_settings(models["sam"])
    assert make(arguments(data, *words)) == 0
    assert "s for the first of 3 images: about " in caplog.text
    whole = {name: entry.fingerprint for name, entry in stored(data).items()}
    assert len(whole) == 3 and "proposal alone" not in caplog.text
    record = stored(data)["a/1.png"].made_from["settings"]
    assert record["generator"] == "sam" and record["model"] == "sam" and record["files"]
    assert record["masks_seen"] == "sam was trained with masks"
    shutil.rmtree(data / "store")

    save = ProposalStore.save

    def interrupted(self, name, *rest):
        if name == "a/2.png":
            raise KeyboardInterrupt
        save(self, name, *rest)

    monkeypatch.setattr(ProposalStore, "save", interrupted)
    assert make(arguments(data, *words)) == 130
    assert list(stored(data)) == ["a/1.png"]
    monkeypatch.setattr(ProposalStore, "save", save)
    assert make(arguments(data, *words)) == 0
    assert {name: entry.fingerprint for name, entry in stored(data).items()} == whole


def test_make_again_only_what_would_be_other(models, data, tmp_path, caplog):  # noqa: F811
    caplog.set_level("INFO")
    moved = shutil.copytree(models["sam2"], tmp_path / "elsewhere/sam2")

    def remade(folder, *more):
        caplog.clear()
        assert tool("proposals make")(arguments(data, *sam_settings(folder, *more))) == 0
        return "s for the first of 3 images" in caplog.text

    assert remade(models["sam2"])
    assert not remade(moved)
    assert not remade(moved, "proposals.sam.points_per_batch", "2")
    assert remade(moved, "proposals.sam.max_iou", "0.5")
    assert "settings.max_iou was 0.8, is 0.5 (3)" in caplog.text
    config = read_json(moved / "processor_config.json")
    write_json(moved / "processor_config.json", {**config, "told": 1})
    assert remade(moved, "proposals.sam.max_iou", "0.5")
    assert "settings.files changed (3)" in caplog.text
    assert tool("proposals make")(arguments(data)) == 0
    assert "proposals of 3 of 3 images are out of date and made anew" in caplog.text


def test_limits_that_nothing_passes_are_told(models, data, caplog):  # noqa: F811
    words = sam_settings(models["sam2"], "proposals.sam.stability_thresh", "1.0")
    words += ["proposals.sam.pred_iou_thresh", "1.0"]
    assert tool("proposals make")(arguments(data, *words)) == 0
    assert "3 images have one proposal alone; are the limits of sam high?" in caplog.text


def test_images_turned_by_exif(models, data):  # noqa: F811
    path = data / "images/a/1.jpg"
    turned = Image.new("RGB", (30, 50), (90, 20, 160))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter
    turned.save(path, exif=exif)
    content = read_json(data / "squares.json")
    content["images"] = [{"id": 1, "file_name": "a/1.jpg", "height": 30, "width": 50}]
    content["annotations"] = []
    write_json(data / "squares.json", content)
    assert tool("proposals make")(arguments(data, *sam_settings(models["sam"]))) == 0
    assert ProposalStore(data / "store").load_regions("a/1.jpg").size == (30, 50)


def test_show_draws_them(models, data):  # noqa: F811
    image, output = str(data / "images/a/1.png"), data / "sheet.png"
    words = [image, "--output", str(output), "--count", "2", *sam_settings(models["sam"])]
    assert tool("proposals show")(words) == 0
    assert cv2.imread(str(output)).shape[1] >= 3 * 160


# What is wrong is said before anything long


def failing(data, capsys, folder, *more, before=()):  # noqa: F811
    assert tool("proposals make")(arguments(data, *before, *sam_settings(folder, *more))) == 2
    told = capsys.readouterr().err.strip().split("\n")[-1]
    assert told.startswith("error: ")
    assert not (data / "store").exists()
    return told


def test_models_that_cannot_be_used(models, data, capsys, tmp_path, monkeypatch):  # noqa: F811
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} has no config.json" in failing(data, capsys, empty)
    write_json(empty / "config.json", {"model_type": "sam"})
    assert f"{empty} has no *.safetensors or *.bin" in failing(data, capsys, empty)

    other = shutil.copytree(models["sam"], tmp_path / "other")
    write_json(other / "config.json", {**read_json(other / "config.json"), "model_type": "bert"})
    told = failing(data, capsys, other)
    assert "is a model of type bert, which makes no masks from points" in told and "sam2" in told

    broken = shutil.copytree(models["sam"], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"broken")
    assert f"{broken} cannot be loaded" in failing(data, capsys, broken)
    shutil.copytree(models["sam2"], broken, dirs_exist_ok=True)
    (broken / "processor_config.json").unlink()
    assert f"{broken} cannot be loaded" in failing(data, capsys, broken)

    from safetensors.torch import load_file, save_file

    part = shutil.copytree(models["sam"], tmp_path / "part")
    weights = load_file(part / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    assert "lacks weights (mask_decoder.iou_token.weight)" in failing(data, capsys, part)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/no-such-model", "no such model", "not/a/folder"):
        told = failing(data, capsys, name)
        assert f"proposals.sam.model: {name} is n" in told


def test_settings_that_cannot_be_used(models, data, capsys, monkeypatch):  # noqa: F811
    folder = models["sam"]
    told = failing(data, capsys, folder, "proposals.sam.dtype", "bfloat16")
    assert "bfloat16 needs a GPU; take float32" in told
    told = failing(data, capsys, folder, "proposals.sam.points", "3")
    assert "unknown key proposals.sam.points; did you mean proposals.sam." in told
    told = failing(data, capsys, folder, "proposals.sam.max_iou", "3")
    assert "proposals.sam.max_iou: expected a number from 0 to 1, got 3" in told
    told = failing(data, capsys, folder, "proposals.sam.prm", "gone.pth")
    assert "gone.pth: no trained PRM; make it with tools/prm.py train" in told
    told = failing(data, capsys, folder, "proposals.generator", "samba")
    assert "proposals.generator: must be one of trees, sam, got 'samba'" in told
    told = failing(data, capsys, folder, "proposals.features", "true")
    assert "proposals.features: goes with the generator trees alone" in told
    monkeypatch.setitem(sys.modules, "transformers", None)
    told = failing(data, capsys, folder)
    assert "needs the package transformers, which is not installed; pip install" in told


def test_the_config_names_the_generator():
    assert type(load_config().proposals.chosen).__name__ == "Trees"
    assert load_config(None, ["proposals.generator", "sam"]).proposals.chosen == Sam()
    with pytest.raises(ConfigError, match="points_per_side: expected at least 1, got 0"):
        load_config(None, ["proposals.sam.points_per_side", "0"])
