// Runs every query on live systems, as Grafana would: live.js [FOLDER] [PROVISIONING]. A query that returns nothing fails.
//   PROMETHEUS_URL     for the queries in PromQL, the variables and the annotations
//   POSTGRES_URL       for those in SQL
//   REQUIRE_EXEMPLARS  set to 1: latencies without a single exemplar fail as well
import { execFileSync } from 'node:child_process';

import type { Dashboard } from '@grafana/schema';

import { ANNOUNCED, EXPORTED, WITHOUT_TRACE } from './metrics.js';
import { annotationQueries, prometheusQueries, read, sqlQueries, variableQuery } from './panels.js';
import { selectors } from './promql.js';
import { readProvisioning, spanQueries } from './provisioning.js';

const RANGE_S = 600;
/** Ranges for which the SQL reads seconds, minutes, hours and days. */
const SQL_RANGES_S = [600, 6 * 3600, 7 * 86400, 90 * 86400];
/** What Grafana allows a series to be called and to be worth. */
const SERIES_COLUMNS = ['time', 'metric', 'value'];

const wrong: string[] = [];
const fail = (place: string, what: string): void => void wrong.push(`${place}: ${what}`);

interface Answer<T> {
  status: string;
  data: T;
  error?: string;
  warnings?: string[];
}
interface Sample {
  metric: Record<string, string>;
  value: [number, string];
}
type Result = { resultType: 'vector'; result: Sample[] } | { resultType: 'scalar'; result: [number, string] };

class Prometheus {
  constructor(private readonly url: string) {}

  async ask<T>(path: string, parameters: Record<string, string> = {}): Promise<T> {
    const response = await fetch(`${this.url}${path}?${new URLSearchParams(parameters)}`);
    const answer = (await response.json()) as Answer<T>;
    if (answer.status !== 'success') throw new Error(answer.error ?? `${path}: ${response.status}`);
    if (answer.warnings !== undefined) throw new Error(`warnings: ${answer.warnings.join(', ')}`);
    return answer.data;
  }

  /** How many series of an expression have a number now. */
  async numbers(expr: string): Promise<number> {
    const data = await this.ask<Result>('/api/v1/query', { query: expr });
    const values = data.resultType === 'vector' ? data.result.map(({ value }) => value[1]) : [data.result[1]];
    return values.filter((value) => value !== 'NaN').length;
  }
}

const escaped = (value: string): string => value.replace(/[\\^$.*+?()[\]{}|]/g, '\\\\$&');

const since = (): Record<string, string> => {
  const now = Date.now() / 1000;
  return { start: String(now - RANGE_S), end: String(now) };
};

/** What stands for each variable when All is chosen and nothing else is there. */
async function variables(prometheus: Prometheus, board: Dashboard): Promise<Map<string, string>> {
  const filled = new Map<string, string>();
  for (const variable of board.templating?.list ?? []) {
    const query = variableQuery(variable);
    if (query === undefined) continue;
    const place = `${board.uid} / variable ${variable.name}`;
    const [, selector, label] = /^label_values\((.*),\s*(\w+)\)$/.exec(query) ?? [];
    if (selector === undefined || label === undefined) {
      fail(place, `is not understood: ${query}`);
      continue;
    }
    const parameters = { 'match[]': fill(selector, filled), ...since() };
    const values = await prometheus.ask<string[]>(`/api/v1/label/${label}/values`, parameters);
    if (values.length === 0) fail(place, 'offers nothing');
    // The values one by one, not the wider pattern that All sends: so a variable that offers too little is noticed.
    filled.set(variable.name, values.map(escaped).join('|'));
  }
  return filled;
}

function fill(expr: string, filled: Map<string, string>): string {
  let text = expr
    .replaceAll('$__rate_interval', '1m')
    .replaceAll('$__interval', '15s')
    .replaceAll('$__range', `${RANGE_S}s`);
  for (const [name, value] of filled) text = text.replaceAll(new RegExp(`\\$${name}\\b`, 'g'), () => value);
  if (text.includes('$')) throw new Error(`a variable is left in ${text}`);
  return text;
}

/** Whether a metric is of the embedded log where Kafka stands in its place. */
function isAway(metric: string): boolean {
  return process.env['EXTERNAL_LOG'] === '1' && metric.startsWith('log_');
}

