#!/usr/bin/env bash
# How fast the journal of a synthetic day becomes rows, on real engines of its own: the projection alone, then the sink alone.
#   bench/sink.sh [REQUESTS]      the benchmarks are built first: cargo build --release --bin tollstream --bench replay
set -euo pipefail
cd "$(dirname "$0")/.."
release="${CARGO_TARGET_DIR:-target}/release"
tollstream="${TOLLSTREAM:-$release/tollstream}"
day="${DAY:-$(find "$release/deps" -name 'replay-*' -type f -executable -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)}"
requests="${1:-500000}"
work="$(mktemp -d)"
running=""
cleanup() {
  [ -z "$running" ] || kill "$running" 2>/dev/null || true
  wait 2>/dev/null || true
  "$tollstream" stack down --data "$work/stack" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

admin_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)["addresses"][sys.argv[1]])' "$1"; }
"$tollstream" stack up --data "$work/stack" --free-ports >/dev/null
status=$("$tollstream" stack status --data "$work/stack" --json)
kafka=$(field kafka <<<"$status") registry=$(field registry <<<"$status") clickhouse=$(field clickhouse <<<"$status")
cat >"$work/tollstream.toml" <<TOML
[kafka]
brokers = "$kafka"
topic_prefix = "day."
[registry]
url = "$registry"
[clickhouse]
url = "$clickhouse"
[admin]
listen = "127.0.0.1:$admin_port"
TOML
"$tollstream" topology apply --config "$work/tollstream.toml" --partitions 12 --yes >/dev/null
"$day" "$requests" "$work/day" "$kafka" "$registry" "day."
rm -rf "$work/day"

metric() { { curl -fs "http://127.0.0.1:$admin_port/metrics" || true; } | awk -v name="$1" '$1 == name || index($1, name "{") == 1 { sum += $2; found = 1 } END { print found ? sum : "none" }'; }
# Runs the roles until this metric has not changed for five seconds, and says how long it took to come there.
until_still() {
  local roles=$1 name=$2 begun last=0 now value since
  "$tollstream" run --config "$work/tollstream.toml" --roles "$roles" >"$work/$roles.log" 2>&1 & running=$!
  begun="" since=$(date +%s.%N)
  while :; do
    sleep 0.1
    now=$(date +%s.%N) value=$(metric "$name")
    kill -0 "$running" || { cat "$work/$roles.log"; exit 1; }
    [ "$value" != none ] && [ "$value" != 0 ] || { since=$now; continue; }
    [ -n "$begun" ] || begun=$now
    if [ "$value" != "$last" ]; then last=$value since=$now; fi
    python3 -c "import sys; sys.exit(not $now - $since > 5)" && break
  done
  python3 -c "print(f'$roles: $last of $name in {$since - $begun:.1f} s, {$last / max($since - $begun, 0.001):.0f}/s')"
}
stop() { kill "$running"; wait "$running" || true; running=""; }

until_still projection tollstream_projection_postings_total
stop
until_still sink tollstream_sink_rows_total
grep -E "VmHWM" "/proc/$running/status"
curl -fs "$clickhouse" -d "SELECT count() AS rows, countIf(cost_usd IS NOT NULL) AS known, sum(cost_usd) AS usd FROM tollstream.usage_exact FORMAT Vertical"
for name in tollstream_events_rows_total; do echo "$name $(metric "$name")"; done
stop
