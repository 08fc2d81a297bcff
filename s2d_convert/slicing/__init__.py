"""From a plan to one ONNX model per stage."""
