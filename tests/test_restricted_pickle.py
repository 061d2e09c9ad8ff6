"""Published pickles: what numpy writes comes back, and nothing else is run."""

import contextlib
import io
import os
import pickle
import pickletools
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lib.restricted_pickle import find_image, load_by_image, load_pickle


class Call:
    """Pickles as a call of `function`, with a state if there is one."""

    def __init__(self, function, arguments, *state):
        self.reduced = (function, arguments, *state)

    def __reduce__(self):
        return self.reduced


def loaded(tmp_path, content, protocol=pickle.DEFAULT_PROTOCOL):
    path = tmp_path / "file.pkl"
    path.write_bytes(content if type(content) is bytes else pickle.dumps(content, protocol))
    return load_pickle(path)


def same(a, b):
    if isinstance(b, np.ndarray):
        plain = np.asarray(a)
        assert plain.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")  # as numpy: native
        assert plain.shape == b.shape
        if b.dtype == object:
            return all(same(x, y) for x, y in zip(plain.flat, b.flat, strict=True))
        return plain.tobytes() == b.astype(plain.dtype).tobytes()
    if isinstance(b, list | tuple):
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in b)
    return type(a) is type(b) and a == b


def ragged(*arrays):
    out = np.empty(len(arrays), object)
    out[:] = arrays
    return out


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_numpy_writes_comes_back(tmp_path, protocol):
    content = {
        "indexes": [2007000032, "2007_000033", np.int64(9), np.str_("é")],
        "mat": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, 2, dtype=np.int32))],
        "masks": ragged(np.ones((2, 3, 4), bool), np.zeros((0, 3, 4), np.uint8)),
        "text": np.array(["a", "bcd"]),
        "bytes": np.array([b"ab", b"c"]),
        "big endian": np.array([1, 256], ">i4"),
        "scalars": (None, True, 1.5, 2**70, b"\xff\x00", b"", "x", np.float32(0.1), np.bool_(True)),
        "rles": [{"size": [2, 2], "counts": b"04"}],
        "strided": np.arange(12).reshape(3, 4)[:, ::2],
    }
    assert same(loaded(tmp_path, content, protocol), content)


@settings(max_examples=150, deadline=None)
@given(
    npst.arrays(
        st.one_of(
            npst.boolean_dtypes(),
            npst.integer_dtypes(endianness="?"),
            npst.floating_dtypes(endianness="?"),
            npst.unicode_string_dtypes(max_len=5),
            npst.byte_string_dtypes(max_len=5),
        ),
        npst.array_shapes(min_dims=0, min_side=0, max_side=4),
    ),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_array_comes_back(tmp_path_factory, array, protocol):
    assert same(loaded(tmp_path_factory.getbasetemp(), [array], protocol), [array])


def test_numpy_1_and_python_2_names(tmp_path):
    content = [np.arange(3), np.float64(2)]
    new = pickle.dumps(content, 0)
    assert b"numpy._core" in new
    assert same(loaded(tmp_path, new.replace(b"numpy._core", b"numpy.core")), content)
    # Python 2 writes text and the bytes of arrays as 8-bit strings (protocol 2: U, length, bytes).
    python2 = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x02"
        b"\x85cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x01\xfftb."
    )
    assert same(loaded(tmp_path, python2), np.array([1, 255], np.uint8))


