-- What replays have shown. Nothing here happened: every row is of a run and of a candidate, and joins to what did happen
-- by organization and request_id. Taking the rows of a partition again changes nothing.

CREATE TABLE IF NOT EXISTS {database}.replay_decisions
(
    run LowCardinality(String) COMMENT 'name of the replay',
    candidate LowCardinality(String) COMMENT 'the rules that were tried',
    journal_partition Int32,
    journal_offset Int64 COMMENT 'of the commit that decided the record',
    at DateTime64(3, 'UTC') COMMENT 'when it was decided' CODEC(Delta, ZSTD),
    organization String,
    request_id String,
    key_id Nullable(String),
    user_tier LowCardinality(Nullable(String)),
    requested_model LowCardinality(Nullable(String)),
    policy LowCardinality(Nullable(String)),
    changes Array(LowCardinality(String)) COMMENT 'in what the two differ: admitted, refused, refusal, tier, model, deployment, attempts, outcome, cost',
    estimated Bool COMMENT 'an outcome of the candidate is estimated: nobody made that call',
    recorded_outcome LowCardinality(Nullable(String)) COMMENT 'NULL: it had not ended where the log ended',
    recorded_status Nullable(UInt16),
    recorded_error_code LowCardinality(Nullable(String)),
    recorded_intent LowCardinality(Nullable(String)),
    recorded_tier Nullable(UInt8),
    recorded_model LowCardinality(Nullable(String)),
    recorded_deployment LowCardinality(Nullable(String)),
    recorded_attempts UInt32,
    recorded_cost_usd Nullable(Decimal(38, 12)),
    recorded_input_tokens Nullable(UInt64),
    recorded_output_tokens Nullable(UInt64),
    recorded_time_to_first_token_ms Nullable(UInt64),
    recorded_duration_ms Nullable(UInt64),
    recorded_reasons Array(LowCardinality(String)),
    candidate_outcome LowCardinality(Nullable(String)),
    candidate_status Nullable(UInt16),
    candidate_error_code LowCardinality(Nullable(String)),
    candidate_intent LowCardinality(Nullable(String)),
    candidate_tier Nullable(UInt8),
    candidate_model LowCardinality(Nullable(String)),
    candidate_deployment LowCardinality(Nullable(String)),
    candidate_attempts UInt32,
    candidate_cost_usd Nullable(Decimal(38, 12)),
    candidate_cost_low_usd Nullable(Decimal(38, 12)),
    candidate_cost_high_usd Nullable(Decimal(38, 12)),
    candidate_input_tokens Nullable(UInt64),
    candidate_output_tokens Nullable(UInt64),
    candidate_time_to_first_token_ms Nullable(UInt64),
    candidate_duration_ms Nullable(UInt64),
    candidate_reasons Array(LowCardinality(String))
)
ENGINE = ReplacingMergeTree
ORDER BY (run, candidate, organization, at, journal_partition, journal_offset);

CREATE OR REPLACE VIEW {database}.replay_decisions_exact AS
SELECT *
FROM {database}.replay_decisions FINAL;
