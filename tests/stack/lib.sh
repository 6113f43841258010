# What the stack scripts share. Sourced, never run.
STACK_DIR=${STACK_DIR:-${TMPDIR:-/tmp}/streamgauge-stack}
mkdir -p "$STACK_DIR" && chmod 755 "$STACK_DIR"

install() { # PACKAGE: by apt where this user may, else says the one line that does it
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing $1"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1"; } >/dev/null
  else
    echo "missing: $1. Install it, on Debian: sudo apt-get install -y $1" >&2
    exit 1
  fi
}

need() { command -v "$1" >/dev/null || install "$2"; } # COMMAND PACKAGE

alive() { [ -f "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; } # PIDFILE

wait_for() { # SECONDS WHAT PIDFILE LOG CONDITION...
  local seconds=$1 what=$2 pid=$3 log=$4; shift 4
  for _ in $(seq $((seconds * 10))); do
    "$@" 2>/dev/null && return
    alive "$pid" || { echo "$what ended at once:" >&2; tail -n 30 "$log" >&2; exit 1; }
    sleep 0.1
  done
  echo "$what is not up after $seconds s:" >&2; tail -n 30 "$log" >&2; exit 1
}

stop_pid() { # PIDFILE SIGNAL: waits, then insists
  alive "$1" || { rm -f "$1"; return 0; }
  local pid; pid=$(cat "$1")
  kill "-$2" "$pid" 2>/dev/null || true
  for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
  rm -f "$1"
}
