-- Which limits and budgets refused requests, whose, and how large those were.
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
SELECT
    r.organization AS organization,
    ifNull(r.limit, '(none)') AS limit_name,
    r.code AS code,
    count() AS refusals,
    uniqExact(r.key_id) AS keys,
    uniqExact(r.user) AS users,
    round(avg(r.input_tokens)) AS input_tokens_mean,
    max(r.at) AS last_at,
    argMax(r.request_id, r.at) AS last_request
FROM refusals_exact AS r
WHERE ({organization:String} = '' OR r.organization = {organization:String})
  AND r.origin = 'live'
  AND r.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND r.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY organization, limit_name, code
ORDER BY refusals DESC, organization, limit_name, code
LIMIT {rows:UInt64}
