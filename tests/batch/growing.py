"""A cluster that grows by itself, on this machine: a program of its own.

    python -m tests.batch.growing FOLDER

Its head works for nobody; nodes with what passes for a GPU come when Ray's autoscaler is asked for
them. Prints what happened as one JSON line.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray

from batch.run import checked_plan, run
from tests.batch.doubles import PainterFactory, job, write_manifest
from tests.jobs.head import free_port

GPU_NODE = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80 * 2**20}}
CONFIG = {
    "cluster_name": "growing",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "fake_multinode",
        "gcs_address": "",
        "head_node_id": "f" * 56,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": GPU_NODE | {"node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "upscaling_speed": 1.0,
    "head_node": {},
    "worker_nodes": {},
    "setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


def main(folder: Path) -> None:
    port = free_port()
    told = CONFIG | {"provider": CONFIG["provider"] | {"gcs_address": f"127.0.0.1:{port}"}}  # type: ignore[operator]
    config = folder / "cluster.json"
    config.write_text(json.dumps(told))
    words = [
        "ray", "start", "--head", "--block", "--num-cpus=0", f"--port={port}",
        f"--autoscaling-config={config}", f"--temp-dir={folder}/r",
        "--object-store-memory=80000000", "--include-dashboard=false",
    ]  # fmt: skip
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
    }
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                ray.init(f"127.0.0.1:{port}", configure_logging=False, log_to_driver=False)
                break
            except ConnectionError:
                assert time.monotonic() < deadline, (folder / "head.log").read_text()
                time.sleep(0.5)
        before = ray.cluster_resources().get("GPU", 0)
        prompts = ["sleep 0.3"] * 64
        asked = job(
            folder,
            write_manifest(folder / "m.parquet", {"prompt": prompts}),
            workers=[1, 2],
            worker_wait=90,
            engine={"device": "cuda"},
        )
        report, complete = run(asked, *checked_plan(asked), lambda: lambda: False, PainterFactory)
        after = ray.cluster_resources().get("GPU", 0)
        outcome = {"before": before, "after": after, "done": report.done, "complete": complete}
        print(json.dumps(outcome), flush=True)
        ray.shutdown()
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # with its nodes, which are of its group
        head.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
