"""Int8 for ONNX graphs: own calibration, own QDQ writer, targets; no torch.

``plain.quantize`` is the straight path. What chooses placements or recovers accuracy builds on
its parts: ``prepare.load`` -> ``select.select`` -> ``calibrate.calibrate`` -> ``qdq.write``.
"""
