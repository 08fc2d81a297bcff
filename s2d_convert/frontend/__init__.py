"""From an ONNX file to a normalised graph, and the static model as the reference."""
