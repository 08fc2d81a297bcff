"""One torch function per ONNX operator."""
