# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes a gateway as the documentation says, and answers what dashboards and alerts ask."""

import json
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from netlab.lab import Lab, LabMaker
from netlab.topology import HTTP_PORT
from netlab.waiting import eventually

RULES = Path(__file__).resolve().parents[2] / "docs" / "alerts" / "rainlb.rules.yml"
LISTEN, PROMETHEUS = "127.0.0.1:8443", "127.0.0.1:9090"
CONNECTIONS = 300


def give_listener(lab: Lab) -> str:
    """Turn on the gateway's TLS listener, with lbctl and openssl as an operator would; the token to read with."""
    certificate, key, tokens = (lab.directory / name for name in ("api.pem", "api.key", "tokens"))
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=gw1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    token = lab.lbctl("gw1", "token", "new", str(tokens), "--name", "prometheus", "--role", "read").stdout.strip()
    with (lab.directory / "gw1" / "node.toml").open("a") as node:
        node.write(f'\n[api]\nlisten = "{LISTEN}"\ncertificate_file = "{certificate}"\n')
        node.write(f'private_key_file = "{key}"\ntokens_file = "{tokens}"\n')
    return token


def prometheus_file(lab: Lab, token: str) -> Path:
    """The job of docs/api.md, each second instead of each minute."""
    credentials = lab.directory / "prometheus.token"
    credentials.write_text(token)
    job = {
        "job_name": "lab",
        "scheme": "https",
        "authorization": {"credentials_file": str(credentials)},
        "tls_config": {"ca_file": str(lab.directory / "api.pem")},
        "static_configs": [{"targets": [LISTEN]}],
    }
    whole = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [job],
        "rule_files": [str(RULES)],
    }
    path = lab.directory / "prometheus.yml"
    path.write_text(json.dumps(whole))  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("one-gateway", daemons=False)
    token = give_listener(made)
    made.start_gateways()
    storage = made.directory / "prometheus"
    command = ["prometheus", f"--config.file={prometheus_file(made, token)}", f"--storage.tsdb.path={storage}"]
    made.start("gw1/prometheus", made.topology.node("gw1"), [*command, f"--web.listen-address={PROMETHEUS}"])
    return made


def ask(lab: Lab, path: str, **parameters: str) -> Any:
    """An answer of Prometheus's own API, asked from its host."""
    url = f"http://{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"

    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=5) as answer:
            content: bytes = answer.read()
        return content

    answer = json.loads(lab.inside("gw1", get))
    assert answer["status"] == "success", answer
    return answer["data"]


def value(lab: Lab, query: str) -> float | None:
    found = ask(lab, "query", query=query)["result"]
    return float(found[0]["value"][1]) if found else None


def test_prometheus_scrapes_a_gateway_and_answers_queries(lab: Lab) -> None:
    eventually(lambda: value(lab, 'rainlb_up{job="lab"}') == 1, what="the gateway is scraped")
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", CONNECTIONS)
    assert report["failed"] == 0, report
    query = 'sum(rainlb_backend_connections_total{service="http4"})'
    eventually(lambda: (value(lab, query) or 0) >= CONNECTIONS, what="the connections are in Prometheus")
    assert value(lab, 'rainlb_vip_owner{vip="10.0.1.100/24",node="gw1"}') == 1


def test_its_rules_are_evaluated_and_no_alert_fires_on_a_healthy_gateway(lab: Lab) -> None:
    def rules() -> Any:
        (group,) = ask(lab, "rules")["groups"]
        return group["rules"] if all(rule["health"] == "ok" for rule in group["rules"]) else None

    evaluated = eventually(rules, what="every rule was evaluated without an error")
    assert len(evaluated) > 5
    assert [rule["name"] for rule in evaluated if rule["state"] == "firing"] == []
