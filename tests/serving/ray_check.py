"""A folder on a two-node Ray cluster: `serve deploy`, concurrent clients, replicas that die, a budget that changes live.

    ray_check.py FOLDER PLACE

Runs where `s2d-runtime[ray]` is installed, not under pytest. PLACE gets results.json; everything listens on loopback.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from ray.cluster_utils import Cluster
from ray.util import list_named_actors
from s2d_runtime import Dispatcher
from s2d_runtime.serving.options import RayOptions
from s2d_runtime.serving.ray import write_config

CLIENTS, TRIES, WAIT_S = 16, 40, 240


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def replicas(stage: int) -> list[str]:
    """The names of the actors that run a stage."""
    actors = list_named_actors(all_namespaces=True)
    return sorted(a["name"] for a in actors if f"#stage{stage}#" in a["name"])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.2)


class Clients:
    """Concurrent clients that compare every answer with the dispatcher's, and ask again what may be asked again."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url, self.runner, self.lock = url, Dispatcher(folder), threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    def post(self, body: bytes, kind: str = "application/json") -> tuple[int, bytes]:
        """Status and body of one request; 0 for a connection that broke."""
        asked = urllib.request.Request(self.url, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return int(answer.status), answer.read()
        except urllib.error.HTTPError as error:
            return int(error.code), error.read()
        except OSError:
            return 0, b""

    def ask(self, images: Any, budget: float | None) -> None:
        """One request, again after a 5xx; notes what came of it. budget: what the answer is to be like."""
        tensor = {"name": "image", "datatype": "FP32", "shape": images.shape, "data": images.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        for _ in range(TRIES):
            status, text = self.post(body)
            with self.lock:
                self.statuses[status] += 1
            if status and status < 500:
                break
            time.sleep(0.25)
        found = {o["name"]: o["data"] for o in json.loads(text).get("outputs", [])} if status == 200 else {}
        expected = self.runner(images, budget=budget)
        for name in ("output", "stage", "confidence"):
            wanted = getattr(expected, name).ravel()
            if not np.array_equal(np.asarray(found.get(name, []), wanted.dtype), wanted):
                with self.lock:
                    self.wrong.append(f"{status} {name}: {text[:200]!r}")

    def load(
        self, requests: int, *, budget: float | None = None, during: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Statuses, wrong answers and rate of that many requests; `during` is called when a third of them is sent."""
        self.statuses, self.wrong = Counter(), []
        rng = np.random.default_rng(requests)
        start = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for i in range(requests):
                sure, payload = rng.choice([0.2, 0.4, 0.6, 0.9], (3, 4)), rng.integers(-50, 50, (3, 4))
                pool.submit(self.ask, np.stack([sure, payload], axis=1).astype(np.float32), budget)
                if during and i == requests // 3:
                    during()
        rate = requests / (time.monotonic() - start)
        return {"statuses": dict(self.statuses), "wrong": self.wrong[:3], "requests_per_s": round(rate, 1)}


def main(folder: Path, place: Path) -> None:
    """Run it all and write results.json."""
    port, dashboard = free_port(), free_port()
    head = {"num_cpus": 2, "resources": {"first": 1}, "include_dashboard": True, "dashboard_host": "127.0.0.1",
            "dashboard_port": dashboard}  # fmt: skip
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
    cluster.add_node(num_cpus=2, resources={"second": 2})
    config_path = place / "config.yaml"
    write_config(folder, RayOptions(name="toy", port=port, timeout_s=60.0), config_path)
    config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    config["proxy_location"] = "HeadOnly"
    first, second = config["applications"][0]["deployments"]
    for stage, resource, count in ((first, "first", 1), (second, "second", 2)):
        stage["ray_actor_options"] = {"num_cpus": 0.5, "resources": {resource: 1}}
        stage["autoscaling_config"] = {"min_replicas": count, "max_replicas": count}

    def deploy() -> None:
        config_path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [Path(sys.executable).parent / "serve", "deploy", config_path, "-a", f"http://127.0.0.1:{dashboard}"]
        subprocess.run(list(map(str, command)), check=True, timeout=120)

    clients = Clients(folder, f"http://127.0.0.1:{port}/v2/models/toy/infer")
    deploy()
    wait_for(lambda: len(replicas(1)) == 1 and len(replicas(2)) == 2, "the replicas")
    wait_for(lambda: clients.post(b"{}")[0] == 400, "the application")
    free = ray.available_resources()
    results: dict[str, Any] = {"free": {name: free.get(name, 0) for name in ("first", "second")}}
    results["bad"] = [clients.post(body)[0] for body in (b"{", b"{}", b"[]")]
    results["picture"] = clients.post(b"", "image/png")[0]  # toys know no pixels
    results["load"] = clients.load(300)

    def kill(stage: int) -> None:
        ray.kill(ray.get_actor(replicas(stage)[0], namespace="serve"))

    results["stage 2 dies"] = clients.load(300, during=lambda: kill(2))
    wait_for(lambda: len(replicas(2)) == 2, "a new replica of stage 2")
    results["stage 1 dies"] = clients.load(300, during=lambda: kill(1))
    wait_for(lambda: len(replicas(1)) == 1, "a new replica of stage 1")
    before = replicas(1), replicas(2)
    first["user_config"]["budget"] = 1.0
    deploy()
    image = np.full((1, 2, 4), 0.95, np.float32)
    ask = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2, 4], "data": image.ravel().tolist()}],
                      "outputs": [{"name": "stage"}]}).encode()  # fmt: skip
    wait_for(lambda: b'"data":[2]' in clients.post(ask)[1], "the other budget")
    results["live budget"] = clients.load(100, budget=1.0)
    results["no replica restarted"] = (replicas(1), replicas(2)) == before
    (place / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
