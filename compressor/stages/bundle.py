"""Stage ``bundle``: chooses the file that ships, and packs it with everything that proves it."""

from __future__ import annotations

from pydantic import Field

from compressor.core.config import Config
from compressor.core.tasks import task
from compressor.core.types import (
    BUNDLE as BUNDLE_KIND,
)
from compressor.core.types import (
    CHECKPOINT,
    DATASET,
    ONNX,
    TIMINGS,
    Context,
    Inputs,
    Need,
    Stage,
    StageResult,
    one,
    several,
)


class BundleConfig(Config):
    """What may ship.

    Attributes:
        max_drop: Points on val against the teacher (units of the metric for regression).
        golden: Golden samples in the bundle.
    """

    max_drop: float = 1.0
    golden: int = Field(default=16, ge=16)


def run(config: BundleConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Choose on val and stored timings, pick golden samples, write the folder."""
    from compressor.core.files import copy
    from compressor.data import dataset
    from compressor.runtime import package, record, shipping
    from compressor.runtime.choose import choose
    from compressor.runtime.golden import pick

    data = dataset.load(one(inputs, "data").path)
    judged = task(data.task)
    timings = record.load(one(inputs, "timings").path)
    artifacts = several(inputs, "candidates")
    shipping.check(timings, artifacts)
    candidates, scores = shipping.candidates(
        one(inputs, "teacher"), one(inputs, "teacher.val").path, artifacts,
        [p.path for p in several(inputs, "candidates.val")], judged,
    )  # fmt: skip
    choice = choose(candidates, timings.speedup, config.max_drop, timings.main.unstable)
    files = {a.name: a.path for a in artifacts}
    by_name = {c.name: c for c in candidates}
    golden = pick(
        files[choice.name], shipping.original(choice.name, by_name, files),
        data.split("calibration").inputs, precision=by_name[choice.name].precision,
        classification=judged.name == "classification", count=config.golden,
    )  # fmt: skip
    folder, model = ctx.workdir / "bundle", ctx.workdir / "model.onnx"
    package.write(folder, package.Contents(
        name=f"{data.name}: {choice.name}", choice=choice, candidates=by_name, files=files,
        scores=scores,
        teacher=one(inputs, "teacher").name, max_drop=config.max_drop,
        metric=(judged.metric, judged.unit), task=data.task, classes=data.classes,
        inputs=data.inputs, dataset=(data.name, data.fingerprint), record=timings, golden=golden,
    ))  # fmt: skip
    copy(files[choice.name], model)
    if not golden.clear:
        ctx.progress.say(f"golden samples: the two best classes of one are {golden.margin:.3g} "
                         f"apart, where outputs may move by {golden.noise:.3g}; another CPU may "
                         "predict the other")  # fmt: skip
    for line in (*choice.reasons, shipping.verdict(choice, timings)):
        ctx.progress.say(line)
    metrics = shipping.metrics(choice, by_name[choice.name], timings, judged)
    return StageResult({"bundle": folder, "model": model}, metrics)


BUNDLE = Stage(
    name="bundle",
    config=BundleConfig,
    run=run,
    needs={
        "timings": Need(TIMINGS),
        "candidates": Need(ONNX, many=True, val=True),
        "teacher": Need(CHECKPOINT, val=True),
        "data": Need(DATASET),
    },
    makes={"bundle": BUNDLE_KIND, "model": ONNX},
    needs_extra=("onnxruntime",),
)
