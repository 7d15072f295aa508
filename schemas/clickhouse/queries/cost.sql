-- What was spent, by organization, tag, user, key, model, tier, deployment, policy or day.
-- @by = model | organization | tag | user | key | tier | deployment | policy | day: what a line is
-- @tag = team: name of the tag, when by is tag
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
SELECT
    ifNull(multiIf(
        {by:String} = 'organization', u.organization,
        {by:String} = 'tag', nullIf(u.tags[{tag:String}], ''),
        {by:String} = 'user', u.user,
        {by:String} = 'key', u.key_id,
        {by:String} = 'model', u.model,
        {by:String} = 'tier', toString(u.tier),
        {by:String} = 'deployment', u.deployment,
        {by:String} = 'policy', u.policy,
        {by:String} = 'day', toString(toDate(u.at)),
        toString(throwIf(1, 'by is organization, tag, user, key, model, tier, deployment, policy or day'))), '(none)') AS name,
    countIf(u.request_outcome IS NOT NULL) AS requests,
    countIf(u.kind = 'attempt') AS attempts,
    sum(u.cost_usd) AS cost_usd,
    countIf(u.cost_usd IS NULL) AS unknown_cost,
    sum(u.input_tokens) AS input_tokens,
    sum(u.output_tokens) AS output_tokens
FROM usage_exact AS u
WHERE ({organization:String} = '' OR u.organization = {organization:String})
  AND u.origin = 'live'
  AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY name
ORDER BY cost_usd DESC NULLS FIRST, name
LIMIT {rows:UInt64}
