"""Request bodies that are one picture: the call that they stand for, and the names that its answer has beside the tensors.

Values only, for servers that speak HTTP themselves. Reading pictures needs Pillow (the extra `images`). What a picture may
take is bounded by the body, its pixels, and the one decoder that its content type names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from s2d_runtime.classifier import names_of, picture_module, predictions
from s2d_runtime.dispatcher import Answer, DispatcherError, Manifest
from s2d_runtime.preprocess import Preprocess
from s2d_runtime.serving import v2

DECODERS: Mapping[str, str] = MappingProxyType({"image/jpeg": "JPEG", "image/png": "PNG"})  # by content type
LABEL, PROBABILITY = "label", "probability"
LONGEST = 120  # characters of a decoder's message


def media_type(header: str | None) -> str:
    """Return the media type in a header Content-Type, in lower case and without parameters."""
    return (header or "").partition(";")[0].strip().lower()


class PictureRequests:
    """Requests of one picture to a folder. most_pixels: the limit for a picture.

    A folder for which pictures have no meaning is served all the same: requests with pictures are then refused.
    """

    def __init__(self, manifest: Manifest, *, most_pixels: int) -> None:
        self._manifest, self._most_pixels, self._refusal = manifest, most_pixels, ""
        try:
            self._names = names_of(manifest)
            self._preprocess = Preprocess.recorded(manifest)
            self._preprocess.check_known("a picture")
            if self._preprocess.channels not in (1, 3):
                self._refusal = f"pictures have 1 or 3 channels, the model takes {self._preprocess.channels}"
        except DispatcherError as error:
            self._refusal = f"this folder takes no pictures ({error})"

    def call(self, kind: str, body: bytes, budget: str | None) -> v2.Call:
        """Return the call for a picture. kind: one of DECODERS; budget: the request's, as text. Raises RequestError."""
        if self._refusal:
            raise v2.RequestError(415, self._refusal)
        try:
            pictures = picture_module()
        except DispatcherError as error:
            raise v2.RequestError(415, str(error)) from error
        chosen = None if budget is None else v2.budget_of({"budget": budget}, self._manifest)
        limits = pictures.Limits((DECODERS[kind],), self._most_pixels)
        try:
            pixels = pictures.load_picture(body, self._preprocess, limits).pixels
        except pictures.UNREADABLE as error:
            unknown = isinstance(error, pictures.UnidentifiedImageError)
            reason = f"its content is no {DECODERS[kind]}" if unknown else pictures.reason_of(error)
            raise v2.RequestError(400, f"the picture cannot be read ({reason[:LONGEST]})") from error
        return v2.Call(self._preprocess(pixels[None]), chosen)

    def with_names(self, response: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """Return the response to a picture with two more outputs of shape [1, n]: the labels' names and probabilities.

        n is 1 for one class of many; of several labels it is the number of those that apply.
        """
        (found,) = predictions(self._manifest, answer, self._names)
        shape = [1, len(found.labels)]
        names = np.array([label.name for label in found.labels], object)
        shares = np.array([label.probability for label in found.labels], np.float32)
        more = [
            {"name": LABEL, "datatype": "BYTES", "shape": shape, "data": names},
            {"name": PROBABILITY, "datatype": "FP32", "shape": shape, "data": shares},
        ]
        return {**response, "outputs": [*response["outputs"], *more]}
