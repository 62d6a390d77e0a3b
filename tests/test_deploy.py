"""deploy/ and the Dockerfile, as far as that goes without the services: schemas, flags, Slurm's scripts run on this machine."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import kubernetes_validate
import psutil
import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.autoscaler._private.aws.config import DEFAULT_AMI
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from pipeline import cli
from pipeline.config.cycle import bytes_of
from pipeline.report.status import read_status
from pipeline.system import NEEDS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.30"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def text(name: str) -> str:
    """A file of deploy/ without marks of comments, its long lines in one piece."""
    return re.sub(r"\\\n\s*", "", re.sub(r"^# ?", "", (DEPLOY / name).read_text(), flags=re.MULTILINE))


def documents(name: str) -> dict[str, Any]:
    """By their kind."""
    return {made["kind"]: made for made in yaml.safe_load_all((DEPLOY / name).read_text())}


def parsed(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> tuple[Any, ...]:
    """What the verb would be called with. Fails where the command line does not take the arguments."""
    calls: list[tuple[Any, ...]] = []

    def noted(verb: Any) -> Any:
        @functools.wraps(verb)
        def note(*given: Any, **named: Any) -> int:
            calls.append((*given, *named.values()))
            return 0

        return note

    with monkeypatch.context() as patch:
        patch.setattr(cli, "VERBS", {name: noted(verb) for name, verb in cli.VERBS.items()})
        patch.setattr(sys, "argv", ["lvsm-data", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0, arguments
    return calls[0]


def is_taken_by_ray(arguments: list[str]) -> None:
    """Raises where `ray start` does not know them."""
    ray_start.make_context("ray start", list(arguments))  # which it takes apart


def commands() -> list[tuple[str, str]]:
    """(file, arguments) of every command of lvsm-data in deploy/."""
    verbs = "|".join(cli.VERBS)
    found = []
    for path in sorted(DEPLOY.glob("*.*")):
        entry = documents(path.name)["RayJob"]["spec"]["entrypoint"] if path.name.startswith("kuberay") else ""
        for said in (text(path.name), entry):
            found += [(path.name, each) for each in re.findall(rf"lvsm-data ((?:{verbs}) --[^\n`]*)", said)]
            found += [(path.name, each) for each in re.findall(r"deploy/slurm.sh (\w+ --[^\n`]*)", said)]
            found += [(path.name, f"train {each}") for each in re.findall(r"slurm-train.sh (--[^\n`]*)", said)]
    return found


def test_every_command_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands()
    files = {name for name, _ in found}
    assert files == {path.name for path in DEPLOY.glob("*.*")} - {"prometheus.yml", "grafana-dashboard.json"}
    for _, arguments in found:
        cfg = parsed(monkeypatch, shlex.split(arguments))[0]
        if not arguments.startswith("train"):  # which looks for its data
            cfg.resolved()


def test_the_readme_names_every_file() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.iterdir():
        assert f"({path.name})" in readme or path.name == "README.md", path.name
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (DEPLOY / link).exists(), link


# --- Ray's autoscaler


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The cluster as Ray's autoscaler reads it, its defaults filled in."""
    made: dict[str, Any] = prepare_config(yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text()))
    return made


def test_the_autoscaler_takes_the_cluster(cluster: dict[str, Any]) -> None:
    validate_config(cluster)
    with pytest.raises(Exception, match="idle_timeout"):  # it does look
        validate_config(cluster | {"idle_timeout": 5})
    types, head = cluster["available_node_types"], cluster["head_node_type"]
    assert types[head]["resources"] == {"CPU": 0} and types[head]["max_workers"] == 0
    workers = [made for name, made in types.items() if name != head]
    assert all(made["min_workers"] == 0 for made in workers)
    assert sum(made["max_workers"] for made in workers) == cluster["max_workers"]
    assert cluster["provider"]["region"] in DEFAULT_AMI  # else each type has to name its image
    assert all(
        zone.startswith(cluster["provider"]["region"]) for zone in cluster["provider"]["availability_zone"].split(",")
    )
    for kind in ("initialization", "setup", "head_setup", "worker_setup"):
        assert not cluster[f"{kind}_commands"], "Ray's defaults would install another Ray"


