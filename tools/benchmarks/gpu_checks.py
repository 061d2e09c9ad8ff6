"""Checks of a first run on a GPU, which `tools/benchmark.py gpu` runs one by one.

On a CPU they run at small sizes, which shows only that they run. Most need nothing but PyTorch,
torchvision and NumPy: a machine that is lent for minutes may have no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import BENCHMARKS
from benchmarks.drawn import NUM_CLASSES, Product, draw_sample
from benchmarks.report import Conditions, Row
from benchmarks.timing import time_together
from lib.engine.checkpoint import load_checkpoint, save_checkpoint
from lib.engine.distributed import Ranks, summing_model
from lib.engine.profile import SKIPPED, TRACED, WARM_UP, tracing
from lib.engine.solver import build_optimizer
from lib.engine.trainer import OneByOne, Together, Trainer
from lib.fast.mining import fast_miner
from lib.fast.network import FastCIMNet, score_images
from lib.modeling.backbones import build_backbone
from lib.modeling.criterion import CIMCriterion, score_image
from lib.modeling.heads import CIMMiner, Heads
from lib.modeling.mask_fuse import MaskFuse
from lib.modeling.model_builder import CIMNet
from lib.modeling.scoring import score_passes
from lib.proposals.overlaps import overlaps
from lib.structures import Targets

ROOT = Path(__file__).resolve().parents[2]
LOSS_WEIGHTS = dict.fromkeys(("bag", "pcl", "refine_bag", "refine_cls"), 1.0)
LOSS_WEIGHTS["refine_integrity"] = 3.0
SOLVER = SimpleNamespace(
    base_lr=1e-6,
    momentum=0.9,
    weight_decay=5e-4,
    bias_lr_factor=2.0,
    steps=(),
    gamma=0.1,
    warmup_iters=0,
    images_per_update=2,
    clip_grad_norm=10.0,
)
"""Stands in for the section `solver`, which needs pydantic."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""Relative, of losses and scores, to those of the CPU in float32; convolutions without TF32."""


@dataclass(frozen=True)
class Check:
    run: Callable[[Conditions], Iterator[Row]]
    """Raises where something is wrong; a row may miss its goal."""
    seconds: int
    """After which it is ended, on a GPU."""
    needs: tuple[str, ...] = ()
    """Packages beside PyTorch, torchvision, NumPy, OpenCV, joblib and tqdm."""
    only_gpu: bool = False


def speed(conditions: Conditions) -> Iterator[Row]:
    """Measures products and copies, and whether copies from pinned memory run by themselves."""
    products = {str(p)[6:]: Product(p, conditions) for p in (torch.float32, torch.bfloat16)}
    for name, timing in time_together(products, seconds=1).items():
        yield Row(f"matrix product, {name}", products[name].tflops(timing), "TFLOP/s")
    if conditions.device.type != "cuda":
        return
    there = torch.rand(2**28, device=conditions.device)  # 1 GiB
    pageable = torch.rand(2**26)
    pinned, target = pageable.pin_memory(), torch.empty(2**26, device=conditions.device)
    times = time_together(
        {
            "on the device, read and written": there.clone,
            "from pinned memory": lambda: target.copy_(pinned, non_blocking=True),
            "from other memory": lambda: target.copy_(pageable, non_blocking=True),
        },
        seconds=1,
    )
    for (name, timing), gib in zip(times.items(), (2, 0.25, 0.25), strict=True):
        yield Row(f"copies {name}", gib * 2**30 / 1e9 / timing.best, "GB/s")
    begun = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    begun[0].record()
    target.copy_(pinned, non_blocking=True)
    begun[1].record()
    done = begun[1].query()
    torch.cuda.synchronize()
    yield Row("copies from pinned memory that the host waited for", float(done), "", at_most=0)


