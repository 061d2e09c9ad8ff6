import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from lib.config import RunConfig, SolverConfig
from lib.engine import training
from lib.engine.build import choose_backward
from lib.engine.checkpoint import list_checkpoints, load_checkpoint, seed_everything
from lib.engine.distributed import ALONE, Ranks
from lib.engine.runs import read_lines
from lib.engine.solver import build_optimizer
from lib.engine.trainer import NonFiniteLossError, Trainer, in_order
from lib.engine.training import StopSignals, train
from lib.modeling.criterion import score_image
from lib.structures import Sample

SETTINGS = RunConfig(checkpoint_period=4, keep_checkpoints=2, log_period=3)


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, image, boxes, roi_masks):
        assert image.shape[0] == 1
        return self.linear(boxes)


def criterion(scores, sample, iou, containment, generator):
    """Two losses that draw from every generator that a checkpoint must keep."""
    assert iou.shape == containment.shape == (len(scores), len(scores))
    noise = torch.rand(len(scores), generator=generator)
    noise = noise + torch.rand(len(scores)) + float(np.random.rand())
    return {"near": (scores[:, 0] * noise).square().mean(), "far": scores[:, 1:].abs().mean()}


def quiet(scores, sample, iou, containment, generator):
    """Two losses that draw nothing."""
    return {"near": scores[:, 0].square().mean(), "far": scores[:, 1:].abs().mean()}


def noisy(scores, sample, iou, containment, generator):
    """Losses that draw from the image's own generator alone."""
    noise = torch.rand(len(scores), generator=generator)
    return {"near": (scores[:, 0] * noise).square().mean(), "far": scores[:, 1:].abs().mean()}


def make_sample(number):
    rng = torch.Generator().manual_seed(number)
    proposals = 2 + number % 3
    return Sample(
        image_id=number,
        file_name=f"{number}.png",
        image=torch.zeros(3, 8, 8),
        boxes=torch.rand(proposals, 4, generator=rng),
        roi_masks=torch.ones(proposals, 7, 7),
        membership=torch.rand(proposals, 5, generator=rng) > 0.5,
        areas=torch.full((5,), 7),
        image_labels=torch.ones(2),
        cluster_id=torch.zeros(proposals, dtype=torch.int64),
        cluster_column=torch.full((proposals,), -1),
    )


def stream(start=0):
    return map(make_sample, itertools.count(start))


def make_trainer(
    seed=0, images_per_update=2, clip=None, criterion=criterion, num_lanes=1, ranks=ALONE
):
    seed_everything(seed)
    model = Scorer()
    solver = SolverConfig(
        base_lr=0.05,
        warmup_iters=2,
        steps=(5,),
        images_per_update=images_per_update,
        clip_grad_norm=clip,
    )
    return Trainer(
        model=model,
        backward=choose_backward(model, score_image, criterion, solver, num_lanes, ranks),
        optimizer=build_optimizer(model, solver),
        solver=solver,
        loss_weights={"near": 1.0, "far": 3.0},
        seed=seed,
        ranks=ranks,
    )


def make_resumed():
    """Other weights and other states of the generators, for a checkpoint to take the place of."""
    trainer = make_trainer(seed=77)
    trainer.seed = 0
    return trainer


def run_training(trainer, run, max_iter, samples=None):
    samples = (
        stream(trainer.iteration * trainer.solver.images_per_update) if samples is None else samples
    )
    return train(trainer, samples, run, max_iter, SETTINGS, about={"class_names": ["a", "b"]})


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_gradient_is_the_weighted_sum_over_images(num_lanes):
    trainer = make_trainer(images_per_update=3, num_lanes=num_lanes, criterion=quiet)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    values = trainer.update(stream())

    twin = make_trainer(images_per_update=3).model
    losses = []
    for sample in map(make_sample, range(3)):
        scores = twin(sample.image[None], sample.boxes, sample.roi_masks)
        losses.append(quiet(scores, sample, *2 * [torch.zeros(len(scores), len(scores))], None))
    total = sum(one["near"] + 3 * one["far"] for one in losses)
    gradient = dict(zip(before, torch.autograd.grad(total, list(twin.parameters())), strict=True))
    rate = 0.05 / 3
    after = dict(trainer.model.named_parameters())
    weight, bias = "linear.weight", "linear.bias"
    torch.testing.assert_close(
        after[weight], before[weight] - rate * (gradient[weight] + 5e-4 * before[weight])
    )
    torch.testing.assert_close(after[bias], before[bias] - 2 * rate * gradient[bias])
    assert values["total"] == pytest.approx(total.item() / 3)
    assert values["far"] == pytest.approx(sum(one["far"].item() for one in losses) / 3)
    norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
    assert values["grad_norm"] == pytest.approx(norm.item())
    assert values["lr"] == pytest.approx(rate)


