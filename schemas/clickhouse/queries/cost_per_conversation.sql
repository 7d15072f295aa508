-- What conversations cost: how many there were, requests and cost of each in the mean and at the quantiles, by organization.
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
WITH conversations AS
(
    SELECT
        u.organization AS organization,
        u.conversation_id AS conversation_id,
        countIf(u.request_outcome IS NOT NULL) AS requests,
        sum(u.cost_usd) AS cost_usd,
        countIf(u.cost_usd IS NULL) AS unknown
    FROM usage_exact AS u
    WHERE ({organization:String} = '' OR u.organization = {organization:String})
      AND u.origin = 'live'
      AND u.conversation_id IS NOT NULL
      AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
      AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
    GROUP BY organization, conversation_id
)
SELECT
    c.organization AS organization,
    countIf(c.unknown = 0) AS conversations,
    round(avgIf(c.requests, c.unknown = 0), 2) AS requests_mean,
    sumIf(c.cost_usd, c.unknown = 0) AS cost_usd,
    divideDecimal(sumIf(assumeNotNull(c.cost_usd), c.unknown = 0), toDecimal128(greatest(conversations, 1), 0), 12) AS mean_usd,
    quantileExactIf(0.5)(assumeNotNull(c.cost_usd), c.unknown = 0) AS p50_usd,
    quantileExactIf(0.95)(assumeNotNull(c.cost_usd), c.unknown = 0) AS p95_usd,
    maxIf(c.cost_usd, c.unknown = 0) AS max_usd,
    countIf(c.unknown > 0) AS left_out
FROM conversations AS c
GROUP BY organization
ORDER BY cost_usd DESC NULLS LAST, organization
LIMIT {rows:UInt64}
