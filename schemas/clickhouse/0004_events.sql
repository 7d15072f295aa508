-- Facts of the journal that are no postings: why a request went where it went, why it was refused, and what became of
-- budgets. They join to `usage` and to each other by organization and request_id.
--
-- As in `usage`, (journal_partition, journal_offset, journal_index) is a row's id, a fact may be inserted several times
-- with the same values, and `at` is in the key so that FINAL can leave months out. Read the views, which count each once.

CREATE TABLE IF NOT EXISTS {database}.routing_decisions
(
    journal_partition Int32 COMMENT 'partition of the journal' CODEC(ZSTD),
    journal_offset Int64 COMMENT 'of the commit in its partition' CODEC(Delta, ZSTD),
    journal_index Int32 COMMENT 'of the fact in its commit, from 0' CODEC(ZSTD),
    at DateTime64(3, 'UTC') COMMENT 'when it was decided' CODEC(Delta, ZSTD),
    organization LowCardinality(String) COMMENT 'who pays' CODEC(ZSTD),
    request_id String COMMENT 'joins to every other table, with organization' CODEC(ZSTD),
    origin LowCardinality(String) COMMENT 'live, replay, shadow' CODEC(ZSTD),
    key_id LowCardinality(Nullable(String)) COMMENT 'API key; NULL: asked without one' CODEC(ZSTD),
    user Nullable(String) COMMENT 'end user of the client, a pseudonym; NULL: not told' CODEC(ZSTD),
    user_tier LowCardinality(Nullable(String)) COMMENT 'of the end user, as the request says; NULL: not told' CODEC(ZSTD),
    requested_model LowCardinality(Nullable(String)) COMMENT 'as the request names it' CODEC(ZSTD),
    policy LowCardinality(Nullable(String)) COMMENT 'that chose; NULL: the request names its model' CODEC(ZSTD),
    policy_version Nullable(Int64) COMMENT 'control offset of the policy; NULL: no policy' CODEC(ZSTD),
    arm LowCardinality(Nullable(String)) COMMENT 'of an experiment; NULL: in none' CODEC(ZSTD),
    control_offset Int64 COMMENT 'version of all rules that it was decided by' CODEC(Delta, ZSTD),
    escalation Bool COMMENT 'one tier up, after an answer that fell short; else the decision that admitted the request' CODEC(ZSTD),
    intent LowCardinality(Nullable(String)) COMMENT 'given or classified; NULL: not known' CODEC(ZSTD),
    intent_source LowCardinality(String) COMMENT 'none, given, classified' CODEC(ZSTD),
    confidence_permille Nullable(UInt16) COMMENT 'of a classified intent; NULL: not classified' CODEC(ZSTD),
    score Nullable(Int64) COMMENT 'points of complexity; NULL: the policy has no weights' CODEC(ZSTD),
    tier Nullable(UInt8) COMMENT 'whose candidates come first; NULL: the request names its model' CODEC(ZSTD),
    candidate_models Array(LowCardinality(String)) COMMENT 'in the order in which they are tried' CODEC(ZSTD),
    candidate_deployments Array(LowCardinality(String)) COMMENT 'of the same candidates' CODEC(ZSTD),
    candidate_tiers Array(UInt8) COMMENT 'of the same candidates' CODEC(ZSTD),
    attempts_max UInt32 COMMENT 'calls that may be made' CODEC(ZSTD),
    reasons Array(LowCardinality(String)) COMMENT 'what led to the choice' CODEC(ZSTD),
    input_tokens Nullable(UInt64) COMMENT 'of messages and tools, counted; NULL: not counted, or an escalation' CODEC(ZSTD),
    output_cap Nullable(UInt64) COMMENT 'tokens that the request allows; NULL: it names none, or an escalation' CODEC(ZSTD),
    body_bytes Nullable(UInt64) COMMENT 'NULL: an escalation' CODEC(ZSTD),
    messages Nullable(UInt32) COMMENT 'NULL: an escalation' CODEC(ZSTD),
    tools Nullable(UInt32) COMMENT 'NULL: an escalation' CODEC(ZSTD),
    images Nullable(UInt32) COMMENT 'NULL: an escalation' CODEC(ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
PRIMARY KEY (organization, at)
ORDER BY (organization, at, journal_partition, journal_offset, journal_index)
COMMENT 'Where requests were sent, and why: one row per decision of the router';

CREATE TABLE IF NOT EXISTS {database}.refusals
(
    journal_partition Int32 COMMENT 'partition of the journal' CODEC(ZSTD),
    journal_offset Int64 COMMENT 'of the commit in its partition' CODEC(Delta, ZSTD),
    journal_index Int32 COMMENT 'of the fact in its commit, from 0' CODEC(ZSTD),
    at DateTime64(3, 'UTC') COMMENT 'when it was decided' CODEC(Delta, ZSTD),
    organization LowCardinality(String) COMMENT 'who would have paid' CODEC(ZSTD),
    request_id String COMMENT 'joins to every other table, with organization' CODEC(ZSTD),
    origin LowCardinality(String) COMMENT 'live, replay, shadow' CODEC(ZSTD),
    key_id LowCardinality(Nullable(String)) COMMENT 'API key; NULL: asked without one' CODEC(ZSTD),
    user Nullable(String) COMMENT 'end user of the client, a pseudonym; NULL: not told' CODEC(ZSTD),
    user_tier LowCardinality(Nullable(String)) COMMENT 'of the end user, as the request says; NULL: not told' CODEC(ZSTD),
    requested_model LowCardinality(Nullable(String)) COMMENT 'as the request names it' CODEC(ZSTD),
    policy LowCardinality(Nullable(String)) COMMENT 'that would have chosen; NULL: none' CODEC(ZSTD),
    control_offset Int64 COMMENT 'version of all rules that it was decided by' CODEC(Delta, ZSTD),
    code LowCardinality(String) COMMENT 'of the error that the asker got' CODEC(ZSTD),
    status UInt16 COMMENT 'HTTP status of it' CODEC(ZSTD),
    `limit` LowCardinality(Nullable(String)) COMMENT 'limit or budget that did not suffice, such as organization.requests_per_minute or key.month; NULL: another reason' CODEC(ZSTD),
    input_tokens Nullable(UInt64) COMMENT 'of messages and tools, counted; NULL: not looked at' CODEC(ZSTD),
    output_cap Nullable(UInt64) COMMENT 'tokens that the request allows; NULL: it names none' CODEC(ZSTD),
    body_bytes Nullable(UInt64) COMMENT 'NULL: not looked at' CODEC(ZSTD),
    messages Nullable(UInt32) COMMENT 'NULL: not looked at' CODEC(ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
PRIMARY KEY (organization, at)
ORDER BY (organization, at, journal_partition, journal_offset, journal_index)
COMMENT 'Requests that were never admitted, with the limit or budget that did not suffice';

CREATE TABLE IF NOT EXISTS {database}.budget_events
(
    journal_partition Int32 COMMENT 'partition of the journal' CODEC(ZSTD),
    journal_offset Int64 COMMENT 'of the commit in its partition' CODEC(Delta, ZSTD),
    journal_index Int32 COMMENT 'of the fact in its commit, from 0' CODEC(ZSTD),
    at DateTime64(3, 'UTC') COMMENT 'when it was decided' CODEC(Delta, ZSTD),
    organization LowCardinality(String) COMMENT 'who pays' CODEC(ZSTD),
    request_id String COMMENT 'whose posting it was; joins to every other table, with organization' CODEC(ZSTD),
    origin LowCardinality(String) COMMENT 'live, replay, shadow' CODEC(ZSTD),
    key_id LowCardinality(Nullable(String)) COMMENT 'API key; NULL: asked without one' CODEC(ZSTD),
    user Nullable(String) COMMENT 'end user of the client, a pseudonym; NULL: not told' CODEC(ZSTD),
    user_tier LowCardinality(Nullable(String)) COMMENT 'of the end user, as the request says; NULL: not told' CODEC(ZSTD),
    control_offset Int64 COMMENT 'version of all rules that it was decided by' CODEC(Delta, ZSTD),
    event LowCardinality(String) COMMENT 'overdrawn: a posting is higher than its reservation; threshold_crossed: a share of a budget is spent' CODEC(ZSTD),
    attempt Nullable(UInt32) COMMENT 'whose posting was overdrawn; NULL: threshold_crossed' CODEC(ZSTD),
    overdrawn_usd Nullable(Decimal(38, 12)) COMMENT 'beyond the reservation; NULL: threshold_crossed' CODEC(ZSTD),
    account LowCardinality(Nullable(String)) COMMENT 'organization, key; NULL: overdrawn' CODEC(ZSTD),
    period LowCardinality(Nullable(String)) COMMENT 'day, month; NULL: overdrawn' CODEC(ZSTD),
    percent Nullable(UInt32) COMMENT 'of the budget, which was reached; NULL: overdrawn' CODEC(ZSTD),
    budget_usd Nullable(Decimal(38, 12)) COMMENT 'of the period; NULL: overdrawn' CODEC(ZSTD),
    posted_usd Nullable(Decimal(38, 12)) COMMENT 'in the period, with this posting; NULL: overdrawn' CODEC(ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
PRIMARY KEY (organization, at)
ORDER BY (organization, at, journal_partition, journal_offset, journal_index)
COMMENT 'What became of budgets: postings beyond their reservation, and thresholds that were crossed';

CREATE OR REPLACE VIEW {database}.routing_decisions_exact AS
SELECT *
FROM {database}.routing_decisions FINAL;

CREATE OR REPLACE VIEW {database}.refusals_exact AS
SELECT *
FROM {database}.refusals FINAL;

CREATE OR REPLACE VIEW {database}.budget_events_exact AS
SELECT *
FROM {database}.budget_events FINAL;

-- Charges that a limit or a budget refused: scope and name of what did not suffice. Charges that it took are on the
-- journal only: there are several of each request, and they tell nothing that `usage` does not.
CREATE OR REPLACE VIEW {database}.limit_events AS
SELECT
    r.at AS at,
    r.organization AS organization,
    r.request_id AS request_id,
    r.origin AS origin,
    r.key_id AS key_id,
    r.user AS user,
    r.user_tier AS user_tier,
    r.requested_model AS requested_model,
    r.code AS code,
    splitByChar('.', assumeNotNull(r.`limit`))[1] AS scope,
    splitByChar('.', assumeNotNull(r.`limit`))[2] AS name,
    r.input_tokens AS input_tokens,
    r.output_cap AS output_cap
FROM {database}.refusals AS r FINAL
WHERE r.`limit` IS NOT NULL;
