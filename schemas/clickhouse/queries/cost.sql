-- What was spent, by organization, tag, user, key, model, tier, deployment, policy or day.
-- @by = model | organization | tag | user | key | tier | deployment | policy | day: what a line is
-- @tag = team: name of the tag, when by is tag
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
SELECT
    ifNull(toString({by:Identifier}), '(none)') AS name,
    countIf(t.request_outcome IS NOT NULL) AS requests,
    countIf(t.kind = 'attempt') AS attempts,
    sum(t.cost_usd) AS cost_usd,
    countIf(t.cost_usd IS NULL) AS unknown_cost,
    sum(t.input_tokens) AS input_tokens,
    sum(t.output_tokens) AS output_tokens
FROM
(
    -- What the name does not need is not read.
    SELECT
        u.organization AS organization, nullIf(u.tags[{tag:String}], '') AS tag, u.user AS user, u.key_id AS key,
        u.model AS model, u.tier AS tier, u.deployment AS deployment, u.policy AS policy, toDate(u.at) AS day,
        u.kind AS kind, u.request_outcome AS request_outcome, u.cost_usd AS cost_usd,
        u.input_tokens AS input_tokens, u.output_tokens AS output_tokens
    FROM usage_exact AS u
    WHERE ({organization:String} = '' OR u.organization = {organization:String})
      AND u.origin = 'live'
      AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
      AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
) AS t
GROUP BY name
ORDER BY cost_usd DESC NULLS FIRST, name
LIMIT {rows:UInt64}
