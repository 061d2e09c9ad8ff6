"""Models of transformers that make masks from points: finds their files, and loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lib.files import first_few, read_json
from lib.optional import require_package
from lib.provenance import Memory, fingerprint

_FILES = ("*.json", "*.safetensors", "*.bin")
"""Files of a model."""


def files_fingerprint(model: str, memory: Memory) -> str:
    """Fingerprint of the files of a model; raises as `model_folder`."""
    folder = model_folder(model)
    names = sorted({path.name for pattern in _FILES for path in folder.glob(pattern)})
    return fingerprint(memory.read(folder, names))


def model_folder(model: str) -> Path:
    """The folder with the files of a model, which are downloaded where they are not there yet.

    Args:
        model: a folder, or a name on the hub.

    Raises:
        FileNotFoundError: there is no such folder or model, or it lacks files.
        ValueError: the package transformers is not installed.
    """
    require_package("transformers", "transformers", "proposals.generator sam")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _downloaded(model)
    for what in ("config.json", "*.safetensors or *.bin"):
        if not any(any(folder.glob(pattern)) for pattern in what.split(" or ")):
            raise FileNotFoundError(
                f"proposals.sam.model: {folder} has no {what}; give a name on the hub, such as "
                "facebook/sam-vit-base, or the folder of such a model"
            )
    return folder


def folder_name(model: str) -> str:
    """The last part of a model's name, the same on the hub and in a folder."""
    return Path(model).expanduser().resolve().name


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    try:
        folder = Path(snapshot_download(model, allow_patterns=patterns, local_files_only=True))
        if any(folder.glob("*.safetensors")):
            return folder
    except FileNotFoundError:
        pass
    except ValueError:
        raise FileNotFoundError(
            f"proposals.sam.model: {model} is neither a folder nor a name on the hub (owner/name)"
        ) from None
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except OSError as error:
        raise FileNotFoundError(
            f"proposals.sam.model: {model} is no folder, and the hub does not give it "
            f"({type(error).__name__}); is the name right? Without a network, copy its files here "
            "and give their folder"
        ) from None


def load_model(model: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The network, in evaluation mode, and the processor of a model.

    Raises:
        FileNotFoundError, ValueError: as `model_folder`; or it makes no masks, or cannot be read.
    """
    folder = model_folder(model)
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

    where = f"proposals.sam.model: {folder}"
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
        known = first_few(sorted(MODEL_FOR_MASK_GENERATION_MAPPING_NAMES))
        raise ValueError(
            f"{where} is a model of type {kind}, which makes no masks from points; types that do: "
            f"{known}"
        )
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder)
        network, loaded = transformers.AutoModelForMaskGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # the libraries below raise of every kind
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{where} cannot be loaded ({type(error).__name__}: {reason}); download it again"
        ) from error
    if lacking := sorted(loaded["missing_keys"]):
        raise ValueError(f"{where} lacks weights ({first_few(lacking, 3)}); download it again")
    return network.eval(), processor
