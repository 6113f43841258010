"""Plays compose.yml without Docker, as far as that goes: the three services as processes under the images' user, with the
variables, arguments, settings files and probes of the bundle, on the embedded log instead of Kafka and on a PostgreSQL of
this machine. Names of services lead to 127.0.0.1 in a network namespace of its own, so that addresses and ports are the
real ones and nothing else on this machine is touched.

Needs root, `unshare`, `setpriv` and PostgreSQL's server programs. Run by `scripts/check-deployments rehearse`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = str(Path(os.environ.get("STREAMGAUGE_BIN", "target/debug/streamgauge")).resolve())
USER = ["setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups"]
SERVICES = ("producer", "consumer", "analytics")


def main() -> int:
    if os.environ.get("REHEARSE_INSIDE") != "1":
        inside = dict(os.environ, REHEARSE_INSIDE="1")
        command = ["unshare", "--net", "--mount", sys.executable, __file__]
        return subprocess.run(command, env=inside, check=False).returncode
    folder = Path(tempfile.mkdtemp(prefix="rehearse-"))
    folder.chmod(0o755)
    running: list[subprocess.Popen] = []
    try:
        return rehearse(folder, running)
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"--- the end of {log.name}", *log.read_text().splitlines()[-8:], sep="\n", file=sys.stderr)
        raise
    finally:
        for process in reversed(running):
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def rehearse(folder: Path, running: list) -> int:
    model = resolve(folder)
    services = model["services"]
    probes = probes_of((ROOT / "deployments/docker/Dockerfile").read_text())
    run("ip", "link", "set", "lo", "up")
    mount_over("/etc/hosts", folder / "hosts", "127.0.0.1 localhost " + " ".join(services) + "\n")
    mount_folder(folder / "secrets", Path("/run/secrets"))
    state = folder / "state"
    (state / "spool").mkdir(parents=True)
    for path in (state, state / "spool"):
        os.chown(path, 65532, 65532)
    mount_folder(state, Path("/var/lib/streamgauge"))

    database(folder, services["postgres"], running)
    log = [BINARY, "broker", "--set", "broker.listen=127.0.0.1:19092", "--set", f"broker.data_dir={folder}/log"]
    start(folder, running, "kafka", log, {})
    for name in SERVICES:
        command = [*USER, BINARY, name, *(services[name].get("command") or [])]
        variables = {key: str(value) for key, value in services[name]["environment"].items()}
        services[name]["process"] = start(folder, running, name, command, variables)
    began = time.monotonic()
    for name in SERVICES:
        wait(f"{name} is healthy, as its image asks it", lambda name=name: quiet(*USER, BINARY, *probes[name]) == 0)
    print(f"all healthy {time.monotonic() - began:.1f} s after their start")

    tool = {key: str(value) for key, value in services["cli"]["environment"].items()}
    run(BINARY, "send-events", "--count", "500", "--rate", "200", variables=tool)
    wait("the books balance", lambda: quiet(BINARY, "audit", variables=tool) == 0)
    counted = json.loads(run(BINARY, "query", "series", "--last", "15m", "--step", "15m", "--json", variables=tool))
    total = sum(point["count"] for series in counted["series"] for point in series["points"])
    expect(f"{total} of 500 events are counted", total == 500)
    token = re.search(r'token = "(\w+)"', (folder / "secrets/producer.toml").read_text())[1]
    expect("the administrator's token is asked for and taken", limits(None) in (401, 403) and limits(token) == 200)
    reader(folder)

    # Readiness is about the one service that is asked.
    stop(services["consumer"]["process"], services["consumer"])
    expect("the probe of a stopped service fails", quiet(BINARY, *probes["consumer"]) == 3)
    expect("the probes of the others do not", all(quiet(BINARY, *probes[name]) == 0 for name in ("producer", "analytics")))
    for name in ("producer", "analytics"):
        stop(services[name]["process"], services[name])
    print("rehearsed: all as it should be")
    return 0


def resolve(folder: Path) -> dict:
    run(str(ROOT / "deployments/compose/secrets/create"), str(folder / "secrets"))
    (folder / "secrets").chmod(0o755)
    variables = {"SECRETS_DIR": str(folder / "secrets")}
    done = run("docker-compose", "--env-file", "/dev/null", "--profile", "*", "--file",
               str(ROOT / "deployments/compose/compose.yml"), "config", "--format", "json", variables=variables)
    return json.loads(done)


def probes_of(text: str) -> dict[str, list[str]]:
    """What each image asks of itself, without the path of the binary."""
    stages = re.split(r"^FROM ", text, flags=re.M)
    probes = {}
    for stage in stages:
        name = re.match(r"\S+ AS (\w+)", stage)
        command = re.search(r"HEALTHCHECK[^\n]*\\\n\s*CMD (\[.*\])", stage)
        if name and command:
            probes[name[1]] = json.loads(command[1])[1:]
    return probes


def database(folder: Path, service: dict, running: list) -> None:
    """PostgreSQL as its image makes it: the user and password of the bundle, then the scripts of its folder."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        raise SystemExit("rehearse: no PostgreSQL server here (apt-get install postgresql)")
    bin_folder, data = programs[-1], folder / "postgres"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    as_postgres = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
    environment = service["environment"]
    run(*as_postgres, str(bin_folder / "initdb"), "-D", str(data), "-U", environment["POSTGRES_USER"],
        f"--pwfile={environment['POSTGRES_PASSWORD_FILE']}", *environment["POSTGRES_INITDB_ARGS"].split())
    start(folder, running, "postgres", [*as_postgres, str(bin_folder / "postgres"), "-D", str(data), "-k", str(data)], {})
    wait("PostgreSQL answers", lambda: quiet(*service["healthcheck"]["test"][1:]) == 0)
    socket = {"PGHOST": str(data)}
    run("psql", "-U", environment["POSTGRES_USER"], "-d", "postgres", "-c",
        f"CREATE DATABASE {environment['POSTGRES_DB']}", variables=socket)
    names = ("POSTGRES_USER", "POSTGRES_DB")
    variables = {name: environment[name] for name in names} | socket
    run(*as_postgres, str(ROOT / "deployments/compose/postgres/reader.sh"), variables=variables)


