"""Pure statistics for gates, bench and bundle: paired drops, proportions, ratios. NumPy only."""

from compressor.stats.bootstrap import Interval, mean_interval, median_interval
from compressor.stats.paired import (
    Paired,
    compare,
    mcnemar_exact,
    samples_needed,
    tango_lower,
    tango_upper,
)
from compressor.stats.proportion import proportion_lower
from compressor.stats.ratios import ratio, ratio_interval

__all__ = [
    "Interval",
    "Paired",
    "compare",
    "mcnemar_exact",
    "mean_interval",
    "median_interval",
    "proportion_lower",
    "ratio",
    "ratio_interval",
    "samples_needed",
    "tango_lower",
    "tango_upper",
]
