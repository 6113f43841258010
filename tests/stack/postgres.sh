#!/usr/bin/env bash
# A PostgreSQL server on loopback, for tests and measurements.
#   postgres.sh start    installs what is missing, starts, waits until it serves, prints its URL
#   postgres.sh stop     stops what start started; its data goes too
#   postgres.sh halt     stops it at once, as a crash would; the data stays
#   postgres.sh idle|usual   gives it only the processor time that nobody else wants, or what it usually has
#   postgres.sh url      prints its URL
# Settings: STACK_DIR (data), POSTGRES_PORT.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
port=${POSTGRES_PORT:-15432} run=$STACK_DIR/postgres-$port
url=postgres://postgres@127.0.0.1:$port/postgres

binaries() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }

as_owner() { # PostgreSQL refuses to run as root
  if [ "$(id -u)" = 0 ]; then su postgres -s /bin/bash -c "$*"; else bash -c "$*"; fi
}

start() {
  [ -x "$(binaries)/pg_ctl" ] || install postgresql
  local bin; bin=$(binaries)
  mkdir -p "$run"
  if [ "$(id -u)" = 0 ]; then
    chown postgres "$run"
    # The owner must be able to walk down to its data.
    as_owner "test -w '$run'" || { echo "postgres: the user postgres cannot reach $run; set STACK_DIR to a folder that it can" >&2; exit 1; }
  fi
  if [ ! -f "$run/data/PG_VERSION" ]; then
    as_owner "'$bin/initdb' -D '$run/data' -A trust -U postgres --no-sync" >"$run/initdb.log"
  fi
  as_owner "'$bin/pg_ctl' -D '$run/data' status" >/dev/null 2>&1 ||
    as_owner "'$bin/pg_ctl' -D '$run/data' -l '$run/data/server.log' -w -t 60 -o '-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$run/data' start" >/dev/null
  echo "postgres: up at $url"
}

case "${1:-}" in
  start) start ;;
  stop)
    if [ -d "$run/data" ]; then
      as_owner "'$(binaries)/pg_ctl' -D '$run/data' -m fast -w stop" >/dev/null 2>&1 || true
      rm -rf "$run"
    fi ;;
  halt) as_owner "'$(binaries)/pg_ctl' -D '$run/data' -m immediate -w stop" >/dev/null ;;
  idle | usual)
    # Connections that come later inherit it; one that has ended meanwhile needs nothing.
    policy=--idle; [ "$1" = idle ] || policy=--other
    first=$(head -n 1 "$run/data/postmaster.pid")
    for one in "$first" $(pgrep -P "$first"); do
      chrt "$policy" --pid 0 "$one" || ! kill -0 "$one" 2>/dev/null
    done ;;
  url) echo "$url" ;;
  *) sed -n '2,8p' "$0"; exit 2 ;;
esac
