-- Somebody who reads the rows of one organization and nobody else's, through every view and saved query. Put the names and
-- the password in, and run it as an administrator of ClickHouse. Views run with the rights of who asks, so the policies on
-- the tables hold in them.
--
-- A table that comes later needs a policy of its own before anybody may read it: the grants name the tables one by one.
CREATE USER IF NOT EXISTS acme_reader IDENTIFIED WITH sha256_password BY 'put a password here'
    SETTINGS readonly = 2, max_execution_time = 60 MAX 60, max_memory_usage = 2000000000 MAX 2000000000;

CREATE ROW POLICY IF NOT EXISTS acme_usage ON tollstream.usage FOR SELECT USING organization = 'acme' TO acme_reader;
CREATE ROW POLICY IF NOT EXISTS acme_routing_decisions ON tollstream.routing_decisions FOR SELECT USING organization = 'acme' TO acme_reader;
CREATE ROW POLICY IF NOT EXISTS acme_refusals ON tollstream.refusals FOR SELECT USING organization = 'acme' TO acme_reader;
CREATE ROW POLICY IF NOT EXISTS acme_budget_events ON tollstream.budget_events FOR SELECT USING organization = 'acme' TO acme_reader;
CREATE ROW POLICY IF NOT EXISTS acme_cache_lookups ON tollstream.cache_lookups FOR SELECT USING organization = 'acme' TO acme_reader;
CREATE ROW POLICY IF NOT EXISTS acme_cache_changes ON tollstream.cache_changes FOR SELECT USING organization = 'acme' TO acme_reader;
CREATE ROW POLICY IF NOT EXISTS acme_replay_decisions ON tollstream.replay_decisions FOR SELECT USING organization = 'acme' TO acme_reader;

-- Those who write and audit see all rows, also where the server is set to show none to whom no policy names. Name them one
-- by one: policies add up, and ALL EXCEPT one reader would show everything to the next one.
CREATE ROW POLICY IF NOT EXISTS all_usage ON tollstream.usage FOR SELECT USING 1 TO gateway, deployer;
CREATE ROW POLICY IF NOT EXISTS all_routing_decisions ON tollstream.routing_decisions FOR SELECT USING 1 TO gateway, deployer;
CREATE ROW POLICY IF NOT EXISTS all_refusals ON tollstream.refusals FOR SELECT USING 1 TO gateway, deployer;
CREATE ROW POLICY IF NOT EXISTS all_budget_events ON tollstream.budget_events FOR SELECT USING 1 TO gateway, deployer;
CREATE ROW POLICY IF NOT EXISTS all_cache_lookups ON tollstream.cache_lookups FOR SELECT USING 1 TO gateway, deployer;
CREATE ROW POLICY IF NOT EXISTS all_cache_changes ON tollstream.cache_changes FOR SELECT USING 1 TO gateway, deployer;
CREATE ROW POLICY IF NOT EXISTS all_replay_decisions ON tollstream.replay_decisions FOR SELECT USING 1 TO gateway, deployer;

GRANT SELECT ON tollstream.usage TO acme_reader;
GRANT SELECT ON tollstream.routing_decisions TO acme_reader;
GRANT SELECT ON tollstream.refusals TO acme_reader;
GRANT SELECT ON tollstream.budget_events TO acme_reader;
GRANT SELECT ON tollstream.cache_lookups TO acme_reader;
GRANT SELECT ON tollstream.cache_changes TO acme_reader;
GRANT SELECT ON tollstream.replay_decisions TO acme_reader;
GRANT SELECT ON tollstream.usage_exact TO acme_reader;
GRANT SELECT ON tollstream.requests TO acme_reader;
GRANT SELECT ON tollstream.cost_by_organization_model_tier_hour TO acme_reader;
GRANT SELECT ON tollstream.cost_by_organization_model_tier_day TO acme_reader;
GRANT SELECT ON tollstream.latency TO acme_reader;
GRANT SELECT ON tollstream.errors TO acme_reader;
GRANT SELECT ON tollstream.routing_decisions_exact TO acme_reader;
GRANT SELECT ON tollstream.refusals_exact TO acme_reader;
GRANT SELECT ON tollstream.budget_events_exact TO acme_reader;
GRANT SELECT ON tollstream.cache_lookups_exact TO acme_reader;
GRANT SELECT ON tollstream.cache_changes_exact TO acme_reader;
GRANT SELECT ON tollstream.limit_events TO acme_reader;
GRANT SELECT ON tollstream.replay_decisions_exact TO acme_reader;
