import json

import pytest

from lib.engine.journal import Journal

MADE_FROM = {"checkpoint": "a.pth", "scales": [1, 2]}


def fill(path, ids, made_from=MADE_FROM):
    with Journal(path, made_from) as journal:
        for image_id in ids:
            journal.append(image_id, [{"id": image_id, "n": n} for n in range(image_id % 3)])
        return journal.done, [r for n in journal.done for r in journal.results_of(n)]


def test_what_is_written_comes_back_in_order(tmp_path):
    done, results = fill(tmp_path / "new" / "j.jsonl", [5, 3, 4])
    assert set(done) == {3, 4, 5}
    assert [r["id"] for r in results] == [5, 5, 4]


def test_going_on(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, [5, 3])
    with Journal(path, MADE_FROM) as journal:
        assert set(journal.done) == {3, 5}
    done, results = fill(path, [8])
    assert set(done) == {3, 5, 8}
    assert [r["id"] for r in results] == [5, 5, 8, 8]


def test_every_possible_interruption_loses_one_image_at_most(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, [5, 3, 7])
    content = path.read_bytes()
    lengths = [len(line) for line in content.splitlines(keepends=True)]
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        with Journal(path, MADE_FROM) as journal:
            whole = sum(end <= cut for end in ends) - 1
            assert set(journal.done) == set([5, 3, 7][: max(whole, 0)])
            for image_id in [5, 3, 7][max(whole, 0) :]:
                journal.append(image_id, [{"id": image_id, "n": n} for n in range(image_id % 3)])
        assert path.read_bytes() == content


@pytest.mark.parametrize("other", [{"checkpoint": "b.pth", "scales": [1, 2]}, {}])
def test_results_of_something_else_are_not_mixed_in(tmp_path, other):
    path = tmp_path / "j.jsonl"
    fill(path, [5, 3])
    done, results = fill(path, [4], other)
    assert set(done) == {4}
    assert [r["id"] for r in results] == [4]
    assert json.loads(path.read_text().splitlines()[0]) == {"made_from": other}


def test_a_file_of_another_kind_is_begun_anew(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"\xff\xfe nothing\nof ours\n")
    assert set(fill(path, [4])[0]) == {4}


def test_what_a_broken_disk_has_spoilt_is_done_again(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, [5, 3, 4])
    lines = path.read_bytes().splitlines(keepends=True)
    for spoilt in (b"\0" * 8 + b"\n", b"7\n", b"{}\n"):
        path.write_bytes(b"".join([*lines[:2], spoilt, *lines[3:]]))
        with Journal(path, MADE_FROM) as journal:
            assert set(journal.done) == {5}
    assert path.read_bytes() == b"".join(lines[:2])


def test_no_two_processes_write_to_one(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    with Journal(path, MADE_FROM):
        monkeypatch.setattr("lib.engine.journal.SECONDS_TO_LEAVE", 0)
        with pytest.raises(ValueError, match="another process is writing there"):
            fill(path, [4])

    # One that ends in time is waited for, and what it removed is begun anew.
    monkeypatch.setattr("lib.engine.journal.SECONDS_TO_LEAVE", 60)
    other = Journal(path, MADE_FROM)

    def end(_):
        path.unlink()
        other.close()

    monkeypatch.setattr("time.sleep", end)
    assert set(fill(path, [4])[0]) == {4}
    assert len(path.read_bytes().splitlines()) == 2


def test_nan_is_refused(tmp_path):
    with Journal(tmp_path / "j.jsonl", MADE_FROM) as journal, pytest.raises(ValueError):
        journal.append(1, [float("nan")])


def test_images_that_are_out_of_date_do_not_count(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, MADE_FROM, {5: "a", 3: "b"}) as journal:
        journal.append(5, ["five"])
        journal.append(3, ["three"])
    now = {5: "a", 3: "other"}
    with Journal(path, MADE_FROM, now) as journal:
        assert set(journal.done) == {5}
        journal.append(3, ["anew"])
    with Journal(path, MADE_FROM, now) as journal:
        assert set(journal.done) == {3, 5}
        assert journal.results_of(3) == ["anew"] and journal.results_of(5) == ["five"]