def same_overlaps(conditions: Conditions) -> Iterator[Row]:
    """The maps of the CPU, bit for bit: whole numbers up to 2^24 in float32, others in float64."""
    generator = torch.Generator().manual_seed(conditions.seed)
    for count in (20,) if conditions.quick else (100, 700, 1500):
        for largest in (1_000, 10_000_000):
            membership = torch.rand(count, 8 * count, generator=generator) < 0.2
            membership[count // 2] = False  # an empty mask
            areas = torch.randint(1, largest, (8 * count,), generator=generator)
            pixels = int(areas.sum())
            expected = overlaps(membership, areas, pixels)
            tensors = (membership.to(conditions.device), areas.to(conditions.device))
            found = overlaps(*tensors, pixels)
            kind = "float32" if pixels <= 2**24 else "float64"
            unlike = sum(int((f.cpu() != e).sum()) for f, e in zip(found, expected, strict=True))
            yield Row(f"P={count}, {kind}: pairs unlike the CPU's", unlike, "", at_most=0)
            timing = time_together({"": lambda t=tensors, n=pixels: overlaps(*t, n)}, 0.2)[""]
            yield Row(f"P={count}, {kind}: both maps", timing.best_ms, "ms")


def same_targets(conditions: Conditions) -> Iterator[Row]:
    """The targets of the CPU, also where scores tie, and the same draws against noise."""
    unlike = cases = 0
    sizes = (1, 7, 30) if conditions.quick else (1, 7, 30, 100, 300, 500, 1000)
    for count in sizes:
        for seed in range(2 if conditions.quick else 6):
            sample = draw_sample(240, count, seed=seed)
            scores, pair = _scores(count, seed), overlaps(sample.membership, sample.areas)
            arguments = (*scores, sample.image_labels.nonzero()[:, 0], *pair)
            for options in ({}, {"labels": "mist"}, {"anti_noise": False}):
                expected = _targets(options, arguments, seed)
                found = _targets(options, [t.to(conditions.device) for t in arguments], seed)
                unlike += sum(
                    int((getattr(found, f.name).cpu() != getattr(expected, f.name)).sum())
                    for f in fields(Targets)
                )
                cases += 1
    yield Row(f"targets unlike the CPU's, in {cases} cases", unlike, "", at_most=0)
    arguments = [t.to(conditions.device) for t in arguments]
    timing = time_together({"": lambda: _targets({}, arguments, 0)}, seconds=0.5)[""]
    yield Row(f"P={count}: targets of three stages", timing.best_ms, "ms")


def _scores(count: int, seed: int) -> Tensor:
    """(2, 3, P, C+1): class probabilities and integrity of three teachers, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    levels = 5 if seed % 2 else 10_000
    drawn = torch.rand(2, 3, count, NUM_CLASSES + 1, generator=generator)
    return (drawn * levels).floor() / levels


def _targets(options: dict, arguments: list[Tensor], seed: int) -> Targets:
    miner = fast_miner(CIMMiner(**options), arguments[0].device)
    return miner(*arguments, torch.Generator().manual_seed(seed))


def no_waiting(conditions: Conditions) -> Iterator[Row]:
    """Whole updates but for telling the losses; PyTorch raises where one waits for the GPU."""
    samples = [draw_sample(320, 60, seed=n).pin_memory() for n in range(2)]
    for precision in (torch.float32, torch.bfloat16):
        for together in (False, True):
            trainer = make_trainer(conditions, precision, together, chunk=50)
            told = trainer.update(cycle(samples))  # makes handles, plans and the momentum
            values = ([dict.fromkeys(told, 0.0)], 0.0)
            trainer._finite = lambda *_, values=values: values
            torch.cuda.set_sync_debug_mode("error")
            try:
                trainer.update(cycle(samples))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            how = "images together" if together else "one by one"
            yield Row(f"updates without waiting, {str(precision)[6:]}, {how}", 1, "")


def same_losses(conditions: Conditions) -> Iterator[Row]:
    """An update in every way of computing it beside the CPU's; a checkpoint is gone on with."""
    if conditions.device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    cpu = Conditions(quick=conditions.quick)
    samples = [draw_sample(64 if conditions.quick else 320, 30, seed=n) for n in range(2)]
    expected = make_trainer(cpu, torch.float32).update(cycle(samples))
    ways = {
        "one by one": {},
        "in chunks": {"chunk": 7},
        "together": {"together": True},
        "all": {"together": True, "chunk": 40},
    }
    for precision, tolerance in TOLERANCES.items():
        for name, options in ways.items():
            trainer = make_trainer(conditions, precision, **options)
            told = trainer.update(cycle(samples))
            # What is mined may differ after rounding; of these two losses it is no part.
            error = max(abs(told[n] - expected[n]) / expected[n] for n in ("bag", "pcl"))
            what = f"{str(precision)[6:]}, {name}: losses beside the CPU's in float32"
            yield Row(what, error, "relative", at_most=tolerance)
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(Path(folder), trainer.state_dict())
        resumed = make_trainer(conditions, torch.bfloat16, **options)
        resumed.load_state_dict(load_checkpoint(path))
    went_on, again = (t.update(cycle(samples))["total"] for t in (trainer, resumed))
    error = abs(went_on - again) / went_on
    yield Row("loss after a checkpoint beside going on", error, "relative", at_most=1e-2)


def same_scores(conditions: Conditions) -> Iterator[Row]:
    """Scores of several views of an image beside the CPU's."""
    if conditions.device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    views = [draw_sample(side, 50) for side in ((48, 48, 64) if conditions.quick else (240, 320))]
    plain = make_network(Conditions(quick=conditions.quick)).eval()
    expected = score_passes(FastCIMNet(plain), views, "cpu")
    model = make_network(conditions).eval()
    if conditions.device.type == "cuda":
        views = [view.view().pin_memory() for view in views]
    for precision, tolerance in TOLERANCES.items():
        scores = score_passes(FastCIMNet(model, precision), views, conditions.device)
        error = float((scores - expected).abs().max() / expected.abs().max())
        yield Row(f"{str(precision)[6:]}: scores", error, "of the largest", at_most=tolerance)


def new_sizes(conditions: Conditions) -> Iterator[Row]:
    """Times images of sizes that were not met before: a GPU prepares every convolution for each."""
    model = FastCIMNet(make_network(conditions).eval(), torch.bfloat16)
    sides = range(48, 80, 8) if conditions.quick else range(300, 460, 16)
    warm_up, *views = (draw_sample(side, 50) for side in sides)
    seconds = []
    for view in (warm_up, *views, *views):
        start = time.perf_counter()
        score_passes(model, [view], conditions.device)  # ends with the scores on the CPU
        seconds.append(time.perf_counter() - start)
    first, again = seconds[1 : 1 + len(views)], seconds[1 + len(views) :]
    yield Row("an image of a new size", 1e3 * sum(first) / len(first), "ms")
    yield Row("the same images again", 1e3 * sum(again) / len(again), "ms")


def one_rank(conditions: Conditions) -> Iterator[Row]:
    """Gradients through DistributedDataParallel (NCCL on a GPU) in a group of one process."""
    gpu = conditions.device.type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else conditions.device
    store = dist.TCPStore("localhost", 0, world_size=1, is_master=True)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    criterion = make_criterion(conditions)
    model = FastCIMNet(make_network(conditions).train())
    samples = [draw_sample(96, 20, seed=n).to(device) for n in range(2)]
    gradients = []
    for network in (model, summing_model(model, Ranks(0, 1, str(device)))):
        model.zero_grad(set_to_none=True)
        for sample in samples:
            outputs = score_image(network, sample, torch.Generator().manual_seed(0))
            sum(criterion(*outputs).values()).backward()
        # Two backward passes without no_sync: the sum of the first is summed again, over one rank.
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    names: list = [None]
    dist.all_gather_object(names, backend)
    dist.destroy_process_group()
    error = max(
        float((a - b).norm() / a.norm().clamp(min=1e-12))
        for a, b in zip(*gradients, strict=True)
        if a.norm() > 1e-6  # the detector's bias has no gradient but for rounding
    )
    yield Row(f"gradients through {names[0]}", error, "relative", at_most=1e-3)


def trace(conditions: Conditions) -> Iterator[Row]:
    """Checks the trace of `--profile`: on a GPU its kernels must be in it."""
    trainer = make_trainer(conditions, torch.bfloat16)
    samples = cycle([draw_sample(96, 20)])
    with tempfile.TemporaryDirectory() as folder:
        with tracing(Path(folder), Ranks(device=str(conditions.device))) as updated:
            for _ in range(SKIPPED + WARM_UP + TRACED + 1):
                trainer.update(samples)
                updated()
        events = json.loads((Path(folder) / "trace_rank0.json").read_text())["traceEvents"]
        table = (Path(folder) / "operations_rank0.txt").read_text()
    kind = "kernel" if conditions.device.type == "cuda" else "cpu_op"
    found = sum(event.get("cat") == kind for event in events)
    yield Row(f"events of the kind {kind} in the trace", found, "", at_least=100)
    yield Row("lines of the table", len(table.splitlines()), "", at_least=20)


def golden(conditions: Conditions) -> Iterator[Row]:
    """The published numbers (tests/parity): heads, and whole networks unless quick."""
    files = [f"tests/parity/test_{name}.py" for name in ("heads", "model")]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", str(conditions.device)]
    _run([*command, *(files[:1] if conditions.quick else files)])
    yield Row("runs of the golden tests that failed", 0, "", at_most=0)


def training(conditions: Conditions) -> Iterator[Row]:
    """The quickstart in short and both second stages behind it, in bfloat16, by the tools
    themselves; they find the GPU."""
    few = conditions.quick
    settings = ["runtime.precision", "bfloat16", "runtime.images_together", "true"]
    settings += ["prm.epochs", "1" if few else "6"]
    for solver in ("solver", "refine.solver"):
        settings += [f"{solver}.max_iter", "2" if few else "100"]
        settings += [f"{solver}.steps", "[1]" if few else "[90]"]
        settings += [f"{solver}.warmup_iters", "0" if few else "20"]
    hidden = {} if conditions.device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        run, root = Path(folder, "run"), ["--data-root", f"{folder}/data"]
        train, test = (["--dataset", f"shapes_{name}", *root] for name in ("train", "test"))
        images = ["--images", *(("6", "4") if few else ("80", "20"))]
        place = ["--output", str(run), *root, *images]
        _tool("quickstart.py", *place, "--set", *settings, **hidden)
        yield from _how_it_went("CIM", run, run / "summary.json")
        labels = ["--select", "adaptive", "--output", f"{folder}/labels.json"]
        _tool("generate_pseudo_labels.py", "--run", str(run), *train, *labels, **hidden)
        networks = {"Mask R-CNN": "resnet18_shapes"}
        if find_spec("transformers"):
            networks["Mask2Former"] = "mask2former_shapes"
        for network, name in networks.items():
            place = ["--run", str(run), "--output", f"{folder}/{name}", *train]
            more = ["--cfg", f"configs/{name}.yaml", "--pseudo-labels", f"{folder}/labels.json"]
            _tool("refine.py", "train", *place, *more, "--set", *settings, **hidden)
            for words in (["refine.py", "test"], ["evaluate.py"]):
                _tool(*words, "--run", f"{folder}/{name}", *test, **hidden)
            found = Path(folder, name, "test", "shapes_test", "metrics.json")
            yield from _how_it_went(network, Path(folder, name), found)


def _how_it_went(what: str, run: Path, found: Path) -> Iterator[Row]:
    told = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    ap25 = json.loads(found.read_text())["metrics"]["ap25"]
    yield Row(f"{what}: AP25 after a short training", 100 * ap25, "%")
    yield Row(f"{what}: last loss that was told", told["total"], "")
    yield Row(f"{what}: memory at its peak", told["memory_gb"], "GiB")


def benchmark(name: str, conditions: Conditions) -> Iterator[Row]:
    """`tools/benchmark.py`; its goals are not meant for small sizes."""
    for row in BENCHMARKS[name].run(conditions):
        yield replace(row, at_least=None, at_most=None) if conditions.quick else row


def _tool(name: str, *words: str, **environment: str) -> None:
    _run([str(ROOT / "tools" / name), *words], **environment)


def _run(command: list[str], **environment: str) -> None:
    """A Python command; raises with the end of what it said where it fails."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "TQDM_DISABLE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise RuntimeError(done.stdout.decode(errors="replace")[-3000:])


def make_network(conditions: Conditions) -> CIMNet:
    """ResNet-50, or a small backbone, with narrow layers; always the same weights."""
    torch.manual_seed(0)
    if conditions.quick:
        backbone = build_backbone(
            "resnet18", {"widths": (16, 32), "depths": (1, 1), "strides": (1, 2)}
        )
    else:
        backbone = build_backbone("resnet50")
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)  # else every block doubles its input
    mask_fuse = MaskFuse(backbone.out_channels, fuse_channels=64, hidden_dim=128)
    network = CIMNet(backbone, mask_fuse, Heads(128, NUM_CLASSES))
    return network.to(conditions.device, memory_format=torch.channels_last)


def make_criterion(conditions: Conditions) -> CIMCriterion:
    return CIMCriterion(fast_miner(CIMMiner(), conditions.device))


def make_trainer(
    conditions: Conditions,
    precision: torch.dtype,
    together: bool = False,
    chunk: int | None = None,
) -> Trainer:
    criterion = make_criterion(conditions)
    model = FastCIMNet(make_network(conditions).train(), precision, chunk)
    backward = OneByOne(model, score_image, criterion)
    if together:
        backward = Together(model, score_images, criterion)
    return Trainer(
        model=model,
        backward=backward,
        optimizer=build_optimizer(model, SOLVER),
        solver=SOLVER,
        loss_weights=LOSS_WEIGHTS,
        device=conditions.device,
    )


_PROJECT = ("pydantic", "omegaconf", "pycocotools", "hotcoco")

CHECKS = {
    "speed": Check(speed, 40),
    "overlaps": Check(same_overlaps, 40),
    "mining": Check(same_targets, 60),
    "waiting": Check(no_waiting, 60, only_gpu=True),
    "losses": Check(same_losses, 60),
    "scores": Check(same_scores, 40),
    "sizes": Check(new_sizes, 60),
    "nccl": Check(one_rank, 60),
    "trace": Check(trace, 60),
    "train": Check(partial(benchmark, "train"), 120, _PROJECT),
    "inference": Check(partial(benchmark, "inference"), 60, _PROJECT),
    "memory": Check(partial(benchmark, "memory"), 60, (*_PROJECT, "tensorboardX")),
    "golden": Check(golden, 180, ("pytest", "PIL")),
    "training": Check(training, 330, (*_PROJECT, "tensorboardX", "skimage")),
}
