"""What is in deploy/, the Dockerfiles and the workflow agrees with the code and with each other."""

import logging
import os
import re
import subprocess
import sys
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dockerfile_parse import DockerfileParser

import immich_ml_compat
from immich_ml_compat.environment import report_environment
from immich_ml_compat.parent_stack import readings
from immich_ml_compat.parts import Work
from immich_ml_compat.settings import Settings, load_settings

from .server import SETTING, Server

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "deploy/compose"
KUBERNETES = ROOT / "deploy/kubernetes"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.cuda")
SERVICE = "immich-machine-learning"
BAKE = (ROOT / "docker-bake.hcl").read_text(encoding="utf-8")
PORT = Settings.model_fields["port"].default
LABEL = re.compile(r"org\.opencontainers\.image\.\w+")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def instructions(name: str) -> list[tuple[str, str]]:
    structure = DockerfileParser(fileobj=BytesIO((ROOT / name).read_bytes())).structure
    return [(each["instruction"], each["value"]) for each in structure if each["instruction"] != "COMMENT"]


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in [name for name in os.environ if SETTING.match(name)]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def assigned(path: Path) -> dict[str, str]:
    """The variables of an example file, those that are commented out too; where none is given, a stand-in."""
    found = re.findall(r"^#?([A-Z_]+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: value or "0123456789abcdef" for name, value in found}


# ---------------------------------------------------------------- the images


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_is_declared_as_the_stock_image_is(name: str) -> None:
    found = instructions(name)
    assert [value for instruction, value in found if instruction == "VOLUME"] == ["/cache"]
    assert [value for instruction, value in found if instruction == "EXPOSE"] == [str(PORT)]
    assert ("HEALTHCHECK", 'CMD ["python", "-m", "immich_ml_compat", "health"]') in found
    assert ("CMD", '["python", "-m", "immich_ml_compat"]') in found
    environment = [word for instruction, value in found if instruction == "ENV" for word in value.split()]
    assert "MACHINE_LEARNING_CACHE_FOLDER=/cache" in environment


@pytest.mark.parametrize("name", DOCKERFILES)
def test_bases_are_pinned(name: str) -> None:
    found = [value.partition(" AS ") for instruction, value in instructions(name) if instruction == "FROM"]
    stages = {stage for _, _, stage in found}
    (base,) = {origin for origin, _, _ in found} - stages
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", base)
    assert all("--require-hashes" in value for _, value in instructions(name) if re.search(r"install .*\.lock", value))


def test_an_image_has_the_labels_of_the_stock_image() -> None:
    """Those that docker/metadata-action gives it: the Dockerfile's own and those that only a build knows."""
    own = {name for kind, value in instructions("Dockerfile.cpu") if kind == "LABEL" for name in LABEL.findall(value)}
    assert {name.rpartition(".")[2] for name in own | set(LABEL.findall(BAKE))} == {
        *("created", "description", "licenses", "revision", "source", "title", "url", "version")
    }


@pytest.mark.parametrize("lock", ["runtime.lock", "cuda.lock"])
def test_images_hold_nothing_of_other_uses(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert "onnx" in text
    assert re.findall(r"^(ray|nncf|torch|openvino-telemetry)\b", text, re.MULTILINE) == []


def test_each_image_computes_on_what_it_is_for() -> None:
    """So that the one changed line in a compose file is the image."""
    devices = [
        re.findall(r"MACHINE_LEARNING_DEVICE=(\S+)", value)
        for name in DOCKERFILES
        for kind, value in instructions(name)
        if kind == "ENV"
    ]
    assert [device for found in devices for device in found] == ["openvino-gpu", "cuda"]


def test_both_images_have_one_base_and_one_entry_point() -> None:
    for kind in ("ENTRYPOINT", "CMD", "HEALTHCHECK", "LABEL"):
        assert len({str([value for each, value in instructions(name) if each == kind]) for name in DOCKERFILES}) == 1
    assert len({instructions(name)[0] for name in DOCKERFILES}) == 1


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_a_build_copies_is_there_and_not_ignored(name: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    sources = [value.split()[:-1] for instruction, value in instructions(name) if instruction == "COPY"]
    for source in (source for each in sources if not each[0].startswith("--") for source in each):
        assert (ROOT / source).exists(), source
        assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source


def test_bake_builds_what_compose_and_kubernetes_name() -> None:
    tags = set(re.findall(r'"\$\{IMAGE\}:(\w+)"', BAKE))
    assert tags == {"cpu", "openvino", "cuda"}
    named = {
        re.sub(r"\$\{IMMICH_ML_IMAGE:-(.*)\}", r"\1", service["image"])
        for path in COMPOSE.glob("*.yml")
        for name, service in read(path)["services"].items()
        if name == SERVICE and "image" in service
    }
    for path in KUBERNETES.glob("*/kustomization.yaml"):
        named |= {f"{each['name']}:{each['newTag']}" for each in read(path).get("images", [])}
    assert named == {f"immich-ml-compat:{tag}" for tag in tags}
    for dockerfile, target in re.findall(r'dockerfile = "(.*)"\n(?:  target     = "(.*)"\n)?', BAKE):
        stages = {value.partition(" AS ")[2] for kind, value in instructions(dockerfile) if kind == "FROM"}
        assert target in stages


# ---------------------------------------------------------------- versions


def test_there_is_one_version() -> None:
    version = immich_ml_compat.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    assert f'variable "VERSION" {{\n  default = "{version}"\n}}' in BAKE
    assert re.search(rf"^## {re.escape(version)} ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "immich_ml_compat", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{version}\n"


def test_actions_are_pinned() -> None:
    used = re.findall(r"uses: (.*)", (ROOT / ".github/workflows/images.yml").read_text(encoding="utf-8"))
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used)


# ---------------------------------------------------------------- compose


@pytest.mark.parametrize("name", ["machine-learning.env.example", ".env.example"])
def test_every_variable_of_the_examples_is_known(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variables = {name: value for name, value in assigned(COMPOSE / name).items() if SETTING.match(name)}
    variables.pop("IMMICH_VERSION", None)  # compose's own
    assert variables
    set_variables(monkeypatch, variables)
    load_settings()
    with caplog.at_level(logging.WARNING):
        report_environment()
    assert not caplog.records


def test_compose_gives_what_it_asks_for() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in COMPOSE.glob("*.yml"))
    wanted = set(re.findall(r"\$\{(\w+)", texts)) - {"IMMICH_ML_IMAGE"}
    assert wanted == set(assigned(COMPOSE / ".env.example"))


def test_the_parent_stacks_variables_are_mapped() -> None:
    environment = read(COMPOSE / "parent-stack.yml")["services"][SERVICE]["environment"]
    values = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
        for name, value in environment.items()
        if not name.startswith("MACHINE_LEARNING_")
    }
    given = dict.fromkeys(values, "cpu") | {"CLIP_MODEL": "RN50", "SERVER_RESTART_TIME": "9"}
    assert {reading.variable.name for reading in readings(given)} == set(values)
    assert [reading.meaning for reading in readings(values)] == ["cn-clip_ViT-B-16", "/checkpoints"]


def test_what_compose_mounts_is_there() -> None:
    for path in COMPOSE.glob("*.yml"):
        for service in read(path)["services"].values():
            for volume in service.get("volumes", []):
                if volume.startswith("."):
                    assert (COMPOSE / volume.partition(":")[0]).exists(), volume
            if context := service.get("build", {}).get("context"):
                assert (COMPOSE / context / service["build"]["dockerfile"]).is_file()


def test_prometheus_and_grafana_find_what_they_look_for() -> None:
    (target,) = read(ROOT / "deploy/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"{SERVICE}:{PORT}"
    assert SERVICE in read(COMPOSE / "docker-compose.yml")["services"]
    services = read(COMPOSE / "monitoring.yml")["services"]
    (source,) = read(ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert httpx.URL(source["url"]).host in services
    (provider,) = read(ROOT / "deploy/grafana/provisioning/dashboards/immich-ml-compat.yml")["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    dashboard = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert dashboard in mounted
    assert dashboard.startswith(provider["options"]["path"])


# ---------------------------------------------------------------- Kubernetes


def test_kubernetes_asks_the_server_what_it_answers(server: Server) -> None:
    (container,) = read(KUBERNETES / "base/deployment.yaml")["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/ping", "/ping", "/health"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in probes:
        assert httpx.get(f"{server.url}{probe['path']}").status_code == 200
        assert ports[probe["port"]] == PORT
    (port,) = read(KUBERNETES / "base/service.yaml")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (PORT, "http")
    assert {variable["name"] for variable in container["env"]} <= {
        f"MACHINE_LEARNING_{name.upper()}" for name in Settings.model_fields
    }


def test_it_scales_by_a_metric_that_there_is(server: Server) -> None:
    told = httpx.get(f"{server.url}/metrics").text
    trigger = read(KUBERNETES / "keda/scaled-object.yaml")["spec"]["triggers"][0]["metadata"]["query"]
    (metric,) = read(KUBERNETES / "hpa/autoscaler.yaml")["spec"]["metrics"]
    (rule,) = read(KUBERNETES / "hpa/adapter-rule.yaml")["rules"]
    names = {
        re.findall(r"immich_ml_\w+", text)[0]
        for text in (trigger, metric["pods"]["metric"]["name"], rule["seriesQuery"])
    }
    assert names == {"immich_ml_queue_requests"}
    assert "\nimmich_ml_queue_requests{" in told


def test_the_pod_may_do_as_little_as_it_can() -> None:
    pod = read(KUBERNETES / "base/deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["shutdown_timeout"].default + 2


# ---------------------------------------------------------------- Ray


def test_who_starts_ray_otherwise_is_told_what_to_set() -> None:
    exported = re.findall(r"^export (\w+=\S+)", (ROOT / "deploy/ray/start").read_text(), re.MULTILINE)
    told = re.findall(r"^(RAY_\w+=\S+)", (ROOT / "docs/scale.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert told == exported != []


def test_every_kind_of_work_has_its_application_on_ray() -> None:
    config = read(ROOT / "deploy/ray/serve.yaml")
    assert config["proxy_location"] == "Disabled", "nobody passes by the front"
    assert [application["name"] for application in config["applications"]] == [work.value for work in Work]
    for application in config["applications"]:
        assert application["args"] == {"work": application["name"]}
        module, _, builder = application["import_path"].partition(":")
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert f"\ndef {builder}(" in source
        (deployment,) = application["deployments"]
        assert f'\nDEPLOYMENT = "{deployment["name"]}"\n' in source
        assert application["route_prefix"] is None
        assert deployment["autoscaling_config"]["min_replicas"] == 0
        assert deployment["autoscaling_config"]["target_ongoing_requests"] <= deployment["max_ongoing_requests"]
