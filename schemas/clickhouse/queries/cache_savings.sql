-- What the cache saved, by organization, model and period: how often it was asked, how often it answered, and what that saved.
-- @period = day | week | month | all: what a line is about
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
WITH told AS
(
    SELECT l.organization AS organization, l.model AS model, l.at AS at,
        l.outcome != 'bypassed' AS looked_up, l.outcome = 'bypassed' AS bypassed, false AS answered,
        CAST(NULL AS Nullable(Decimal(38, 12))) AS saved_usd,
        CAST(NULL AS Nullable(UInt64)) AS saved_input_tokens, CAST(NULL AS Nullable(UInt64)) AS saved_output_tokens
    FROM cache_lookups_exact AS l
    WHERE ({organization:String} = '' OR l.organization = {organization:String})
      AND l.origin = 'live'
      AND l.at >= toDateTime64({from_day:Date}, 3, 'UTC')
      AND l.at < toDateTime64({until_day:Date}, 3, 'UTC')
    UNION ALL
    SELECT u.organization, u.model, u.at, false, false, true, u.saved_usd, u.saved_input_tokens, u.saved_output_tokens
    FROM usage_exact AS u
    WHERE ({organization:String} = '' OR u.organization = {organization:String})
      AND u.origin = 'live'
      AND u.kind = 'served' AND u.outcome = 'completed'
      AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
      AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
)
SELECT
    t.organization AS organization,
    ifNull(t.model, '(none)') AS model,
    multiIf(
        {period:String} = 'day', toString(toDate(t.at)),
        {period:String} = 'week', toString(toMonday(t.at)),
        {period:String} = 'month', toString(toStartOfMonth(t.at)),
        {period:String} = 'all', '(all)',
        toString(throwIf(1, 'period is day, week, month or all'))) AS period,
    countIf(t.looked_up) AS lookups,
    countIf(t.answered) AS answers,
    if(lookups = 0, NULL, round(100 * answers / lookups, 2)) AS hit_percent,
    countIf(t.bypassed) AS bypassed,
    sum(t.saved_usd) AS saved_usd,
    countIf(t.answered AND t.saved_usd IS NULL) AS unknown_saved,
    sum(t.saved_input_tokens) AS saved_input_tokens,
    sum(t.saved_output_tokens) AS saved_output_tokens
FROM told AS t
GROUP BY organization, model, period
ORDER BY saved_usd DESC NULLS LAST, organization, model, period
LIMIT {rows:UInt64}
