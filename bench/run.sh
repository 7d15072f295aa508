#!/usr/bin/env bash
# Measures what the gateway adds to a call, against the same upstream without it, on real engines of its own.
#   GWBENCH=DIR bench/run.sh [WARM_UP_REQUESTS]      DIR holds mock-openai and gwload; results in bench-results/
set -euo pipefail
: "${GWBENCH:?set GWBENCH to the directory with mock-openai and gwload}"
cd "$(dirname "$0")/.."
tollstream="${TOLLSTREAM:-${CARGO_TARGET_DIR:-target}/release/tollstream}"
warm_up="${1:-200000}"
out="${OUT:-bench-results}"
work="$(mktemp -d)"
mkdir -p "$out"
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  "$tollstream" stack down --data "$work/stack" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)["addresses"][sys.argv[1]])' "$1"; }

mock_port=$(free_port) facade_port=$(free_port) admin_port=$(free_port)
"$GWBENCH/mock-openai" --addr "127.0.0.1:$mock_port" >"$work/mock.log" 2>&1 & mock=$!
pids+=("$mock")
"$tollstream" stack up --data "$work/stack" --free-ports >/dev/null
status=$("$tollstream" stack status --data "$work/stack" --json)
cat >"$work/tollstream.toml" <<TOML
[kafka]
brokers = "$(field kafka <<<"$status")"
[registry]
url = "$(field registry <<<"$status")"
[clickhouse]
url = "$(field clickhouse <<<"$status")"
[facade]
listen = "127.0.0.1:$facade_port"
[admin]
listen = "127.0.0.1:$admin_port"
[providers]
upstream_override = "http://127.0.0.1:$mock_port/v1"
[kafka.producer_properties]
"max.in.flight" = "1"
TOML
"$tollstream" topology apply --config "$work/tollstream.toml" --yes >/dev/null
key=$("$tollstream" keys create --config "$work/tollstream.toml" --organization org_demo 2>/dev/null)
"$tollstream" plans create bench --config "$work/tollstream.toml" --requests-per-minute 10000000 --tokens-per-minute 1000000000 \
  --concurrent-requests 100000 --spend-per-day 100000 --spend-per-month 1000000 --soft-percent 50 --soft-percent 80 \
  --time-zone America/Sao_Paulo --output-cap 1000 >/dev/null
"$tollstream" organizations create org_bench --config "$work/tollstream.toml" --name Bench --plan bench >/dev/null
limited=$("$tollstream" keys create --config "$work/tollstream.toml" --organization org_bench --requests-per-minute 10000000 \
  --tokens-per-minute 1000000000 --concurrent-requests 100000 --spend-per-day 100000 2>/dev/null)
"$tollstream" run --config "$work/tollstream.toml" >"$out/tollstream.log" 2>&1 & ours=$!
pids+=("$ours")
for _ in $(seq 300); do curl -fs "http://127.0.0.1:$admin_port/health/ready" >/dev/null && break; sleep 0.2; done
curl -fsS "http://127.0.0.1:$admin_port/health/ready" >/dev/null

load() {
  "$GWBENCH/gwload" \
    --target "direct=http://127.0.0.1:$mock_port/v1/chat/completions" --pid "direct=$mock" \
    --target "ours=http://127.0.0.1:$facade_port/v1/chat/completions" --pid "ours=$ours" \
    --header "ours=authorization: Bearer $key" --default-model gpt-4o-mini "$@"
}
# The same with limits and budgets of the organization and of the key.
with_limits() {
  load --target "limited=http://127.0.0.1:$facade_port/v1/chat/completions" --pid "limited=$ours" \
    --header "limited=authorization: Bearer $limited" "$@"
}
behave() { curl -fsS -X PUT "http://127.0.0.1:$mock_port/admin/behavior" -H 'content-type: application/json' -d "$1" >/dev/null; }

if [ "$warm_up" -gt 0 ]; then
  echo "warming up with $warm_up requests"
  "$GWBENCH/gwload" --target "ours=http://127.0.0.1:$facade_port/v1/chat/completions" \
    --header "ours=authorization: Bearer $key" --default-model gpt-4o-mini --mode closed -c 64 --rounds 1 \
    --round-secs "$(python3 -c "print(max(5, $warm_up // 2000))")" >"$out/warm-up.txt" 2>&1 || true
  tail -3 "$out/warm-up.txt"
fi
run() { measure load "$@"; }
measure() { local load=$1 label=$2; shift 2; echo "== $label"; "$load" --label "$label" --json "$out/results.jsonl" "$@" | tee "$out/${label// /-}.txt"; }
behave '{}'
run "10 per second" --rate 10 --rounds 6 --round-secs 5
run "200 per second" --rate 200 --rounds 10 --round-secs 2
run "64 connections" --mode closed -c 64 --rounds 4 --round-secs 3 --warmup 200
measure with_limits "limits at 200 per second" --rate 200 --rounds 10 --round-secs 2
measure with_limits "limits at 64 connections" --mode closed -c 64 --rounds 4 --round-secs 3 --warmup 200
behave '{"ttft_ms":50,"chunks":100,"chunk_delay_us":10000}'
run "first token" --stream --expect-chunks 100 --rate 3 --rounds 4 --round-secs 4
behave '{"chunks":100}'
run "16 streams" --stream --expect-chunks 100 --mode closed -c 16 --rounds 4 --round-secs 3
grep -E "VmRSS|VmHWM" "/proc/$ours/status"