async function checkPrometheus(url: string, boards: Dashboard[]): Promise<void> {
  const prometheus = new Prometheus(url);
  const names = new Set(await prometheus.ask<string[]>('/api/v1/label/__name__/values', { 'match[]': '{job=~"streamgauge-.*"}', ...since() }));
  for (const metric of Object.keys(ANNOUNCED)) {
    if (names.has(metric)) fail('announced', `${metric} exists by now; take it off the list of what is announced`);
  }
  for (const metric of Object.keys(EXPORTED)) {
    if (!names.has(metric) && !isAway(metric)) fail('catalogue', `${metric} is not exported any more; make the catalogue anew`);
  }
  const fresh = [...names].filter((name) => !(name in EXPORTED) && !/^(up|scrape_.*|ALERTS.*)$|:/.test(name) && !(name in ANNOUNCED));
  if (fresh.length > 0) console.log(`live: not in the catalogue yet: ${fresh.join(', ')}`);

  const filled = new Map<string, Map<string, string>>();
  let [asked, series, empty, exemplars, wanted] = [0, 0, 0, 0, 0];
  for (const board of boards) {
    const known = await variables(prometheus, board);
    filled.set(board.uid ?? '', known);
    for (const { name, expr } of annotationQueries(board)) {
      // Nothing may have been deployed; but it must be a question that Prometheus understands.
      try {
        await prometheus.numbers(fill(expr, known));
      } catch (error) {
        fail(`${board.uid} / annotation ${name}`, String(error));
      }
    }
  }
  for (const { board, target, place } of prometheusQueries(boards)) {
    asked += 1;
    try {
      const expr = fill(target.expr, filled.get(board.uid ?? '') ?? new Map());
      const found = await prometheus.numbers(expr);
      series += found;
      const announced = selectors(expr).some(({ metric }) => metric in ANNOUNCED || isAway(metric));
      if (found === 0 && announced) empty += 1;
      else if (found === 0) fail(place, `no data: ${expr}`);
      if (!target.exemplar || announced || WITHOUT_TRACE.test(expr)) continue;
      wanted += 1;
      const traces = await prometheus.ask<unknown[]>('/api/v1/query_exemplars', { query: expr, ...since() });
      if (traces.length > 0) exemplars += 1;
      else if (process.env['REQUIRE_EXEMPLARS'] === '1') fail(place, 'has no exemplars');
    } catch (error) {
      fail(place, `${error}`);
    }
  }
  for (const service of ['producer', 'consumer', 'analytics']) {
    for (const { name, expr } of spanQueries(readProvisioning(process.argv[3] ?? 'provisioning'), service)) {
      asked += 1;
      const found = await prometheus.numbers(expr);
      series += found;
      if (found === 0) fail(`provisioning / spans of the ${service}`, `"${name}" has no data: ${expr}`);
    }
  }
  console.log(`live: ${asked} queries in PromQL, ${series} series, ${empty} empty as announced; ${exemplars} of ${wanted} latencies have exemplars`);
}

/** Runs SQL and returns the lines of its answer as CSV, the names of the columns first. */
function psql(url: string, sql: string): string[] {
  const options = ['--no-psqlrc', '--quiet', '--csv', '--set', 'ON_ERROR_STOP=1', '--command', sql, url];
  const text = execFileSync('psql', options, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  return text.split('\n').filter((line) => line !== '');
}

function checkPostgres(url: string, boards: Dashboard[]): void {
  let [asked, rows] = [0, 0];
  for (const { target, place } of sqlQueries(boards)) {
    for (const range of SQL_RANGES_S) {
      const now = Math.floor(Date.now() / 1000);
      const sql = target.rawSql
        .replaceAll('$__unixEpochFrom()', String(now - range))
        .replaceAll('$__unixEpochTo()', String(now))
        .replaceAll('$__interval_ms', String(Math.ceil(range / 500) * 1000));
      if (sql.includes('$')) {
        fail(place, `a variable is left in ${sql}`);
        continue;
      }
      asked += 1;
      try {
        const [columns = '', ...answer] = psql(url, sql);
        rows += answer.length;
        if (answer.length === 0) fail(place, `no rows over ${range} s: ${sql}`);
        if (target.format === 'time_series' && columns !== SERIES_COLUMNS.join(',')) fail(place, `has the columns ${columns}`);
      } catch (error) {
        const { stderr } = error as { stderr?: string };
        fail(place, `${stderr ?? error}\n${sql}`);
      }
    }
  }
  console.log(`live: ${asked} runs of ${sqlQueries(boards).length} queries in SQL, ${rows} rows`);
}

const boards = read(process.argv[2] ?? 'dashboards');
const { PROMETHEUS_URL, POSTGRES_URL } = process.env;
if (PROMETHEUS_URL) await checkPrometheus(PROMETHEUS_URL.replace(/\/$/, ''), boards);
else console.log('live: PROMETHEUS_URL is not set; no query in PromQL was run');
if (POSTGRES_URL) checkPostgres(POSTGRES_URL, boards);
else console.log('live: POSTGRES_URL is not set; no query in SQL was run');
for (const line of wrong) console.error(line);
if (wrong.length > 0) console.log(`live: ${wrong.length} faults`);
process.exitCode = wrong.length === 0 ? 0 : 1;