def test_arrays_are_plain_in_other_processes(tmp_path):
    content = [np.arange(3), ragged(np.eye(2), np.ones(1))]
    again = pickle.loads(pickle.dumps(loaded(tmp_path, content)))
    assert type(again[0]) is np.ndarray and type(again[1][0]) is np.ndarray
    assert same(again, content)


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "builtins.eval"),
        (exec, ("open('{}', 'w')",), "builtins.exec"),
        (getattr, ("", "join"), "builtins.getattr"),
        (subprocess.call, (["touch", "{}"],), "subprocess.call"),
        (np.load, ("{}", None, True), "numpy.load"),
        (np.fromfile, ("{}",), "numpy.fromfile"),
        (io.FileIO, ("{}", "w"), "_io.FileIO"),
        (set, (), "builtins.set"),
        (bytearray, (10**9,), "builtins.bytearray"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("nested", [False, True])
def test_other_globals_are_refused_by_name(tmp_path, function, arguments, name, protocol, nested):
    target = tmp_path / "touched"
    arguments = tuple(a.format(target) if isinstance(a, str) else a for a in arguments)
    content = Call(function, arguments)
    if nested:  # after much that is fine, inside an array of objects inside a dict
        content = {"indexes": [1], "mat": [ragged(np.eye(2), content)]}
    with pytest.raises(ValueError, match=f"file.pkl: refused.*{name.split('.')[-1]}"):
        loaded(tmp_path, content, protocol)
    assert not target.exists()


def test_classes_and_nested_attributes_are_refused(tmp_path):
    class_pickle = pickle.dumps(Call, 2)
    with pytest.raises(ValueError, match="file.pkl: refused.*Call"):
        loaded(tmp_path, class_pickle)
    for dotted in ("dtype.mro", "ndarray.__subclasses__"):
        with pytest.raises(ValueError, match=f"file.pkl: refused.*{dotted}"):
            loaded(
                tmp_path,
                b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(dotted)]) + dotted.encode() + b"\x93.",
            )
    with pytest.raises(ValueError, match="outside itself"):
        loaded(tmp_path, b"Pelsewhere\n.")
    with pytest.raises(ValueError):  # the registry of copyreg
        loaded(tmp_path, b"\x82\x01.")


RECONSTRUCT = np.arange(0).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]
FROM_BUFFER = np.arange(2).__reduce_ex__(5)[0]


def dtype(code, state=(3, "|", None, None, None, -1, -1, 0)):
    return Call(np.dtype, (code, False, True), state)


def array(shape, kind, content, version=1):
    return Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (version, shape, kind, False, content))


@pytest.mark.parametrize(
    "content",
    [
        # numpy.load(allow_pickle=True), and any unpickler that allows numpy's own functions,
        # takes these bytes for a pointer: the flags in the dtype's state deny the object.
        array((1,), dtype("O8"), (0xDEADBEEF).to_bytes(8, "little")),
        array((1,), dtype("O8", (3, "|", None, None, None, 8, 8, 0)), b"\1" * 8),
        Call(FROM_BUFFER, (b"\1" * 8, dtype("O8"), (1,), "C")),
        Call(SCALAR, (dtype("O8"), b"\1" * 8)),
        array((4,), dtype("f8"), b"\0" * 8),  # fewer bytes than the shape takes
        array((8,), dtype("u1"), 8),  # bytes(8) would be as many as that
        Call(SCALAR, (dtype("u1"), 1)),
        array((1,), dtype("f8"), b"\0" * 80),
        array((-1,), dtype("f8"), b""),
        array((2**40, 2**40), dtype("u1"), b""),
        array((3,), dtype("O8"), [1]),
        array((1,), np.float64(1), b"\0" * 8),  # no dtype
        array((1,), dtype("V8"), b"\0" * 8),
        array((1,), dtype("M8"), b"\0" * 8),
        array((1,), dtype("f8,O"), b"\0" * 16),
        array((1,), dtype([("a", "O")]), b"\0" * 8),
        Call(np.ndarray, ((10,),)),
        Call(SCALAR, (dtype("f8"), b"\0")),
        Call(FROM_BUFFER, (b"\0" * 8, dtype("f8"), (2,), "C")),
    ],
)  # fmt: skip
def test_arrays_that_lie_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match="file.pkl: (refused|not a readable)"):
        loaded(tmp_path, content)


def test_an_array_is_filled_once(tmp_path):
    first = pickle.dumps(np.arange(4), 2)
    state = pickle.dumps(np.arange(8).__reduce__()[2], 2)[2:-1]
    with pytest.raises(ValueError, match="twice"):
        loaded(tmp_path, first[:-1] + state + b"b.")


