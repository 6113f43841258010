"""Holds the images and the compose files to the code, without a Docker engine.

Every claim of a deployment file about the product is compared with the product: ports and settings with what the binary
prints, paths with the repository, names with who bears them. Run by scripts/check-deployments, which puts the tools on
the PATH; prove.py shows that each of these checks can fail.
"""

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import yaml

SERVICES = ("producer", "consumer", "analytics")
FILES = {
    "compose.yml": {
        "kafka", "postgres", "producer", "consumer", "analytics", "cli",
        "prometheus", "alertmanager", "grafana", "jaeger",
    },
    "monitoring.yml": {"prometheus", "alertmanager", "grafana", "jaeger"},
}
# The ports that the monitoring products listen on by themselves.
USUAL = {"prometheus": {9090}, "alertmanager": {9093}, "grafana": {3000}, "postgres": {5432}}
# Made by other parts of the repository. They may be missing as long as there is no monitoring/prometheus at all.
ELSEWHERE = (
    "monitoring/prometheus", "monitoring/prometheus/prometheus-compose.yml", "monitoring/prometheus/rules",
    "monitoring/alertmanager/alertmanager.yml", "monitoring/alertmanager/templates",
    "monitoring/grafana/provisioning", "monitoring/grafana/dashboards",
)

# What the binary answered, by what it was asked.
ANSWERS: dict[tuple, subprocess.CompletedProcess] = {}


