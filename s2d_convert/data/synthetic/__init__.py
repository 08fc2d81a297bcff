"""Made-up images for conversions without data: procedural textures and scenes, strongly augmented."""

from s2d_convert.data.synthetic.drawing import made_up

__all__ = ["made_up"]
