-- Every table and column says what it is, and months that are over become one part each, which FINAL reads at half the cost
-- of several.

ALTER TABLE {database}.usage
    MODIFY COMMENT 'What was spent: one row per posting, that is per attempt at a provider, refused request, or orphan';

ALTER TABLE {database}.usage
    COMMENT COLUMN journal_partition 'partition of the journal',
    COMMENT COLUMN journal_offset 'of the commit in its partition',
    COMMENT COLUMN journal_index 'of the posting in its commit',
    COMMENT COLUMN kind 'attempt, refusal, or orphan: a call whose end a former owner recorded',
    COMMENT COLUMN at 'when the posting was decided',
    COMMENT COLUMN received_at 'when the request came',
    COMMENT COLUMN organization 'who pays',
    COMMENT COLUMN request_id 'joins to every other table, with organization',
    COMMENT COLUMN attempt 'from 1; 0 is a refusal',
    COMMENT COLUMN lane 'of the organization, as the request says',
    COMMENT COLUMN key_id 'API key; NULL: asked without one',
    COMMENT COLUMN user 'end user of the client, a pseudonym; NULL: not told',
    COMMENT COLUMN user_tier 'of the end user, as the request says; NULL: not told',
    COMMENT COLUMN tags 'as the request says',
    COMMENT COLUMN conversation_id 'as the request says; NULL: not told',
    COMMENT COLUMN origin 'live, replay, shadow',
    COMMENT COLUMN traceparent 'W3C trace context of the request; NULL: not told',
    COMMENT COLUMN stream 'the answer was asked for as a stream',
    COMMENT COLUMN requested_model 'as the request names it',
    COMMENT COLUMN model 'the one that was called; NULL: a refusal',
    COMMENT COLUMN deployment 'the one that was called; NULL: a refusal',
    COMMENT COLUMN provider 'of the deployment; NULL: a refusal',
    COMMENT COLUMN tier 'of the model that was called; of a refusal, as the request says',
    COMMENT COLUMN policy 'that chose the model; NULL: none',
    COMMENT COLUMN policy_version 'control offset of the policy; NULL: none',
    COMMENT COLUMN arm 'of an experiment; NULL: in none',
    COMMENT COLUMN control_offset 'version of all rules that the decision was made by',
    COMMENT COLUMN price_version 'control offset of the model whose prices apply; NULL: a refusal',
    COMMENT COLUMN price_simulated 'the price is an assumption, not a published one',
    COMMENT COLUMN simulated 'a simulator answered instead of the provider',
    COMMENT COLUMN input_tokens 'without cached_input_tokens and cache_write_tokens; NULL: unknown',
    COMMENT COLUMN cached_input_tokens 'read from a cache; NULL: unknown',
    COMMENT COLUMN cache_write_tokens 'written to a cache; NULL: unknown',
    COMMENT COLUMN output_tokens 'with reasoning_tokens; NULL: unknown',
    COMMENT COLUMN reasoning_tokens 'NULL: unknown',
    COMMENT COLUMN usage_source 'reported, estimated, none',
    COMMENT COLUMN cost_usd 'exact to the pico-dollar; NULL: unknown',
    COMMENT COLUMN outcome 'of the attempt: completed, failed, refused, cancelled, interrupted',
    COMMENT COLUMN request_outcome 'on the posting that ended its request; else NULL',
    COMMENT COLUMN status 'HTTP status that the request ended with; set with request_outcome',
    COMMENT COLUMN error_code 'of the attempt, or of the request that it ended; NULL: none',
    COMMENT COLUMN upstream_status 'HTTP status of the provider; NULL: none',
    COMMENT COLUMN finish_reason 'as the provider says; NULL: not said',
    COMMENT COLUMN content_frames 'pieces of the answer that went out',
    COMMENT COLUMN time_to_first_token_ms 'of the attempt; NULL: there was none',
    COMMENT COLUMN duration_ms 'of the attempt; NULL: not known',
    COMMENT COLUMN request_duration_ms 'from receipt to settlement; set with request_outcome';

ALTER TABLE {database}.usage
    MODIFY SETTING min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;

ALTER TABLE {database}.routing_decisions
    MODIFY SETTING min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;

ALTER TABLE {database}.refusals
    MODIFY SETTING min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;

