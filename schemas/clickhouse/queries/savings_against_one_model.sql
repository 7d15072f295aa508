-- What did routing save, against sending every request that was routed by a policy to one model?
-- @organization: who pays
-- @input_usd: price of the one model, in dollars per million input tokens
-- @cached_input_usd: of cached input tokens
-- @cache_write_usd: of input tokens that are written to a cache
-- @output_usd: of output tokens
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- What failed attempts cost is on our side of the account; a request of which anything is unknown is left out of both
-- sides, and counted.
WITH answered AS
(
    SELECT
        anyIf(u.model, u.outcome = 'completed') AS model,
        sum(u.cost_usd) AS spent_usd,
        sumIf(u.input_tokens, u.outcome = 'completed') AS input_tokens,
        sumIf(u.cached_input_tokens, u.outcome = 'completed') AS cached_input_tokens,
        sumIf(u.cache_write_tokens, u.outcome = 'completed') AS cache_write_tokens,
        sumIf(u.output_tokens, u.outcome = 'completed') AS output_tokens,
        countIf(u.cost_usd IS NULL) + countIf(u.outcome = 'completed' AND (u.input_tokens IS NULL OR u.output_tokens IS NULL))
            AS unknown
    FROM usage_exact AS u
    WHERE u.organization = {organization:String}
      AND u.origin = 'live'
      AND u.kind = 'attempt'
      AND u.policy IS NOT NULL
      AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
      AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
    GROUP BY u.organization, u.request_id
    HAVING countIf(u.outcome = 'completed') > 0
)
SELECT
    a.model AS answered_by,
    countIf(a.unknown = 0) AS requests,
    sumIf(a.spent_usd, a.unknown = 0) AS spent_usd,
    (sumIf(a.input_tokens, a.unknown = 0) * {input_usd:Decimal(38, 12)}
        + ifNull(sumIf(a.cached_input_tokens, a.unknown = 0), 0) * {cached_input_usd:Decimal(38, 12)}
        + ifNull(sumIf(a.cache_write_tokens, a.unknown = 0), 0) * {cache_write_usd:Decimal(38, 12)}
        + sumIf(a.output_tokens, a.unknown = 0) * {output_usd:Decimal(38, 12)}) / 1000000 AS reference_usd,
    reference_usd - spent_usd AS saved_usd,
    countIf(a.unknown > 0) AS left_out
FROM answered AS a
GROUP BY answered_by
ORDER BY saved_usd DESC, answered_by
