"""The stages that ship, by the name that ``uses`` takes. Strings: nothing is imported here."""

STAGES: dict[str, str] = {
    "data": "compressor.stages.data:DATA",
    "train": "compressor.stages.train:TRAIN",
    "distill": "compressor.stages.distill:DISTILL",
    "prune": "compressor.stages.prune:PRUNE",
    "qat": "compressor.stages.qat:QAT",
    "export": "compressor.stages.export:EXPORT",
    "quantize": "compressor.stages.quantize:QUANTIZE",
    "evaluate": "compressor.stages.evaluate:EVALUATE",
    "bench": "compressor.stages.bench:BENCH",
    "bundle": "compressor.stages.bundle:BUNDLE",
}
