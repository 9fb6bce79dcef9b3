"""The command line: click commands, thin; each imports what it needs when it runs."""

from compressor.cli import models, pipelines, storage  # noqa: F401  (they add their commands)
from compressor.cli.entry import main
from compressor.cli.group import cli

__all__ = ["cli", "main"]
