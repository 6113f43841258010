import { bargauge, dashboard, gained, q, quantile, rate, row, sel, share, stat, states, table, timeseries, words } from '../grafana.js';
import type { Query } from '../grafana.js';

// What counts against the objectives. Fixed windows over raw counters, so that nothing here needs a recording rule.
const FAILED = 'reason!~"rate_limited|abandoned"';

// Streams last as long as a client wants, and what it asked wrong is its own matter.
const QUESTIONS = 'route=~"/v1/series|/v1/top|/v1/distinct-users|/v1/users/.+|/analytics/events"';
const CALLS = 'method=~".*/(Series|Top|DistinctUsers|UserActivity)"';

/** The share of what was bad, over a fixed window. */
const objectives = {
  ingest: (window: string): string => {
    const failed = `sum(rate(${sel('events_failed_total', FAILED)}[${window}]))`;
    return `${failed} / clamp_min(${failed} + sum(rate(${sel('events_accepted_total')}[${window}])), 1e-9)`;
  },
  freshness: (window: string): string =>
    missed([['event_end_to_end_seconds_bucket', 'le="1.0"']], [['event_end_to_end_seconds_count', '']], window),
  queries: (window: string): string =>
    missed(
      [
        ['http_server_request_duration_seconds_bucket', `${QUESTIONS}, code="200", le="0.25"`],
        ['rpc_server_call_duration_seconds_bucket', `${CALLS}, code="ok", le="0.25"`],
      ],
      [
        ['http_server_requests_total', `${QUESTIONS}, code!~"4.."`],
        ['rpc_server_requests_total', `${CALLS}, code=~"ok|internal|unknown|data_loss|unavailable|deadline_exceeded"`],
      ],
      window,
    ),
};

type Counted = [metric: string, filter: string];

/** All less the good, of all; 0 while there are none. */
function missed(good: Counted[], all: Counted[], window: string): string {
  const sum = (counted: Counted[]): string =>
    counted.map(([metric, filter]) => `sum(rate(${sel(metric, filter)}[${window}]))`).join(' + ');
  return `clamp_min(${sum(all)} - (${sum(good)}), 0) / clamp_min(${sum(all)}, 1e-9)`;
}

const burn = (bad: (window: string) => string, budget: number, windows: string[]): Query[] =>
  windows.map((window) => q(`(${bad(window)}) / ${budget}`, window));

const left = (bad: (window: string) => string, budget: number): Query => ({
  ...q(`1 - (${bad('30d')}) / ${budget}`, 'left'),
  instant: true,
});

const budgetLeft = (title: string, shows: string, bad: (window: string) => string, budget: number, runbook: 'IngestErrorBudgetBurnSlow' | 'FreshnessSLOBurn' | 'QueryLatencySLOBurn') =>
  stat({
    title,
    shows: `${shows} What is left of the 30 days' error budget.`,
    normal: 'above 25%. At 0% the objective is missed, below it the budget is overdrawn.',
    otherwise: 'put off risky changes until it has recovered; the burn rates below say whether it is still going down, and since when.',
    unit: 'percentunit',
    decimals: 1,
    max: 1,
    thresholds: ['red', [0, 'orange'], [0.25, 'green']],
    queries: [left(bad, budget)],
    runbooks: [runbook],
    w: 8,
  });

const burnPanels = (what: string, bad: (window: string) => string, budget: number, runbooks: ('IngestErrorBudgetBurnFast' | 'IngestErrorBudgetBurnSlow' | 'FreshnessSLOBurn' | 'QueryLatencySLOBurn')[]) => ({
  fast: timeseries({
    title: `${what}: fast burn`,
    shows: 'How many times faster than sustainable the error budget is being spent, over short windows. At 1 it lasts exactly 30 days.',
    normal: 'below 1. Somebody is paged when 5m and 1h are both above 14.4, or 30m and 6h both above 6.',
    otherwise: 'this is an incident now. Find the stage that changed in the row "From symptom to cause" below, and go to its dashboard.',
    unit: 'suffix:x',
    decimals: 2,
    thresholds: ['green', [6, 'orange'], [14.4, 'red']],
    queries: burn(bad, budget, ['5m', '30m', '1h', '6h']),
    runbooks: [runbooks[0]!],
    w: 8,
  }),
  slow: timeseries({
    title: `${what}: slow burn`,
    shows: 'The same over long windows: what a small but lasting fault costs.',
    normal: 'below 1. A ticket is opened when 2h and 1d are both above 3, or 6h and 3d both above 1.',
    otherwise: 'no incident, but the objective will be missed if it stays so: plan the repair within days.',
    unit: 'suffix:x',
    decimals: 2,
    thresholds: ['green', [1, 'orange'], [3, 'red']],
    queries: burn(bad, budget, ['2h', '1d', '3d']),
    runbooks: [runbooks.at(-1)!],
    w: 8,
  }),
});

