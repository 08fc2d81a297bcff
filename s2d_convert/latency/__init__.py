"""Latency of stages: measured in onnxruntime, or predicted from a device's table."""
