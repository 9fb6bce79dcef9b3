"""What this machine lacks for a stage, so that it is said before an hour of training."""

from __future__ import annotations

from compressor.core import yaml
from compressor.core.environment import require
from compressor.core.errors import MissingError
from compressor.pipeline.graph import Node

EXTRA_OF = {"torch": "train", "sklearn": "train", "onnxruntime": "cpu"}


def lacks(document: yaml.Document, node: Node, device: str) -> str:
    """Why ``node`` cannot run here, with its place in the file; empty if it can.

    Imports torch only for ``device: cuda``, and else what the stage's own ``check`` imports.
    """
    stage = node.stage
    where: tuple[str, ...] = ("stages", node.stem)
    try:
        _extras(stage.needs_extra)
        if device == "cuda" and "torch" in stage.needs_extra:
            _cuda()
        stage.check(node.config, device)
    except MissingError as error:
        text = str(error)
        key, _, rest = text.partition(": ")
        if key in type(node.config).model_fields:
            where, text = (*where, "with", key), rest
        return f"{document.locate(where)}: {text}"
    return ""


def _extras(modules: tuple[str, ...]) -> None:
    if modules:
        require(modules, EXTRA_OF.get(modules[0], "train"), "it")


def _cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise MissingError("--device cuda: torch sees no CUDA device; use --device cpu")