const ingest = burnPanels('Ingest', objectives.ingest, 0.001, ['IngestErrorBudgetBurnFast', 'IngestErrorBudgetBurnSlow']);
const freshness = burnPanels('Freshness', objectives.freshness, 0.01, ['FreshnessSLOBurn']);
const queries = burnPanels('Queries', objectives.queries, 0.01, ['QueryLatencySLOBurn']);

export const overview = dashboard({
  uid: 'sg-overview',
  description: 'Whether users get what they were promised, and where to look when they do not. Start here.',
  guide: `
**streamgauge** takes events over HTTP and gRPC (**producer**), writes them to Kafka, counts them exactly once (**consumer**) and answers queries about the counts (**analytics**). An event is *accepted*, then *counted*, then *applied*; after that it is queryable.

**Read from the top.** The first row says whether something is wrong now, the second whether a promise is at risk, the third in which stage. Then follow the links of the panel: *Producer* when events are refused, *Consumer and lag* when they come late, *Real-Time Analytics* when answers are slow, *Kafka Metrics* when all three suffer at once, *Ledger and canary* when figures look wrong, *Service Health* when a process is unwell. The ⓘ of each panel says what is normal and what to do.`,
  guideHeight: 6,
  rows: [
    row(
      'Is it working now?',
      stat({
        title: 'Targets up',
        shows: 'The share of the scraped services that answer Prometheus.',
        normal: '100%.',
        otherwise: 'Service Health shows which one is down and since when. A dead service reports nothing else, so trust no other panel of it.',
        unit: 'percentunit',
        thresholds: ['red', [1, 'green']],
        queries: [q(`avg(${sel('up')})`, 'up')],
        runbooks: ['TargetDown'],
        next: ['sg-health'],
      }),
      stat({
        title: 'Accepted',
        shows: 'Events per second that the producers acknowledged.',
        normal: 'what your clients send at this hour. There is no right value but your own.',
        otherwise: 'near 0: clients cannot reach the producer, or all is refused. Producer tells which.',
        unit: 'eps',
        queries: [q(`sum(${rate('events_accepted_total')})`, 'accepted')],
        next: ['sg-producer'],
      }),
      stat({
        title: 'Not taken',
        shows: 'The share of valid events that got no acknowledgement, those of clients beyond their own rate limit left out.',
        normal: '0%. Clients try again, so a short spike loses nothing.',
        otherwise: 'Producer, row "Why not?", names the reason.',
        unit: 'percentunit',
        decimals: 3,
        thresholds: ['green', [0.001, 'orange'], [0.01, 'red']],
        queries: [q(objectives.ingest('$__rate_interval'), 'not taken')],
        runbooks: ['IngestErrorBudgetBurnFast'],
        next: ['sg-producer'],
      }),
      stat({
        title: 'Events behind',
        shows: 'Age of the oldest event that no consumer has processed.',
        normal: 'below a second.',
        otherwise: 'it rises second by second when a consumer stands still, slower when it is too slow. See Consumer and lag. No data: no consumer is alive, which Targets up shows as well.',
        unit: 's',
        decimals: 1,
        thresholds: ['green', [5, 'orange'], [60, 'red']],
        queries: [q(`max(${sel('kafka_consumer_lag_seconds')})`, 'oldest')],
        runbooks: ['ConsumerStopped', 'ConsumerFallingBehind'],
        next: ['sg-consumer'],
      }),
      stat({
        title: 'Books',
        shows: 'Source offsets that some ledger does not account for, all stages together, regardless of sign.',
        normal: '0, always. Any other value is a defect or damage, never load.',
        otherwise: 'run `streamgauge audit`: it names the partition, the offset and the difference.',
        unit: 'short',
        thresholds: ['green', [1, 'red']],
        queries: [q(`sum(abs(${sel('ledger_imbalance')}))`, 'imbalance')],
        runbooks: ['LedgerImbalance'],
        next: ['sg-ledger'],
      }),
      stat({
        title: 'Alerts firing',
        shows: 'Alerts of severity warning or critical that Prometheus fires now, whatever jobs are chosen above.',
        normal: '0. It also shows 0 while no alert rules are loaded.',
        otherwise: 'switch on the annotation "Alerts" to see which ones and when; each has a runbook.',
        unit: 'short',
        thresholds: ['green', [1, 'red']],
        queries: [q('count(ALERTS{alertstate="firing", severity=~"critical|warning"}) or vector(0)', 'firing')],
      }),
    ),
    row(
      'Are the promises kept? Error budgets of 30 days and how fast they burn',
      budgetLeft('Ingest: 99.9% taken', 'Of all valid events 99.9% are acknowledged. What a client sent beyond its own rate limit, or broke off itself, does not count.', objectives.ingest, 0.001, 'IngestErrorBudgetBurnSlow'),
      budgetLeft('Freshness: 99% within 1 s', 'Of all events 99% are queryable within a second of their acceptance.', objectives.freshness, 0.01, 'FreshnessSLOBurn'),
      budgetLeft('Queries: 99% within 0.25 s', 'Of all queries 99% are answered within a quarter of a second, over HTTP and gRPC.', objectives.queries, 0.01, 'QueryLatencySLOBurn'),
      ingest.fast,
      freshness.fast,
      queries.fast,
      ingest.slow,
      freshness.slow,
      queries.slow,
    ),
    row(
      'From symptom to cause: which stage changed?',
      timeseries({
        title: 'One event, three stages',
        shows: 'Events accepted by the producer, counted by the consumer and applied by analytics, per second. Duplicates and late events are accepted and not counted.',
        normal: 'three lines upon each other.',
        otherwise: 'the first line that falls away is the stage at fault. All three at once: clients, or Kafka.',
        unit: 'eps',
        queries: [q(`sum by (outcome) (${rate('events_processed_total', 'outcome=~"accepted|counted|applied"')})`, '{{outcome}}')],
        next: ['sg-producer', 'sg-consumer', 'sg-real-time'],
      }),
      timeseries({
        title: 'Where the time goes',
        shows: 'Mean duration of every stage of all services.',
        normal: 'milliseconds each, but for `poll` and `emit`: they are waits, for records and for a batch to fill.',
        otherwise: 'the stage that rose is where to look. If `publish`, `confirm` and `store` rise together, a disk or the network is slow.',
        unit: 's',
        logarithmic: true,
        queries: [
          q(
            share(
              `sum by (job, stage) (${rate('event_processing_duration_seconds_sum')})`,
              `sum by (job, stage) (${rate('event_processing_duration_seconds_count')})`,
            ),
            '{{job}} {{stage}}',
          ),
        ],
      }),
      timeseries({
        title: 'Errors by service',
        shows: 'Errors per second of each service.',
        normal: '0.',
        otherwise: 'Service Health breaks them down by component and kind.',
        unit: 'ops',
        thresholds: ['green', [0.1, 'orange']],
        queries: [q(`sum by (job) (${rate('errors_total')})`, '{{job}}')],
        runbooks: ['ErrorRatioAnomaly'],
        next: ['sg-health'],
        w: 8,
      }),
      timeseries({
        title: 'Slowest tenth of submissions and answers',
        shows: 'The 90th percentile of all HTTP requests, by service. A point opens one such request as a trace.',
        normal: 'below 50 ms.',
        otherwise: 'open an exemplar above the usual: its trace shows in which span the time went.',
        unit: 's',
        thresholds: ['green', [0.5, 'orange']],
        queries: [{ ...q(quantile(0.9, 'http_server_request_duration_seconds', 'route!~"/metrics|/health|/livez|/readyz|/v1/live"', ['job']), '{{job}}'), exemplar: true }],
        w: 8,
      }),
      states({
        title: 'Anything held open',
        shows: 'Whether any circuit breaker of a service is not closed.',
        normal: 'closed.',
        otherwise: 'a breaker opens because what lies behind it fails: Kafka for the producer, the database for analytics. See to that; the breaker closes by itself.',
        unit: 'short',
        mappings: words({ 0: ['closed', 'green'], 1: ['half-open', 'yellow'], 2: ['open', 'red'] }),
        queries: [q(`max by (job) (${sel('circuit_breaker_state')})`, '{{job}}')],
        runbooks: ['CircuitBreakerOpen'],
        next: ['sg-health'],
        w: 8,
      }),
      bargauge({
        title: 'How events ended in this range',
        shows: 'Events of the range shown, by outcome, over all services. Each event is in it once per service that handled it.',
        normal: 'accepted, counted and applied alike, the rest small.',
        otherwise: 'rejected: clients send what breaks a rule. failed: the producer could not write. dead_lettered or late: see Ledger and canary.',
        unit: 'short',
        decimals: 0,
        queries: [q(`sum by (outcome) (${gained('events_processed_total')})`, '{{outcome}}')],
        next: ['sg-ledger'],
        w: 12,
      }),
      table({
        title: 'What is running',
        shows: 'How many instances run each version.',
        normal: 'one version per service, except during a rollout.',
        otherwise: 'two versions for long: a rollout got stuck.',
        unit: 'short',
        queries: [q(`count by (service, version, revision) (${sel('build_info')})`, '')],
        transformations: [
          { id: 'organize', options: { excludeByName: { Time: true }, renameByName: { Value: 'instances' } } },
        ],
        w: 12,
      }),
    ),
  ],
});
