#!/usr/bin/env bash
# A one-node Apache Kafka (KRaft) on loopback, for tests and measurements.
#   kafka.sh start    fetches what is missing, starts, waits until it serves
#   kafka.sh stop     stops what start started; its data goes too
#   kafka.sh halt     stops it in an orderly way; the data stays
#   kafka.sh kill     the same without mercy (SIGKILL)
#   kafka.sh tool CLASS ARGS...   runs one of Kafka's own tools
#   kafka.sh kcat ARGS...         runs kcat
# Settings: STACK_DIR (cache and data), KAFKA_PORT, KAFKA_CONTROLLER_PORT, KAFKA_HEAP, KAFKA_DATA (another data folder),
# KAFKA_PROXIES ("OWN:TOLD ...": more listeners on the ports OWN, whose clients are told to come back by TOLD, where a
# proxy listens).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
port=${KAFKA_PORT:-19092} controller=${KAFKA_CONTROLLER_PORT:-19093} heap=${KAFKA_HEAP:-1g}
libs=$STACK_DIR/kafka-libs run=$STACK_DIR/kafka-$port data=${KAFKA_DATA:-$STACK_DIR/kafka-$port/data}

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

proxied() { # the listeners of KAFKA_PROXIES, added to the properties that pass through
  local n=0 pair listeners='' told='' map=''
  for pair in ${KAFKA_PROXIES:-}; do
    n=$((n + 1))
    listeners+=,PROXY$n://127.0.0.1:${pair%:*} told+=,PROXY$n://127.0.0.1:${pair#*:} map+=,PROXY$n:PLAINTEXT
  done
  sed -e "s#^listeners=.*#&$listeners#; s#^advertised.listeners=.*#&$told#; s#^listener.security.protocol.map=.*#&$map#"
}

start() {
  fetch
  alive "$run/pid" && { echo "kafka: already up on 127.0.0.1:$port"; return; }
  mkdir -p "$run"
  sed -e "s#@PORT@#$port#g; s#@CONTROLLER_PORT@#$controller#g; s#@DATA@#$data#g" \
    "$here/kafka/server.properties.in" | proxied >"$run/server.properties"
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
  halt) stop_pid "$run/pid" TERM ;;
  kill) stop_pid "$run/pid" KILL ;;
  tool) shift; fetch; run_java -Xmx512m "$@" ;;
  kcat) shift; need kcat kcat; exec kcat "$@" ;;
  *) sed -n '2,11p' "$0"; exit 2 ;;
esac