def test_clipping_shortens_the_gradient_and_keeps_its_direction():
    free = make_trainer()
    start = weights(free)
    values = free.update(stream())
    clipped = make_trainer(clip=0.01)
    assert clipped.update(stream())["grad_norm"] == values["grad_norm"] > 0.01
    move = {n: free.model.state_dict()[n] - start[n] for n in start}
    small = {n: clipped.model.state_dict()[n] - start[n] for n in start}
    ratio = small["linear.bias"] / move["linear.bias"]
    torch.testing.assert_close(
        ratio, torch.full_like(ratio, 0.01 / values["grad_norm"]), rtol=1e-3, atol=0
    )


def test_resumed_is_bit_identical(tmp_path):
    whole = make_trainer()
    assert run_training(whole, tmp_path / "whole", 9) is None

    half = make_trainer()
    run_training(half, tmp_path / "halves", 4)
    path = list_checkpoints(tmp_path / "halves" / "ckpt")[-1]
    resumed = make_resumed()
    resumed.load_state_dict(load_checkpoint(path))
    assert resumed.iteration == 4
    run_training(resumed, tmp_path / "halves", 9)

    assert_same(weights(whole), weights(resumed))
    a = load_checkpoint(tmp_path / "whole" / "ckpt" / "model_step9.pth")
    b = load_checkpoint(tmp_path / "halves" / "ckpt" / "model_step9.pth")
    assert a["step"] == b["step"] == 9
    assert len(a["optimizer"]["state"]) == 2
    for key, state in a["optimizer"]["state"].items():
        assert torch.equal(
            state["momentum_buffer"], b["optimizer"]["state"][key]["momentum_buffer"]
        )
    assert a["rng"]["numpy"] == b["rng"]["numpy"]
    assert a["rng"]["python"] == b["rng"]["python"]
    assert torch.equal(a["rng"]["torch"], b["rng"]["torch"])


def test_lanes_change_nothing_but_rounding():
    ends = []
    for num_lanes in (1, 2, 4, 9):
        trainer = make_trainer(images_per_update=4, num_lanes=num_lanes, criterion=noisy)
        samples = stream()
        values = [trainer.update(samples)["total"] for _ in range(20)]
        ends.append((weights(trainer), values))
    for end, values in ends[1:]:
        torch.testing.assert_close(end, ends[0][0])
        assert values == pytest.approx(ends[0][1], rel=1e-4)


def test_the_same_lanes_give_the_same_bits():
    ends = []
    for _ in range(2):
        trainer = make_trainer(images_per_update=5, num_lanes=2, criterion=noisy)
        samples = stream()
        for _ in range(20):
            trainer.update(samples)
        ends.append(weights(trainer))
    assert_same(*ends)


def test_draws_follow_from_seed_and_place():
    def draws(seed, iteration, number):
        trainer = make_trainer(seed=seed)
        trainer.iteration = iteration
        return torch.rand(3, generator=trainer.generator(trainer.first_sample + number)).tolist()

    assert draws(1, 4, 1) == draws(1, 4, 1)
    different = [draws(1, 4, 0), draws(1, 4, 1), draws(1, 5, 0), draws(2, 4, 0)]
    assert len({tuple(d) for d in different}) == 4


def test_a_number_of_processes_that_does_not_divide_the_images():
    with pytest.raises(ValueError, match="the 2 images of an update cannot .* by 3 processes"):
        make_trainer(ranks=Ranks(0, 3))


def test_what_is_shared_out_comes_back_in_order():
    shares = [Ranks(rank, 3).share_of(list(range(9))) for rank in range(3)]
    assert shares[1] == [1, 4, 7]
    assert in_order(shares) == list(range(9))


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_an_error_of_an_image_comes_out_and_changes_nothing(num_lanes):
    def fail(scores, sample, iou, containment, generator):
        if sample.image_id == 1:
            raise ValueError("image 1")
        return quiet(scores, sample, iou, containment, generator)

    trainer = make_trainer(images_per_update=3, num_lanes=num_lanes, criterion=fail)
    before = weights(trainer)
    with pytest.raises(ValueError, match="image 1"):
        trainer.update(stream())
    assert_same(before, weights(trainer))
    trainer.backward.criterion = quiet
    trainer.update(stream(10))
    clean = make_trainer(images_per_update=3, num_lanes=num_lanes, criterion=quiet)
    clean.update(stream(10))
    assert_same(weights(clean), weights(trainer))


