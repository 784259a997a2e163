"""launch/k8s.yaml and launch/k8s_gpu.yaml: what they promise to Kubernetes and to JAX."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import ROOT

from r2d2_jax.launch import main

TPUS, GPUS = (ROOT / "launch" / name for name in ("k8s.yaml", "k8s_gpu.yaml"))
RULES = "{extends: default, rules: {line-length: {max: 120}}}"


@pytest.fixture(scope="module", params=[TPUS, GPUS], ids=["TPUs", "GPUs"])
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def jobset(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


@pytest.fixture(scope="module")
def job(jobset: dict[str, Any]) -> dict[str, Any]:
    return job_of(jobset)


@pytest.fixture(scope="module")
def pod(job: dict[str, Any]) -> dict[str, Any]:
    return job["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    return container_of(pod)


def job_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return only


def flags_of(container: dict[str, Any]) -> dict[str, str]:
    return dict(argument.split("=") for argument in container["args"] if "=" in argument)


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


def test_a_pod_asks_for_what_it_may_use(container: dict[str, Any]) -> None:
    """Kubernetes wants devices asked for as they are limited."""
    assert container["resources"]["limits"] == container["resources"]["requests"]


def test_every_chip_of_the_slice_has_its_pod() -> None:
    job = job_of(yaml.safe_load(TPUS.read_text()))
    pod = job["template"]["spec"]
    container = container_of(pod)
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert job["parallelism"] == job["completions"] == rows * columns // chips


def test_the_run_has_time_to_save(pod: dict[str, Any]) -> None:
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_workdir_and_data_lie_on_the_shared_volume(pod: dict[str, Any], container: dict[str, Any]) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert "claimName" in volumes["shared"]["persistentVolumeClaim"]
    assert (mounts["memory"], volumes["memory"]["emptyDir"]) == ("/dev/shm", {"medium": "Memory"})
    for name in ("--workdir", "--config.data.directory"):
        assert flags_of(container)[name].startswith(mounts["shared"] + "/")


def test_jax_finds_the_others_on_tpus_by_what_the_file_says() -> None:
    """The names and the port are those of the installed JAX, which is read here and not imported."""
    container = container_of(job_of(yaml.safe_load(TPUS.read_text()))["template"]["spec"])
    assert "--distributed" in container["args"]
    spec = importlib.util.find_spec("jax")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_src" / "clusters" / "cloud_tpu_cluster.py").read_text()
    (port,) = re.findall(r"^coordinator_port = '(\d+)'$", source, re.MULTILINE)
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"):
        assert name in source
        assert name in TPUS.read_text()


def test_processes_on_gpus_are_told_who_they_are_and_where_to_meet() -> None:
    """By the name that JobSet gives the first pod in the network, JOBSET-JOB-0-0.JOBSET, at an open port."""
    jobset = yaml.safe_load(GPUS.read_text())
    job, name = job_of(jobset), jobset["metadata"]["name"]
    container = container_of(job["template"]["spec"])
    (replicated,) = jobset["spec"]["replicatedJobs"]
    flags = flags_of(container)
    host, port = flags["--coordinator_address"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    assert int(flags["--num_processes"]) == job["parallelism"] == job["completions"]
    variables = {entry["name"]: entry for entry in container["env"]}
    assert flags["--process_id"] == "$(PROCESS)"
    place = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert variables["PROCESS"]["valueFrom"] == {"fieldRef": {"fieldPath": place}}
    assert "--distributed" not in container["args"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) > 0


def test_the_image_for_gpus_is_that_of_the_dockerfile() -> None:
    """Its command is one of the image's, and its user may write to the shared volume."""
    pod = job_of(yaml.safe_load(GPUS.read_text()))["template"]["spec"]
    image = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"USER 1000:{pod['securityContext']['fsGroup']}\n" in image
    assert f'CMD ["{container_of(pod)["command"][0]}",' in image


def test_flags_are_those_of_the_program(container: dict[str, Any]) -> None:
    """The numbers that a shell or Kubernetes fills in left aside."""
    known = set(main.FLAGS)
    for argument in container["args"]:
        name = argument.removeprefix("--").partition("=")[0]
        assert name.partition(".")[0] in known, argument


def test_the_program_hears_kubernetes_and_answers_with_its_status(container: dict[str, Any]) -> None:
    """A shell in between would keep SIGTERM from it, and its status to itself."""
    assert container["command"] in (["python", "-u", "launch/main.py"], ["r2d2-train"])


def test_the_file_is_clean_yaml(file: Path) -> None:
    command = [Path(sys.executable).with_name("yamllint"), "--strict", "-d", RULES, file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