def test_ec2_takes_its_machines(cluster: dict[str, Any]) -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for made in cluster["available_node_types"].values():
        asked = made["node_config"] | {"MinCount": 1, "MaxCount": 1}
        report = botocore.validate.ParamValidator().validate(asked, shape)
        assert not report.has_errors(), report.generate_report()
    assert botocore.validate.ParamValidator().validate(asked | {"Spot": True}, shape).has_errors()


def test_ray_starts_with_flags_that_it_has(cluster: dict[str, Any]) -> None:
    lines = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [shlex.split(found[1]) for line in lines if (found := re.search(r"ray start (.*)", line))]
    assert len(starts) == 2
    for arguments in starts:
        is_taken_by_ray(arguments)
        assert "--metrics-export-port=8080" in arguments


# --- Kubernetes

FIELDS = {  # of KubeRay's v1 that we use
    "spec": {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    | {"rayClusterSpec"},
    "cluster": {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"},
    "autoscaler": {"version", "idleTimeoutSeconds", "securityContext"},
    "head": {"rayStartParams", "template"},
    "group": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
RAYJOBS = ("kuberay-rayjob.yaml", "kuberay-cycle.yaml")


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's, and those of workers."""
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (made,) = group["template"]["spec"]["containers"]
    return dict(made)


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_rayjob_has_the_form_of_one(name: str) -> None:
    job = documents(name)["RayJob"]
    assert job["apiVersion"] == "ray.io/v1" and re.fullmatch(r"[a-z][a-z-]{0,46}", job["metadata"]["name"])
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert set(spec) == FIELDS["spec"] and set(cluster) == FIELDS["cluster"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["submissionMode"] == "HTTPMode"
    assert isinstance(spec["backoffLimit"], int) and isinstance(spec["ttlSecondsAfterFinished"], int)
    assert set(cluster["autoscalerOptions"]) == FIELDS["autoscaler"] and cluster["enableInTreeAutoscaling"] is True
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "requirements.lock").read_text()
    assert set(cluster["headGroupSpec"]) == FIELDS["head"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == FIELDS["group"]
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(cluster):
        is_taken_by_ray([f"--{key}={value}" for key, value in group["rayStartParams"].items()])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", RAYJOBS)
def test_kubernetes_takes_its_pods_and_they_are_not_roots(name: str) -> None:
    found = documents(name)
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    for group in groups(found.pop("RayJob")["spec"]["rayClusterSpec"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        spec = pod["spec"]
        assert "restartPolicy" not in spec  # which the autoscaler's second version does not take
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == int(user) > 0
        assert container(group)["securityContext"]["allowPrivilegeEscalation"] is False
        assert container(group)["image"] == "REGISTRY/lvsm-data:latest"
        resources = container(group)["resources"]
        assert resources["requests"] == resources["limits"]  # Ray counts limits, Kubernetes requests
        with pytest.raises(kubernetes_validate.ValidationError):  # it does look
            kubernetes_validate.validate(pod | {"spec": spec | {"nonsense": 1}}, KUBERNETES, strict=True)
    for other in found.values():
        kubernetes_validate.validate(other, KUBERNETES, strict=True)


def test_keys_are_for_the_head_alone() -> None:
    cluster = documents("kuberay-rayjob.yaml")["RayJob"]["spec"]["rayClusterSpec"]
    assert ["envFrom" in container(group) for group in groups(cluster)] == [True, False, False]


def test_a_cycle_has_room_for_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = documents("kuberay-cycle.yaml")
    job, claim = found["RayJob"], found["PersistentVolumeClaim"]
    cfg, train = parsed(monkeypatch, shlex.split(job["spec"]["entrypoint"])[1:])
    cluster = job["spec"]["rayClusterSpec"]
    cpu, gpu = cluster["workerGroupSpecs"]
    limits = container(gpu)["resources"]["limits"]
    assert train.ray_workers == gpu["minReplicas"] * int(limits["nvidia.com/gpu"])
    assert gpu["rayStartParams"] == {"num-cpus": "0"}
    assert cfg.workers == cpu["maxReplicas"] * int(container(cpu)["resources"]["limits"]["cpu"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert (
        bytes_of(cfg.disk_budget) < float(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30
    )
    for group in groups(cluster):
        (volume,), (mount,) = group["template"]["spec"]["volumes"], container(group)["volumeMounts"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert volume["name"] == mount["name"] and cfg.out.is_relative_to(mount["mountPath"])


def test_prometheus_looks_where_ray_says_which_nodes_there_are() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert set(config) == {"global", "scrape_configs"} and set(job) == {"job_name", "file_sd_configs"}
    assert job["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


# --- the image


def instructions() -> list[tuple[str, str]]:
    """(instruction, what follows) of the Dockerfile."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def in_context(path: str) -> bool:
    """Whether Docker sees it: the last pattern of .dockerignore that fits it, or a folder that it is in, decides."""
    seen = True
    parents = [path, *map(str, Path(path).parents)]
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        bare = pattern.removeprefix("!").rstrip("/")
        if bare and not bare.startswith("#"):
            anywhere = bare.removeprefix("**/")
            fits = any(
                fnmatch.fnmatch(Path(each).name if bare != anywhere else each, anywhere)
                for each in parents
                if each != "."
            )
            seen = pattern.startswith("!") if fits else seen
    return seen


def test_the_image_holds_what_is_installed_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [name.replace(".", "/") for name in project["tool"]["setuptools"]["packages"]]
    needed = ["pyproject.toml", "requirements.lock", project["project"]["readme"]]
    needed += [str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).glob("*.*")]
    for path in needed:
        assert in_context(path), path
    for path in (
        ".git/config",
        ".venv/bin/python",
        "data/demo/run.json",
        "shared/x",
        "pipeline/__pycache__/x.pyc",
        "tests/x.py",
    ):
        assert not in_context(path), path
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    for path in (path for paths in copied for path in paths if path != "."):
        assert (ROOT / path).is_file() and in_context(path)
    (extras,) = re.findall(r"^ARG EXTRAS=\[(.*)\]$", DOCKERFILE, re.MULTILINE)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def test_the_image_is_built_in_two_stages_runs_as_nobody_special_and_checks_itself() -> None:
    told = instructions()
    stages = [rest for word, rest in told if word == "FROM"]
    assert len(stages) == 2 and len({stage.split()[0] for stage in stages}) == 1 and "python:3.11-" in stages[0]
    last = told[max(at for at, (word, _) in enumerate(told) if word == "FROM") :]
    words = [word for word, _ in last]
    assert "ENTRYPOINT" not in words  # `ray up` starts `bash` in it
    assert words.index("USER") > max(at for at, word in enumerate(words) if word == "RUN")
    assert json.loads(dict(last)["CMD"]) == ["lvsm-data", "doctor"]
    for purpose in re.findall(r"python -m pipeline\.system (\w+)", DOCKERFILE):
        assert purpose in {need.purpose for need in NEEDS}
    # in login shells, too: KubeRay and `ray up` may use them
    path = re.search(r"ENV PATH=(\S+):\$PATH", DOCKERFILE)
    assert path and f"echo 'PATH={path[1]}:$PATH' > /etc/profile.d/" in DOCKERFILE
    assert f"COPY --from=build {path[1].removesuffix('/bin')} {path[1].removesuffix('/bin')}\n" in DOCKERFILE


# --- Slurm

SCONTROL = """#!/bin/sh
case $1 in
    show) printf 'localhost\\nlocalhost\\n' ;;
    *) echo "scontrol $*" >>"$FAKES/said" ;;
esac
"""
# As many processes as there are tasks, here; they end when it is told to
SRUN = """#!/bin/bash
tasks=$SLURM_NTASKS pids=()
while [[ $1 == --* ]]; do
    if [[ $1 == --ntasks=* ]]; then tasks=${1#*=}; fi
    shift
done
trap 'kill "${pids[@]}"' TERM
for ((task = 0; task < tasks; task++)); do
    "$@" &
    pids+=($!)
done
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid" || status=$?
done
exit ${status:-0}
"""
RAY = """#!/bin/bash
case "$*" in
    *--head*) exec "$PYTHON" "$FAKES/ray.py" head "$RAY_ADDRESS" ;;
    *) exec "$PYTHON" "$FAKES/ray.py" worker ;;
esac
"""
RAY_PY = """import os, signal, socket, sys
def end(*_):
    with open(os.environ["FAKES"] + "/said", "a") as said: said.write(f"{sys.argv[1]} ended\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
if sys.argv[1] == "head":
    host, port = sys.argv[2].rsplit(":", 1)
    server = socket.create_server((host, int(port)))
open(os.environ["FAKES"] + "/up-" + sys.argv[1], "w").close()
while True: signal.pause()
"""
PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then echo made; exit; fi
until [ -e "$FAKES/up-head" ] && [ -e "$FAKES/up-worker" ]; do sleep 0.05; done
"""
LVSM_DATA = """#!/bin/bash
trap 'echo stopped >> "$FAKES/said"; exit 3' TERM
echo "asked $* ($RAY_AUTH_MODE $RAY_AUTH_TOKEN)" >> "$FAKES/said"
[ "$1" = quick ] && exit 7
while :; do sleep 0.05; done
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which a job of two nodes, both of them this machine, could run; its ports are free."""
    programs = tmp_path / "programs"
    programs.mkdir()
    install(programs, scontrol=SCONTROL, srun=SRUN)
    here = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = next(job for job in random.sample(range(10_000, 1_000_000), 1000) if all(map(free, ports(job))))
    told = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS": "2",
    }
    return (
        os.environ | told | {"SLURM_CPUS_PER_TASK": "1", "PATH": here, "FAKES": str(programs), "PYTHON": sys.executable}
    )


def install(folder: Path, **programs: str) -> None:
    for name, script in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(script)
        path.chmod(0o755)


def ports(job: int) -> list[int]:
    """Of both scripts."""
    first = 20_000 + job % 4000 * 3
    return [first, first + 1, first + 2, 20_000 + job % 12_000]


def free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def pretend(environment: dict[str, str]) -> Path:
    """Puts programs of our own in Ray's and our place. Returns the file in which they note what happened."""
    folder = Path(environment["FAKES"])
    install(folder, ray=RAY, lvsm_data=LVSM_DATA, python=PYTHON)
    (folder / "ray.py").write_text(RAY_PY)
    return folder / "said"


def test_slurm_passes_on_the_end_of_a_command(slurm: dict[str, str]) -> None:
    said = pretend(slurm)
    done = subprocess.run([DEPLOY / "slurm.sh", "quick", "--n", "2"], env=slurm, timeout=300)
    assert done.returncode == 7
    assert said.read_text().splitlines() == [
        "asked quick --n 2 --address auto (token made)",
        "worker ended",
        "head ended",
    ]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_slurm_lets_a_command_finish_before_the_time_is_up(sent: signal.Signals, slurm: dict[str, str]) -> None:
    """SIGTERM is what a user sends, SIGUSR1 what Slurm sends early: then the job is put into the queue again."""
    said = pretend(slurm)
    with subprocess.Popen([DEPLOY / "slurm.sh", "render"], env=slurm) as job:
        wait_until(lambda: said.exists() and "asked" in said.read_text(), 60)
        job.send_signal(sent)
        assert job.wait(60) == 3
    again = [f"scontrol requeue {slurm['SLURM_JOB_ID']}"] if sent == signal.SIGUSR1 else []
    assert said.read_text().splitlines()[1:] == ["stopped", "worker ended", "head ended", *again]


@pytest.mark.parametrize("sent", [None, signal.SIGTERM, signal.SIGUSR1])
def test_slurm_lets_training_write_a_checkpoint_before_the_time_is_up(
    sent: signal.Signals | None, slurm: dict[str, str]
) -> None:
    said = pretend(slurm)
    install(Path(slurm["FAKES"]), torchrun='#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    asked = "render" if sent else "quick"
    install(Path(slurm["FAKES"]), lvsm_data=LVSM_DATA.replace('"$1" = quick', '"$2" = quick'))
    with subprocess.Popen([DEPLOY / "slurm-train.sh", asked], env=slurm) as job:
        wait_until(lambda: said.exists() and said.read_text().count("asked") == 2, 60)
        if sent:
            job.send_signal(sent)
        assert job.wait(60) == (3 if sent else 7)
    again = [f"scontrol requeue {slurm['SLURM_JOB_ID']}"] if sent == signal.SIGUSR1 else []
    assert said.read_text().splitlines()[2:] == (["stopped", "stopped", *again] if sent else [])


def test_slurm_says_that_ray_does_not_start(slurm: dict[str, str]) -> None:
    pretend(slurm)
    install(Path(slurm["FAKES"]), ray="#!/bin/sh\nexit 1\n")
    done = subprocess.run([DEPLOY / "slurm.sh", "render"], env=slurm, timeout=300, capture_output=True, text=True)
    assert done.returncode == 1 and "error: Ray does not start on localhost" in done.stderr


@pytest.mark.parametrize("script", ["slurm.sh", "slurm-train.sh"])
def test_a_script_without_a_command_says_how(script: str) -> None:
    done = subprocess.run([DEPLOY / script], timeout=300, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"usage: sbatch deploy/{script} ")


def test_slurm_renders_on_two_nodes_and_leaves_nothing_behind(slurm: dict[str, str], tmp_path: Path) -> None:
    """The head has no CPU to render with: what is delivered comes from the other node."""
    out, temporary = tmp_path / "out", Path(f"/tmp/ray-{slurm['SLURM_JOB_ID']}")
    asked = f"render --n 2 --res 16 --views 2 --samples 1 --out {out}"
    seen: set[int] = set()
    try:
        with (tmp_path / "said").open("w+") as said:
            job = subprocess.Popen([DEPLOY / "slurm.sh", *asked.split()], env=slurm, stdout=said, stderr=said)
            wait_until(lambda: seen.update(writing_to(temporary)) or job.poll() is not None, 120)
            assert job.wait() == 0, (tmp_path / "said").read_text()
        assert read_status(out)["delivered"] == 2
        (nodes,) = json.loads((temporary / PROMETHEUS_SERVICE_DISCOVERY_FILE).read_text())
        assert nodes["targets"] and set(nodes) == {"labels", "targets"}
        assert len(seen) > 5
        wait_until(
            lambda: not writing_to(temporary), 20
        )  # Ray's processes end a little after the one that started them
    finally:
        for process in writing_to(temporary):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def wait_until(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def writing_to(folder: Path) -> list[int]:
    """Processes whose output goes to files of a folder, as that of all of a Ray's does."""
    found = []
    for number, output in itertools.product(psutil.pids(), (1, 2)):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if Path(f"/proc/{number}/fd/{output}").readlink().is_relative_to(folder):
                found.append(number)
    return found


# --- Slurm without Ray


def test_slurm_trains_with_flags_that_torchrun_has(slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    parser = pytest.importorskip("torch.distributed.run").get_args_parser()
    noted = Path(slurm["FAKES"]) / "asked"
    install(Path(slurm["FAKES"]), torchrun='#!/bin/bash\nprintf "%s\\n" "$@" > "$FAKES/asked"\n')
    training = ["--data", "/shared/run", "--preset", "base", "--out", "/shared/runs/base"]
    subprocess.run(
        [DEPLOY / "slurm-train.sh", *training], env=slurm | {"SLURM_GPUS_ON_NODE": "8"}, timeout=300, check=True
    )
    asked = parser.parse_args(noted.read_text().splitlines())
    assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_backend, asked.max_restarts) == ("2", "8", "c10d", 3)
    assert asked.rdzv_endpoint.startswith("localhost:") and asked.rdzv_id == slurm["SLURM_JOB_ID"]
    assert Path(asked.training_script).samefile(Path(sys.executable).parent / "lvsm-data")
    assert asked.training_script_args == ["train", *training]
    assert parsed(monkeypatch, asked.training_script_args)[0].preset == "base"


@pytest.mark.campaign
def test_slurm_trains_on_two_nodes(slurm: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks._balls import balls

    data, out = balls(tmp_path / "balls", 10), tmp_path / "out"
    tiny = "--res 32 --kind unidirectional --dim 32 --head-dim 16 --layers 2 --encoder-layers 1 --inputs 2 --targets 2 --batch 2"
    few = f"--perceptual 0 --steps 2 --eval-every 0 --device cpu --no-tensorboard --workers 0 --data {data} --out {out}"
    command = [DEPLOY / "slurm-train.sh", *tiny.split(), *few.split()]
    done = subprocess.run(command, env=slurm, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 of 2 steps") == 1  # torchrun waits for both nodes, and the first rank speaks for all
