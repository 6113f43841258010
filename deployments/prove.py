"""Proves that the check of the deployments can fail: breaks a copy of the files in one way after another, and fails when
a break goes unnoticed or is noticed as something else. Run by `scripts/check-deployments prove [WORD]`; with a word, only
files whose path holds it are broken.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from check import Check

ROOT = Path(__file__).resolve().parent.parent
COMPOSE, MONITORING, COMMON = (f"deployments/compose/{name}.yml" for name in ("compose", "monitoring", "common"))
DOCKERFILE, JAEGER = "deployments/docker/Dockerfile", "monitoring/jaeger/jaeger.yaml"
SECRETS, EXAMPLE = "deployments/compose/secrets", "deployments/compose/.env.example"
PROMETHEUS = "monitoring/prometheus/prometheus-compose.yml"
ALERTMANAGER = "monitoring/alertmanager/alertmanager.yml"
SOURCES = "monitoring/grafana/provisioning/datasources/all.yaml"
BOARDS = "monitoring/grafana/provisioning/dashboards/all.yaml"

# What other parts of the repository hold, reduced to what the check reads; used whether they are there or not, so that
# what is proved does not hang on them.
FIXTURES = {
    PROMETHEUS: """
rule_files: [rules/*.yml]
alerting: {alertmanagers: [{static_configs: [{targets: ["alertmanager:9093"]}]}]}
scrape_configs:
  - {job_name: streamgauge-producer, static_configs: [{targets: ["producer:8081"]}]}
  - {job_name: streamgauge-consumer, static_configs: [{targets: ["consumer:8082"]}]}
  - {job_name: streamgauge-analytics, static_configs: [{targets: ["analytics:8083"]}]}
  - {job_name: jaeger, static_configs: [{targets: ["jaeger:8888", "jaeger:8889"]}]}
""",
    "monitoring/prometheus/rules/one.yml": "groups: []\n",
    ALERTMANAGER: "templates: [templates/*.tmpl]\nreceivers: []\nglobal: {slack_api_url_file: secrets/chat-url}\n",
    "monitoring/alertmanager/templates/one.tmpl": "\n",
    SOURCES: """
datasources:
  - {name: Prometheus, type: prometheus, url: "http://prometheus:9090"}
  - name: PostgreSQL
    type: grafana-postgresql-datasource
    url: postgres:5432
    user: streamgauge_reader
    jsonData: {database: streamgauge}
    secureJsonData: {password: "$__file{/run/secrets/grafana_postgres_password}"}
""",
    BOARDS: "providers: [{name: all, options: {path: /var/lib/grafana/dashboards}}]\n",
    "monitoring/grafana/dashboards/one.json": "{}\n",
}

# File, what stands there, what is put in its place (None for the file itself taken away), what the check must say.
BREAKS = [
    (DOCKERFILE, "EXPOSE 8082", "EXPOSE 8092", "consumer exposes"),
    (DOCKERFILE, '"--consumer-http", "127.0.0.1:8083"', '"--consumer-http", "127.0.0.1:8082"', "the probe of analytics asks"),
    (DOCKERFILE, '"--timeout", "3s", "--producer-http", "127.0.0.1:8081"', '"--wait", "3s", "--producer-http", "127.0.0.1:8081"', "the probe of producer is no use"),
    (DOCKERFILE, "streamgauge\", \"producer\"]", "streamgauge\", \"consumer\"]", "producer must start"),
    (DOCKERFILE, "USER 65532:65532", "USER root", "must run as 65532"),
    (DOCKERFILE, "rust:1.95.0-slim-bookworm", "rust:1.80.0-slim-bookworm", "older than rust-version"),
    (DOCKERFILE, "rust:1.95.0-slim-bookworm", "rust:1.95.0-slim-trixie", "built on trixie"),
    (DOCKERFILE, "STREAMGAUGE_VERSION=0.1.0", "STREAMGAUGE_VERSION=0.0.9", "the version is not"),
    (DOCKERFILE, "AS analytics", "AS reader", "no target analytics"),
    (DOCKERFILE, "libssl-dev ", "", "disagree about libssl-dev"),
    (DOCKERFILE, "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGQUIT", "must be stopped by SIGTERM"),
    (DOCKERFILE, "--chown=65532:65532 /state/ /var/lib/streamgauge/", "/state/ /state/", "does not belong to its user"),
    (".dockerignore", "!crates\n", "", "leaves out crates/"),
    (".dockerignore", "!tests\n", "!tests\n!deployments\n", "lets in deployments"),
    (COMPOSE, "STREAMGAUGE_PRODUCER_SPOOL__ENABLED", "STREAMGAUGE_PRODUCER_SPOOL__ENABLE", "refuses its settings"),
    (COMPOSE, "STREAMGAUGE_CONSUMER_KAFKA__BROKERS", "STREAMGAUGE_PRODUCER_KAFKA__BROKERS", "is none of its variables"),
    (COMPOSE, "STREAMGAUGE_ANALYTICS_HTTP__LISTEN: 0.0.0.0:8083", "STREAMGAUGE_ANALYTICS_HTTP__LISTEN: 127.0.0.1:8083", "nobody else reaches"),
    (COMPOSE, "STREAMGAUGE_ANALYTICS_KAFKA__BROKERS: kafka:19092", "STREAMGAUGE_ANALYTICS_KAFKA__BROKERS: kafka:19093", "does not listen on kafka:19093"),
    (COMPOSE, "STREAMGAUGE_PRODUCER_TELEMETRY__OTLP_ENDPOINT: http://jaeger:4317", "STREAMGAUGE_PRODUCER_TELEMETRY__OTLP_ENDPOINT: http://jaeger:4316", "does not listen on http://jaeger:4316"),
    (COMPOSE, "STREAMGAUGE_PRODUCER_TELEMETRY__OTLP_ENDPOINT: http://jaeger:4317", "STREAMGAUGE_PRODUCER_TELEMETRY__OTLP_ENDPOINT: http://tempo:4317", "is no service"),
    (COMPOSE, ":${CONSUMER_HTTP_PORT:-8082}:8082", ":${CONSUMER_HTTP_PORT:-8082}:8083", "consumer: publishes"),
    (COMPOSE, "${BIND_ADDRESS:-127.0.0.1}:${KAFKA_PORT", "${BIND_ADDRESS:-0.0.0.0}:${KAFKA_PORT", "is open to the network"),
    (COMPOSE, "image: postgres:18.6", "image: postgres:latest", "not pinned"),
    (COMPOSE, "image: postgres:18.6", "image: postgres:18.5", "does not name postgres:18.5"),
    (COMPOSE, "POSTGRES_PASSWORD_FILE: /run/secrets/postgres_password", "POSTGRES_PASSWORD: hunter2", "in the clear"),
    (COMPOSE, "POSTGRES_USER: streamgauge", "POSTGRES_USER: gauge", "asks PostgreSQL as"),
    (COMPOSE, "stop_grace_period: 30s", "stop_grace_period: 15s", "is killed after"),
    (COMPOSE, "target: analytics", "target: consumer", "is built as consumer"),
    (COMPOSE, "secrets: [analytics.toml]", "secrets: [producer.toml]", "is told to read /run/secrets/analytics.toml"),
    (COMPOSE, "networks: [log, store, edge]", "networks: [log, edge]", "shares no network with postgres"),
    (COMPOSE, "./postgres:/docker-entrypoint-initdb.d:ro", "./postgresql:/docker-entrypoint-initdb.d:ro", "there is no deployments/compose/postgresql"),
    (COMPOSE, "./postgres:/docker-entrypoint-initdb.d:ro", "./postgres:/docker-entrypoint-initdb.d", "may write"),
    (COMPOSE, "HOST://localhost:${KAFKA_PORT:-9092}", "HOST://localhost:9095", "this machine's tools ask"),
    (COMPOSE, "--bootstrap-server kafka:19092", "--bootstrap-server kafka:9094", "its probe asks another"),
    (COMPOSE, "STREAMGAUGE_ENDPOINT_BROKERS", "STREAMGAUGE_ENDPOINT_KAFKA", "nobody reads"),
    (COMPOSE, "producer:50051", "producer:50052", "does not listen on producer:50052"),
    (COMPOSE, "kafka: {condition: service_healthy}", "kafka: {condition: service_started}", "does not wait until"),
    (COMPOSE, "restart: unless-stopped", "restart: sometimes", "is not started again"),
    (COMPOSE, "volumes: [\"kafka-data:/var/lib/kafka/data\"]", "volumes: [\"kafka-data:/kafka\"]", "its log is not on a volume"),
    (COMPOSE, "memory: 2g", "memroy: 2g", "docker-compose config"),
    (COMPOSE, "{file: common.yml, service: jaeger}", "{file: common.yml, service: tempo}", "docker-compose config"),
    (COMPOSE, "KAFKA_PORT:-9092}:9092", "KAFKA_PRT:-9092}:9092", ".env.example says KAFKA_PRT"),
    (EXAMPLE, "GRAFANA_PORT=3000", "GRAFANA_PORT=3001", ".env.example says GRAFANA_PORT"),
    (COMMON, "read_only: true", "read_only: false", "root file system can be written"),
    (COMMON, "cap_drop: [ALL]", "cap_drop: [NET_RAW]", "keeps capabilities"),
    (COMMON, "http://127.0.0.1:9093/-/ready", "http://127.0.0.1:9094/-/ready", "its probe asks port 9094"),
    (COMMON, "../../monitoring/jaeger:", "../../monitoring/tempo:", "there is no monitoring/tempo"),
    (COMMON, "/etc/jaeger/jaeger.yaml", "/etc/jaeger/config.yaml", "there is no monitoring/jaeger/config.yaml"),
    (COMMON, "--enable-feature=exemplar-storage", "--enable-feature=native-histograms", "drops exemplars"),
    (COMMON, "GF_SECURITY_ADMIN_PASSWORD__FILE: /run/secrets/grafana_admin_password", "GF_SECURITY_ADMIN_PASSWORD__FILE: /run/secrets/admin", "which is not mounted"),
    (COMMON, "    deploy: {resources: {limits: {cpus: \"0.5\", memory: 256m, pids: 128}}}\n", "", "has no limit"),
    (COMMON, "PROMETHEUS_URL: http://prometheus:9090", "PROMETHEUS_URL: http://prometheus:9091", "does not listen on http://prometheus:9091"),
    (MONITORING, "consumer:host-gateway", "reader:host-gateway", "consumer:8082 is no service"),
    (MONITORING, ":4317\"]", ":4318\"]", "jaeger publishes"),
    (JAEGER, "exporters: [jaeger_storage_exporter, spanmetrics]", "exporters: [jaeger_storage_exporter, spanmetric]", "which is not declared"),
    (JAEGER, "trace_storage: latest", "trace_storage: all", "read from latest"),
    (JAEGER, "max_traces: 50000", "max_traces: 0", "has no bound"),
    (JAEGER, "latency_unit: ms", "latency_unit: s", "different units"),
    (JAEGER, "}:4317", "}:4319", "does not listen on http://jaeger:4317"),
    (JAEGER, "}:13133", "}:13134", "its probe asks port 13133"),
    (JAEGER, "extensions: [jaeger_storage, jaeger_query, healthcheckv2]", "extensions: [jaeger_storage, jaeger_query]", "declared and started differ"),
    (SECRETS + "/analytics.toml.example", "[store]", "[stores]", "the store's URL"),
    (SECRETS + "/producer.toml.example", "token = ", "tokens = ", "refuses its settings"),
    (SECRETS + "/producer.toml.example", "@random@", "change-me", "nothing random"),
    (SECRETS + "/grafana_admin_password.example", None, None, "nothing makes the secret"),
    (SECRETS + "/create", '[ ! -s "$file" ] || return 0', ":", "changes secrets that are there"),
    (SECRETS + "/create", "chmod 444", "chmod 400", "containers run under users of their own"),
    ("deployments/compose/postgres/reader.sh", "grafana_postgres_password", "reader_password", "which is not mounted"),
    (PROMETHEUS, "analytics:8083", "analytics:8084", "does not listen on analytics:8084"),
    (PROMETHEUS, '"jaeger:8888", "jaeger:8889"', '"jaeger:8888"', "nobody scrapes jaeger:8889"),
    (PROMETHEUS, "job_name: streamgauge-consumer", "job_name: consumer", "no job streamgauge-consumer"),
    (PROMETHEUS, "rules/*.yml", "alerts/*.yml", "no rules at"),
    (ALERTMANAGER, "receivers: []", "receivers: [{name: a, webhook_configs: [{\n  url_file: /run/secrets/hook\n}]}]", "reads /run/secrets/hook"),
    (ALERTMANAGER, "secrets/chat-url", "secrets/chat", "reads secrets/chat,"),
    (ALERTMANAGER, "templates/*.tmpl", "text/*.tmpl", "reads text/*.tmpl"),
    (COMMON, "../../monitoring/alertmanager/templates:", "../../monitoring/alertmanager/text:", "there is no monitoring/alertmanager/text"),
    (ALERTMANAGER, None, None, "there is no monitoring/alertmanager/alertmanager.yml"),
    (SOURCES, "http://prometheus:9090", "http://prometheus:9999", "does not listen on http://prometheus:9999"),
    (SOURCES, "user: streamgauge_reader", "user: postgres", "the reader is"),
    (SOURCES, "$__file{/run/secrets/grafana_postgres_password}", "$POSTGRES_PASSWORD", "which is not set"),
    (SOURCES, "/run/secrets/grafana_postgres_password", "/run/secrets/other", "reads /run/secrets/other"),
    (COMMON, "secrets: [grafana_admin_password, grafana_postgres_password]", "secrets: [grafana_admin_password]", "monitoring.yml: provisioning/datasources/all.yaml: reads"),
    (BOARDS, "path: /var/lib/grafana/dashboards", "path: /dashboards", "are looked for in"),
]

# Command, file, what stands there, what is put in its place.
TOOLS = [
    (["hadolint", "--config", "deployments/docker/hadolint.yaml", DOCKERFILE], DOCKERFILE, "rust:1.95.0-slim-bookworm", "rust:latest"),
    (["hadolint", "--config", "deployments/docker/hadolint.yaml", DOCKERFILE], DOCKERFILE, "CMD [\"--help\"]", "CMD --help"),
    (["shellcheck", SECRETS + "/create"], SECRETS + "/create", 'mkdir -p "$folder"', "mkdir -p $folder"),
]


def copy_to(folder: Path) -> None:
    for name in ("Cargo.toml", ".dockerignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup", folder / "scripts/setup")
    shutil.copytree(ROOT / "deployments", folder / "deployments", ignore=shutil.ignore_patterns("__pycache__", ".env"))
    shutil.copytree(ROOT / "monitoring/jaeger", folder / "monitoring/jaeger")
    for line in (folder / ".dockerignore").read_text().splitlines():
        if line.startswith("!") and not (folder / line[1:]).exists():
            (folder / line[1:]).mkdir()
    for name, text in FIXTURES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def change(path: Path, old, new) -> None:
    if old is None:
        path.unlink()
        return
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"prove: {path.name} holds no {old!r} any more")
    path.write_text(text.replace(old, new))


def failures(folder: Path, binary: str) -> list[str]:
    check = Check(folder, binary)
    try:
        check.run()
    except Exception as error:  # A check that stumbles has not said what is wrong.
        return [f"stumbled: {error!r}"]
    return check.failures


def main() -> int:
    binary = str(Path(os.environ.get("STREAMGAUGE_BIN", "target/debug/streamgauge")).resolve())
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    breaks = [one for one in BREAKS if only in one[0]]
    tools = [one for one in TOOLS if only in one[1]]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "whole"
        folder.mkdir()
        copy_to(folder)
        if found := failures(folder, binary):
            print("prove: the copy fails before anything is broken:", *found, sep="\n  ", file=sys.stderr)
            return 1
        for number, (name, old, new, wanted) in enumerate(breaks):
            folder = Path(base) / str(number)
            folder.mkdir()
            copy_to(folder)
            change(folder / name, old, new)
            found = failures(folder, binary)
            if not any(wanted in failure for failure in found):
                unnoticed += 1
                print(f"prove: {name}: {old!r} -> {new!r} is not noticed as {wanted!r}; found: {found}", file=sys.stderr)
            shutil.rmtree(folder)
        for command, name, old, new in tools:
            folder = Path(base) / "tool"
            folder.mkdir()
            copy_to(folder)
            before = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
            change(folder / name, old, new)
            after = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
            if before != 0 or after == 0:
                unnoticed += 1
                print(f"prove: {command[0]} says {before} before and {after} after {new!r}", file=sys.stderr)
            shutil.rmtree(folder)
    total = len(breaks) + len(tools)
    print(f"{total - unnoticed} of {total} breaks were noticed")
    print(f"{total - unnoticed} passed, {unnoticed} failed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
