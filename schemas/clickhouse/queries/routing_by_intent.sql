-- Where requests were sent, by what they were about: tier, first candidate, how sure the classifier was, how long the input.
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
SELECT
    ifNull(d.intent, '(not known)') AS intent,
    d.tier AS tier,
    d.candidate_models[1] AS first_model,
    count() AS decisions,
    countIf(d.escalation) AS escalations,
    round(avg(d.confidence_permille)) AS confidence_permille_mean,
    round(avg(d.score), 1) AS score_mean,
    round(avg(d.input_tokens)) AS input_tokens_mean
FROM routing_decisions_exact AS d
WHERE ({organization:String} = '' OR d.organization = {organization:String})
  AND d.origin = 'live'
  AND d.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND d.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY intent, tier, first_model
ORDER BY decisions DESC, intent, tier, first_model
LIMIT {rows:UInt64}
