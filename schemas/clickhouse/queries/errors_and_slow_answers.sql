-- Where do errors and slow answers come from? One line per place that answers; refusals are our own and have no place.
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-1: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @slow_ms = 2000: milliseconds to the first token from which an answer is slow
SELECT
    ifNull(u.deployment, 'refused here') AS place,
    count() AS attempts,
    countIf(u.outcome NOT IN ('completed', 'cancelled')) AS errors,
    round(100 * errors / attempts, 1) AS error_percent,
    sumMapIf(map(ifNull(u.error_code, 'unknown'), toUInt64(1)), u.outcome NOT IN ('completed', 'cancelled')) AS codes,
    quantileExact(0.5)(u.time_to_first_token_ms) AS first_token_p50_ms,
    quantileExact(0.95)(u.time_to_first_token_ms) AS first_token_p95_ms,
    countIf(u.time_to_first_token_ms > {slow_ms:UInt64}) AS slow,
    argMax(u.request_id, u.time_to_first_token_ms) AS slowest_request
FROM usage_exact AS u
WHERE ({organization:String} = '' OR u.organization = {organization:String})
  AND u.origin = 'live'
  AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY place
ORDER BY errors + slow DESC, place