def reader(folder: Path) -> None:
    """Grafana's role reads what analytics stored, and cannot change it."""
    password = (folder / "secrets/grafana_postgres_password").read_text().strip()
    login = {"PGPASSWORD": password}
    ask = ["psql", "-h", "postgres", "-U", "streamgauge_reader", "-d", "streamgauge", "-Atc"]
    tables = run(*ask, "select string_agg(tablename, ' ') from pg_tables where schemaname = 'public'", variables=login)
    table = tables.split()[0]
    run(*ask, f"select count(*) from {table}", variables=login)
    expect("Grafana's role reads", True)
    expect("Grafana's role cannot write", quiet(*ask, f"delete from {table}", variables=login) != 0)
    overriding = f"set default_transaction_read_only = off; delete from {table}"
    expect("not even when it asks to", quiet(*ask, overriding, variables=login) != 0)
    wrong = {"PGPASSWORD": "wrong"}
    expect("a wrong password is refused", quiet(*ask, "select 1", variables=wrong) != 0)


def limits(token) -> int:
    header = ["-H", f"Authorization: Bearer {token}"] if token else []
    answer = run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *header,
                 "http://producer:8081/v1/admin/rate-limits")
    return int(answer)


def stop(process: subprocess.Popen, service: dict) -> None:
    """As Docker does: SIGTERM, and no longer than the file allows."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    grace = sum(float(number) * {"m": 60, "s": 1}[unit]
                for number, unit in re.findall(r"([\d.]+)(m|s)", service["stop_grace_period"]))
    code = process.wait(timeout=grace)
    expect(f"stopped with {code} after {time.monotonic() - began:.1f} s of {grace:.0f}", code == 0)


def start(folder: Path, running: list, name: str, command: list[str], variables: dict) -> subprocess.Popen:
    log = (folder / f"{name}.log").open("w")
    process = subprocess.Popen(command, env=clean(variables), stdout=log, stderr=log, cwd="/")
    running.append(process)
    print(f"started {name}")
    return process


def clean(variables: dict) -> dict:
    """What a container has: a path, and what the file says."""
    return {"PATH": os.environ["PATH"], "HOME": "/tmp", "LANG": "C.UTF-8", **variables}


def run(*command: str, variables: dict | None = None) -> str:
    done = subprocess.run(command, env=clean(variables or {}), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"rehearse: {' '.join(command[:4])} … ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def quiet(*command: str, variables: dict | None = None) -> int:
    return subprocess.run(command, env=clean(variables or {}), capture_output=True, check=False).returncode


def wait(what: str, holds, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"rehearse: not within {seconds:.0f} s: {what}")
        time.sleep(0.5)
    expect(what, True)


def expect(what: str, holds: bool) -> None:
    if not holds:
        raise SystemExit(f"rehearse: not so: {what}")
    print(f"  {what}")


def mount_over(path: str, source: Path, text: str) -> None:
    source.write_text(text)
    run("mount", "--bind", str(source), path)


def mount_folder(source: Path, path: Path) -> None:
    """Mounts a folder where containers have it; what must be made for that is made in memory."""
    parent = path.parent
    run("mount", "-t", "tmpfs", "none", str(parent))
    path.mkdir()
    run("mount", "--bind", str(source), str(path))


if __name__ == "__main__":
    sys.exit(main())
