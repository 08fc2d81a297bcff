"""The V2 client of the tests, the same for every serving stack; runs where tritonclient is installed, not under pytest.

    v2_client.py grpc|http PORT MODEL FOLDER [json]

FOLDER has requests.npz with one array per request, named 0, 1, ..., and parameters.json with as many objects. All are sent
at once, AT_ONCE at a time. The outputs come back in answers.npz as `0.output`, `0.stage`, ..., the refusals in errors.json
as a list of {"request", "status", "message"}, and in seconds.json what `all` and `each` took. With `json` the tensors of
HTTP travel as JSON, not as bytes behind it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

OUTPUTS = ("output", "stage", "confidence")
AT_ONCE = 16
TIMEOUT_S = 60
TYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "uint8": "UINT8"}


async def main(protocol: str, port: int, model: str, folder: Path, *, binary: bool) -> None:
    """Send all requests and write what comes back."""
    module = importlib.import_module(f"tritonclient.{protocol}.aio")
    with np.load(folder / "requests.npz") as stored:
        requests = [stored[str(i)] for i in range(len(stored.files))]
    parameters = json.loads((folder / "parameters.json").read_text(encoding="utf-8"))
    client, gate = module.InferenceServerClient(f"127.0.0.1:{port}"), asyncio.Semaphore(AT_ONCE)
    metadata = await client.get_model_metadata(model, **({"as_json": True} if protocol == "grpc" else {}))
    errors: list[dict[str, Any]] = []
    answers: dict[str, Any] = {}
    seconds: list[float] = []

    async def send(i: int) -> None:
        tensor = module.InferInput(metadata["inputs"][0]["name"], requests[i].shape, TYPES[requests[i].dtype.name])
        wanted = [module.InferRequestedOutput(name) for name in OUTPUTS]
        options: dict[str, Any] = {"parameters": parameters[i] or None}
        if protocol == "http":
            tensor.set_data_from_numpy(requests[i], binary_data=binary)
            wanted = [module.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
            options |= {} if binary else {"headers": {"Content-Type": "application/json"}}
        else:
            tensor.set_data_from_numpy(requests[i])
            options |= {"client_timeout": TIMEOUT_S}
        try:
            async with gate:
                started = time.perf_counter()
                found = await client.infer(model, [tensor], outputs=wanted, **options)
                seconds.append(time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is to see it
            errors.append(refusal(i, error))
            return
        answers.update({f"{i}.{name}": found.as_numpy(name) for name in OUTPUTS})

    begun = time.perf_counter()
    await asyncio.gather(*(send(i) for i in range(len(requests))))
    total_s = time.perf_counter() - begun
    await client.close()
    np.savez(folder / "answers.npz", **answers)
    (folder / "seconds.json").write_text(json.dumps({"all": total_s, "each": seconds}), encoding="utf-8")
    (folder / "errors.json").write_text(json.dumps(sorted(errors, key=lambda e: e["request"])), encoding="utf-8")


def refusal(i: int, error: Any) -> dict[str, Any]:
    """What the server said about a request."""
    if hasattr(error, "status") and hasattr(error, "message"):
        return {"request": i, "status": str(error.status()), "message": str(error.message())}
    return {"request": i, "status": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    protocol_, port_, model_, folder_, *rest = sys.argv[1:]
    asyncio.run(main(protocol_, int(port_), model_, Path(folder_), binary="json" not in rest))
