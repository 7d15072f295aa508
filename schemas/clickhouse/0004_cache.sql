-- Answers that nobody was called for: kind is then 'served', source says whence the answer came, and what was saved is what
-- it would have used and cost at the prices of the moment. cost_usd of such a row is 0.

ALTER TABLE {database}.usage
    ADD COLUMN IF NOT EXISTS source LowCardinality(String) DEFAULT 'provider' COMMENT 'provider, cache, shared (the call of an equal request)',
    ADD COLUMN IF NOT EXISTS saved_usd Nullable(Decimal(38, 12)) COMMENT 'of an answer that nobody was called for; NULL where that is not known',
    ADD COLUMN IF NOT EXISTS saved_input_tokens Nullable(UInt64),
    ADD COLUMN IF NOT EXISTS saved_output_tokens Nullable(UInt64);

CREATE OR REPLACE VIEW {database}.usage_exact AS
SELECT *
FROM {database}.usage FINAL;

CREATE OR REPLACE VIEW {database}.savings_by_cache_day AS
SELECT
    u.organization AS organization,
    u.model AS model,
    u.source AS source,
    u.origin AS origin,
    toDate(u.at) AS day,
    count() AS answers,
    sum(u.saved_usd) AS saved_usd,
    countIf(u.saved_usd IS NULL) AS unknown_savings,
    sum(u.saved_input_tokens) AS saved_input_tokens,
    sum(u.saved_output_tokens) AS saved_output_tokens
FROM {database}.usage AS u FINAL
WHERE u.kind = 'served'
GROUP BY organization, model, source, origin, day;
