import os
import stat

import pytest

from lib import files
from lib.files import atomic_file, atomic_folder, read_json, remove_parts, write_json, write_text


def test_write_and_read(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    write_json(path, {"a": [1, 2.5, None, "é"]}, indent=2)
    assert read_json(path) == {"a": [1, 2.5, None, "é"]}
    write_json(path, [])
    assert read_json(path) == []
    write_text(path.with_suffix(".txt"), "é\n")
    assert path.with_suffix(".txt").read_bytes() == "é\n".encode()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
    path = tmp_path / "x.bin"
    with atomic_file(path) as file:
        file.write(b"1234")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"1234"


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    path = tmp_path / "a[1].json"
    write_json(path, [1])
    for name in (".a[1].json.x1.part", ".a[1].json.y2.part", ".a1.json.x1.part", ".b.json.x.part"):
        (tmp_path / name).touch()
    remove_parts(path)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {path.name, ".a1.json.x1.part", ".b.json.x.part"}


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "x"
    for text in ("one", "two"):
        with atomic_folder(path, "gallery", "index") as folder:
            write_text(folder / "index", text)
            write_text(folder / text, "")
            assert not (path / text).exists()
        assert sorted(p.name for p in path.iterdir()) == ["index", text]
    with pytest.raises(KeyboardInterrupt), atomic_folder(path, "gallery", "index"):
        raise KeyboardInterrupt
    assert (path / "two").is_file()
    assert list(path.parent.iterdir()) == [path]
    with (
        pytest.raises(FileExistsError, match="x: holds files that are no gallery; name another"),
        atomic_folder(path, "gallery", "other"),
    ):
        pass
    assert (path / "two").is_file()


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.json: no such file"):
        read_json(tmp_path / "x.json")
    for content in (b'{"a": [1,', b"", b"\xff\xfe"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"x.json: not valid JSON .*truncated"):
            read_json(tmp_path / "x.json")


@pytest.mark.parametrize("missing", [(), ("symlink",), ("symlink", "link")])
def test_links_where_the_disk_has_them(missing, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("this disk has no links")

    for name in missing:
        monkeypatch.setattr(files.os, name, refuse)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("content")
    files.link_or_copy(source, target)
    assert target.read_text() == "content"
    assert target.is_symlink() == (not missing)
    with pytest.raises(OSError):
        files.link_or_copy(tmp_path / "absent", tmp_path / "nowhere" / "target")
