"""What cannot be applied here is checked against the schemas of what would read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ray_judge.config import parse

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
JOBS = {"RayJob": "rayjob.yaml", "RayCronJob": "raycronjob.yaml"}


def manifests(name: str) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all((CLUSTER / name).read_text())}


def job_spec(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifests(JOBS[kind])[kind]["spec"]
    return spec["jobTemplate"] if kind == "RayCronJob" else spec


def check(document: Any, schema: Any) -> None:
    """Raise ValidationError; the schemas (10,000 lines) are not checked themselves."""
    jsonschema.Draft202012Validator(schema).validate(document)


def test_kuberay_takes_the_manifests_and_refuses_what_is_misspelt(texts_data: Path) -> None:
    for kind, name in JOBS.items():
        schema = json.loads((texts_data / "kuberay-1.7.0" / f"{kind}.schema.json").read_text())
        job = manifests(name)[kind]
        check(job, schema)
        job["spec"]["shutdownAfterJobFinish"] = True
        with pytest.raises(jsonschema.ValidationError):
            check(job, schema)


def test_ray_takes_the_launcher_configuration() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    check(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]


@pytest.mark.parametrize("kind", JOBS)
def test_the_run_inside_is_a_valid_run(kind: str) -> None:
    text = manifests(JOBS[kind])["ConfigMap"]["data"]["run.yaml"]
    config = parse(yaml.safe_load(text))
    gpus = job_spec(kind)["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert config.judge.replicas <= gpus, "an actor without a GPU would wait for ever"


@pytest.mark.parametrize("kind", JOBS)
def test_the_key_is_a_secret_and_the_job_is_there(kind: str) -> None:
    spec = job_spec(kind)
    assert "runtimeEnvYAML" not in spec
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert [list(each) for each in head["env"]] == [["name", "valueFrom"]]
    script = spec["entrypoint"].split()[1]
    assert (ROOT / script.removeprefix("/home/ray/ray-judge/")).is_file()


def test_versions_agree() -> None:
    ray_pin = next(
        line.partition("==")[2].split()[0]
        for line in (ROOT / "requirements" / "gpu.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    assert f"FROM rayproject/ray:{ray_pin}-" in (CLUSTER / "Dockerfile").read_text()
    for kind in JOBS:
        assert job_spec(kind)["rayClusterSpec"]["rayVersion"] == ray_pin
