"""Reads published pickles without running anything that they name.

A pickle is a program. Here it can make numbers, text, lists, dicts and numpy arrays; a pickle
that names any other global is refused. Allowing numpy's own functions would not be safe: a dtype
whose state denies that it holds objects makes numpy take bytes of the file for pointers. So arrays
and dtypes are built here, from checked values.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

DAMAGED_ARRAY = (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError)
"""Errors of numpy for a damaged .npy, whose header it reads as Python."""


def load_pickle(path: str | Path) -> Any:
    """Content of a pickle of numpy arrays, lists, tuples, dicts, numbers, text and None.

    Reads files of Python 3 (any protocol), Python 2 (protocol 2), numpy 1 and numpy 2. Arrays are
    of a subclass of numpy's; `numpy.asarray` makes plain ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the pickle names another global (which one is said), or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return _load(path.read_bytes(), path)


def load_npy(path: str | Path) -> Any:
    """Content of a .npy file, its objects read as by `load_pickle`.

    Raises:
        FileNotFoundError, ValueError: as `load_pickle`; also for another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            *_, dtype = read(file)
            if dtype.hasobject:
                return _load(file.read(), path)
        return np.load(path, allow_pickle=False)
    except DAMAGED_ARRAY as error:
        text = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a readable .npy file: {text}") from error


def _load(content: bytes, path: Path) -> Any:
    try:
        _check_lengths(content)
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # damaged bytes raise errors of every kind
        raise ValueError(
            f"{path}: not a readable pickle ({type(error).__name__}: {error}); "
            "the file may be truncated: copy it again"
        ) from error


def load_by_image(path: str | Path, *keys: str) -> dict[str, tuple[Any, ...]]:
    """Values of every image in a published file of parallel lists.

    Args:
        path: a pickle `{"indexes": [image id, ...], key: [value of that image, ...], ...}`.

    Returns:
        The values of all `keys` by image id as text; look them up with `find_image`.

    Raises:
        ValueError: a list is missing, the lists differ in length, an id occurs twice; also as
            `load_pickle`.
    """
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a dict of lists")
    keys = ("indexes", *keys)
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(
            f"{path}: no {' and no '.join(missing)} among its keys "
            f"({', '.join(str(key) for key in content)}); is it another kind of file?"
        )
    lists = [content[key] for key in keys]
    odd = [type(v).__name__ for v in lists if not isinstance(v, list | tuple | np.ndarray)]
    if odd:
        raise ValueError(f"{path}: found a {odd[0]}, expected lists with one value per image")
    if len({len(values) for values in lists}) > 1:
        lengths = ", ".join(f"{key} {len(v)}" for key, v in zip(keys, lists, strict=True))
        raise ValueError(f"{path}: lists of different lengths ({lengths}); copy the file again")
    by_image: dict[str, tuple[Any, ...]] = {}
    for index, *values in zip(*lists, strict=True):
        name = _id_text(index)
        if name in by_image:
            raise ValueError(f"{path}: image {name} occurs twice in indexes")
        by_image[name] = tuple(values)
    return by_image


def find_image(
    by_image: dict[str, tuple[Any, ...]], image_id: int | str, file_name: str
) -> tuple[Any, ...] | None:
    """Values of one image by its id or the stem of its file name; None if there are none.

    2007000032, "2007000032" and "2007_000032" all find 2007_000032.jpg.
    """
    return by_image.get(str(image_id), by_image.get(Path(file_name).stem))


def _id_text(index: Any) -> str:
    if isinstance(index, np.ndarray) and index.size == 1:
        index = index.item()
    if isinstance(index, float | np.floating) and float(index).is_integer():
        index = int(index)
    return index.decode("latin1") if isinstance(index, bytes) else str(index)


def _check_lengths(content: bytes) -> None:
    """Checks that no instruction reaches beyond the file or asks for excessive memory: Python
    allocates room for objects 0..n when told to remember one as number n."""
    for position, (instruction, argument, _) in enumerate(pickletools.genops(content)):
        if instruction.name in ("PUT", "LONG_BINPUT") and argument > position + 1:
            raise ValueError(f"object {argument} is remembered before as many were made")


class _Refused(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if (module, name) not in _ALLOWED:
            raise _Refused(
                f"refused: the pickle names the global {module}.{name}, and may only hold numpy "
                "arrays, lists, dicts and scalars; do not use this file if you do not trust it"
            )
        return _StandIn(_ALLOWED[module, name])

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("refused: the pickle refers to an object outside itself")


class _StandIn:
    """Callable that a pickle gets for a global; unlike a function it cannot be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _Refused("refused: the pickle changes a function")


