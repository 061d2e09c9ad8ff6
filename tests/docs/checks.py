"""Whether a command that a page shows would be accepted: one check for every kind of program."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from lib.command_line import dataset_from_args
from lib.config import Config, _known_keys, load_config
from lib.pipeline.drivers import VARIABLES, driver_steps
from tests.docs.documents import ROOT
from tests.docs.rehearsal import Call

REGISTER = (
    "if it should be there, register it in tests/docs/checks.py: PROGRAMS for another program, "
    "RUN_FOR_REAL for another tool or script (with the test that runs it), OUTSIDE for a variable "
    "and OUTSIDE_OPTIONS for an option of another program"
)

# Where each of them is run for real, from its command line, on small data.
RUN_FOR_REAL = {
    "scripts/quickstart.sh": "tests/tools/test_quickstart.py",
    "scripts/install.sh": "scripts/test.sh",
    "scripts/test.sh": ".ci/run",
    "scripts/train_CIM.sh": "tests/scripts/test_drivers_for_real.py",
    "scripts/eval_CIM.sh": "tests/scripts/test_drivers_for_real.py",
    "scripts/label_my_images.sh": "tests/tools/test_label_my_images.py",
    "scripts/generate_msrcnn_label.sh": "tests/scripts/test_drivers_for_real.py",
    "scripts/refine_msrcnn.sh": "tests/scripts/test_drivers_for_real.py",
    "scripts/visual_result_mmcv.sh": "tests/scripts/test_drivers_for_real.py",
    "tools/study.py ablation": "tests/tools/test_ablation.py",
    "tools/study.py instances": "tests/tools/test_ablation.py",
    "tools/study.py steps": "tests/tools/test_ablation.py",
    "tools/study.py labels": "tests/analysis/test_labels.py",
    "tools/prm.py clusters": "tests/prm/test_tools.py",
    "tools/benchmark.py": "tests/benchmarks/test_frame.py",
    "tools/proposals.py baseline": "tests/proposals/test_tools.py",
    "tools/proposals.py check": "tests/tools/test_published_data.py",
    "tools/evaluate.py": "tests/tools/test_evaluate_export.py",
    "tools/look.py explain": "tests/analysis/test_explain.py",
    "tools/look.py gallery": "tests/visualization/test_gallery.py",
    "tools/generate_pseudo_labels.py": "tests/tools/test_evaluate_export.py",
    "tools/prm.py import": "tests/tools/test_published_data.py",
    "tools/proposals.py import": "tests/tools/test_published_data.py",
    "tools/benchmark.py gpu": "tests/tools/test_gpu_check.py",
    "tools/label_my_images.py": "tests/tools/test_label_my_images.py",
    "tools/launch.py": "tests/tools/test_distributed.py",
    "tools/proposals.py make": "tests/proposals/test_tools.py",
    "tools/data.py shapes": "tests/data/test_shapes.py",
    "tools/export.py onnx": "tests/refine/test_onnx_export.py",
    "tools/export.py submission": "tests/evaluation/test_submission.py",
    "tools/export.py yolo": "tests/evaluation/test_yolo.py",
    "tools/data.py voc": "tests/data/test_voc.py",
    "tools/proposals.py recall": "tests/proposals/test_tools.py",
    "tools/quickstart.py": "tests/tools/test_quickstart.py",
    "tools/study.py replay": "tests/tools/test_replay.py",
    "tools/proposals.py show": "tests/proposals/test_tools.py",
    "tools/steps.py": "tests/scripts/test_drivers_for_real.py",
    "tools/refine.py test": "tests/tools/test_refine.py",
    "tools/test_net.py": "tests/tools/test_train_test.py",
    "tools/refine.py train": "tests/tools/test_refine.py",
    "tools/train_net.py": "tests/tools/test_train_test.py",
    "tools/prm.py train": "tests/prm/test_tools.py",
    "tools/look.py pictures": "tests/tools/test_evaluate_export.py",
}

# Variables that are not read by our scripts but by what they run.
OUTSIDE = {
    "CIM_VENV",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NCCL_DEBUG",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TORCH_HOME",
}

# Options on our pages that are another program's.
OUTSIDE_OPTIONS = {"--convert-to-rle", "--disable-usage-stats", "--nthreads", "--num-cpus"}

_MODULES = {"pip", "pytest", "venv", "http.server", "nbconvert", "jupyter", "pre_commit", "build"}


class _Parsed(BaseException):
    """Takes the place of what a tool does once its command line is read."""

    def __init__(self, parser: argparse.ArgumentParser, read: argparse.Namespace | None) -> None:
        self.parser = parser
        self.read = read


def faults(call: Call) -> list[str]:
    """What is wrong with a call; [] where all of it would be accepted.

    Paths are looked up from the current folder, the rehearsal's.
    """
    check = PROGRAMS.get(call.program)
    if check is None:
        return [f"unknown program {call.program}; {REGISTER}"]
    return [f"{call}: {fault}" for fault in check(call)]


def _python(call: Call) -> Iterator[str]:
    if not call.arguments:
        yield "python without a file"
        return
    first, *rest = call.arguments
    if first == "-c":
        yield from code_faults(rest[0])
    elif first == "-":
        yield from code_faults(call.stdin)
    elif first == "-m":
        if rest[0] not in _MODULES:
            yield f"unknown module {rest[0]}; {REGISTER}"
        elif rest[0] in PROGRAMS:
            yield from PROGRAMS[rest[0]](Call(rest[0], tuple(rest[1:]), "", call.exported))
    elif first == "tools/steps.py":
        yield from _driver(rest[0], rest[1:], call.exported)
    elif first != "setup.py" or rest[-2:] != ["build_ext", "--inplace"]:
        yield from _script(first, rest)


def _driver(name: str, words: Sequence[str], variables: Mapping[str, str]) -> Iterator[str]:
    """Every step that a driver would run."""
    if name != "train_CIM":
        variables = {"output_file": "Outputs/newest", **variables}
    try:
        steps = driver_steps(name, variables, words)
    except ValueError as error:
        yield str(error)
        return
    for step in steps:
        tools = [n for n, word in enumerate(step.command) if word.startswith("tools/")]
        for tool in tools:  # two where tools/launch.py is the first
            yield from _script(step.command[tool], step.command[tool + 1 :])


def code_faults(text: str) -> Iterator[str]:
    """Whether Python code can be read, and what it imports from this project is there."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"not Python: {error}"
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("lib"):
            continue
        try:
            module = importlib.import_module(node.module)
        except ImportError as error:
            yield f"from {node.module} import ...: {error}"
            continue
        for alias in node.names:
            if not hasattr(module, alias.name):
                yield f"{node.module} has no {alias.name}"


