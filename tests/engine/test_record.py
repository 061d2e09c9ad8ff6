import json
import resource
import struct

import cv2
import numpy as np
import pytest
import torch
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lib.engine.distributed import ALONE
from lib.engine.profile import SKIPPED, TRACED, WARM_UP, peak_memory, tracing
from lib.engine.record import Board, Record
from lib.engine.runs import read_lines


def events(folder):
    """All events of all files, oldest file first."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.suffix):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def values(folder, tag):
    return {
        event.step: value
        for event in events(folder)
        for value in event.summary.value
        if value.tag == tag
    }


def test_curves_and_pictures(tmp_path):
    picture = np.zeros((6, 9, 3), np.uint8)
    picture[2, 3] = (255, 0, 7)
    with Record(tmp_path, 0, 4, ("total",)) as record:
        for n in range(1, 5):
            record.add({"total": float(n), "seconds": 0.5})
            if n % 2 == 0:
                record.write(n, images_per_update=4)
        record.show(4, "mining", picture)
    (first, second) = read_lines(tmp_path / "history.jsonl")
    assert (first["iteration"], first["total"], second["total"]) == (2, 1.5, 3.5)
    assert first["images_per_s"] == 8
    assert 0.05 < first["memory_gb"] < 1000
    board = tmp_path / "tensorboard"
    for name in ("total", "images_per_s", "memory_gb"):
        scalars = values(board, f"train/{name}")
        assert scalars[2].simple_value == pytest.approx(first[name])
        assert scalars[4].simple_value == pytest.approx(second[name])
    shown = values(board, "mining")[4].image
    for encoded in (
        shown.encoded_image_string,
        (tmp_path / "mining" / "update_000004.png").read_bytes(),
    ):
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        assert (image[..., ::-1] == picture).all()


def test_a_resumed_record_takes_back_what_came_later(tmp_path):
    for start in (0, 2):
        with Record(tmp_path, start, 9, ()) as record:
            for n in range(start + 1, start + 5):
                record.add({"seconds": 1.0})
                record.write(n, 1)
    assert [e["iteration"] for e in read_lines(tmp_path / "history.jsonl")] == [1, 2, 3, 4, 5, 6]
    begun = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert begun == [1, 3]  # TensorBoard drops older events from there on
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert SessionLog.START == 1


def test_history_forgets_what_comes_after_the_start(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f'{{"iteration": {n}, "total": {n / 10}}}\n' for n in (10, 20, 30)))
    with path.open("a") as file:
        file.write('{"iteration": 40, "to')
    with Record(tmp_path, 20, 90, ()) as record:
        record.add({"total": 0.5, "seconds": 1.0})
        record.write(25, 1)
    assert [(e["iteration"], e["total"]) for e in read_lines(path)] == [
        (10, 1.0),
        (20, 2.0),
        (25, 0.5),
    ]


def test_a_full_disk_is_an_error_and_not_a_hang(tmp_path):
    board = Board(tmp_path, purge_step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError):
            for step in range(1000):
                board.add(summary.scalar("a", 1.0), step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_peak_memory_counts_bytes():
    assert 50e6 < peak_memory() < 1e12


def test_profile_of_a_few_updates(tmp_path):
    with tracing(tmp_path / "profile", ALONE, wanted=True) as updated:
        for _ in range(SKIPPED + WARM_UP + TRACED + 2):
            torch.ones(4, 4) @ torch.ones(4, 4)
            updated()
    trace = json.loads((tmp_path / "profile" / "trace_rank0.json").read_text())
    assert sum(e.get("name") == "aten::matmul" for e in trace["traceEvents"]) == TRACED
    assert "aten::matmul" in (tmp_path / "profile" / "operations_rank0.txt").read_text()


def test_no_profile_unless_wanted(tmp_path):
    with tracing(tmp_path / "profile", ALONE, wanted=False) as updated:
        updated()
    assert not list(tmp_path.iterdir())
