-- What did one organization spend on one day, on which models, and who spent it?
-- @organization: who pays
-- @day = today-1: UTC
SELECT
    u.model AS model,
    u.key_id AS key_id,
    u.user AS user,
    count() AS attempts,
    sum(u.cost_usd) AS cost_usd,
    countIf(u.cost_usd IS NULL) AS unknown_cost
FROM usage_exact AS u
WHERE u.organization = {organization:String}
  AND u.origin = 'live'
  AND u.kind = 'attempt'
  AND u.at >= toDateTime64({day:Date}, 3, 'UTC')
  AND u.at < toDateTime64({day:Date} + 1, 3, 'UTC')
GROUP BY model, key_id, user
ORDER BY cost_usd DESC NULLS FIRST, model, key_id, user
