"""The steps that each driver of scripts/ runs, from the variables that it is given.

The head of each script says what its variables mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lib.config import load_config
from lib.engine.runs import newest_run
from lib.pipeline.steps import Chain, Step, Words
from lib.refine.second_stage import check_network

_DATA = ("dataset", "json", "images", "labels", "name", "data_root")
_TEST = (*_DATA, "output_file", "cfg_file", "iter_time")
_RUN = (*_TEST, "gpus", "nnodes", "rdzv")
_LABELS = (*_RUN, "select", "score_thresh", "segmentation")
VARIABLES = {
    "train_CIM": (*_RUN, "points", "prepare_only", "overwrite"),
    "eval_CIM": _RUN,
    "generate_msrcnn_label": _LABELS,
    "refine_msrcnn": (
        *(*_LABELS, "corrected", "rounds", "test_dataset", "test_json", "test_images", "overwrite"),
    ),
    "visual_result_mmcv": _TEST,
}
"""The variables that each driver reads."""
_SURE = ("pseudo_labels.relative_thresh", "0.7")
"""Of the best score in an image. A second stage is surer than CIM: what it gives less is more often
wrong."""
_SNAPPED = ("pseudo_labels.snap_iou", "0.7")
"""Of labels to train on again. A network's outlines are wrong in the same way everywhere, which the
next one would learn; those of proposals are wrong in many ways."""


def driver_steps(driver: str, given: Mapping[str, str], words: Sequence[str]) -> list[Step]:
    """The steps that a driver runs.

    Args:
        given: variables by name; others than those in VARIABLES and empty ones do not count.
        words: overrides of the configuration; for `visual_result_mmcv` options of the tool.

    Raises:
        ValueError: variables are missing.
        FileNotFoundError: no run is named and there is none.
    """
    given = {name: given[name] for name in VARIABLES[driver] if given.get(name)}
    if "overwrite" in VARIABLES[driver] and "--overwrite" in words:  # as the tools call it
        given["overwrite"], words = "yes", [word for word in words if word != "--overwrite"]
    if driver == "refine_msrcnn" and "labels" in given and _data_is_named(given):
        if "corrected" in given:
            raise ValueError("labels= and corrected= are both corrected labels here; give one")
        given["corrected"] = given.pop("labels")
    words = tuple(words)
    if driver == "train_CIM":
        return _train(given, words)
    if driver == "visual_result_mmcv":
        return _pictures(given, words)
    chain = _of_run(given, words, "shapes_test" if driver == "eval_CIM" else "shapes_train")
    if driver == "refine_msrcnn":
        return _refine(given, chain)
    goal = _goal(chain) if driver == "eval_CIM" else "pseudo_labels"
    return chain.to(goal, done=[*_done(chain, given), "train"])


def _train(given: Mapping[str, str], words: Words) -> list[Step]:
    if "iter_time" in given:
        words = (*words, "solver.max_iter", given["iter_time"])
    chain = replace(
        _data(given, "shapes_train"),
        cfg=Path(given.get("cfg_file", "configs/resnet18_shapes.yaml")),
        overrides=words,
        run=Path(given["output_file"]) if "output_file" in given else None,
        launch=_launch(given),
        overwrite="overwrite" in given,
        options={"prm": ("--if-needed",)},
    )
    done = _done(chain, given)
    if _on_several_machines(given):
        if chain.run is None:
            raise ValueError("nnodes= needs output_file=, a run folder that all machines see")
        done += ["prm", "clusters"]
    elif "points" in given:
        chain = replace(chain, options={"clusters": ("--points", given["points"])})
        done += ["prm"]
    return chain.to("clusters" if "prepare_only" in given else "train", done=done)


def _refine(given: Mapping[str, str], chain: Chain) -> list[Step]:
    cfg = chain.cfg if chain.cfg.is_file() else None  # the tools say that it is missing
    network = load_config(cfg, chain.overrides).refine.model.network
    check_network(network)
    corrected = ("--corrected", given["corrected"]) if "corrected" in given else ()
    chain = replace(chain, options={**chain.options, "refine": corrected})
    steps = chain.to("refine", done=[*_done(chain, given), "train"])
    run = chain.run / network
    for number in range(2, _rounds(given) + 1):
        steps += _relabel(chain, run, (*_SURE, *_SNAPPED))
        labels = replace(chain, run=run).result("relabel")
        run = chain.run / f"{network}_{number}"
        words = (*corrected, "--pseudo-labels", str(labels), "--output", str(run))
        again = replace(chain, options={**chain.options, "refine": words})
        steps += again.to("refine", done=["pseudo_labels"])
    if {"images", "json"} & given.keys() and not any(name.startswith("test_") for name in given):
        return steps + _relabel(chain, run, _SURE)
    test = _data(given, "shapes_test", "test_")
    test = replace(test, cfg=chain.cfg, overrides=chain.overrides, run=run, launch=chain.launch)
    steps += test.to("refine_test")
    return steps if _goal(test) == "submission" else steps + test.to("evaluate", done=["test"])


def _relabel(chain: Chain, run: Path, how: Words) -> list[Step]:
    """The steps to the labels that the network of `run` gives the training images."""
    own = replace(chain, run=run)
    labels = replace(own, overrides=(*how, *own.overrides))
    return [*own.to("refine_test"), *labels.to("relabel")]


def _rounds(given: Mapping[str, str]) -> int:
    rounds = given.get("rounds", "1")
    if not rounds.isdigit() or int(rounds) < 1:
        raise ValueError(f"rounds={rounds}, expected the number of trainings: 1 or more")
    return int(rounds)


def _pictures(given: Mapping[str, str], words: Words) -> list[Step]:
    goal = "gallery" if words[:1] == ("--gallery",) else "pictures"
    words = words[1:] if goal == "gallery" else words
    whose = _data(given, "shapes_test") if "--detections" in words else _of_run(given, ())
    chain = replace(whose, options={**whose.options, goal: words})
    return chain.to(goal, done=["proposals", "train", *([] if "iter_time" in given else ["test"])])


def _data(given: Mapping[str, str], default: str, prefix: str = "") -> Chain:
    """A chain of the data set that the variables name, those that begin with `prefix`."""
    root = Path(given.get("data_root", "data"))
    dataset, json, labels, images, named = (
        given.get(prefix + variable) for variable in ("dataset", "json", "labels", "images", "name")
    )
    if json is None and labels is None:
        name = dataset or default
        words = ("--dataset", name)
    elif images is None:
        kind = "json" if json else "labels"
        raise ValueError(f"{prefix}{kind}= needs {prefix}images=, the folder of the images")
    elif json is not None:
        name, words = named or Path(json).stem, ("--json", json, "--images", images)
    else:
        name = named or Path(images).resolve().name
        words = ("--images", images, "--labels", labels)
    words += ("--name", named) if named else ()
    of_coco = ("--coco",) if name.startswith("coco") else ()
    return Chain(name, words, root, options={"evaluate": ("--per-class", *of_coco)})


def _data_is_named(given: Mapping[str, str]) -> bool:
    """Whether the variables name the data set by others than `labels`."""
    return "images" not in given or "json" in given or "dataset" in given


def _of_run(given: Mapping[str, str], overrides: Words, default: str = "shapes_test") -> Chain:
    """A chain of a trained run: the one named, or the newest."""
    try:
        run = Path(given["output_file"]) if "output_file" in given else newest_run(Path("Outputs"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or set output_file=RUN_FOLDER") from None
    at = ("--step", given["iter_time"]) if "iter_time" in given else ()
    labels = ("--segmentation", given.get("segmentation", "compressed"))
    for variable in ("select", "score_thresh"):
        if variable in given:
            labels += (f"--{variable.replace('_', '-')}", given[variable])
    chain = _data(given, default)
    return replace(
        chain,
        cfg=Path(given.get("cfg_file", run / "config.yaml")),
        overrides=overrides,
        run=run,
        launch=_launch(given),
        overwrite="overwrite" in given,
        options={**chain.options, "test": at, "masks": at, "pseudo_labels": labels},
    )


def _goal(chain: Chain) -> str:
    return "submission" if chain.name == "coco2017test" else "evaluate"


def _done(chain: Chain, given: Mapping[str, str]) -> list[str]:
    """Steps that are not this command's: on several machines one of them has made the proposals."""
    if _on_several_machines(given):
        return ["shapes", "proposals"]
    embedded = chain.data[0] == "--dataset" and chain.name.startswith("shapes_")
    return [] if embedded else ["shapes"]


def _on_several_machines(given: Mapping[str, str]) -> bool:
    return given.get("nnodes", "1") != "1"


def _launch(given: Mapping[str, str]) -> Words:
    gpus = given.get("gpus", "1")
    if _on_several_machines(given):
        if "rdzv" not in given:
            raise ValueError("nnodes= needs rdzv=host:port, where the machines meet")
        return (
            *("tools/launch.py", "--nproc-per-node", gpus, "--nnodes", given["nnodes"]),
            *("--rdzv-backend", "c10d", "--rdzv-id", "cim", "--rdzv-endpoint", given["rdzv"]),
        )
    if gpus == "1":
        return ()
    return ("tools/launch.py", "--standalone", "--nproc-per-node", gpus)
