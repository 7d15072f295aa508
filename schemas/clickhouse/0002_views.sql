-- What people read. All views are plain ones over FINAL, so a posting counts once, however often it was inserted and
-- whatever was merged. `origin` is everywhere: live traffic is origin = 'live'.
--
-- Money: cost_usd is the exact sum of what is known, and NULL when nothing is; unknown_cost beside it says how many
-- postings are missing from the sum.

CREATE OR REPLACE VIEW {database}.usage_exact AS
SELECT *
FROM {database}.usage FINAL;

-- One row per request. outcome, status and duration are NULL while the request is not settled. cost_usd is NULL when
-- the cost of any of its attempts is unknown.
CREATE OR REPLACE VIEW {database}.requests AS
SELECT
    u.organization AS organization,
    u.request_id AS request_id,
    u.origin AS origin,
    min(u.received_at) AS received_at,
    max(u.at) AS last_posting_at,
    any(u.request_outcome) AS outcome,
    any(u.status) AS status,
    anyIf(u.error_code, u.request_outcome IS NOT NULL) AS error_code,
    any(u.request_duration_ms) AS duration_ms,
    argMaxIf(u.time_to_first_token_ms, u.attempt, u.content_frames > 0) AS time_to_first_token_ms,
    countIf(u.kind = 'attempt') AS attempts,
    arrayMap(tried -> tried.2, arraySort(tried -> tried.1,
        groupArrayIf((u.attempt, assumeNotNull(u.model)), u.model IS NOT NULL))) AS models_tried,
    anyIf(u.model, u.outcome = 'completed') AS model,
    anyIf(u.deployment, u.outcome = 'completed') AS deployment,
    anyIf(u.tier, u.outcome = 'completed') AS tier,
    if(countIf(u.cost_usd IS NULL) > 0, NULL, sum(u.cost_usd)) AS cost_usd,
    if(countIf(u.input_tokens IS NULL) > 0, NULL, sum(u.input_tokens)) AS input_tokens,
    if(countIf(u.output_tokens IS NULL) > 0, NULL, sum(u.output_tokens)) AS output_tokens,
    any(u.requested_model) AS requested_model,
    any(u.key_id) AS key_id,
    any(u.user) AS user,
    any(u.user_tier) AS user_tier,
    any(u.tags) AS tags,
    any(u.conversation_id) AS conversation_id,
    any(u.policy) AS policy,
    any(u.policy_version) AS policy_version,
    any(u.arm) AS arm,
    any(u.stream) AS stream,
    any(u.lane) AS lane,
    any(u.traceparent) AS traceparent
FROM {database}.usage AS u FINAL
GROUP BY u.organization, u.request_id, u.origin;

CREATE OR REPLACE VIEW {database}.cost_by_organization_model_tier_hour AS
SELECT
    u.organization AS organization,
    u.model AS model,
    u.tier AS tier,
    u.origin AS origin,
    toStartOfHour(u.at) AS hour,
    count() AS postings,
    countIf(u.kind = 'attempt') AS attempts,
    sum(u.cost_usd) AS cost_usd,
    countIf(u.cost_usd IS NULL) AS unknown_cost,
    countIf(u.price_simulated) AS simulated_price,
    countIf(u.usage_source = 'estimated') AS estimated_usage,
    sum(u.input_tokens) AS input_tokens,
    sum(u.cached_input_tokens) AS cached_input_tokens,
    sum(u.cache_write_tokens) AS cache_write_tokens,
    sum(u.output_tokens) AS output_tokens,
    sum(u.reasoning_tokens) AS reasoning_tokens,
    countIf(u.input_tokens IS NULL OR u.output_tokens IS NULL) AS unknown_tokens
FROM {database}.usage AS u FINAL
GROUP BY organization, model, tier, origin, hour;

CREATE OR REPLACE VIEW {database}.cost_by_organization_model_tier_day AS
SELECT
    u.organization AS organization,
    u.model AS model,
    u.tier AS tier,
    u.origin AS origin,
    toDate(u.at) AS day,
    count() AS postings,
    countIf(u.kind = 'attempt') AS attempts,
    sum(u.cost_usd) AS cost_usd,
    countIf(u.cost_usd IS NULL) AS unknown_cost,
    countIf(u.price_simulated) AS simulated_price,
    countIf(u.usage_source = 'estimated') AS estimated_usage,
    sum(u.input_tokens) AS input_tokens,
    sum(u.cached_input_tokens) AS cached_input_tokens,
    sum(u.cache_write_tokens) AS cache_write_tokens,
    sum(u.output_tokens) AS output_tokens,
    sum(u.reasoning_tokens) AS reasoning_tokens,
    countIf(u.input_tokens IS NULL OR u.output_tokens IS NULL) AS unknown_tokens
FROM {database}.usage AS u FINAL
GROUP BY organization, model, tier, origin, day;

-- Of attempts, in milliseconds. Time to first token of every attempt that had one, duration of completed ones. The
-- quantiles are exact, not sampled; across organizations, since they are of the deployment.
CREATE OR REPLACE VIEW {database}.latency AS
SELECT
    u.model AS model,
    u.deployment AS deployment,
    u.provider AS provider,
    u.origin AS origin,
    toStartOfHour(u.at) AS hour,
    count() AS attempts,
    countIf(u.outcome = 'completed') AS completed,
    quantileExact(0.5)(u.time_to_first_token_ms) AS first_token_p50_ms,
    quantileExact(0.95)(u.time_to_first_token_ms) AS first_token_p95_ms,
    quantileExact(0.99)(u.time_to_first_token_ms) AS first_token_p99_ms,
    quantileExactIf(0.5)(u.duration_ms, u.outcome = 'completed') AS duration_p50_ms,
    quantileExactIf(0.95)(u.duration_ms, u.outcome = 'completed') AS duration_p95_ms,
    quantileExactIf(0.99)(u.duration_ms, u.outcome = 'completed') AS duration_p99_ms
FROM {database}.usage AS u FINAL
WHERE u.kind = 'attempt'
GROUP BY model, deployment, provider, origin, hour;

-- What went wrong: attempts and refusals. A cancelled request is no error.
CREATE OR REPLACE VIEW {database}.errors AS
SELECT
    u.organization AS organization,
    u.model AS model,
    u.deployment AS deployment,
    u.provider AS provider,
    u.kind AS kind,
    u.outcome AS outcome,
    u.error_code AS error_code,
    u.upstream_status AS upstream_status,
    u.origin AS origin,
    toStartOfHour(u.at) AS hour,
    count() AS postings,
    countIf(u.request_outcome IS NOT NULL) AS requests_ended,
    max(u.at) AS last_at,
    argMax(u.request_id, u.at) AS last_request_id
FROM {database}.usage AS u FINAL
WHERE u.outcome NOT IN ('completed', 'cancelled')
GROUP BY organization, model, deployment, provider, kind, outcome, error_code, upstream_status, origin, hour;
