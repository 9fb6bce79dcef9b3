"""Int8 and its kin for ONNX graphs: own calibration, own QDQ writer, targets; no torch.

``schemes.quantize`` is the entrance to all schemes; ``plain.quantize`` is the straight path of
int8. What chooses placements or recovers accuracy builds on its parts: ``prepare.load`` ->
``select.select`` -> ``calibrate.calibrate`` -> ``qdq.write``.
"""
