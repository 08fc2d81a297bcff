"""Images: read from folders and arrays, or made up, and turned into model input."""

from s2d_convert.data.images import Dataset, Images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all, load_calibration, load_data
from s2d_convert.data.preprocess import Preprocess, make_preprocess

__all__ = [
    "Dataset",
    "Images",
    "LabelSpace",
    "Preprocess",
    "load_all",
    "load_calibration",
    "load_data",
    "make_preprocess",
]
