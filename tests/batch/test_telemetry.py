import json
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from batch.report import RunReport
from batch.telemetry import NAMES, Telemetry

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


@dataclass
class Pool:
    lost: int = 1
    loaded: int = 2
    underway: int = 3
    busy: float = 1.5


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_run_s_figures_can_be_scraped() -> None:
    report = RunReport(rows=100, done=40, rejected=2)
    Telemetry("out/scraped").update(report, Pool())
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = 'ray_fluxmill_rows{[^}]*output="out/scraped"[^}]*status="done"[^}]*} 40'
    deadline = time.monotonic() + 60
    text = ""
    while not re.search(wanted, text) and time.monotonic() < deadline:
        time.sleep(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    assert re.search(wanted, text), text[-2000:]
    for name in NAMES:
        assert f"ray_{name}{{" in text
    assert re.search(r'ray_fluxmill_workers{[^}]*state="lost"[^}]*} 1', text)


def test_the_panels_draw_what_there_is() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    drawn = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            drawn |= set(re.findall(r"ray_(fluxmill_\w+)", target["expr"]))
            (label,) = re.findall(r"by \((\w+)\)", target["expr"])
            (name,) = re.findall(r"ray_(fluxmill_\w+)", target["expr"])
            assert label in NAMES[name][1]
    assert drawn == set(NAMES)
