-- One row per posting: an attempt at a provider, or a refusal.
--
-- (journal_partition, journal_offset, journal_index) is a posting's id. A posting may be inserted several times, always
-- with the same values; rows that are equal in the whole sorting key are one posting. Merges drop repeats at some time,
-- so read through the views of the next migration, which never count one twice. `at` as it is (not its hour) is in the
-- key because FINAL leaves months out, and merges each month apart, only if the partition follows from the key.
--
-- NULL is unknown (or does not apply), never zero. `at` is the time inside the journal's commit, `received_at` that of
-- the request. Token classes are disjoint: input_tokens leaves out cached_input_tokens and cache_write_tokens,
-- output_tokens includes reasoning_tokens. cost_usd is exact: its unit is the pico-dollar of the journal.
CREATE TABLE IF NOT EXISTS {database}.usage
(
    journal_partition Int32,
    journal_offset Int64 CODEC(Delta, ZSTD),
    journal_index Int32,
    kind LowCardinality(String) COMMENT 'attempt, refusal',
    at DateTime64(3, 'UTC') CODEC(Delta, ZSTD),
    received_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD),
    organization LowCardinality(String),
    request_id String,
    attempt UInt32 COMMENT 'from 1; 0 is a refusal',
    lane Int32,
    key_id LowCardinality(Nullable(String)),
    user Nullable(String) COMMENT 'the end user of the client, a pseudonym',
    user_tier LowCardinality(Nullable(String)),
    tags Map(String, String),
    conversation_id Nullable(String),
    origin LowCardinality(String) COMMENT 'live, replay, shadow',
    traceparent Nullable(String),
    stream Bool,
    requested_model LowCardinality(Nullable(String)),
    model LowCardinality(Nullable(String)) COMMENT 'the one that was called',
    deployment LowCardinality(Nullable(String)),
    provider LowCardinality(Nullable(String)),
    tier Nullable(UInt8),
    policy LowCardinality(Nullable(String)),
    policy_version Nullable(Int64),
    arm LowCardinality(Nullable(String)) COMMENT 'of an experiment',
    control_offset Int64 COMMENT 'version of all rules that the decision was made by',
    price_version Nullable(Int64) COMMENT 'version of the model whose prices apply',
    price_simulated Bool COMMENT 'the price is an assumption, not a published one',
    simulated Bool COMMENT 'a simulator answered instead of the provider',
    input_tokens Nullable(UInt64),
    cached_input_tokens Nullable(UInt64),
    cache_write_tokens Nullable(UInt64),
    output_tokens Nullable(UInt64),
    reasoning_tokens Nullable(UInt64),
    usage_source LowCardinality(String) COMMENT 'reported, estimated, none',
    cost_usd Nullable(Decimal(38, 12)),
    outcome LowCardinality(String) COMMENT 'of the attempt: completed, failed, refused, cancelled, interrupted',
    request_outcome LowCardinality(Nullable(String)) COMMENT 'on the posting that ended its request',
    status Nullable(UInt16) COMMENT 'HTTP status that the request ended with; set with request_outcome',
    error_code LowCardinality(Nullable(String)),
    upstream_status Nullable(UInt16),
    finish_reason LowCardinality(Nullable(String)),
    content_frames UInt32,
    time_to_first_token_ms Nullable(UInt64) COMMENT 'of the attempt',
    duration_ms Nullable(UInt64) COMMENT 'of the attempt',
    request_duration_ms Nullable(UInt64) COMMENT 'from receipt to settlement; set with request_outcome'
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
PRIMARY KEY (organization, at)
ORDER BY (organization, at, journal_partition, journal_offset, journal_index);
