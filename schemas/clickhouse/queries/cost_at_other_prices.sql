-- What a model's answers would have cost at other prices, in dollars per million tokens, by organization.
-- @model: whose answers
-- @input_usd: of input tokens
-- @cached_input_usd: of cached input tokens
-- @cache_write_usd: of input tokens that are written to a cache
-- @output_usd: of output tokens
-- @organization = '': one organization; empty: all that the reader may see
-- @from_day = today-30: first day, UTC
-- @until_day = today+1: first day that is not counted
-- @rows = 100: most lines
SELECT
    u.organization AS organization,
    count() AS attempts,
    sum(u.cost_usd) AS recorded_usd,
    (sum(u.input_tokens) * {input_usd:Decimal(38, 12)}
        + sum(ifNull(u.cached_input_tokens, 0)) * {cached_input_usd:Decimal(38, 12)}
        + sum(ifNull(u.cache_write_tokens, 0)) * {cache_write_usd:Decimal(38, 12)}
        + sum(u.output_tokens) * {output_usd:Decimal(38, 12)}) / 1000000 AS other_usd,
    other_usd - recorded_usd AS difference_usd
FROM usage_exact AS u
WHERE u.model = {model:String}
  AND ({organization:String} = '' OR u.organization = {organization:String})
  AND u.origin = 'live'
  AND u.kind = 'attempt'
  AND u.cost_usd IS NOT NULL AND u.input_tokens IS NOT NULL AND u.output_tokens IS NOT NULL
  AND u.at >= toDateTime64({from_day:Date}, 3, 'UTC')
  AND u.at < toDateTime64({until_day:Date}, 3, 'UTC')
GROUP BY organization
ORDER BY recorded_usd DESC, organization
LIMIT {rows:UInt64}
