-- Answers that nobody was called for: kind is then 'served', source says whence the answer came, and what was saved is what
-- it would have used and cost at the prices of the moment. cost_usd of such a row is 0.

ALTER TABLE {database}.usage
    ADD COLUMN IF NOT EXISTS source LowCardinality(String) DEFAULT 'provider' COMMENT 'provider, cache, shared (the call of an equal request)',
    ADD COLUMN IF NOT EXISTS saved_usd Nullable(Decimal(38, 12)) COMMENT 'of an answer that nobody was called for; NULL where that is not known',
    ADD COLUMN IF NOT EXISTS saved_input_tokens Nullable(UInt64) COMMENT 'of an answer that nobody was called for',
    ADD COLUMN IF NOT EXISTS saved_output_tokens Nullable(UInt64) COMMENT 'of an answer that nobody was called for',
    COMMENT COLUMN kind 'attempt, refusal, served: an answer that nobody was called for, or orphan: a call whose end a former owner recorded';

CREATE OR REPLACE VIEW {database}.usage_exact AS
SELECT *
FROM {database}.usage FINAL;
