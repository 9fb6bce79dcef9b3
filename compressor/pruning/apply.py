"""From options to a pruned, recalibrated, fine-tuned network."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from compressor.core import files
from compressor.core.errors import IntegrityError, StageError
from compressor.core.hashing import digest_json
from compressor.core.tasks import task as find_task
from compressor.core.types import Context, Metric, ModelSpec
from compressor.data.dataset import Dataset
from compressor.models import cost
from compressor.models.construct import example_inputs
from compressor.pruning.channels import Cut, Options, Reference, Target, prune_channels_
from compressor.pruning.options import PruneOptions
from compressor.pruning.recalibrate import recalibrate_
from compressor.pruning.schedule import ramp
from compressor.pruning.weights import Masks, ends, zero_fraction
from compressor.training.evaluate import evaluate, score
from compressor.training.loop import fit_, total_steps
from compressor.training.losses import LossFunction

# Two samples at least: with one, a layer that loses the batch dimension goes unnoticed.
_EXAMPLE = 2
_MEASURES = {"target_macs": "macs", "target_params": "parameters", "ratio": "channels"}


def prune_(
    model: nn.Module,
    data: Dataset,
    spec: ModelSpec,
    options: PruneOptions,
    ctx: Context,
    loss: LossFunction | None = None,
) -> dict[str, Metric]:
    """Prune ``model`` in place; killed anywhere and called again, it gives the same weights.

    Surgery follows from weights, options and seed alone, so it is repeated after a kill (and
    compared with a note of the first time); fine-tuning goes on from its own checkpoints. A
    target that is met already (fraction kept 1, ratio or sparsity 0) changes nothing at all.

    Args:
        model: On the CPU.
        data: For statistics, fine-tuning and validation.
        spec: The model's.
        options: What to do.
        ctx: Where to resume, and whom to tell.
        loss: For fine-tuning; by default the task's on the labels.

    Returns:
        ``macs_kept`` and ``params_kept`` (fractions), ``channels_removed``, ``zeros`` (% of the
        weights of convolutions and linear layers; ONNX Runtime multiplies by zeros like by any
        number, so they cost no less time, see ``zstd_bytes``), and ``val_before_finetune``: the
        score after pruning and recalibration, before fine-tuning. That one is expected to be poor,
        often near chance, and says nothing about the score after fine-tuning: never gate on it.
        It is left out where fine-tuning does the pruning (``method: weights`` with
        ``schedule: cubic``), since there is nothing pruned to measure before.

    Raises:
        TargetError: Out of reach, or nothing could be pruned.
        StageError: The network cannot be pruned so.
        IntegrityError: Surgery repeated after a kill differs from the first time.
    """
    macs, parameters = cost.macs(model, spec), cost.parameters(model)
    task = find_task(spec.task)
    before: float | None
    if options.method == "channels":
        removed, before = _channels_(model, data, spec, options, ctx, loss)
    else:
        removed, before = 0, _weights_(model, data, spec, options, ctx, loss)
    model.eval()
    metrics = {
        "macs_kept": Metric(cost.macs(model, spec) / macs if macs else 1.0, "x", "lower"),
        "params_kept": Metric(cost.parameters(model) / parameters, "x", "lower"),
        "channels_removed": Metric(float(removed), "count", "higher"),
        "zeros": Metric(100 * zero_fraction(model), "%", "higher"),
    }
    if before is not None:
        metrics["val_before_finetune"] = Metric(before, task.unit, task.better)
    return metrics


def _channels_(
    model: nn.Module,
    data: Dataset,
    spec: ModelSpec,
    options: PruneOptions,
    ctx: Context,
    loss: LossFunction | None,
) -> tuple[int, float]:
    """Cut and fine-tune in rounds. Returns channels removed and the score before fine-tuning."""
    word, value = options.target
    keep = 1 - value if word == "ratio" else value
    target = Target(_MEASURES[word], keep, f"{word}: {value:g}")  # type: ignore[arg-type]
    how = Options(options.round_to, options.importance, options.scope, options.max_ratio, ctx.seed)
    example = example_inputs(spec, _EXAMPLE)
    reference: Reference | None = None
    removed, before = 0, None
    for turn in range(1, options.steps + 1):
        cut = prune_channels_(
            model,
            example,
            target,
            how,
            portion=turn / options.steps,
            reference=reference,
            macs=cost.macs(model, spec),
        )
        reference = cut.reference
        if cost.macs(model, spec) != cut.macs:
            raise StageError(
                f"pruning: counted {cut.macs} MACs, the network has {cost.macs(model, spec)}; "
                "this is a bug in compressor.pruning.budget"
            )
        _tell(cut, ctx, turn, options.steps)
        if not cut.widths:
            continue
        _same_surgery(cut, ctx.resume / f"surgery{turn}.json")
        removed += sum(a - b for a, b in cut.widths.values())
        _recalibrate_(model, data, options, ctx)
        before = _score(model, data, spec, ctx)
        if options.finetune is not None:
            fit_(model, data, spec, options.finetune, ctx, loss=loss, label=f"finetune{turn}")
    return removed, _score(model, data, spec, ctx) if before is None else before


def _weights_(
    model: nn.Module,
    data: Dataset,
    spec: ModelSpec,
    options: PruneOptions,
    ctx: Context,
    loss: LossFunction | None,
) -> float | None:
    """Mask and fine-tune. Returns the score in between; None if masks grow while tuning."""
    _, sparsity = options.target
    if sparsity == 0:
        ctx.progress.say("prune: sparsity 0, nothing to do")
        return _score(model, data, spec, ctx)
    tuned = options.finetune
    total = total_steps(data, tuned) if tuned is not None else 0
    spared = ends(model, example_inputs(spec, 1)) if options.scope == "local" else set()
    plan = ramp(options.schedule, sparsity, total)
    masks = Masks(model, plan, options.scope, spared)
    _recalibrate_(model, data, options, ctx)
    before = _score(model, data, spec, ctx) if plan.end == 0 else None
    if tuned is not None:
        fit_(
            model, data, spec, tuned, ctx, loss=loss,
            after_step=masks.after_step, after_step_state=masks.state, label="finetune",
        )  # fmt: skip
        masks.apply_()  # a moving average remembers weights from before they were zeroed
    ctx.progress.say(
        f"prune: {100 * zero_fraction(model):.1f} % of the weights are 0; the compressed file "
        "shrinks (zstd_bytes), latency does not"
    )
    return before


def _recalibrate_(model: nn.Module, data: Dataset, options: PruneOptions, ctx: Context) -> None:
    """New normalisation statistics."""
    tuned = options.finetune
    recalibrate_(
        model,
        data,
        count=options.recalibrate_batches,
        batch_size=tuned.batch_size if tuned is not None else 128,
        seed=ctx.seed,
        device=ctx.device,
    )


def _score(model: nn.Module, data: Dataset, spec: ModelSpec, ctx: Context) -> float:
    outputs = evaluate(model, data, "val", device=ctx.device)
    model.to("cpu")
    return score(outputs, data.split("val").labels, find_task(spec.task))


def _tell(cut: Cut, ctx: Context, turn: int, turns: int) -> None:
    removed = sum(a - b for a, b in cut.widths.values())
    round_ = f" (round {turn} of {turns})" if turns > 1 else ""
    ctx.progress.say(
        f"prune{round_}: {removed} channels in {len(cut.widths)} groups removed; "
        f"{cut.macs / cut.reference.macs:.1%} of the MACs and "
        f"{cut.parameters / cut.reference.parameters:.1%} of the parameters stay"
        if removed
        else f"prune{round_}: already at the target, nothing to remove"
    )
    if turn == 1:
        for name, reason in cut.whole.items():
            ctx.progress.say(f"prune: {name} left whole: {reason}")


def _same_surgery(cut: Cut, note: Path) -> None:
    """Remember which channels were kept, or compare with what was remembered before a kill."""
    digest = digest_json({name: list(kept) for name, kept in cut.kept.items()})
    if note.exists():
        if json.loads(note.read_bytes()) != digest:
            raise IntegrityError(
                f"{note}: surgery keeps other channels than before the interruption; remove "
                f"{note.parent} to start this stage anew"
            )
        return
    files.write_json(note, digest)
