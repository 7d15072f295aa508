-- How many requests failed, needed another attempt, or were refused, by day: counts, and percent of the requests that ended.
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 400: most lines
SELECT
    toDate(u.at) AS day,
    countIf(u.request_outcome IS NOT NULL) AS requests,
    countIf(u.request_outcome IN ('failed', 'interrupted')) AS errors,
    countIf(u.request_outcome IS NOT NULL AND u.attempt > 1) AS fallbacks,
    countIf(u.request_outcome = 'refused') AS refusals,
    countIf(u.request_outcome = 'cancelled') AS cancelled,
    countIf(u.kind = 'attempt' AND u.outcome IN ('failed', 'interrupted')) AS failed_attempts,
    round(100 * errors / requests, 2) AS error_percent,
    round(100 * fallbacks / requests, 2) AS fallback_percent,
    round(100 * refusals / requests, 2) AS refusal_percent
FROM usage_exact AS u
WHERE ({organization:String} = '' OR u.organization = {organization:String})
  AND u.origin = 'live'
  AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY day
ORDER BY day DESC
LIMIT {rows:UInt64}
