#!/usr/bin/env bash
# Toxiproxy on loopback, for fault tests: its HTTP interface makes and spoils proxies.
#   toxiproxy.sh start    builds it once (Go), starts it, waits until it answers
#   toxiproxy.sh stop     stops what start started
# Settings: STACK_DIR (the binary and the log), TOXIPROXY_PORT.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
port=${TOXIPROXY_PORT:-18474} run=$STACK_DIR/toxiproxy-$port
version=v2.5.0 binary=$STACK_DIR/bin/toxiproxy-$version

fetch() {
  [ -x "$binary" ] && return
  need go golang-go
  mkdir -p "$STACK_DIR/bin"
  echo "toxiproxy: building it (half a minute, once)"
  GOBIN=$STACK_DIR/bin/go go install "github.com/Shopify/toxiproxy/v2/cmd/server@$version"
  mv "$STACK_DIR/bin/go/server" "$binary"
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$port"); }

start() {
  fetch
  alive "$run/pid" && { echo "toxiproxy: already up on 127.0.0.1:$port"; return; }
  mkdir -p "$run"
  LOG_LEVEL=warn "$binary" -host 127.0.0.1 -port "$port" >"$run/toxiproxy.log" 2>&1 </dev/null &
  echo $! >"$run/pid"
  wait_for 20 "toxiproxy on port $port" "$run/pid" "$run/toxiproxy.log" answers
  echo "toxiproxy: up on 127.0.0.1:$port"
}

case "${1:-}" in
  start) start ;;
  stop) stop_pid "$run/pid" TERM; rm -rf "$run" ;;
  *) sed -n '2,5p' "$0"; exit 2 ;;
esac
