"""What can be done for the accuracy of an int8 model, and about how long each takes.

A remedy makes a recipe of a recipe. Its cost is a function of sizes and of one measured time, never
of a clock, so that what is tried within a budget does not depend on how busy the machine is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from compressor.quantization import adaround, bias_correction, equalization, parts, regions
from compressor.quantization.calibrate import Calibration, Feeds, calibrations
from compressor.quantization.candidates import Candidates, Journal
from compressor.quantization.graph import Array, Graph, constant_of
from compressor.quantization.observers import HISTOGRAM_METHODS, Method, Range
from compressor.quantization.plain import Options
from compressor.quantization.recipe import Recipe
from compressor.quantization.samples import Samples
from compressor.quantization.sensitivity import look_seconds

Side = Literal["activations", "weights"]
SIDES: tuple[Side, ...] = ("activations", "weights")
_COUNTS = (512, 256, 128, 64, 32, 16)  # samples that find ranges
_MEANS = (128, 64, 32, 16)  # samples whose mean is a mean
_ITERATIONS = (500, 250, 125)
_LEARNT_FROM = 64  # samples; 2,048 positions of them are kept
# CPU seconds of one Xeon core at 2.8 GHz: a value in NumPy's histogram, the search for a tensor's
# window (mse 7 ms, entropy 36 ms), a weight in a step of Adam (of layers of 288 and 1,152 inputs;
# a depthwise weight takes 10 times that, but there are few). A factor of 2 does no harm.
_BIN_S, _WINDOW_S, _STEP_S = 1.5e-8, 2e-2, 5e-8
_REDUCED = 1.5  # a pass that also reduces every tensor, in passes


@dataclass(frozen=True, slots=True)
class Means:
    """What remedies work with.

    Attributes:
        candidates: Of the plain recipe.
        samples: For calibration; in whole batches of a model whose batch is fixed.
        fixed: That batch, or None.
        options: The caller's.
        journal: Keeps what takes long.
        seed: Of what learns.
        sample_us: One sample through the float network, in microseconds.
    """

    candidates: Candidates
    samples: Samples
    fixed: int | None
    options: Options
    journal: Journal
    seed: int
    sample_us: float

    def counts(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """How many samples there are to choose from, most first."""
        step = self.fixed or 1
        most = len(self.samples) // step
        return tuple(dict.fromkeys(step * max(1, min(n // step, most)) for n in wanted))

    def feeds(self, count: int) -> Feeds:
        """``count`` samples, spread over all of them."""
        rows = np.arange(count) * len(self.samples) // count
        return self.samples.take(rows).feeds(self.fixed or max(1, self.options.batch))

    def passing(self, count: float) -> float:
        """Seconds to write a model, open it and send ``count`` samples through it."""
        return look_seconds(self.candidates, self.sample_us, 0) + count * self.sample_us / 1e6

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those whose ranges some placement needs."""
        known = self.candidates.recipe.ranges
        wanted = regions.tensors(self.candidates.graph, self.candidates.selection)
        return tuple(name for name in wanted if name in known)

    def calibrating(self, methods: Collection[Method], count: int) -> float:
        """Seconds for :meth:`ranges`."""
        spent = self.passing(_REDUCED * count)
        histograms = HISTOGRAM_METHODS.intersection(methods)
        if histograms:
            sizes = self.candidates.found.sizes
            values = count * sum(sizes.get(name, 0) for name in self.tensors)
            searched = len(histograms - {"percentile"}) * len(self.tensors)
            spent += self.passing(count) + _BIN_S * values + _WINDOW_S * searched
        return spent

    def ranges(
        self, recipe: Recipe, graph: Graph, methods: Sequence[Method], method: Method, count: int,
        key: str,
    ) -> Calibration:  # fmt: skip
        """Calibrate ``graph``; what other ``methods`` find in the same passes is kept.

        Args:
            recipe: Whose calibration this takes the place of.
            graph: Has the nodes of the recipe's.
            methods: All that are to be found.
            method: The one to return.
            count: Samples.
            key: Says what ``graph`` is.
        """

        def compute() -> Mapping[str, Array]:
            found = calibrations(
                graph, self.tensors, self.feeds(count), methods, threads=self.options.threads,
                percentile=self.options.percentile,
            )  # fmt: skip
            return {m: _array(found[m].ranges, self.tensors) for m in methods}

        kept = self.journal.arrays(f"ranges {methods} {count} {key}", compute)
        spans = {
            name: Range(float(low), float(high))
            for name, (low, high) in zip(self.tensors, kept[method], strict=True)
        }
        return replace(recipe.found, ranges={**recipe.ranges, **spans}, samples=count)


def _array(ranges: Mapping[str, Range], tensors: Sequence[str]) -> Array:
    return np.array([[ranges[n].low, ranges[n].high] for n in tensors], np.float64).reshape(-1, 2)


class Remedy(ABC):
    """One thing to try.

    Attributes:
        name: Short.
        sizes: How thoroughly it may be done, the most first.
    """

    name: str
    sizes: tuple[int, ...]

    @abstractmethod
    def cost(self, recipe: Recipe, size: int) -> float:
        """Seconds that it is expected to take."""

    @abstractmethod
    def make(self, recipe: Recipe, size: int) -> Recipe | None:
        """The recipe with it, or None where it has nothing to do.

        Args:
            recipe: Without biases that were corrected for something else.
            size: One of ``sizes``.
        """