class _Dtype:
    """Kind and byte order of a pickled dtype; the flags in its state are ignored."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: Any) -> None:
        # Numbers, objects (checked by the array) and text.
        if not isinstance(code, str) or code[:1] not in "?biufcOSU" or not code[1:].isdecimal():
            raise _Refused(f"refused: arrays of dtype {code!r}; expected plain numbers or text")
        self.code = "O" if code[0] == "O" else code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">", "=") else "="
        if self.code[0] in "SU":  # the size stands in the state, as in (3, '<', ..., 20, 4, 0)
            characters = int(state[5]) // (4 if self.code[0] == "U" else 1)
            self.code = f"{self.code[0]}{max(characters, 0)}"

    def numpy(self) -> np.dtype:
        return np.dtype(self.code if self.code == "O" else self.order + self.code)


class _Array(np.ndarray):
    """An array that a pickle fills once, with exactly the bytes or objects that it takes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if self.size:
            raise _Refused("refused: the pickle fills an array twice")
        dtype, shape = _plain_dtype(dtype), _plain_shape(shape)
        if not dtype.hasobject:
            content = _plain_bytes(content)
        elif not isinstance(content, list):
            raise _Refused("refused: an array of objects without a list of them")
        size = 1 if dtype.hasobject else dtype.itemsize
        if len(content) != math.prod(shape) * size:
            raise ValueError(f"an array of shape {shape} and {dtype} of {len(content)} entries")
        super().__setstate__((1, shape, dtype, bool(fortran), content))

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return np.asarray(self).__reduce_ex__(protocol)  # other processes get a plain array


def _plain_dtype(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):
        raise _Refused("refused: an array whose dtype is no dtype")
    return dtype.numpy()


def _plain_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{shape!r} is no shape")
    return shape


def _plain_bytes(content: Any) -> bytes:
    if not isinstance(content, str | bytes | bytearray):  # bytes(2**40) would make as many
        raise _Refused("refused: an array whose content is no bytes")
    return content.encode("latin1") if isinstance(content, str) else bytes(content)


def _reconstruct(*_: Any) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _ndarray(*_: Any) -> NoReturn:
    raise _Refused("refused: the pickle calls numpy.ndarray")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str, *_: Any) -> np.ndarray:
    dtype = _plain_dtype(dtype)
    if dtype.hasobject:
        raise _Refused("refused: a buffer of objects")
    return np.frombuffer(_plain_bytes(buffer), dtype).reshape(_plain_shape(shape), order=order)


def _scalar(dtype: Any, content: Any = b"") -> np.generic:
    dtype = _plain_dtype(dtype)
    if dtype.hasobject:
        raise _Refused("refused: an object as a numpy scalar")
    content = _plain_bytes(content)
    if len(content) != dtype.itemsize:
        raise ValueError(f"a scalar of {dtype} with {len(content)} bytes")
    return np.frombuffer(content, dtype)[0] if content else dtype.type()


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes of Python 3 in protocols 0 to 2."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise _Refused(f"refused: text in encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
    ("builtins", "bytes"): lambda: b"",  # protocols 0 to 2
}
"""Stand-ins for the globals of pickled arrays (numpy 2 calls them numpy._core)."""