def _script(name: str, arguments: Sequence[str]) -> Iterator[str]:
    name = name.removeprefix("./")
    if not (ROOT / name).is_file():
        yield f"there is no {name}"
        return
    if not name.startswith("tools/"):
        yield f"{name} is not in tools/; {REGISTER}"
        return
    command = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    whole = f"{name} {command}" if f"{name} {command}" in RUN_FOR_REAL else name
    if whole != name or not any(known.startswith(f"{name} ") for known in RUN_FOR_REAL):
        yield from _registered(whole)
    parsed, fault = parse_with_tool(ROOT / name, arguments)
    if fault:
        yield fault
    elif parsed is not None:
        yield from _namespace(parsed)


def _namespace(args: argparse.Namespace) -> Iterator[str]:
    """What a tool would find wrong once its options are parsed."""
    for value in vars(args).values():
        for path in map(str, value if isinstance(value, list) else [value]):
            if re.match(r"(configs|tools|scripts|examples)/", path) and not Path(path).exists():
                yield f"there is no {path}"
                return
    cfg = getattr(args, "cfg", None)
    cfg = cfg if cfg is not None and Path(cfg).is_file() else None
    try:
        load_config(cfg, getattr(args, "set", None) or [])
        named = hasattr(args, "default_dataset") and not args.labels
        if named and (args.json or args.dataset or args.default_dataset):
            dataset_from_args(args)
    except ValueError as error:
        yield str(error)


def _registered(name: str) -> Iterator[str]:
    test = RUN_FOR_REAL.get(name)
    if test is None:
        yield f"no test is named that runs {name}; {REGISTER}"
    elif not (ROOT / test).is_file():
        yield f"{name}: {test}, which should run it, is not there"


@cache
def _tool(path: Path) -> Callable[[Sequence[str]], int]:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def parse_with_tool(
    path: Path, arguments: Sequence[str]
) -> tuple[argparse.Namespace | None, str | None]:
    """What a tool's own parser makes of a command line; (None, None) after --help."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise _Parsed(self, real(self, args, namespace))

    said = io.StringIO()
    with _replaced(parse_args), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            _tool(path)(list(arguments))
        except _Parsed as parsed:
            return parsed.read, None
        except SystemExit as error:
            return None, said.getvalue().strip() if error.code else None
    raise AssertionError(f"{path}: main() parsed no command line")


@cache
def _parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every tool or, where it has commands, of each of these."""

    def parse_args(self, args=None, namespace=None):
        raise _Parsed(self, None)

    parsers = {}
    for path in sorted((ROOT / "tools").glob("*.py")):
        name = str(path.relative_to(ROOT))
        try:
            with _replaced(parse_args):
                _tool(path)([])
        except _Parsed as parsed:
            commands = [a for a in parsed.parser._actions if a.dest == "command"]
            if commands:
                parsers |= {f"{name} {c}": parser for c, parser in commands[0].choices.items()}
            else:
                parsers[name] = parsed.parser
    return parsers