class Check:
    """One run over the repository at `root`."""

    def __init__(self, root: Path, binary: str):
        self.root, self.binary = root, binary
        self.failures: list[str] = []
        self.warnings: list[str] = []
        self.passed = 0

    def that(self, holds, what: str) -> bool:
        """Counts `what` as passed when it holds, and as a failure otherwise."""
        if holds:
            self.passed += 1
        else:
            self.failures.append(what)
        return bool(holds)

    def product(self, *arguments: str, **variables: str):
        """Runs the binary with these environment variables and none of its own from outside."""
        asked = (self.binary, arguments, tuple(sorted(variables.items())))
        # Settings files are made anew by each run; whatever else is asked has one answer.
        if "--config" in arguments:
            return self.ask(arguments, variables)
        if asked not in ANSWERS:
            ANSWERS[asked] = self.ask(arguments, variables)
        return ANSWERS[asked]

    def ask(self, arguments: tuple[str, ...], variables: dict[str, str]):
        outside = {key: value for key, value in os.environ.items() if not key.startswith("STREAMGAUGE_")}
        return subprocess.run(
            [self.binary, *arguments], env=outside | variables, capture_output=True, text=True, timeout=60, check=False
        )

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.secrets_folder = Path(folder)
            self.check_secrets()
            self.defaults = {name: self.settings(name) for name in SERVICES}
            self.check_dockerfile()
            self.check_ignored()
            models = {}
            for name, services in FILES.items():
                if model := self.resolve(name, services):
                    models[name] = model
            for name, model in models.items():
                self.check_model(name, model)
            if "compose.yml" in models:
                self.check_product_services(models["compose.yml"])
                self.check_database(models["compose.yml"])
                self.check_kafka(models["compose.yml"])
            self.check_variables()
            self.check_jaeger(models)
            self.check_prometheus(models)
            self.check_alertmanager(models)
            self.check_grafana(models)

    # What the product says.

    def settings(self, service: str) -> dict:
        shown = self.product("config", "show", service)
        if not self.that(shown.returncode == 0, f"{self.binary} config show {service}: {shown.stderr.strip()}"):
            return {}
        return tomllib.loads(shown.stdout)

    def ports_of(self, service: str) -> dict[str, int]:
        """HTTP and gRPC ports by default."""
        settings = self.defaults[service]
        return {door: int(settings[door]["listen"].rsplit(":", 1)[1]) for door in ("http", "grpc")}

    # Secrets.

    def check_secrets(self) -> None:
        folder = self.root / "deployments/compose/secrets"
        made = subprocess.run([folder / "create", self.secrets_folder], capture_output=True, text=True, check=False)
        if not self.that(made.returncode == 0, f"secrets/create fails: {made.stderr.strip()}"):
            return
        names = {path.name.removesuffix(".example") for path in folder.glob("*.example")}
        there = {path.name: path.read_text() for path in self.secrets_folder.iterdir()}
        self.that(set(there) == names, f"secrets/create makes {sorted(there)}, the examples are {sorted(names)}")
        for name, text in there.items():
            self.that(not re.search(r"@[a-z_]+@", text), f"secret {name} still holds a placeholder")
            self.that(re.search(r"[0-9a-f]{48}", text), f"secret {name} holds nothing random")
            mode = stat.S_IMODE((self.secrets_folder / name).stat().st_mode)
            self.that(mode & 0o444 == 0o444, f"secret {name} has mode {mode:o}: containers run under users of their own")
        again = subprocess.run([folder / "create", self.secrets_folder], capture_output=True, text=True, check=False)
        kept = {path.name: path.read_text() for path in self.secrets_folder.iterdir()} == there
        self.that(again.returncode == 0 and kept, "secrets/create changes secrets that are there")
        if (self.root / ".git").exists():
            listed = subprocess.run(
                ["git", "-C", self.root, "ls-files", folder.relative_to(self.root)],
                capture_output=True, text=True, check=True,
            ).stdout.split()
            for path in listed:
                harmless = path.endswith(".example") or Path(path).name == "create"
                self.that(harmless, f"{path} is a secret and is in the repository")
            for name in names | {"any-other"}:
                path = folder / name
                ignored = subprocess.run(["git", "-C", self.root, "check-ignore", "-q", path], check=False)
                self.that(ignored.returncode == 0, f"{path.relative_to(self.root)} is not ignored by git")

    # The images.

    def check_dockerfile(self) -> None:
        text = (self.root / "deployments/docker/Dockerfile").read_text()
        cargo = tomllib.loads((self.root / "Cargo.toml").read_text())["workspace"]["package"]
        joined = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", " ")
        self.stages: dict[str, dict] = {}
        stage: dict = {}
        for line in filter(None, map(str.strip, joined.splitlines())):
            word, rest = line.split(None, 1)
            if word == "FROM":
                base, _, name = rest.partition(" AS ")
                stage = self.stages[name] = {"base": base, "exposed": set(), "lines": []}
            elif word == "EXPOSE":
                stage["exposed"] |= {int(port) for port in rest.split()}
            elif word in ("ENTRYPOINT", "STOPSIGNAL", "USER", "HEALTHCHECK"):
                stage[word.lower()] = rest
            if stage:
                stage["lines"].append(line)
        for name in (*SERVICES, "cli"):
            if not self.that(name in self.stages, f"Dockerfile: there is no target {name}"):
                continue
            stage = self.stages[name]
            wanted = ["/usr/local/bin/streamgauge"] + ([name] if name in SERVICES else [])
            self.that(json.loads(stage.get("entrypoint", "[]")) == wanted, f"Dockerfile: {name} must start {wanted}")
            self.that("USER 65532:65532" in self.lines_of(name), f"Dockerfile: {name} must run as 65532:65532")
            self.that("STOPSIGNAL SIGTERM" in self.lines_of(name), f"Dockerfile: {name} must be stopped by SIGTERM")
        for name in SERVICES:
            ports = self.ports_of(name)
            stage = self.stages.get(name, {"exposed": set()})
            self.that(
                stage["exposed"] == set(ports.values()),
                f"Dockerfile: {name} exposes {sorted(stage['exposed'])}, listens on {sorted(ports.values())}",
            )
            self.check_probe(name, stage.get("healthcheck", ""), ports["http"])
        rust = re.match(r"rust:(\d+\.\d+)\.\d+-slim-(\w+)$", self.stages.get("builder", {}).get("base", ""))
        if self.that(rust, "Dockerfile: the builder's image is not rust:X.Y.Z-slim-RELEASE"):
            least = tuple(map(int, cargo["rust-version"].split(".")))
            self.that(tuple(map(int, rust[1].split("."))) >= least, "Dockerfile: Rust is older than rust-version")
            runtime = self.stages.get("runtime", {}).get("base", "")
            release = {"bookworm": "12", "trixie": "13"}.get(rust[2], "?")
            self.that(f"debian{release}" in runtime, f"Dockerfile: built on {rust[2]}, run on {runtime}")
        version = re.search(r"ARG STREAMGAUGE_VERSION=(\S+)", text)
        self.that(version and version[1] == cargo["version"], f"Dockerfile: the version is not {cargo['version']}")
        for needed in ("pkg-config", "libssl-dev", "make"):
            wanted = needed in (self.root / "scripts/setup").read_text()
            self.that(wanted and needed in text, f"scripts/setup and the builder disagree about {needed}")

    def lines_of(self, name: str) -> list[str]:
        """The lines of a stage, and of those that it is made from."""
        stage = self.stages.get(name)
        return self.lines_of(stage["base"]) + stage["lines"] if stage else []

    def check_probe(self, name: str, probe: str, port: int) -> None:
        """The probe is one that the command line takes, and asks this service alone."""
        command = re.search(r"CMD (\[.*\])$", probe)
        if not self.that(command, f"Dockerfile: {name} has no probe"):
            return
        arguments = json.loads(command[1])
        asked = {value for flag, value in zip(arguments, arguments[1:]) if flag.endswith("-http")}
        self.that(asked == {f"127.0.0.1:{port}"}, f"Dockerfile: the probe of {name} asks {sorted(asked)}, not {port}")
        # Nothing answers on port 1, so that a command line which is understood ends with 3, and any other with 2.
        tried = [value.replace(f":{port}", ":1") for value in arguments[1:]]
        self.that(self.product(*tried).returncode == 3, f"Dockerfile: the probe of {name} is no use of streamgauge")

    def check_ignored(self) -> None:
        """What is sent to the builder: every member of the workspace, and nothing that is not named."""
        lines = [line for line in (self.root / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
        self.that(lines[:1] == ["*"], ".dockerignore must begin by leaving everything out")
        sent = {line[1:].strip("/") for line in lines if line.startswith("!")}
        members = tomllib.loads((self.root / "Cargo.toml").read_text())["workspace"]["members"]
        for member in members:
            self.that(member.split("/")[0] in sent, f".dockerignore leaves out {member}, a member of the workspace")
        for path in sent:
            self.that((self.root / path).exists(), f".dockerignore lets in {path}, which is not there")
        for path in ("deployments", "monitoring", ".git"):
            self.that(path not in sent, f".dockerignore lets in {path}")

    # The compose files.

    def resolve(self, name: str, services: set[str]):
        """The file as Compose understands it, with every default."""
        # A .env of this machine is left out, so that the defaults are what is checked.
        command = ["docker-compose", "--env-file", "/dev/null", "--profile", "*", "--file", name]
        variables = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME")}
        variables["SECRETS_DIR"] = str(self.secrets_folder)
        done = subprocess.run(
            [*command, "config", "--format", "json"], cwd=self.root / "deployments/compose", env=variables,
            capture_output=True, text=True, check=False,
        )
        complaint = done.stderr.strip()
        if not self.that(done.returncode == 0 and not complaint, f"{name}: docker-compose config: {complaint}"):
            return None
        model = json.loads(done.stdout)
        there = set(model["services"])
        self.that(there == services, f"{name}: services are {sorted(there)}, not {sorted(services)}")
        return model

    def check_model(self, file: str, model: dict) -> None:
        images = (self.root / "deployments/README.md").read_text()
        for name, service in model["services"].items():
            at = f"{file}: {name}"
            image = service.get("image", "")
            if "build" not in service:
                self.that(re.search(r":v?\d+\.\d+(\.\d+)?$", image), f"{at}: {image} is not pinned to a release")
                self.that(f"`{image}`" in images, f"{at}: deployments/README.md does not name {image}")
            self.check_build(at, service)
            self.check_health(at, service, model)
            limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
            self.that({"cpus", "memory", "pids"} <= set(limits), f"{at}: has no limit of CPU, memory or processes")
            if name != "cli":
                self.that(service.get("restart") == "unless-stopped", f"{at}: is not started again")
            self.that(service.get("cap_drop") == ["ALL"], f"{at}: keeps capabilities")
            self.that("no-new-privileges:true" in service.get("security_opt", []), f"{at}: may gain privileges")
            self.that(service.get("read_only") or name == "kafka", f"{at}: its root file system can be written")
            self.that(not service.get("privileged"), f"{at}: is privileged")
            self.that("max-size" in service.get("logging", {}).get("options", {}), f"{at}: its logs have no bound")
            for port in service.get("ports", []):
                self.that(port.get("host_ip") == "127.0.0.1", f"{at}: port {port['target']} is open to the network")
            for key, value in (service.get("environment") or {}).items():
                named = re.search(r"PASSWORD|TOKEN|SECRET", key) and not key.endswith("FILE")
                inside = re.search(r"://[^/@]*:[^/@]+@", str(value))
                self.that(not named and not inside, f"{at}: {key} holds a secret in the clear")
                if key.endswith("FILE"):
                    given = {mount["target"] for mount in service.get("secrets", [])}
                    self.that(value in given, f"{at}: {key} names {value}, which is not mounted")
            self.check_mounts(at, service)
            for mount in service.get("volumes", []):
                if mount["type"] == "volume":
                    self.that(mount["source"] in model["volumes"], f"{at}: volume {mount['source']} is not declared")
        for name, secret in model.get("secrets", {}).items():
            self.that(Path(secret["file"]).exists(), f"{file}: nothing makes the secret {name}")
            used = any(name == mount["source"] for one in model["services"].values() for mount in one.get("secrets", []))
            self.that(used, f"{file}: no service uses the secret {name}")

    def check_build(self, at: str, service: dict) -> None:
        build = service.get("build")
        if not build:
            return
        self.that(build.get("target") in self.stages, f"{at}: the Dockerfile has no target {build.get('target')}")
        self.that(Path(build["context"]).resolve() == self.root.resolve(), f"{at}: builds from {build['context']}")
        path = Path(build["context"]) / build["dockerfile"]
        self.that(path.exists(), f"{at}: there is no {build['dockerfile']}")
        text = path.read_text() if path.exists() else ""
        for argument in build.get("args", {}):
            self.that(f"ARG {argument}" in text, f"{at}: the Dockerfile takes no argument {argument}")

    def check_health(self, at: str, service: dict, model: dict) -> None:
        """It has a probe, in the file or in its image, and those it waits for have one."""
        def probed(one: dict) -> bool:
            target = one.get("build", {}).get("target")
            return "healthcheck" in one or self.stages.get(target, {}).get("healthcheck", "NONE") != "NONE"

        if "cli" not in at.split():
            self.that(probed(service), f"{at}: has no probe")
        for other, how in (service.get("depends_on") or {}).items():
            self.that(how["condition"] == "service_healthy", f"{at}: does not wait until {other} is healthy")
            self.that(probed(model["services"][other]), f"{at}: waits for {other}, which has no probe")
        for url in re.findall(r"http://127\.0\.0\.1:(\d+)", json.dumps(service.get("healthcheck", {}))):
            known = self.listening(at.split()[-1])
            self.that(int(url) in known, f"{at}: its probe asks port {url}, it listens on {sorted(known)}")

    def listening(self, service: str) -> set[int]:
        """The ports that a service listens on, by its own settings where they are ours."""
        if service in SERVICES:
            return set(self.ports_of(service).values())
        if service == "jaeger":
            return set(self.jaeger_ports().values())
        if service == "kafka":
            return {19092, 9092, 9093}
        return USUAL.get(service, set())

    def check_mounts(self, at: str, service: dict) -> None:
        for mount in service.get("volumes", []):
            if mount["type"] != "bind":
                continue
            path = Path(mount["source"])
            inside = path.is_relative_to(self.root.resolve()) or path.is_relative_to(self.root)
            if not self.that(inside, f"{at}: mounts {path}, which is outside the repository"):
                continue
            self.that(mount.get("read_only"), f"{at}: may write {path}")
            self.exists(at, str(path.resolve().relative_to(self.root.resolve())))
        target = {mount["target"]: mount["source"] for mount in service.get("volumes", []) if mount["type"] == "bind"}
        for word in service.get("command") or []:
            path = word.split("=", 1)[-1]
            for under, source in target.items():
                if path.startswith(under + "/"):
                    found = Path(source).resolve().relative_to(self.root.resolve()) / path.removeprefix(under + "/")
                    self.exists(at, str(found))
            if path.startswith("/run/secrets/"):
                given = {mount["target"] for mount in service.get("secrets", [])}
                self.that(path in given, f"{at}: is told to read {path}, which is not mounted")

    def exists(self, at: str, path: str) -> None:
        there = (self.root / path).exists()
        if not there and path in ELSEWHERE and not (self.root / "monitoring/prometheus").exists():
            if path not in self.warnings:
                self.warnings.append(path)
            return
        self.that(there, f"{at}: there is no {path} in the repository")

    # Services of the product.

    def check_product_services(self, model: dict) -> None:
        services = model["services"]
        for name in SERVICES:
            at = f"compose.yml: {name}"
            service, ports = services[name], self.ports_of(name)
            self.that(service["build"]["target"] == name, f"{at}: is built as {service['build']['target']}")
            published = {port["target"]: port["published"] for port in service.get("ports", [])}
            self.that(
                published == {port: str(port) for port in ports.values()},
                f"{at}: publishes {published}, listens on {sorted(ports.values())}",
            )
            effective = self.check_settings(at, name, service)
            if not effective:
                continue
            for door, port in ports.items():
                listen = effective[door]["listen"]
                self.that(listen == f"0.0.0.0:{port}", f"{at}: {door} listens on {listen}, which nobody else reaches")
            self.check_address(at, model, name, effective["kafka"]["brokers"])
            self.check_address(at, model, name, effective["telemetry"].get("otlp_endpoint", ""))
            grace = self.seconds(service.get("stop_grace_period", "10s"))
            needs = effective["shutdown_deadline_ms"] / 1000
            self.that(grace > needs, f"{at}: is killed after {grace} s, may drain for {needs} s")
        folder = "/var/lib/streamgauge/spool"
        spool = {mount["target"] for mount in services["producer"].get("volumes", []) if mount["type"] == "volume"}
        self.that(folder in spool, "compose.yml: producer: the folder of its spool is not on a volume")
        made = " ".join(self.lines_of("producer"))
        self.that("/state/ /var/lib/streamgauge/" in made, "Dockerfile: the folder of the spool does not belong to its user")
        tool = services["cli"]
        known = self.product("health", "--help").stdout + self.product("audit", "--help").stdout
        for key, value in tool["environment"].items():
            self.that(f"[env: {key}=" in known or f"[env: {key}]" in known, f"compose.yml: cli: nobody reads {key}")
            owner = key.removeprefix("STREAMGAUGE_ENDPOINT_").lower().split("_")[0]
            self.check_address("compose.yml: cli", model, "cli", value)
            if owner in SERVICES:
                door = key.lower().rsplit("_", 1)[1]
                wanted = f"{owner}:{self.ports_of(owner)[door]}"
                self.that(value == wanted, f"compose.yml: cli: {key} is {value}, not {wanted}")

    def check_settings(self, at: str, name: str, service: dict) -> dict:
        """Every variable is a setting that the service knows, and takes effect."""
        prefix = f"STREAMGAUGE_{name.upper()}_"
        variables = {key: str(value) for key, value in service["environment"].items()}
        for key in variables:
            self.that(key.startswith(prefix), f"{at}: {key} is none of its variables")
        arguments = [str(self.secrets_folder / Path(word).name) if word.startswith("/run/secrets/") else word
                     for word in service.get("command") or []]
        shown = self.product(name, *arguments, "--print-config", **variables)
        if not self.that(shown.returncode == 0, f"{at}: streamgauge refuses its settings: {shown.stderr.strip()}"):
            return {}
        effective = tomllib.loads(shown.stdout)
        for key, value in variables.items():
            if not key.startswith(prefix):
                continue
            found = effective
            for step in key.removeprefix(prefix).lower().split("__"):
                found = found.get(step, {}) if isinstance(found, dict) else {}
            shown_as = str(found).lower() if isinstance(found, bool) else str(found)
            self.that(shown_as == value, f"{at}: {key}={value} has no effect ({shown_as})")
        for path in self.secrets_folder.iterdir():
            secret = re.search(r"[0-9a-f]{48}", path.read_text())
            self.that(not secret or secret[0] not in shown.stdout, f"{at}: --print-config shows the secret {path.name}")
        return effective

    def check_address(self, at: str, model: dict, source: str, address: str) -> None:
        """HOST:PORT names a service that the source shares a network with, and a port that it listens on."""
        host, _, port = address.split("://")[-1].partition("/")[0].partition(":")
        if not self.that(host in model["services"], f"{at}: {address} is no service"):
            return
        self.that(port.isdigit() and int(port) in self.listening(host), f"{at}: {host} does not listen on {address}")
        shared = set(model["services"][source].get("networks", {})) & set(model["services"][host].get("networks", {}))
        self.that(shared, f"{at}: shares no network with {host}")

    @staticmethod
    def seconds(text: str) -> float:
        units = {"h": 3600, "m": 60, "s": 1}
        return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(h|m|s)", text))

    def check_database(self, model: dict) -> None:
        environment = model["services"]["postgres"]["environment"]
        settings = tomllib.loads((self.secrets_folder / "analytics.toml").read_text())
        url = settings.get("store", {}).get("url", "")
        parts = re.match(r"postgres://(\w+):(\w+)@(\w+):(\d+)/(\w+)$", url)
        if self.that(parts, "the store's URL of the secret analytics.toml is not of the form expected"):
            user, password, host, port, database = parts.groups()
            self.that(user == environment["POSTGRES_USER"], f"analytics asks PostgreSQL as {user}")
            self.that(database == environment["POSTGRES_DB"], f"analytics asks PostgreSQL for {database}")
            secret = (self.secrets_folder / "postgres_password").read_text().strip()
            self.that(password == secret, "analytics asks PostgreSQL with another password")
            self.check_address("secret analytics.toml", model, "analytics", f"{host}:{port}")
        script = self.root / "deployments/compose/postgres/reader.sh"
        mounted = {mount["target"] for mount in model["services"]["postgres"]["secrets"]}
        for path in re.findall(r"/run/secrets/\w+", script.read_text()):
            self.that(path in mounted, f"postgres/reader.sh reads {path}, which is not mounted")
        self.that(os.access(script, os.X_OK), "postgres/reader.sh cannot be executed")

    def check_kafka(self, model: dict) -> None:
        kafka = model["services"]["kafka"]
        environment = kafka["environment"]
        listens = dict(re.findall(r"(\w+)://:(\d+)", environment["KAFKA_LISTENERS"]))
        self.that({int(port) for port in listens.values()} == self.listening("kafka"),
                  f"compose.yml: kafka: listens on {listens}")
        told = dict(re.findall(r"(\w+)://([\w.]+:\d+)", environment["KAFKA_ADVERTISED_LISTENERS"]))
        usual = self.defaults["producer"]["kafka"]["brokers"].rsplit(":", 1)[1]
        self.that(told.get("INTERNAL") == f"kafka:{listens.get('INTERNAL')}", f"compose.yml: kafka: advertises {told}")
        self.that(told.get("HOST") == f"localhost:{usual}", f"compose.yml: kafka: this machine's tools ask port {usual}")
        published = [(str(port["target"]), port["published"]) for port in kafka["ports"]]
        self.that(published == [(listens.get("HOST"), usual)], f"compose.yml: kafka: publishes {published}")
        voter = environment["KAFKA_CONTROLLER_QUORUM_VOTERS"]
        self.that(voter == f"{environment['KAFKA_NODE_ID']}@kafka:{listens.get('CONTROLLER')}",
                  f"compose.yml: kafka: its only voter is {voter}")
        for name in told:
            self.that(f"{name}:" in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"],
                      f"compose.yml: kafka: listener {name} has no protocol")
        folders = {mount["target"] for mount in kafka["volumes"]}
        self.that(environment["KAFKA_LOG_DIRS"] in folders, "compose.yml: kafka: its log is not on a volume")
        self.that(f"kafka:{listens.get('INTERNAL')}" in kafka["healthcheck"]["test"][-1],
                  "compose.yml: kafka: its probe asks another listener")

    def check_variables(self) -> None:
        """.env.example names what the files read, no more and no less, with the defaults that they have."""
        folder = self.root / "deployments/compose"
        text = (folder / ".env.example").read_text()
        named = dict(re.findall(r"^([A-Z_]+)=(.*)$", text, flags=re.M))
        read: dict[str, set[str]] = {}
        for path in sorted(folder.glob("*.yml")):
            for name, default in re.findall(r"\$\{([A-Z_]+)(?::-([^}]*))?\}", path.read_text()):
                read.setdefault(name, set()).add(default)
        for name, defaults in read.items():
            told = named.get(name)
            self.that(defaults == {told}, f".env.example says {name}={told}, the compose files {sorted(defaults)}")
        for name in named:
            self.that(name in read, f".env.example: no compose file reads {name}")

    # What the monitoring services are told.

    def jaeger(self) -> dict:
        return yaml.safe_load((self.root / "monitoring/jaeger/jaeger.yaml").read_text())

    def jaeger_ports(self) -> dict[str, int]:
        config = self.jaeger()
        def port(endpoint: str) -> int:
            return int(endpoint.rsplit(":", 1)[1])
        protocols = config["receivers"]["otlp"]["protocols"]
        reader = config["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
        return {
            "otlp": port(protocols["grpc"]["endpoint"]), "otlp_http": port(protocols["http"]["endpoint"]),
            "query": port(config["extensions"]["jaeger_query"]["http"]["endpoint"]),
            "query_grpc": port(config["extensions"]["jaeger_query"]["grpc"]["endpoint"]),
            "health": port(config["extensions"]["healthcheckv2"]["http"]["endpoint"]),
            "spans": port(config["exporters"]["prometheus"]["endpoint"]), "own": int(reader["port"]),
        }

    def check_jaeger(self, models: dict) -> None:
        config = self.jaeger()
        at = "jaeger.yaml"
        service = config["service"]
        declared = {kind: set(config.get(kind, {})) for kind in ("receivers", "processors", "exporters", "connectors")}
        used = {kind: set() for kind in declared}
        for name, pipeline in service["pipelines"].items():
            for kind in ("receivers", "processors", "exporters"):
                for part in pipeline.get(kind, []):
                    kinds = [kind] if part in declared[kind] else ["connectors"]
                    self.that(part in declared[kinds[0]], f"{at}: pipeline {name} names {part}, which is not declared")
                    used[kinds[0]].add(part)
        for kind, names in declared.items():
            for name in names - used[kind]:
                self.that(False, f"{at}: {name} of {kind} is in no pipeline")
        extensions = config["extensions"]
        self.that(set(service["extensions"]) == set(extensions), f"{at}: extensions declared and started differ")
        storage, query = extensions["jaeger_storage"], extensions["jaeger_query"]["storage"]
        self.that(query["traces"] in storage["backends"], f"{at}: jaeger_query asks a storage that is not there")
        self.that(query["metrics"] in storage["metric_backends"], f"{at}: jaeger_query asks metrics that are not there")
        written = config["exporters"]["jaeger_storage_exporter"]["trace_storage"]
        self.that(written == query["traces"], f"{at}: traces are written to {written} and read from {query['traces']}")
        for name, backend in storage["backends"].items():
            self.that(backend.get("memory", {}).get("max_traces", 0) > 0, f"{at}: storage {name} has no bound")
        metrics = storage["metric_backends"][query["metrics"]]["prometheus"] if query["metrics"] in storage[
            "metric_backends"] else {}
        spans = config["connectors"]["spanmetrics"]
        self.that(spans["namespace"].replace(".", "_") == metrics.get("metric_namespace"),
                  f"{at}: metrics of spans are written and read under different names")
        self.that(spans["histogram"]["unit"] == metrics.get("latency_unit"),
                  f"{at}: durations are written and read in different units")
        ports = self.jaeger_ports()
        self.that(len(set(ports.values())) == len(ports), f"{at}: two listeners on one port: {ports}")
        read = set(re.findall(r"\$\{env:(\w+)", (self.root / "monitoring/jaeger/jaeger.yaml").read_text()))
        for file, model in models.items():
            jaeger = model["services"].get("jaeger", {})
            given = jaeger.get("environment", {})
            self.that(set(given) == read, f"{file}: jaeger is given {sorted(given)}, its file reads {sorted(read)}")
            if "PROMETHEUS_URL" in given:
                self.check_address(f"{file}: jaeger", model, "jaeger", given["PROMETHEUS_URL"])
            published = {port["target"] for port in jaeger.get("ports", [])}
            wanted = {ports["query"]} | ({ports["otlp"]} if file == "monitoring.yml" else set())
            self.that(published == wanted, f"{file}: jaeger publishes {sorted(published)}, not {sorted(wanted)}")

    def check_prometheus(self, models: dict) -> None:
        path = self.root / "monitoring/prometheus/prometheus-compose.yml"
        for file, model in models.items():
            for port in model["services"].get("prometheus", {}).get("ports", []):
                self.that(port["target"] in USUAL["prometheus"], f"{file}: prometheus publishes {port['target']}")
            options = model["services"].get("prometheus", {}).get("command", [])
            self.that("--enable-feature=exemplar-storage" in options, f"{file}: prometheus drops exemplars")
        if not path.exists():
            return
        config = yaml.safe_load(path.read_text())
        asked = [target for job in config["scrape_configs"] for group in job.get("static_configs", [])
                 for target in group["targets"]]
        told = [target for one in config.get("alerting", {}).get("alertmanagers", [])
                for group in one.get("static_configs", []) for target in group["targets"]]
        jobs = {job["job_name"] for job in config["scrape_configs"]}
        for name in SERVICES:
            self.that(f"streamgauge-{name}" in jobs, f"{path.name}: no job streamgauge-{name}")
        spans = f"jaeger:{self.jaeger_ports()['spans']}"
        self.that(spans in asked, f"{path.name}: nobody scrapes {spans}, from where Jaeger's Monitor page has its figures")
        for file, model in models.items():
            for target in asked + told:
                host, _, port = target.partition(":")
                extra = model["services"]["prometheus"].get("extra_hosts", [])
                here = host in SERVICES and any(one.startswith((f"{host}=", f"{host}:")) for one in extra)
                if here:
                    self.that(int(port) in self.listening(host), f"{file}: {host} does not listen on {port}")
                else:
                    self.check_address(f"{file}: prometheus", model, "prometheus", target)
        for pattern in config.get("rule_files", []):
            self.that(list(path.parent.glob(pattern)), f"{path.name}: no rules at {pattern}")

    def check_alertmanager(self, models: dict) -> None:
        """Every file that the configuration names lies where the container finds it."""
        path = self.root / "monitoring/alertmanager/alertmanager.yml"
        if not path.exists():
            return
        text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.M)
        named = set(re.findall(r"\b\w+_file:\s*['\"]?([^'\"\s,}\]]+)", text))
        templates = (yaml.safe_load(text) or {}).get("templates", [])
        for file, model in models.items():
            service = model["services"]["alertmanager"]
            given = {mount["target"] for mount in service.get("secrets", [])}
            for name in named:
                # Paths that are relative are so to the configuration's folder.
                self.that(str(Path("/etc/alertmanager") / name) in given,
                          f"{file}: alertmanager.yml reads {name}, which is not mounted")
            for pattern in templates:
                here = list(path.parent.glob(pattern))
                mounted = {mount["target"] for mount in service["volumes"] if mount["type"] == "bind"}
                there = str(Path("/etc/alertmanager") / pattern) in mounted or str(
                    (Path("/etc/alertmanager") / pattern).parent) in mounted
                self.that(here and there, f"{file}: alertmanager.yml reads {pattern}, which is not mounted")

    def check_grafana(self, models: dict) -> None:
        """Data sources point at services of the bundle; passwords and dashboards are where they are looked for."""
        folder = self.root / "monitoring/grafana/provisioning"
        for file, model in models.items():
            for port in model["services"]["grafana"].get("ports", []):
                self.that(port["target"] in USUAL["grafana"], f"{file}: grafana publishes {port['target']}")
        if not folder.exists():
            return
        for file, model in models.items():
            service = model["services"]["grafana"]
            secrets = {mount["target"] for mount in service.get("secrets", [])}
            mounts = {mount["target"] for mount in service["volumes"] if mount["type"] == "bind"}
            provided = 0
            for path in sorted(folder.rglob("*.y*ml")):
                text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.M)
                at = f"{file}: provisioning/{path.relative_to(folder)}"
                for name in re.findall(r"\$__file\{([^}]+)\}", text):
                    self.that(name in secrets, f"{at}: reads {name}, which is not mounted")
                for name in re.findall(r"(?<!\$)\$\{?([A-Z][A-Z0-9_]+)\}?", text):
                    known = name in service["environment"]
                    self.that(known, f"{at}: reads the variable {name}, which is not set")
                content = yaml.safe_load(text) or {}
                for source in content.get("datasources", []):
                    provided += 1
                    database = source.get("type", "").endswith(("postgres", "postgresql-datasource"))
                    if database:
                        self.check_reader(at, source)
                    # Beside `make run` there is no PostgreSQL, and its views stay empty.
                    if not database or "postgres" in model["services"]:
                        self.check_address(f"{at}: {source.get('name')}", model, "grafana", source.get("url", ""))
                for provider in content.get("providers", []):
                    where = provider.get("options", {}).get("path")
                    self.that(where in mounts, f"{at}: dashboards are looked for in {where}, mounted are {sorted(mounts)}")
            self.that(provided, "monitoring/grafana/provisioning declares no data source")

    def check_reader(self, at: str, source: dict) -> None:
        script = (self.root / "deployments/compose/postgres/reader.sh").read_text()
        role = re.search(r"CREATE ROLE (\w+)", script)[1]
        self.that(source.get("user") == role, f"{at}: asks PostgreSQL as {source.get('user')}; the reader is {role}")
        database = source.get("jsonData", {}).get("database") or source.get("database")
        self.that(database == "streamgauge", f"{at}: asks PostgreSQL for {database}")


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    binary = os.environ.get("STREAMGAUGE_BIN", "target/debug/streamgauge")
    check = Check(root, str(Path(binary).resolve()))
    check.run()
    if check.warnings:
        print("not there yet, mounted by the compose files:")
        for path in check.warnings:
            print(f"  {path}")
    for failure in check.failures:
        print(f"check-deployments: {failure}", file=sys.stderr)
    print(f"{check.passed} passed, {len(check.failures)} failed")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