def test_record_of_a_run(tmp_path):
    trainer = make_trainer()
    run_training(trainer, tmp_path, 8)
    assert [p.name for p in list_checkpoints(tmp_path / "ckpt")] == [
        "model_step4.pth",
        "model_step8.pth",
    ]
    history = read_lines(tmp_path / "history.jsonl")
    assert [entry["iteration"] for entry in history] == [3, 6, 8]
    for name in ("near", "far", "total", "lr", "grad_norm", "data_wait", "images_per_s"):
        assert all(entry[name] >= 0 for entry in history)
    content = load_checkpoint(tmp_path / "ckpt" / "model_step8.pth")
    assert content["class_names"] == ["a", "b"]
    assert (content["step"], content["batch_size"]) == (8, 2)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_finished_training_does_nothing_more(tmp_path):
    trainer = make_trainer()
    run_training(trainer, tmp_path, 3)
    before = weights(trainer)
    run_training(trainer, tmp_path, 3, samples=iter(()))
    assert_same(before, weights(trainer))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_stops_before_the_weights_change(tmp_path, bad):
    def explode(scores, sample, iou, containment, generator):
        losses = criterion(scores, sample, iou, containment, generator)
        return {**losses, "far": losses["far"] * (bad if sample.image_id == 11 else 1)}

    trainer = make_trainer(criterion=explode)
    kept = []

    def watched():
        for sample in stream():
            kept.append(weights(trainer))
            yield sample

    with pytest.raises(NonFiniteLossError) as error:
        run_training(trainer, tmp_path, 9, samples=watched())
    text = str(error.value)
    assert "update 6, image 11.png" in text
    assert f"far {bad:g}" in text and "near " in text
    assert_same(kept[-1], weights(trainer))
    saved = list_checkpoints(tmp_path / "ckpt")
    assert [p.name for p in saved] == ["model_step4.pth"]
    assert all(v.isfinite().all() for v in load_checkpoint(saved[0])["model"].values())


def test_non_finite_gradient_of_finite_losses_stops_too():
    def root(scores, sample, iou, containment, generator):
        return {"near": (scores.sum() * 0).sqrt(), "far": scores.mean()}

    trainer = make_trainer(criterion=root)
    before = weights(trainer)
    with pytest.raises(NonFiniteLossError, match="update 1, images 0.png, 1.png.*gradient"):
        trainer.update(stream())
    assert_same(before, weights(trainer))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_the_update_with_a_checkpoint(tmp_path, number):
    def interrupted():
        for i, sample in enumerate(stream()):
            if i == 4:  # the first image of update 3
                os.kill(os.getpid(), number)
            yield sample

    trainer = make_trainer()
    assert run_training(trainer, tmp_path, 9, samples=interrupted()) == number
    assert trainer.iteration == 3
    assert list_checkpoints(tmp_path / "ckpt")[-1].name == "model_step3.pth"

    resumed = make_resumed()
    resumed.load_state_dict(load_checkpoint(tmp_path / "ckpt" / "model_step3.pth"))
    run_training(resumed, tmp_path, 9)
    whole = make_trainer()
    run_training(whole, tmp_path / "whole", 9)
    assert_same(weights(whole), weights(resumed))


def test_second_signal_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as error, StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert error.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)

    def use():
        with StopSignals():
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()


def test_a_signal_ends_a_wait_for_a_sample_that_never_comes(monkeypatch):
    monkeypatch.setattr(training, "WAIT_SECONDS", 0.2)

    def never():
        yield "first"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(SystemExit) as error, StopSignals() as stop:
        samples = stop.bounded(never())
        assert next(samples) == "first"
        next(samples)
    assert error.value.code == 128 + signal.SIGTERM
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_sample_in_time_takes_the_limit_away(monkeypatch):
    monkeypatch.setattr(training, "WAIT_SECONDS", 0.2)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert list(stop.bounded(iter("ab"))) == ["a", "b"]
        time.sleep(0.3)
    assert stop.received == signal.SIGTERM
