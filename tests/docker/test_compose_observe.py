"""What watches the services: Prometheus' targets and alerts, Grafana's dashboard, and the metrics they are about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from services.kit.judge.metrics import JudgeMetrics
from services.kit.metrics import Metrics
from services.kit.scale.metrics import ScaleMetrics
from tests.support.deployment import ROOT, Tree, compose

PROMETHEUS = ROOT / "docker/prometheus"
CONFIG: Tree = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
RULES: list[Tree] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: Tree = json.loads((ROOT / "docker/grafana/dashboards/rewards.json").read_text())
PANELS: list[Tree] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]} | {
    rule["alert"]: rule["expr"] for rule in RULES
}
# vLLM's own, by its documentation of /metrics.
VLLM = {"vllm:num_requests_running", "vllm:num_requests_waiting"}


def families() -> dict[str, set[str]]:
    """Every series our services expose, with its labels."""
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    metrics = [Metrics(), JudgeMetrics(), ScaleMetrics(CollectorRegistry(), [])]
    collectors = [each for owner in metrics for each in vars(owner).values() if isinstance(each, MetricWrapperBase)]
    found: dict[str, set[str]] = {}
    for collector in collectors:
        (family,) = collector.describe()
        for ending in endings[family.type]:
            labels = set(collector._labelnames)
            found[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return found


FAMILIES = families()


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """The metrics of a query, each with the labels it is filtered by."""
    pattern = r"\b((?:reward_|vllm:)\w+)(?:\{([^}]*)\})?"
    return [
        (name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inner or ""))) for name, inner in re.findall(pattern, query)
    ]


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_about_metrics_that_exist(name: str) -> None:
    found = selectors(QUERIES[name])
    assert found
    grouped = {label for inner in re.findall(r"by \(([^)]*)\)", QUERIES[name]) for label in inner.split(", ")}
    for metric, labels in found:
        if metric in VLLM:
            continue
        assert metric in FAMILIES, metric
        assert labels | grouped <= FAMILIES[metric] | {"job", "instance"}, (metric, labels, grouped)


def test_the_dashboard_shows_what_an_operator_asks_for() -> None:
    titles = {panel["title"] for panel in PANELS}
    assert titles >= {
        "Throughput",
        "Request latency",
        "Shared cache hits",
        "Queue",
        "Cache hits",
        "Failures by code",
        "Parse failures",
        "Ties",
        "Position bias",
        "Constant groups",
        "Worker restarts",
    }
    latency = next(panel for panel in PANELS if panel["title"] == "Request latency")
    assert [re.findall(r"quantile\((\S+),", target["expr"]) for target in latency["targets"]] == [
        ["0.5"],
        ["0.95"],
        ["0.99"],
    ]
    assert all(panel["description"] for panel in PANELS)


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_and_its_source_are_provisioned() -> None:
    provisioning = ROOT / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    used = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert used == {source["uid"]} and source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/rewards.yml").read_text())["providers"]
    grafana = compose()["services"]["grafana"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    assert (
        grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        == f"{provider['options']['path']}/rewards.json"
    )


def test_every_service_is_a_target_at_its_port() -> None:
    services = compose()["services"]
    prometheus = services["prometheus"]
    targets: dict[str, int] = {}
    for job in CONFIG["scrape_configs"]:
        (lookup,) = job["dns_sd_configs"]
        for name in lookup["names"]:
            targets[name] = lookup["port"]
            assert set(services[name]["networks"]) & set(prometheus["networks"]), name
            with_token = "build" in services[name]
            assert ("authorization" in job) is with_token, name
    ports = {name: int(service["build"]["args"]["PORT"]) for name, service in services.items() if "build" in service}
    assert targets == {**ports, "unifiedreward-vllm": 8001, "eval-vllm": 8000}
    tokens = {job["authorization"]["credentials_file"] for job in CONFIG["scrape_configs"] if "authorization" in job}
    assert tokens == {f"/run/secrets/{prometheus['secrets'][0]}"}


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_configuration() -> None:
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", PROMETHEUS / "alerts.yml")


def series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": value} for name, value in values.items()]


def scenario(values: dict[str, str], alert: str, labels: dict[str, str] | None, at: str) -> Tree:
    """A test for promtool: after these samples (one a minute), the alert fires with these labels, or does not."""
    fired: list[dict[str, Any]] = [{"exp_labels": labels}] if labels else []
    rule = next(rule for rule in RULES if rule["alert"] == alert)
    for each in fired:
        each["exp_labels"] = {**each["exp_labels"], **rule["labels"]}
    expected = [{"eval_time": at, "alertname": alert, "exp_alerts": fired}]
    return {"interval": "1m", "input_series": series(values), "alert_rule_test": expected}


OCR = 'job="ocr",reward="multi"'
PAIRS = 'job="unifiedreward",reward="think_pairwise"'
SCENARIOS: dict[str, tuple[dict[str, str], str, dict[str, str] | None, str]] = {
    "a service that was ready is gone": (
        {'reward_ready{job="ocr",instance="a"}': "1x10 _x10"},
        "RewardServiceNotReady",
        {"job": "ocr"},
        "20m",
    ),
    "one of two replicas is ready": (
        {'reward_ready{job="ocr",instance="a"}': "1x30", 'reward_ready{job="ocr",instance="b"}': "1x5 0x25"},
        "RewardServiceNotReady",
        None,
        "20m",
    ),
    "a service that was never ready": ({'reward_ready{job="hps"}': "0x30"}, "RewardServiceNotReady", None, "20m"),
    "one in ten fails": (
        {f'reward_items_total{{{OCR},code="ok"}}': "0+90x30", f'reward_items_total{{{OCR},code="timeout"}}': "0+10x30"},
        "RewardFailures",
        {"job": "ocr", "reward": "multi"},
        "20m",
    ),
    "one in ten does not apply": (
        {
            f'reward_items_total{{{OCR},code="ok"}}': "0+90x30",
            f'reward_items_total{{{OCR},code="not_applicable"}}': "0+10x30",
        },
        "RewardFailures",
        None,
        "20m",
    ),
    "most groups are constant": (
        {f"reward_groups_total{{{OCR}}}": "0+10x60", f"reward_constant_groups_total{{{OCR}}}": "0+6x60"},
        "RewardConstantGroups",
        {"job": "ocr", "reward": "multi"},
        "50m",
    ),
    "the second image wins two thirds": (
        {
            f'reward_judge_wins_total{{{PAIRS},position="first"}}': "0+10x90",
            f'reward_judge_wins_total{{{PAIRS},position="second"}}': "0+20x90",
        },
        "RewardPositionBias",
        {"job": "unifiedreward", "reward": "think_pairwise"},
        "80m",
    ),
    "a bias on too few comparisons": (
        {
            f'reward_judge_wins_total{{{PAIRS},position="first"}}': "0+0x90",
            f'reward_judge_wins_total{{{PAIRS},position="second"}}': "0+1x90",
        },
        "RewardPositionBias",
        None,
        "80m",
    ),
    "one answer in ten cannot be read": (
        {
            f'reward_judge_calls_total{{{PAIRS},outcome="ok"}}': "0+90x60",
            f'reward_judge_calls_total{{{PAIRS},outcome="parse_error"}}': "0+10x60",
        },
        "RewardJudgeAnswersUnusable",
        {"job": "unifiedreward", "reward": "think_pairwise"},
        "50m",
    ),
    "callers are turned away": (
        {'reward_requests_total{job="ocr",path="/v1/score",status="429"}': "0+60x60"},
        "RewardOverload",
        {"job": "ocr"},
        "50m",
    ),
    "workers die": (
        {'reward_worker_restarts{job="ocr",instance="a"}': "0+1x60"},
        "RewardWorkerRestarts",
        {"job": "ocr", "instance": "a"},
        "50m",
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_alert_fires_when_it_should_and_only_then(name: str, tmp_path: Path) -> None:
    """Annotations are left out: promtool compares labels only when told no annotations."""
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    case = tmp_path / "case.yml"
    case.write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [scenario(*SCENARIOS[name])]}))
    promtool("test", "rules", case)
