"""The recipes for schedulers: each is what its scheduler takes, and its command is one of ours."""

import json
import re
import runpy
import shlex
import sys
import time
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cronsim import CronSim
from typer.main import get_command

from jobs import generate, submit
from tests.batch.doubles import write_manifest
from tests.jobs.command import ended, start
from tests.jobs.head import ROOT
from tests.jobs.test_generate import write_job

SCHEDULE = ROOT / "jobs" / "recipes" / "schedule"
RAYJOB = json.loads((ROOT / "tests" / "data" / "rayjob-fields.json").read_text())


def understood(command: str) -> dict[str, Any]:
    """The options of the one `python -m jobs.…` in a shell line, as that program reads them."""
    found = re.search(
        r"python -m jobs\.(\w+)((?:\s+(?:--?[\w-]+|\"[^\"]*\"|[\w./@:$-]+))+)", command
    )
    assert found, command
    name, words = found.group(1), shlex.split(found.group(2))
    program = get_command({"submit": submit.app, "generate": generate.app}[name])
    context = program.make_context(name, words)
    return dict(context.params)


def test_the_crontab_line_is_one_a_night_and_its_command_is_ours() -> None:
    lines = (SCHEDULE / "crontab").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    assert set(settings) == {
        "SHELL",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
    }
    (line,) = [line for line in lines if re.match(r"[0-9*]", line)]
    when, command = " ".join(line.split()[:5]), line.split(maxsplit=5)[5]
    ticks = CronSim(when, datetime(2026, 11, 24, tzinfo=UTC))
    assert [next(ticks).isoformat()[:16] for _ in range(2)] == [
        "2026-11-24T02:15",
        "2026-11-25T02:15",
    ]
    assert not re.search(r"(?<!\\)%", command)  # cron would end the line there
    options = understood(command.replace(r"\%", "%").replace('"$(date +%Y-%m-%d)"', "2026-11-24"))
    assert (str(options["config"]), options["tick"], options["wait"]) == (
        "nightly.yaml",
        "2026-11-24",
        True,
    )