ALTER TABLE {database}.budget_events
    MODIFY SETTING min_age_to_force_merge_seconds = 3600, min_age_to_force_merge_on_partition_only = 1;

ALTER TABLE {database}.replay_decisions
    MODIFY COMMENT 'What replays have shown: one row per run, candidate and decision; nothing of it happened';

ALTER TABLE {database}.replay_decisions
    COMMENT COLUMN run 'name of the replay',
    COMMENT COLUMN candidate 'the rules that were tried',
    COMMENT COLUMN journal_partition 'partition of the journal',
    COMMENT COLUMN journal_offset 'of the commit that decided the record',
    COMMENT COLUMN at 'when it was decided',
    COMMENT COLUMN organization 'who paid',
    COMMENT COLUMN request_id 'joins to every other table, with organization',
    COMMENT COLUMN key_id 'API key; NULL: asked without one',
    COMMENT COLUMN user_tier 'as the request says; NULL: not told',
    COMMENT COLUMN requested_model 'as the request names it',
    COMMENT COLUMN policy 'that chose; NULL: none',
    COMMENT COLUMN changes 'in what the two differ: admitted, refused, refusal, tier, model, deployment, attempts, outcome, cost',
    COMMENT COLUMN estimated 'an outcome of the candidate is estimated: nobody made that call',
    COMMENT COLUMN recorded_outcome 'as it was: NULL: it had not ended where the log ended',
    COMMENT COLUMN recorded_status 'as it was: HTTP status; NULL: not ended',
    COMMENT COLUMN recorded_error_code 'as it was: NULL: none',
    COMMENT COLUMN recorded_intent 'as it was: NULL: not known',
    COMMENT COLUMN recorded_tier 'as it was: NULL: none',
    COMMENT COLUMN recorded_model 'as it was: that answered; NULL: none',
    COMMENT COLUMN recorded_deployment 'as it was: that answered; NULL: none',
    COMMENT COLUMN recorded_attempts 'as it was: that were made',
    COMMENT COLUMN recorded_cost_usd 'as it was: NULL: unknown',
    COMMENT COLUMN recorded_input_tokens 'as it was: NULL: unknown',
    COMMENT COLUMN recorded_output_tokens 'as it was: NULL: unknown',
    COMMENT COLUMN recorded_time_to_first_token_ms 'as it was: NULL: unknown',
    COMMENT COLUMN recorded_duration_ms 'as it was: NULL: unknown',
    COMMENT COLUMN recorded_reasons 'as it was: what led to the choice',
    COMMENT COLUMN candidate_outcome 'by the candidate: NULL: it had not ended where the log ended',
    COMMENT COLUMN candidate_status 'by the candidate: HTTP status; NULL: not ended',
    COMMENT COLUMN candidate_error_code 'by the candidate: NULL: none',
    COMMENT COLUMN candidate_intent 'by the candidate: NULL: not known',
    COMMENT COLUMN candidate_tier 'by the candidate: NULL: none',
    COMMENT COLUMN candidate_model 'by the candidate: that answered; NULL: none',
    COMMENT COLUMN candidate_deployment 'by the candidate: that answered; NULL: none',
    COMMENT COLUMN candidate_attempts 'by the candidate: that were made',
    COMMENT COLUMN candidate_cost_usd 'by the candidate: NULL: unknown',
    COMMENT COLUMN candidate_cost_low_usd 'by the candidate: least that it may cost; NULL: unknown',
    COMMENT COLUMN candidate_cost_high_usd 'by the candidate: most that it may cost; NULL: unknown',
    COMMENT COLUMN candidate_input_tokens 'by the candidate: NULL: unknown',
    COMMENT COLUMN candidate_output_tokens 'by the candidate: NULL: unknown',
    COMMENT COLUMN candidate_time_to_first_token_ms 'by the candidate: NULL: unknown',
    COMMENT COLUMN candidate_duration_ms 'by the candidate: NULL: unknown',
    COMMENT COLUMN candidate_reasons 'by the candidate: what led to the choice';

ALTER TABLE {database}.schema_migrations
    MODIFY COMMENT 'Which numbered files of the schema this database has had';

ALTER TABLE {database}.schema_migrations
    COMMENT COLUMN number 'of the file',
    COMMENT COLUMN name 'of the file',
    COMMENT COLUMN checksum 'SHA-256 of the file as it was applied',
    COMMENT COLUMN applied_at 'when it was applied, UTC';
