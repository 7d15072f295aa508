#!/usr/bin/env bash
# How long the saved queries take over synthetic rows that ClickHouse generates itself: bench/analytics.sh [ROWS]
# CLICKHOUSE is the server's HTTP address (default http://127.0.0.1:8123), DATABASE the database that is made for this
# and dropped at its end (default tollstream_bench; KEEP=1 keeps it and uses it again).
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${1:-10000000}
server=${CLICKHOUSE:-http://127.0.0.1:8123}
database=${DATABASE:-tollstream_bench}
chunk=1000000

ask() { curl -sS --fail-with-body "$server/?database=${2:-$database}" --data-binary "$1"; }

# Postings of 90 days from 2026-09-01: 100 organizations, the largest with a tenth of them, 1,000 users, 20 keys and 8
# teams each, conversations of about 8 requests; in 100 postings one failure, one refusal and one second attempt.
postings() { # from, to
  cat <<SQL
INSERT INTO usage
WITH
    number AS n,
    n - (n % 100 = 7) AS request,
    cityHash64(request, 1) AS h1, cityHash64(request, 2) AS h2, cityHash64(n, 3) AS h3,
    toUInt32(floor(100 * pow(h1 / 18446744073709551616, 2))) AS org,
    n % 100 = 3 AS refused,
    n % 100 = 6 AS failed,
    1 + h3 % 5 AS m,
    toUInt64(200 + h2 % 3000) AS input, toUInt64(50 + h3 % 800) AS output,
    h3 % 1000 = 17 AS unknown,
    toDateTime64('2026-09-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(toInt64(n * (7776000000 / $rows))) AS time
SELECT
    n % 4 AS journal_partition, intDiv(n, 4) AS journal_offset, 0 AS journal_index,
    if(refused, 'refusal', 'attempt') AS kind, time AS at, time - toIntervalMillisecond(900) AS received_at,
    concat('org_', toString(org)) AS organization, concat('request-', hex(cityHash64(request, 9)), hex(request)) AS request_id,
    if(refused, 0, 1 + (n % 100 = 7)) AS attempt, 0 AS lane,
    concat('key_', toString(org), '_', toString(h2 % 20)) AS key_id,
    concat('user_', toString(org), '_', toString(h2 % 1000)) AS user, if(h2 % 10 = 0, 'vip', 'free') AS user_tier,
    map('team', concat('team_', toString(h2 % 8)), 'feature', concat('feature_', toString(h3 % 5))) AS tags,
    concat('conversation-', toString(org), '-', toString(h2 % 1000), '-', toString(intDiv(n, $rows / 12))) AS conversation_id,
    'live' AS origin, NULL AS traceparent, h1 % 2 = 0 AS stream, 'auto' AS requested_model,
    if(refused, NULL, ['llama-3.2-3b-instruct', 'gpt-4o-mini', 'claude-haiku-4-5', 'claude-sonnet-4-6', 'claude-opus-4-6'][m]) AS model,
    if(refused, NULL, concat('deployment-', toString(m), if(h3 % 2 = 0, '-a', '-b'))) AS deployment,
    if(refused, NULL, if(m > 2, 'anthropic', 'openai')) AS provider, if(refused, NULL, [1, 1, 2, 3, 4][m]) AS tier,
    'auto' AS policy, 9 AS policy_version, NULL AS arm, 31 AS control_offset, 7 AS price_version, false AS price_simulated,
    false AS simulated, if(refused OR failed, 0, input) AS input_tokens, if(refused OR failed, 0, input / 10) AS cached_input_tokens,
    0 AS cache_write_tokens, if(refused OR failed, 0, if(unknown, NULL, output)) AS output_tokens, 0 AS reasoning_tokens,
    if(refused OR failed, 'none', 'reported') AS usage_source,
    if(refused OR failed, 0, if(unknown, NULL,
        (input * [0.06, 0.15, 1, 3, 5][m] + output * [0.06, 0.6, 5, 15, 25][m]) / 1000000)) AS cost_usd,
    multiIf(refused, 'refused', failed, 'failed', 'completed') AS outcome,
    multiIf(refused, 'refused', failed, NULL, 'completed') AS request_outcome, multiIf(refused, 429, failed, NULL, 200) AS status,
    multiIf(refused, if(h3 % 2 = 0, 'rate_limit_exceeded', 'insufficient_quota'), failed, 'upstream_overloaded', NULL) AS error_code,
    multiIf(refused, NULL, failed, 529, 200) AS upstream_status, if(refused OR failed, NULL, 'stop') AS finish_reason,
    if(refused OR failed, 0, output) AS content_frames, if(refused OR failed, NULL, 100 + m * 60 + h3 % 400) AS time_to_first_token_ms,
    if(refused, NULL, 400 + output * m) AS duration_ms, if(refused OR failed, NULL, 450 + output * m) AS request_duration_ms,
    'provider' AS source, NULL AS saved_usd, NULL AS saved_input_tokens, NULL AS saved_output_tokens
FROM numbers($1, $2)
SQL
}

decisions() { # from, to
  cat <<SQL
INSERT INTO routing_decisions
WITH
    number AS n, cityHash64(n, 1) AS h1, cityHash64(n, 2) AS h2, cityHash64(n, 3) AS h3,
    toUInt32(floor(100 * pow(h1 / 18446744073709551616, 2))) AS org, 1 + h3 % 5 AS m,
    ['llama-3.2-3b-instruct', 'gpt-4o-mini', 'claude-haiku-4-5', 'claude-sonnet-4-6', 'claude-opus-4-6'] AS models
SELECT
    n % 4 AS journal_partition, intDiv(n, 4) AS journal_offset, 1 AS journal_index,
    toDateTime64('2026-09-01 00:00:00', 3, 'UTC') + toIntervalMillisecond(toInt64(n * (7776000000 / $rows))) AS at,
    concat('org_', toString(org)) AS organization, concat('request-', hex(cityHash64(n, 9)), hex(n)) AS request_id,
    'live' AS origin, concat('key_', toString(org), '_', toString(h2 % 20)) AS key_id,
    concat('user_', toString(org), '_', toString(h2 % 1000)) AS user, if(h2 % 10 = 0, 'vip', 'free') AS user_tier,
    'auto' AS requested_model, 'auto' AS policy, 9 AS policy_version, NULL AS arm, 31 AS control_offset, false AS escalation,
    ['greeting', 'faq', 'basic_support', 'complex_question', 'high_value'][m] AS intent, 'classified' AS intent_source,
    400 + h3 % 600 AS confidence_permille, h2 % 60 AS score, [1, 1, 2, 3, 4][m] AS tier,
    [models[m], models[1 + m % 5]] AS candidate_models,
    [concat('deployment-', toString(m), '-a'), concat('deployment-', toString(1 + m % 5), '-b')] AS candidate_deployments,
    [[1, 1, 2, 3, 4][m], [1, 1, 2, 3, 4][1 + m % 5]] AS candidate_tiers, 3 AS attempts_max,
    [concat('tier by intent'), concat('rule ', toString(h2 % 7))] AS reasons, 200 + h2 % 3000 AS input_tokens,
    if(h3 % 3 = 0, 1024, NULL) AS output_cap, 900 + h2 % 12000 AS body_bytes, 1 + h2 % 9 AS messages, 0 AS tools, 0 AS images
FROM numbers($1, $2)
SQL
}

refusals() {
  cat <<SQL
INSERT INTO refusals
SELECT
    journal_partition, journal_offset, journal_index, at, organization, request_id, origin, key_id, user, user_tier,
    requested_model, policy, control_offset, assumeNotNull(error_code) AS code, 429 AS status,
    if(error_code = 'insufficient_quota', 'organization.month', 'key.requests_per_minute') AS \`limit\`,
    300 AS input_tokens, NULL AS output_cap, 1200 AS body_bytes, 3 AS messages
FROM usage FINAL WHERE kind = 'refusal'
SQL
}

# One request in five looks into the cache.
looks() {
  cat <<SQL
INSERT INTO cache_lookups
SELECT
    journal_partition, journal_offset, 3 AS journal_index, at, organization, request_id, origin, key_id, user, user_tier,
    requested_model, policy, model, control_offset, hex(sipHash128(request_id)) AS content, content AS fingerprint,
    if(journal_offset % 4 = 0, 'hit', 'miss') AS outcome, true AS keeps, NULL AS ttl_seconds, NULL AS max_age_seconds,
    if(outcome = 'hit', 60000, NULL) AS age_ms
FROM usage FINAL WHERE kind = 'attempt' AND attempt = 1 AND journal_offset % 5 = 0
SQL
}

crossed() {
  cat <<SQL
INSERT INTO budget_events
SELECT
    0 AS journal_partition, number AS journal_offset, 2 AS journal_index,
    toDateTime64('2026-09-01 00:00:00', 3, 'UTC') + toIntervalHour(number * 7) AS at,
    concat('org_', toString(number % 100)) AS organization, concat('request-', toString(number)) AS request_id, 'live' AS origin,
    NULL AS key_id, NULL AS user, NULL AS user_tier, 31 AS control_offset, 'threshold_crossed' AS event, NULL AS attempt,
    NULL AS overdrawn_usd, 'organization' AS account, 'month' AS period, 80 AS percent, 5000 AS budget_usd, 4000 AS posted_usd
FROM numbers(300)
SQL
}

tables() {
  ask "DROP DATABASE IF EXISTS $database SYNC" default
  ask "CREATE DATABASE $database ENGINE = Atomic" default
  ask "CREATE TABLE schema_migrations (number UInt32, name String, checksum String, applied_at DateTime64(3)) \
    ENGINE = ReplacingMergeTree ORDER BY number"
  for file in schemas/clickhouse/0*.sql; do
    while IFS= read -r -d '' statement; do
      ask "$statement"
    done < <(sed "s/{database}/$database/g" "$file" | awk 'BEGIN { RS = ";\n"; ORS = "\0" } /CREATE|ALTER/')
  done
}

if [ -z "${KEEP:-}" ] || [ "$(ask "EXISTS DATABASE $database" default)" = 0 ]; then
  tables
  for ((from = 0; from < rows; from += chunk)); do
    ask "$(postings "$from" "$chunk")"
    ask "$(decisions "$from" "$chunk")"
    # One in a hundred arrives once more.
    ask "$(postings "$from" "$((chunk / 100))")"
    ask "$(decisions "$from" "$((chunk / 100))")"
  done
  ask "$(refusals)"
  ask "$(crossed)"
  ask "$(looks)"
fi

declare -A value=([by]=model [period]=month [tag]=team [rows]=100 [month]=2026-10-10 [day]=2026-10-10 [budget_usd]=0 [slow_ms]=500
  [model]=gpt-4o-mini [input_usd]=1 [cached_input_usd]=0.1 [cache_write_usd]=1 [output_usd]=3)

# Seconds of the median of five.
seconds() { # file
  local address="$server/?database=$database&default_format=Null"
  for name in $(grep -o '{[a-z_]*:' "$1" | tr -d '{:' | sort -u); do
    address+="&param_$name=${value[$name]}"
  done
  for _ in 1 2 3 4 5; do
    curl -sS --fail-with-body -o /dev/null -w '%{time_total}\n' "$address" --data-binary @"$1"
  done | sort -n | sed -n 3p
}

measure() { # title
  echo
  echo "| $1 | one organization, 30 days | one organization, 90 days | all, 30 days | all, 90 days |"
  echo "|---|---|---|---|---|"
  for file in schemas/clickhouse/queries/*.sql; do
    line="| $(basename "$file" .sql)"
    for whose in org_0 ''; do
      for range in '2026-10-01 2026-10-31' '2026-09-01 2026-12-01'; do
        read -r value[from_day] value[until_day] <<<"$range"
        value[organization]=$whose
        # Some are about one organization only.
        if [ -z "$whose" ] && ! grep -q "^-- @organization = ''" "$file"; then
          line+=' | –'
        else
          line+=" | $(seconds "$file")"
        fi
      done
    done
    echo "$line |"
  done
}

ask "SELECT count() AS rows, uniqExact(_part) AS parts FROM usage FORMAT Vertical"
measure 'parts as they came'
for table in usage routing_decisions refusals budget_events cache_lookups; do
  ask "OPTIMIZE TABLE $table FINAL"
done
measure 'one part for each month'
[ -n "${KEEP:-}" ] || ask "DROP DATABASE $database SYNC" default
