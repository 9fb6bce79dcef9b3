from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compressor.core.store import Store
from compressor.pipeline import execution, wiring
from compressor.pipeline.keys import Settings
from compressor.pipeline.progress import Quiet
from compressor.pipeline.state import State
from tests.pipeline import toys

T = "tests.pipeline.toys"


class Bench:
    """Writes a pipeline of toys, runs it, and says what was called."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "p.yaml"
        self.store = folder / "store"
        self.warnings: list[str] = []

    def write(self, stages: str, head: str = "name: toy\nseed: 0\n") -> Path:
        self.file.write_text(f"{head}stages:\n{stages}".replace("T:", f"{T}:"))
        return self.file

    def load(self, overrides: Sequence[str] = ()) -> wiring.Pipeline:
        return wiring.load(self.file, overrides)

    def state(self, device: str = "cpu", threads: int = 1) -> State:
        return State(Store(self.store, self.warnings.append), Settings(device, threads))

    def run(
        self,
        overrides: Sequence[str] = (),
        options: execution.Options = execution.Options(),  # noqa: B008
    ) -> tuple[dict[str, float], list[str]]:
        """Values by node, and the calls that were made."""
        toys.CALLS.clear()
        pipeline, state = self.load(overrides), self.state()
        done = execution.execute(pipeline, state, pipeline.nodes, options, Quiet())
        values = {
            d.node.name: toys.read(next(iter(state.artifacts[d.node.name].values())).path)
            for d in done
        }
        return values, list(toys.CALLS)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def problems(bench: Bench) -> Callable[[str], str]:
    """The message for a pipeline that must be refused."""
    from compressor.core.errors import ConfigError

    def refuse(stages: str, head: str = "name: toy\n") -> str:
        bench.write(stages, head)
        with pytest.raises(ConfigError) as caught:
            bench.load()
        return str(caught.value)

    return refuse
