#!/usr/bin/env bash
# A one-node Apache Kafka (KRaft) on loopback, for tests and measurements.
#   kafka.sh start    fetches what is missing, starts, waits until it serves
#   kafka.sh stop     stops what start started; its data goes too
#   kafka.sh kill     the same without mercy (SIGKILL); the data stays
#   kafka.sh tool CLASS ARGS...   runs one of Kafka's own tools
# Settings: STACK_DIR (cache and data), KAFKA_PORT, KAFKA_CONTROLLER_PORT, KAFKA_HEAP.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
port=${KAFKA_PORT:-19092} controller=${KAFKA_CONTROLLER_PORT:-19093} heap=${KAFKA_HEAP:-1g}
libs=$STACK_DIR/kafka-libs run=$STACK_DIR/kafka-$port data=$STACK_DIR/kafka-$port/data

fetch() {
  [ -f "$libs/.complete" ] && return
  need java openjdk-17-jre-headless
  need mvn maven
  mkdir -p "$libs"
  echo "kafka: fetching the libraries (55 MB, once)"
  mvn -B -ntp -q -f "$here/kafka/pom.xml" dependency:copy-dependencies \
    -DoutputDirectory="$libs" -DincludeScope=runtime
  touch "$libs/.complete"
}

run_java() { # java expands the star itself
  CLASSPATH="$libs/*" exec java "-Dlog4j2.configurationFile=$here/kafka/log4j2.properties" "$@"
}

start() {
  fetch
  alive "$run/pid" && { echo "kafka: already up on 127.0.0.1:$port"; return; }
  mkdir -p "$run"
  sed -e "s#@PORT@#$port#g; s#@CONTROLLER_PORT@#$controller#g; s#@DATA@#$data#g" \
    "$here/kafka/server.properties.in" >"$run/server.properties"
  if [ ! -f "$data/meta.properties" ]; then
    id=$(run_java -Xmx64m -XX:TieredStopAtLevel=1 kafka.tools.StorageTool random-uuid)
    (run_java -Xmx256m -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format --standalone \
      -t "$id" -c "$run/server.properties") >"$run/format.log" 2>&1
  fi
  (run_java "-Xms$heap" "-Xmx$heap" -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
    kafka.Kafka "$run/server.properties") >"$run/kafka.log" 2>&1 </dev/null &
  echo $! >"$run/pid"
  wait_for 60 "kafka on port $port" "$run/pid" "$run/kafka.log" grep -q 'Kafka Server started' "$run/kafka.log"
  echo "kafka: up on 127.0.0.1:$port"
}

case "${1:-}" in
  start) start ;;
  stop) stop_pid "$run/pid" TERM; rm -rf "$data" ;;
  kill) stop_pid "$run/pid" KILL ;;
  tool) shift; fetch; run_java -Xmx512m "$@" ;;
  *) sed -n '2,8p' "$0"; exit 2 ;;
esac