def tool_options() -> frozenset[str]:
    """Every option that some tool has."""
    return frozenset(option for p in _parsers().values() for option in p._option_string_actions)


def tool_commands() -> set[str]:
    return set(_parsers())


@contextlib.contextmanager
def _replaced(parse_args: Callable) -> Iterator[None]:
    real = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = parse_args
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = real


def _bash(call: Call) -> Iterator[str]:
    """A script of ours, all of whose variables it reads. What it calls is checked by itself."""
    if not call.arguments or call.arguments[0].startswith("-"):
        yield f"expected bash SCRIPT; {REGISTER}"
        return
    name = call.arguments[0].removeprefix("./")
    if not (ROOT / name).is_file():
        yield f"there is no {name}"
        return
    if name.startswith("scripts/"):
        yield from _registered(name)
    read = scripts_text(ROOT / name)
    of_driver = VARIABLES.get(Path(name).stem, ())
    for variable in () if call.nested else sorted(call.exported.keys() - OUTSIDE):
        if variable not in of_driver and not re.search(rf"\$\{{?{variable}\b", read):
            yield f"{name} does not read the variable {variable}"


@cache
def scripts_text(path: Path) -> str:
    """A script with those that it sources or calls, without comments."""
    text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE)
    for other in re.findall(r"(?:source|bash) .*?(\w+\.sh)", text):
        text += scripts_text(ROOT / "scripts" / other)
    return text


def _pip(call: Call) -> Iterator[str]:
    setup = (ROOT / "setup.py").read_text()
    for word, following in zip(call.arguments, (*call.arguments[1:], ""), strict=True):
        if word in ("-r", "-c") and not (ROOT / following).is_file():
            yield f"there is no {following}"
        if extras := re.fullmatch(r"(?:\.|cim)\[([\w,-]+)\]", word):
            for extra in extras[1].split(","):
                if f'"{extra}"' not in setup:
                    yield f"setup.py has no extra {extra}"


@cache
def _conftest_options() -> frozenset[str]:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("conftest.py")]
    return frozenset(re.findall(r'addoption\(\s*"(--[\w-]+)"', "".join(texts)))


def _pytest(call: Call) -> Iterator[str]:
    for word in call.arguments:
        path = word.split("::")[0]
        if path.startswith("tests") and not (ROOT / path).exists():
            yield f"there is no {path}"
        option = word.split("=")[0]
        known = {"--durations", "--collect-only", "--maxfail", "--lf", *_conftest_options()}
        if option.startswith("--") and option not in known:
            yield f"pytest has no {option} in this project"


def _torchrun(call: Call) -> Iterator[str]:
    words = list(call.arguments)
    while words and words[0].startswith("-"):
        words.pop(0)
    if not words:
        yield "torchrun without a script"
    else:
        yield from _script(words[0], words[1:])


def _anything(call: Call) -> Iterator[str]:
    """A well-known program whose arguments are none of ours."""
    yield from ()


PROGRAMS: dict[str, Callable[[Call], Iterator[str]]] = {
    "bash": _bash,
    "dask": _anything,
    "cp": _anything,
    "git": _anything,
    "jupyter": _anything,
    "ln": _anything,
    "pip": _pip,
    "pre-commit": _anything,
    "pytest": _pytest,
    "python": _python,
    "python3": _python,
    "ray": _anything,
    "ruff": _anything,
    "shellcheck": _anything,
    "tensorboard": _anything,
    "torchrun": _torchrun,
}


def name_fault(text: str) -> str | None:
    """What is wrong with a file, an option or a configuration key in inline code, None if nothing.

    Everything else is taken as it is.
    """
    word = text.split(" ")[0].rstrip(".,")
    if re.fullmatch(r"(lib|tools|scripts|configs|tests|docs|examples)/[\w./*:-]*", text):
        if not list(ROOT.glob(text.split("::")[0].rstrip("/"))):
            return f"there is no {text}"
    elif re.fullmatch(r"--[a-z][\w-]*", word):
        known = {*tool_options(), *OUTSIDE_OPTIONS, *_conftest_options()}
        whole = not word.endswith("-")  # `--drop-...` means all that begin so
        if not any(option == word or not whole and option.startswith(word) for option in known):
            return f"no tool has an option {word}; {REGISTER}"
    elif re.fullmatch(r"(model|mining|loss|solver|input|test|prm|proposals|run)\.[a-z_.]+", word):
        free = ("proposals.options.", "model.backbone_args.", "prm.backbone_args.")
        if word not in _known_keys(Config) and not word.startswith(free):
            return f"there is no configuration key {word}"
    return None
