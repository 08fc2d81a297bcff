"""Foundations that know nothing of models: sessions of onnxruntime, files written whole, numbers in words."""
