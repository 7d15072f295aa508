-- Who spent most: users of organizations, with their share of all that was spent.
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 20: most lines
SELECT
    u.organization AS organization,
    ifNull(u.user, '(not told)') AS user,
    countIf(u.request_outcome IS NOT NULL) AS requests,
    sum(u.cost_usd) AS cost_usd,
    countIf(u.cost_usd IS NULL) AS unknown_cost,
    round(100 * toFloat64(cost_usd) / sum(toFloat64(cost_usd)) OVER (), 2) AS share_percent
FROM usage_exact AS u
WHERE ({organization:String} = '' OR u.organization = {organization:String})
  AND u.origin = 'live'
  AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY organization, user
ORDER BY cost_usd DESC NULLS LAST, organization, user
LIMIT {rows:UInt64}
