"""The drivers of scripts/: what each of them runs, from the variables that it is given.

The head of each script says what its variables mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lib.engine.runs import newest_run
from lib.pipeline.steps import Chain, Step, Words

_DATA = ("dataset", "json", "images", "labels", "name", "data_root")
_SEVERAL = ("gpus", "nnodes", "rdzv")
_RUN = ("output_file", "cfg_file", "iter_time")
VARIABLES = {
    "train_CIM": (*_DATA, *_SEVERAL, *_RUN, "points", "prepare_only", "overwrite"),
    "eval_CIM": (*_DATA, *_SEVERAL, *_RUN),
    "generate_msrcnn_label": (*_DATA, *_SEVERAL, *_RUN, "score_thresh", "segmentation"),
    "refine_msrcnn": (
        *(*_DATA, *_SEVERAL, *_RUN, "score_thresh", "segmentation"),
        *("test_dataset", "test_json", "test_images", "overwrite"),
    ),
    "visual_result_mmcv": (*_DATA, *_RUN),
}
"""The variables that each driver reads."""


def driver_steps(driver: str, given: Mapping[str, str], words: Sequence[str]) -> list[Step]:
    """What a driver runs.

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
    return _DRIVERS[driver](given, tuple(words))


def _train(given: Mapping[str, str], words: Words) -> list[Step]:
    run = given.get("output_file")
    if "iter_time" in given:
        words = (*words, "solver.max_iter", given["iter_time"])
    chain = replace(
        _data(given, "shapes_train"),
        cfg=Path(given.get("cfg_file", "configs/resnet18_shapes.yaml")),
        overrides=words,
        run=Path(run) if run else None,
        launch=_launch(given),
        overwrite="overwrite" in given,
        options={"prm": ("--if-needed",)},
    )
    done = _done(chain, given)
    if _on_several_machines(given):
        if run is None:
            raise ValueError("nnodes= needs output_file=, a run folder that all machines see")
        done += ["prm", "clusters"]
    elif "points" in given:
        chain = replace(chain, options={"clusters": ("--points", given["points"])})
        done += ["prm"]
    return chain.to("clusters" if given.get("prepare_only") else "train", done=done)


def _evaluate(given: Mapping[str, str], words: Words) -> list[Step]:
    chain = _of_run(given, words, "shapes_test")
    return chain.to(_goal(chain), done=[*_done(chain, given), "train"])


def _pseudo_labels(given: Mapping[str, str], words: Words) -> list[Step]:
    chain = _of_run(given, words, "shapes_train")
    return chain.to("pseudo_labels", done=[*_done(chain, given), "train"])


def _refine(given: Mapping[str, str], words: Words) -> list[Step]:
    chain = _of_run(given, words, "shapes_train")
    steps = chain.to("refine", done=[*_done(chain, given), "train"])
    test = _data(given, "shapes_test", "test_")
    test = replace(
        test,
        cfg=chain.cfg,
        overrides=words,
        run=chain.result("refine").parent,
        launch=chain.launch,
        options=_evaluation(test),
    )
    steps += test.to("refine_test")
    return steps if _goal(test) == "submission" else steps + test.to("evaluate", done=["test"])


def _pictures(given: Mapping[str, str], words: Words) -> list[Step]:
    goal = "gallery" if words[:1] == ("--gallery",) else "pictures"
    words = words[1:] if goal == "gallery" else words
    if "--detections" in words:
        chain = _data(given, "shapes_test")
    else:
        chain = _of_run(given, (), "shapes_test")
    chain = replace(chain, options={**chain.options, goal: words})
    return chain.to(goal, done=["proposals", "train", *([] if "iter_time" in given else ["test"])])


_DRIVERS = {
    "train_CIM": _train,
    "eval_CIM": _evaluate,
    "generate_msrcnn_label": _pseudo_labels,
    "refine_msrcnn": _refine,
    "visual_result_mmcv": _pictures,
}


def _data(given: Mapping[str, str], default: str, prefix: str = "") -> Chain:
    """A chain of the data set that the variables name, those that begin with `prefix`."""
    root, name = Path(given.get("data_root", "data")), given.get(f"{prefix}name")
    named = ("--name", name) if name else ()
    json, labels = given.get(f"{prefix}json"), given.get(f"{prefix}labels")
    if json is None and labels is None:
        dataset = given.get(f"{prefix}dataset", default)
        return Chain(dataset, ("--dataset", dataset, *named), root)
    images = given.get(f"{prefix}images")
    if images is None:
        kind = f"{prefix}json" if json else f"{prefix}labels"
        raise ValueError(f"{kind}= needs {prefix}images=, the folder of the images")
    if json is not None:
        return Chain(name or Path(json).stem, ("--json", json, "--images", images, *named), root)
    own = ("--images", images, "--labels", labels, *named)
    return Chain(name or Path(images).resolve().name, own, root)


def _of_run(given: Mapping[str, str], overrides: Words, default: str) -> Chain:
    """A chain of a trained run: the one named, or the newest."""
    run = Path(given["output_file"]) if "output_file" in given else _newest()
    at = ("--step", given["iter_time"]) if "iter_time" in given else ()
    chain = _data(given, default)
    thresh, form = given.get("score_thresh", "0.3"), given.get("segmentation", "compressed")
    return replace(
        chain,
        cfg=Path(given.get("cfg_file", run / "config.yaml")),
        overrides=overrides,
        run=run,
        launch=_launch(given),
        overwrite="overwrite" in given,
        options={
            "test": at,
            "masks": at,
            "pseudo_labels": ("--score-thresh", thresh, "--segmentation", form),
            **_evaluation(chain),
        },
    )


def _newest() -> Path:
    try:
        return newest_run(Path("Outputs"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or set output_file=RUN_FOLDER") from None


def _evaluation(chain: Chain) -> dict[str, Words]:
    coco = ("--coco",) if chain.name.startswith("coco") else ()
    return {"evaluate": ("--per-class", *coco)}


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
