-- How the budget of a month is spent: each day's cost, the sum up to it, and what is left of the budget.
-- @organization: who pays
-- @month = today: any day of the month, UTC
-- @budget_usd = 0: of the month; 0: the one that the latest crossed threshold of the month names, or not known
WITH
    (
        SELECT coalesce(
            nullIf(toDecimal128({budget_usd:Decimal(38, 12)}, 12), 0),
            argMax(b.budget_usd, b.at))
        FROM budget_events_exact AS b
        WHERE b.organization = {organization:String}
          AND b.event = 'threshold_crossed' AND b.account = 'organization' AND b.period = 'month'
          AND b.at >= toDateTime64(toStartOfMonth({month:Date}), 3, 'UTC')
          AND b.at < toDateTime64(toStartOfMonth({month:Date}) + INTERVAL 1 MONTH, 3, 'UTC')
    ) AS budget
SELECT
    toDate(u.at) AS day,
    sum(u.cost_usd) AS cost_usd,
    countIf(u.cost_usd IS NULL) AS unknown_cost,
    sum(cost_usd) OVER (ORDER BY day) AS spent_usd,
    budget AS budget_usd,
    budget - spent_usd AS left_usd,
    round(100 * toFloat64(spent_usd) / toFloat64(nullIf(budget, 0)), 2) AS spent_percent
FROM usage_exact AS u
WHERE u.organization = {organization:String}
  AND u.origin = 'live'
  AND u.at >= toDateTime64(toStartOfMonth({month:Date}), 3, 'UTC')
  AND u.at < toDateTime64(toStartOfMonth({month:Date}) + INTERVAL 1 MONTH, 3, 'UTC')
GROUP BY day
ORDER BY day