def test_allowed_functions_cannot_be_changed(tmp_path):
    for change in (
        b"}",
        b"N}X\x08\x00\x00\x00__code__K\x01s\x86",
        b"N}X\x05\x00\x00\x00_callK\x01s\x86",
    ):
        with pytest.raises(ValueError):
            loaded(
                tmp_path,
                b"\x80\x02cnumpy\ndtype\n"
                + (change if change != b"}" else b"}K\x01K\x01s")
                + b"b.",
            )
    assert same(loaded(tmp_path, np.arange(3)), np.arange(3))


def test_damaged_and_missing_files(tmp_path):
    whole = pickle.dumps({"a": [np.arange(100)]})
    for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match=r"file\.pkl: not a readable pickle.*truncated"):
            loaded(tmp_path, whole[:length])
    with pytest.raises(FileNotFoundError, match=r"nothing\.pkl"):
        load_pickle(tmp_path / "nothing.pkl")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_any_byte_changed_is_an_error_or_harmless(tmp_path_factory, where, value):
    whole = bytearray(pickle.dumps({"a": [np.arange(4), np.array([None, "x"], object)]}))
    whole[where % len(whole)] = value
    with contextlib.suppress(ValueError):
        loaded(tmp_path_factory.getbasetemp(), bytes(whole))


@pytest.mark.parametrize(
    "content",
    [
        b"Nr" + (2**25).to_bytes(4, "little") + b".",  # remember None as object 2**25
        b"Np33554432\n.",
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.",  # bytes
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b"abc.",  # bytearray
        b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",  # frame
    ],
)
def test_little_files_that_ask_for_much_memory(tmp_path, content):
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ValueError):
        assert loaded(tmp_path, content) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 100_000  # kB


def test_only_the_globals_of_arrays_are_needed():
    """If this fails, numpy pickles arrays by another function than the reader knows."""
    text = pickle.dumps([np.arange(2), np.float32(1), np.array([None], object)], 2)
    names = {arg for op, arg, _ in pickletools.genops(text) if op.name == "GLOBAL"}
    assert {n.replace("_core", "core").split(" ")[-1] for n in names} <= {
        "_reconstruct",
        "ndarray",
        "dtype",
        "scalar",
        "encode",
        "bytes",
    }


def test_by_image(tmp_path):
    path = tmp_path / "label_assign.pkl"
    indexes = [2007000032, "2007_000033", np.int64(9), "000000000012", 14.0, b"15"]
    path.write_bytes(pickle.dumps({"indexes": indexes, "mat": list("abcdef"), "more": []}))
    by_image = load_by_image(path, "mat")
    found = [
        find_image(by_image, image_id, name)
        for image_id, name in [
            (12, "x/000000000012.jpg"),
            (9, "000000000009.jpg"),
            (2007000033, "2007_000033.jpg"),
            (2007000032, "2007_000032.jpg"),
            (14, "14.jpg"),
            (15, "z.jpg"),
            (77, "77.jpg"),
        ]
    ]
    assert found == [("d",), ("c",), ("b",), ("a",), ("e",), ("f",), None]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "found a list"),
        ({"mat": [1]}, "no indexes among its keys"),
        ({"indexes": [1], "boxes": [1]}, r"no mat among its keys \(indexes, boxes\)"),
        ({"indexes": [1, 2], "mat": [1]}, "indexes 2, mat 1"),
        ({"indexes": [1, "1"], "mat": [1, 2]}, "image 1 occurs twice"),
        ({"indexes": [1], "mat": 3}, "found a int"),
    ],
)
def test_other_contents(tmp_path, content, text):
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"odd\.pkl: .*{text}"):
        load_by_image(path, "mat")


def test_no_module_is_imported(tmp_path):
    """A refused name must not even be imported: importing runs code."""
    assert "this" not in sys.modules
    with pytest.raises(ValueError, match=r"file.pkl: refused.*this\.d"):
        loaded(tmp_path, b"cthis\nd\n.")
    assert "this" not in sys.modules
