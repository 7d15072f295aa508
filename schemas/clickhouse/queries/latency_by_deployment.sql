-- How fast the deployments answer: time to first token and duration at p50, p95 and p99, in milliseconds, exact.
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-7: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
WITH
    quantilesExact(0.5, 0.95, 0.99)(u.time_to_first_token_ms) AS first_token,
    quantilesExactIf(0.5, 0.95, 0.99)(u.duration_ms, u.outcome = 'completed') AS duration
SELECT
    u.deployment AS deployment,
    u.model AS model,
    countIf(u.outcome = 'completed') AS completed,
    first_token[1] AS first_token_p50_ms,
    first_token[2] AS first_token_p95_ms,
    first_token[3] AS first_token_p99_ms,
    duration[1] AS duration_p50_ms,
    duration[2] AS duration_p95_ms,
    duration[3] AS duration_p99_ms
FROM usage_exact AS u
WHERE ({organization:String} = '' OR u.organization = {organization:String})
  AND u.origin = 'live'
  AND u.kind = 'attempt'
  AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY deployment, model
ORDER BY completed DESC, deployment, model
LIMIT {rows:UInt64}