def test_the_cronjob_is_one_that_kubernetes_takes() -> None:
    cronjob = yaml.safe_load((SCHEDULE / "cronjob.yaml").read_text())
    kubernetes_validate.validate(cronjob, "1.29", strict=True)
    assert cronjob["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = understood(container["args"][0].replace('"$(date +%Y-%m-%d)"', "2026-11-24"))
    assert (str(options["config"]), options["wait"]) == ("nightly/job.yaml", True)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    rules = cronjob["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [2]


def check_fields(value: Any, known: Any, where: str) -> None:
    """Every name is one that the resource has; pod templates are Kubernetes' own."""
    if known == "pod":
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
        kubernetes_validate.validate(pod | {"template": value}, "1.29", strict=True)
    elif isinstance(known, dict) and isinstance(value, dict):
        assert set(value) <= set(known), f"{where}: {set(value) - set(known)}"
        for name, inner in value.items():
            check_fields(inner, known[name], f"{where}.{name}")
    elif isinstance(known, list):
        assert isinstance(value, list), where
        for i, inner in enumerate(value):
            check_fields(inner, known[0], f"{where}[{i}]")
    else:
        kinds = {"string": str, "integer": int, "boolean": bool, "strings": dict}
        assert isinstance(value, kinds[known]), f"{where} is {value!r}, not a {known}"


def test_the_rayjob_has_the_fields_of_a_rayjob() -> None:
    rayjob = yaml.safe_load((SCHEDULE / "rayjob.yaml").read_text())
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    check_fields(rayjob["spec"], RAYJOB, "spec")
    environment = yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["env_vars"]
    assert environment == submit.ENVIRONMENT
    assert str(understood(rayjob["spec"]["entrypoint"])["config"]) == "/opt/fluxmill/job/job.yaml"
    with pytest.raises(AssertionError, match="ttlSecondsAfterFinnished"):
        check_fields(rayjob["spec"] | {"ttlSecondsAfterFinnished": 1}, RAYJOB, "spec")


def test_the_cluster_s_values_make_pods_that_kubernetes_takes() -> None:
    values = yaml.safe_load((SCHEDULE / "raycluster-values.yaml").read_text())
    for part in ("head", "worker"):
        told = values[part]
        container = {
            "name": part,
            "image": f"{values['image']['repository']}:{values['image']['tag']}",
            "env": told["containerEnv"],
            "envFrom": told.get("envFrom", []),
            "resources": told["resources"],
            "volumeMounts": told.get("volumeMounts", []),
        }
        spec = {"containers": [container], "volumes": told.get("volumes", [])}
        check_fields({"spec": spec}, "pod", part)
    assert values["worker"]["minReplicas"] < values["worker"]["maxReplicas"]


def test_every_container_of_ours_may_read_the_storage_and_workers_keep_weights_on_their_node() -> (
    None
):
    rayjob = yaml.safe_load((SCHEDULE / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    cronjob = yaml.safe_load((SCHEDULE / "cronjob.yaml").read_text())
    values = yaml.safe_load((SCHEDULE / "raycluster-values.yaml").read_text())
    (head,) = rayjob["headGroupSpec"]["template"]["spec"]["containers"]
    (worker,) = rayjob["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    (submits,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for container in (head, worker, submits, values["head"], values["worker"]):
        assert container["envFrom"] == [
            {"secretRef": {"name": "fluxmill-storage", "optional": True}}
        ]
    for env, mounts in (
        (worker["env"], worker["volumeMounts"]),
        (values["worker"]["containerEnv"], values["worker"]["volumeMounts"]),
    ):
        told = {one["name"]: one.get("value") for one in env}
        assert (told["FLUXMILL_MODELS"], told["FLUXMILL_IMAGES"]) == ("/models", "/models/images")
        assert "/models" in {mount["mountPath"] for mount in mounts}


def test_the_dag_is_built_and_its_command_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Airflow that takes the arguments which Airflow's own classes have."""
    built: dict[str, Any] = {}

    class Dag:
        def __init__(
            self, dag_id: str, *, schedule: str, start_date: Any, catchup: bool,
            max_active_runs: int, params: dict[str, str],
        ) -> None:  # fmt: skip
            built["dag"] = (dag_id, schedule, catchup, max_active_runs)
            built["params"] = params

        def __enter__(self) -> "Dag":
            return self

        def __exit__(self, *_: object) -> None: ...

    def bash_operator(
        *, task_id: str, bash_command: str, append_env: bool, env: dict[str, str],
        retries: int, retry_delay: Any, skip_on_exit_code: Any,
    ) -> None:  # fmt: skip
        built["command"] = bash_command

    for name, members in (
        ("airflow", {"DAG": Dag}),
        ("airflow.operators", {}),
        ("airflow.operators.bash", {"BashOperator": bash_operator}),
    ):
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(SCHEDULE / "airflow_dag.py"))
    assert built["dag"] == ("fluxmill_nightly", "15 2 * * *", False, 1)
    command = built["command"].replace("{{ params.config }}", built["params"]["config"])
    options = understood(command.replace("{{ ds }}", "2026-11-24"))
    assert (options["tick"], options["wait"]) == ("2026-11-24", True)


def test_no_recipe_holds_a_secret() -> None:
    for recipe in SCHEDULE.iterdir():
        text = recipe.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|[0-9a-f]{64}", text)
        for line in text.splitlines():
            assert not re.search(r"(AUTH_TOKEN|SECRET_ACCESS_KEY)\s*[=:]\s*['\"]?\w", line), line


@pytest.mark.ray
def test_a_tick_does_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    config = write_job(tmp_path, rows=4)
    folder = tmp_path / "manifest"
    told = yaml.safe_load(config.read_text()) | {"manifest": str(folder)}
    config.write_text(yaml.safe_dump(told))
    write_manifest(folder / "monday.parquet", {"prompt": ["a red circle"] * 4})
    reports = tmp_path / "out" / "_run" / "reports"

    def tick() -> tuple[int, int, float]:
        began = time.monotonic()
        code, out, err = ended(start("generate", config))
        assert code == 0, err
        last = json.loads(out.splitlines()[-1])
        return last["done"], last["skipped"], time.monotonic() - began

    assert tick()[:2] == (4, 0)
    done, skipped, seconds = tick()
    print(f"a tick without new rows took {seconds:.2f} s")
    assert (done, skipped) == (4, 4)
    assert len(list(reports.iterdir())) == 1  # no run was begun
    write_manifest(folder / "tuesday.parquet", {"prompt": ["a blue circle"] * 3})
    assert tick()[:2] == (7, 4)
    newest = max(reports.iterdir(), key=lambda path: path.stat().st_mtime)
    shards = json.loads(newest.read_text())["shards"]
    assert sum(shard["done"] for shard in shards) == 3
    assert all(shard["shard"].startswith("tuesday") for shard in shards)
