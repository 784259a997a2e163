"""launch/k8s.yaml: what it promises to Kubernetes and to JAX."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import ROOT

FILE = ROOT / "launch" / "k8s.yaml"
RULES = "{extends: default, rules: {line-length: {max: 120}}}"


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def job(jobset: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def pod(job: dict[str, Any]) -> dict[str, Any]:
    return job["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return only


def test_it_is_a_jobset(jobset: dict[str, Any]) -> None:
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_bad_input_ends_the_set_and_nothing_else_does(jobset: dict[str, Any], job: dict[str, Any]) -> None:
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]}}
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])  # JobSet refuses other names


def test_one_pod_that_fails_fails_all(job: dict[str, Any], pod: dict[str, Any]) -> None:
    assert job["backoffLimit"] == 0
    assert job["completionMode"] == "Indexed"
    assert pod["restartPolicy"] == "Never"  # a pod failure policy wants it


def test_every_chip_of_the_slice_has_its_pod(
    job: dict[str, Any], pod: dict[str, Any], container: dict[str, Any]
) -> None:
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert job["parallelism"] == job["completions"] == rows * columns // chips


def test_the_run_has_time_to_save(pod: dict[str, Any]) -> None:
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_workdir_and_data_lie_on_the_shared_volume(pod: dict[str, Any], container: dict[str, Any]) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert "claimName" in volumes["shared"]["persistentVolumeClaim"]
    assert (mounts["memory"], volumes["memory"]["emptyDir"]) == ("/dev/shm", {"medium": "Memory"})
    flags = dict(argument.split("=") for argument in container["args"] if "=" in argument)
    for name in ("--workdir", "--config.data.directory"):
        assert flags[name].startswith(mounts["shared"] + "/")
    assert "--distributed" in container["args"]


def test_jax_finds_the_others_by_what_the_file_says(container: dict[str, Any]) -> None:
    """The names and the port are those of the installed JAX, which is read here and not imported."""
    spec = importlib.util.find_spec("jax")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_src" / "clusters" / "cloud_tpu_cluster.py").read_text()
    (port,) = re.findall(r"^coordinator_port = '(\d+)'$", source, re.MULTILINE)
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"):
        assert name in source
        assert name in FILE.read_text()


def test_the_address_for_gpus_is_that_of_the_first_pod(jobset: dict[str, Any]) -> None:
    name = jobset["metadata"]["name"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert f"--coordinator_address={name}-{replicated['name']}-0-0.{name}:" in FILE.read_text()


def test_the_program_hears_kubernetes_and_answers_with_its_status(container: dict[str, Any]) -> None:
    """A shell in between would keep SIGTERM from it, and its status to itself."""
    assert container["command"] == ["python", "-u", "launch/main.py"]
    assert (ROOT / container["command"][-1]).is_file()


def test_the_file_is_clean_yaml() -> None:
    command = [Path(sys.executable).with_name("yamllint"), "--strict", "-d", RULES, FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
