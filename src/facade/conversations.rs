//! What `GET /api/conversations/analytics/models` asks ClickHouse: the conversations of one organization by the model that
//! answered in them.

/// One line per model that was called, or whose kept answer was given. A conversation counts with each model that it used;
/// the mean leaves out those of which a cost is not known, and `left_out` counts them.
pub const BY_MODEL: &str = "\
WITH conversations AS
(
    SELECT
        u.model AS model,
        u.conversation_id AS conversation_id,
        countIf(u.request_outcome IS NOT NULL) AS requests,
        countIf(u.kind = 'attempt') AS attempts,
        sum(u.cost_usd) AS cost_usd,
        countIf(u.cost_usd IS NULL) AS unknown,
        sum(u.input_tokens) AS input_tokens,
        sum(u.cached_input_tokens) AS cached_input_tokens,
        sum(u.output_tokens) AS output_tokens,
        quantilesExactState(0.5, 0.95)(u.time_to_first_token_ms) AS first_token
    FROM usage_exact AS u
    WHERE u.organization = {organization:String}
      AND u.origin = 'live'
      AND u.conversation_id IS NOT NULL
      AND u.model IS NOT NULL
      AND u.at >= toDateTime64({first_day:Date}, 3, 'UTC')
      AND u.at < toDateTime64({last_day:Date} + 1, 3, 'UTC')
    GROUP BY model, conversation_id
)
SELECT
    c.model AS model,
    count() AS conversations,
    sum(c.requests) AS requests,
    sum(c.attempts) AS attempts,
    sum(c.cost_usd) AS cost_usd,
    sum(c.unknown) AS unknown_cost,
    countIf(c.unknown > 0) AS left_out,
    if(left_out = conversations, NULL, divideDecimal(
        sumIf(assumeNotNull(c.cost_usd), c.unknown = 0), toDecimal128(greatest(conversations - left_out, 1), 0), 12)) AS mean_usd,
    sum(c.input_tokens) AS input_tokens,
    sum(c.cached_input_tokens) AS cached_input_tokens,
    sum(c.output_tokens) AS output_tokens,
    quantilesExactMerge(0.5, 0.95)(c.first_token)[1] AS first_token_p50_ms,
    quantilesExactMerge(0.5, 0.95)(c.first_token)[2] AS first_token_p95_ms
FROM conversations AS c
GROUP BY model
ORDER BY model
LIMIT {limit:UInt64} OFFSET {offset:UInt64}";
