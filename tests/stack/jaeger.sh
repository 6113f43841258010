#!/usr/bin/env bash
# Jaeger 2 on loopback with the repository's configuration, for traces in the real thing: OTLP on 4317 and 4318, the
# query API on 16686. It is built without its web pages, which are not in its Go module.
#   jaeger.sh build     builds it once (Go 1.25; about 12 minutes on two cores)
#   jaeger.sh start     builds it where it was not, starts it, waits until it answers
#   jaeger.sh stop      stops what start started
# Settings: STACK_DIR (the binary and the log), PROMETHEUS_URL (where its Monitor page reads).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
run=$STACK_DIR/jaeger
version=v1.76.0 binary=$STACK_DIR/bin/jaeger-$version
module=github.com/jaegertracing/jaeger

build() {
  [ -x "$binary" ] && return
  need go golang-go
  mkdir -p "$STACK_DIR/bin"
  echo "jaeger: building $version (12 minutes on two cores, once)"
  local scratch log=$STACK_DIR/jaeger-build.log; scratch=$(mktemp -d)
  compile "$scratch" >"$log" 2>&1 || { echo "jaeger: cannot be built:" >&2; tail -n 30 "$log" >&2; exit 1; }
  rm -rf "$scratch"
}

# A module of its own that holds Jaeger as a tool, with the checksums that Jaeger's authors pinned.
compile() ( # FOLDER
  cd "$1" &&
    go mod download -json "$module@$version" >download.json &&
    cp "$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' download.json)/go.sum" . && chmod u+w go.sum &&
    go mod init streamgauge.invalid/jaeger &&
    go get -tool "$module/cmd/jaeger@$version" &&
    go build -trimpath -ldflags='-s -w' -o "$binary.new" "$module/cmd/jaeger" &&
    mv "$binary.new" "$binary"
)

healthy() { curl -sf -o /dev/null http://127.0.0.1:13133/status && curl -sf -o /dev/null http://127.0.0.1:16686/api/services; }

start() {
  need curl curl
  build
  alive "$run/pid" && { echo "jaeger: already up on 127.0.0.1:16686"; return; }
  mkdir -p "$run"
  "$binary" --config "$here/../../monitoring/jaeger/jaeger.yaml" >"$run/jaeger.log" 2>&1 </dev/null &
  echo $! >"$run/pid"
  wait_for 60 jaeger "$run/pid" "$run/jaeger.log" healthy
  echo "jaeger: up on 127.0.0.1:16686, spans by OTLP on 4317 and 4318"
}

case "${1:-}" in
  build) build ;;
  start) start ;;
  stop) stop_pid "$run/pid" TERM; rm -rf "$run" ;;
  *) sed -n '2,7p' "$0"; exit 2 ;;
esac
