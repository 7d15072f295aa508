-- What became of the cache of answers: each look into it, and what was kept and no longer kept. What an answer of it saved is
-- in `usage` (kind = 'served'). Fingerprints are keyed with a key of the organization's own: equal ones are equal requests of one
-- organization, and nobody can tell a request from one.
--
-- As in the other tables, (journal_partition, journal_offset, journal_index) is a row's id, a fact may be inserted several
-- times with the same values, and the views count each once.

CREATE TABLE IF NOT EXISTS {database}.cache_lookups
(
    journal_partition Int32 COMMENT 'partition of the journal' CODEC(ZSTD),
    journal_offset Int64 COMMENT 'of the commit in its partition' CODEC(Delta, ZSTD),
    journal_index Int32 COMMENT 'of the fact in its commit, from 0' CODEC(ZSTD),
    at DateTime64(3, 'UTC') COMMENT 'when it was decided' CODEC(Delta, ZSTD),
    organization LowCardinality(String) COMMENT 'whose cache it is' CODEC(ZSTD),
    request_id String COMMENT 'joins to every other table, with organization' CODEC(ZSTD),
    origin LowCardinality(String) COMMENT 'live, replay, shadow' CODEC(ZSTD),
    key_id LowCardinality(Nullable(String)) COMMENT 'API key; NULL: asked without one' CODEC(ZSTD),
    user Nullable(String) COMMENT 'end user of the client, a pseudonym; NULL: not told' CODEC(ZSTD),
    user_tier LowCardinality(Nullable(String)) COMMENT 'of the end user, as the request says; NULL: not told' CODEC(ZSTD),
    requested_model LowCardinality(Nullable(String)) COMMENT 'as the request names it' CODEC(ZSTD),
    policy LowCardinality(Nullable(String)) COMMENT 'that chose; NULL: the request names its model' CODEC(ZSTD),
    model LowCardinality(Nullable(String)) COMMENT 'whose answer was found, or that was called first; NULL: nobody was' CODEC(ZSTD),
    control_offset Int64 COMMENT 'version of all rules that it was decided by' CODEC(Delta, ZSTD),
    content String COMMENT 'fingerprint of what determines the answer, but for who answers' CODEC(ZSTD),
    fingerprint String COMMENT 'of that, and of who answers' CODEC(ZSTD),
    outcome LowCardinality(String) COMMENT 'hit, shared (an equal request was under way), miss, expired, lost, bypassed' CODEC(ZSTD),
    keeps Bool COMMENT 'the answer may be kept' CODEC(ZSTD),
    ttl_seconds Nullable(UInt64) COMMENT 'how long it is kept, as the request says; NULL: as the plan says' CODEC(ZSTD),
    max_age_seconds Nullable(UInt64) COMMENT 'how old an answer may be, as the request says; NULL: not said' CODEC(ZSTD),
    age_ms Nullable(UInt64) COMMENT 'of the answer that was found; NULL: none was' CODEC(ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
PRIMARY KEY (organization, at)
ORDER BY (organization, at, journal_partition, journal_offset, journal_index)
SETTINGS min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1
COMMENT 'Looks into the cache of answers: one row per look';

CREATE TABLE IF NOT EXISTS {database}.cache_changes
(
    journal_partition Int32 COMMENT 'partition of the journal' CODEC(ZSTD),
    journal_offset Int64 COMMENT 'of the commit in its partition' CODEC(Delta, ZSTD),
    journal_index Int32 COMMENT 'of the fact in its commit, from 0' CODEC(ZSTD),
    at DateTime64(3, 'UTC') COMMENT 'when it was decided' CODEC(Delta, ZSTD),
    organization LowCardinality(String) COMMENT 'whose cache it is' CODEC(ZSTD),
    request_id String COMMENT 'whose answer was kept, or made room; empty: no request did' CODEC(ZSTD),
    origin LowCardinality(String) COMMENT 'live, replay, shadow' CODEC(ZSTD),
    key_id LowCardinality(Nullable(String)) COMMENT 'API key; NULL: asked without one' CODEC(ZSTD),
    user Nullable(String) COMMENT 'end user of the client, a pseudonym; NULL: not told' CODEC(ZSTD),
    user_tier LowCardinality(Nullable(String)) COMMENT 'of the end user, as the request says; NULL: not told' CODEC(ZSTD),
    control_offset Int64 COMMENT 'version of all rules that it was decided by' CODEC(Delta, ZSTD),
    event LowCardinality(String) COMMENT 'inserted, evicted, purged: somebody wanted answers forgotten' CODEC(ZSTD),
    fingerprints Array(String) COMMENT 'of the answers; of a purge, none' CODEC(ZSTD),
    entries UInt64 COMMENT 'how many answers' CODEC(ZSTD),
    reason LowCardinality(Nullable(String)) COMMENT 'expired, least_recently_used; NULL: not evicted' CODEC(ZSTD),
    bytes Nullable(UInt64) COMMENT 'of the answer; NULL: not inserted' CODEC(ZSTD),
    expires_at Nullable(DateTime64(3, 'UTC')) COMMENT 'until when it may be given; NULL: not inserted' CODEC(ZSTD),
    model LowCardinality(Nullable(String)) COMMENT 'that answered; of a purge, whose answers; NULL: not told' CODEC(ZSTD),
    deployment LowCardinality(Nullable(String)) COMMENT 'that answered; NULL: not inserted' CODEC(ZSTD),
    provider LowCardinality(Nullable(String)) COMMENT 'of the deployment; NULL: not inserted' CODEC(ZSTD),
    tier Nullable(UInt8) COMMENT 'of the model that answered; NULL: not inserted' CODEC(ZSTD),
    kept_before Nullable(DateTime64(3, 'UTC')) COMMENT 'of a purge: only answers that were kept before it; NULL: all' CODEC(ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
PRIMARY KEY (organization, at)
ORDER BY (organization, at, journal_partition, journal_offset, journal_index)
SETTINGS min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1
COMMENT 'Answers that were kept, and that are kept no longer';

CREATE OR REPLACE VIEW {database}.cache_lookups_exact AS
SELECT *
FROM {database}.cache_lookups FINAL;

CREATE OR REPLACE VIEW {database}.cache_changes_exact AS
SELECT *
FROM {database}.cache_changes FINAL;
