"""The frame of the tools: what they take, how they end, and the data set that is named."""

import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.command_line import (
    IN_CHAIN,
    Command,
    Parser,
    add_dataset_arguments,
    dataset_from_args,
    run_tool,
    say_next,
)
from lib.data.catalog import CATALOG
from lib.data.coco import CocoImages
from tests.small_training import TOOLS, tool


def no_options(parser):
    pass


def outcome(capsys, run, argv=(), **settings):
    code = run_tool("A tool.", Command(run, no_options, **settings), argv)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("a.json: no images"), 2, "error: a.json: no images\n"),
        (FileNotFoundError("b.png: no such file"), 2, "error: b.png: no such file\n"),
        (BrokenProcessPool("..."), 2, "error: a worker process died"),
        (FloatingPointError("the loss is nan"), 1, "error: the loss is nan\n"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted; run the same command again"),
    ],
)
def test_user_errors_end_in_one_line(error, code, text, capsys):
    def run(args):
        raise error

    ended, said = outcome(capsys, run)
    assert ended == code
    assert said.startswith(text) and said.count("\n") == 1


def test_other_errors_and_results_pass_through(capsys):
    assert outcome(capsys, lambda args: 7) == (7, "")
    assert outcome(capsys, lambda args: None) == (0, "")
    with pytest.raises(ZeroDivisionError):
        outcome(capsys, lambda args: 1 / 0)


def test_the_next_tool_is_named_unless_a_chain_goes_on(caplog, monkeypatch):
    caplog.set_level("INFO")
    say_next("tools/evaluate.py --run r")
    assert caplog.messages == ["next: python tools/evaluate.py --run r"]
    monkeypatch.setenv(IN_CHAIN, "yes")
    say_next("tools/evaluate.py --run r")
    assert len(caplog.messages) == 1


def commands():
    def train(args):
        """Train it.

        For 100% of the images.
        """
        return args.number

    def test(args, ranks):
        """Test it."""
        return 10 * ranks.count + args.number

    def options(parser):
        parser.add_argument("--number", type=int, default=3)
        parser.set_defaults(device="cpu")

    return {"train": Command(train, options), "test": Command(test, options, distributed=True)}


def test_commands_are_called_by_name(capsys):
    assert run_tool("A tool.", commands(), ["train", "--number", "4"]) == 4
    assert run_tool("A tool.", commands(), ["test"]) == 13  # a single rank


def test_help_names_the_commands_and_their_options(capsys):
    for argv, texts in (
        (["--help"], ("A tool.", "train", "Train it.", "Test it.")),
        (["train", "--help"], ("Train it.", "For 100% of the images.", "--number", "Exit codes")),
    ):
        with pytest.raises(SystemExit) as ended:
            run_tool("A tool.", commands(), argv)
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert all(text in said for text in texts)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["trian"], "no command is called trian; did you mean train? There are train, test"),
        (["x"], "no command is called x; did you mean"),
        ([], "required: COMMAND"),
    ],
)
def test_a_misspelt_command_names_the_nearest(capsys, argv, text):
    with pytest.raises(SystemExit) as ended:
        run_tool("A tool.", commands(), argv)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(path.stem for path in TOOLS.glob("*.py")))
def test_every_tool_says_what_it_does(file, capsys):
    if file != "launch":  # whose help is torchrun's
        with pytest.raises(SystemExit) as ended:
            tool(file)(["--help"])
        assert ended.value.code == 0
        assert len(capsys.readouterr().out) > 200


def parse(*words, default=None, needs_images=True):
    parser = Parser()
    add_dataset_arguments(parser, default, needs_images)
    return dataset_from_args(parser.parse_args(words))


def test_named_dataset():
    assert parse("--dataset", "shapes_val") == CATALOG["shapes_val"]


def test_data_root_and_overrides():
    dataset = parse("--dataset", "coco2017val", "--data-root", "/d", "--proposals", "p")
    assert dataset.json == Path("/d/coco2017/annotations/instances_val2017.json")
    assert dataset.proposals == Path("p")
    assert dataset.clusters == Path("/d/clusters/coco2017val")
    assert parse("--dataset", "coco2017val", "--clusters", "c").clusters == Path("c")


def test_any_json():
    dataset = parse("--json", "x/mine.json", "--images", "y")
    assert (dataset.name, dataset.json, dataset.images) == ("mine", Path("x/mine.json"), Path("y"))
    assert dataset.prm == Path("data/prm/mine.pth")
    assert parse("--json", "x/mine.json", "--images", "y", "--name", "z").name == "z"


def test_images_are_asked_for_where_they_are_opened():
    assert parse("--json", "x/mine.json", needs_images=False).json == Path("x/mine.json")
    with pytest.raises(ValueError, match="--labels needs --images"):
        parse("--labels", "x.csv", needs_images=False)


def test_default_gives_way():
    assert parse(default="shapes_train").name == "shapes_train"
    assert parse("--dataset", "shapes_val", default="shapes_train").name == "shapes_val"
    assert parse("--json", "a.json", "--images", "y", default="shapes_train").name == "a"


def test_images_and_labels(tmp_path):
    (tmp_path / "my photos").mkdir()
    cv2.imwrite(str(tmp_path / "my photos/a.png"), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "l.csv").write_text("a.png,cat\n")
    words = ["--images", str(tmp_path / "my photos"), "--labels", str(tmp_path / "l.csv")]
    root = ["--data-root", str(tmp_path / "root")]
    dataset = parse(*words, *root, default="shapes_train")
    assert dataset.name == "my photos"
    assert dataset.images == tmp_path / "my photos"
    assert dataset.json == tmp_path / "root/custom/my photos.json"
    assert CocoImages(dataset.json).class_names == ["cat"]
    assert dataset.prm == tmp_path / "root/prm/my photos.pth"
    assert parse(*words, *root, "--name", "b").json == tmp_path / "root/custom/b.json"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --dataset NAME, or --images FOLDER with --json FILE or --labels PATH"),
        (["--images", "y"], "either --dataset NAME, or --images FOLDER with"),
        (["--dataset", "shapes_val", "--json", "x"], "either --dataset NAME, or --images FOLDER"),
        (["--json", "x", "--labels", "y", "--images", "z"], "either --dataset NAME"),
        (["--labels", "x.csv"], "--labels needs --images"),
        (["--labels", "x.csv", "--images", "y/shapes_val"], "name of a known data set"),
        (["--dataset", "shape"], "no data set is called shape; known: shapes_train"),
        (["--dataset", "shapes_val", "--images", "y"], "go with --json or --labels"),
        (["--json", "x.json"], "--json needs --images"),
        (["--json", "x.json", "--images", "y", "--name", "a/b"], "folder's name, got 'a/b'"),
    ],
)
def test_bad_options(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words)