def calibrators(means: Means) -> list[Remedy]:
    """The methods of calibration that the caller did not choose, likeliest first."""
    order: tuple[Method, ...] = ("mse", "percentile", "entropy", "minmax", "moving")
    others = tuple(m for m in order if m != means.options.method)
    plain = tuple(m for m in others if m not in HISTOGRAM_METHODS)
    done: dict[tuple[Method, int], tuple[Method, ...]] = {}
    return [
        _Calibrator(means, m, others if m in HISTOGRAM_METHODS else plain, done) for m in others
    ]


class _Calibrator(Remedy):
    """Ranges by another method; methods that share passes over the samples pay for them once."""

    def __init__(
        self, means: Means, method: Method, together: tuple[Method, ...],
        done: dict[tuple[Method, int], tuple[Method, ...]],
    ) -> None:  # fmt: skip
        self.name, self.sizes = f"{method} ranges", means.counts(_COUNTS)
        self._means, self._method, self._together, self._done = means, method, together, done

    def cost(self, recipe: Recipe, size: int) -> float:
        if (self._method, size) in self._done:
            return 0.0
        return self._means.calibrating(self._together, size)

    def make(self, recipe: Recipe, size: int) -> Recipe:
        together = self._done.get((self._method, size), self._together)
        self._done.update({(m, size): together for m in together})
        found = self._means.ranges(recipe, recipe.graph, together, self._method, size, "")
        steps = recipe.then(f"ranges by {self._method}, {size} samples")
        return replace(recipe, found=found, method=self._method, steps=steps)


class Biases(Remedy):
    """:mod:`.bias_correction`; right for nothing but the recipe that it was measured with."""

    def __init__(self, means: Means) -> None:
        """Choose how many samples a mean is taken over."""
        self.name, self.sizes = "bias correction", means.counts(_MEANS)
        self._means = means

    def cost(self, recipe: Recipe, size: int) -> float:
        """One pass per level of the network, half of it on average, and one in float."""
        levels = len(parts.levels(recipe.graph, self._means.candidates.selection))
        return levels * self._means.passing(size / 2) + self._means.passing(size)

    def make(self, recipe: Recipe, size: int) -> Recipe | None:
        """Measure what the biases must gain."""
        means, start = self._means, self._means.candidates
        steps = recipe.then(f"bias correction, {size} samples")

        def compute() -> Mapping[str, Array]:
            return bias_correction.correct(
                recipe.graph, start.selection, recipe.ranges, start.target, means.feeds(size),
                rounding=recipe.rounding, threads=means.options.threads,
            ).deltas  # fmt: skip

        deltas = means.journal.arrays(f"{steps}", compute)
        return replace(recipe, deltas=deltas, steps=steps) if deltas else None


class Equalization(Remedy):
    """:mod:`.equalization` of the graph as it was given, and a calibration of the result."""

    def __init__(self, means: Means, by: Side, method: Method) -> None:
        """Choose what is balanced, and how the ranges are found that follow from it."""
        self.name, self.sizes = f"equalization by {by}, {method} ranges", means.counts(_COUNTS)
        self._means, self._by, self._method = means, by, method

    def cost(self, recipe: Recipe, size: int) -> float:
        """A calibration, and a pass for the peaks of the activations."""
        peaks = self._means.passing(_REDUCED * size) if self._by == "activations" else 0.0
        return peaks + self._means.calibrating((self._method,), size)

    def make(self, recipe: Recipe, size: int) -> Recipe | None:
        """Rescale and calibrate, in the place of the ranges that the recipe had."""
        means, graph = self._means, self._means.candidates.graph
        if not equalization.pairs(graph):
            return None
        observed: Mapping[str, Array] = {}
        if self._by == "activations":
            observed = means.journal.arrays(
                f"peaks {size}",
                lambda: equalization.peaks(graph, means.feeds(size), means.options.threads),
            )
        equal = equalization.equalize(graph, observed).graph
        own = replace(recipe, steps=recipe.then(f"ranges by {self._method}, {size} samples"))
        steps = own.then(f"equalization by {self._by}")
        found = means.ranges(own, equal, (self._method,), self._method, size, f"{steps}")
        return replace(own, graph=equal, found=found, method=self._method, steps=steps)


class Rounding(Remedy):
    """:mod:`.adaround`."""

    def __init__(self, means: Means) -> None:
        """Choose how long it learns."""
        self.name, self.sizes = "AdaRound", _ITERATIONS
        self._means = means
        self._count = means.counts((_LEARNT_FROM,))[0]

    def cost(self, recipe: Recipe, size: int) -> float:
        """Two passes per level, half of the network on average, and Adam."""
        graph, selection = recipe.graph, self._means.candidates.selection
        levels = parts.levels(graph, selection)
        weights = [constant_of(node, graph, 1) for level in levels for node in level]
        total = sum(w.size for w in weights if w is not None)
        return 2 * len(levels) * self._means.passing(self._count / 2) + _STEP_S * size * total

    def make(self, recipe: Recipe, size: int) -> Recipe:
        """Learn how every weight is rounded."""
        means, start = self._means, self._means.candidates
        steps = recipe.then(f"AdaRound, {size} iterations")

        def compute() -> Mapping[str, Array]:
            return adaround.learn(
                recipe.graph, start.selection, recipe.ranges, start.target,
                means.feeds(self._count), rng=np.random.default_rng(means.seed),
                learning=adaround.Learning(iterations=size), threads=means.options.threads,
            ).values  # fmt: skip

        return replace(recipe, rounding=means.journal.arrays(f"{steps}", compute), steps=steps)
