// The lint must find what it is for: each case spoils good dashboards in one way.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Dashboard, Panel } from '@grafana/schema';

import { dashboards } from '../all.js';
import { lint } from './lint.js';
import { scraped } from './metrics.js';
import { isRow } from './panels.js';
import { grouping, selectors } from './promql.js';
import { lintProvisioning, readProvisioning } from './provisioning.js';
import type { Provisioning } from './provisioning.js';

type Spoil = (boards: Dashboard[], first: Dashboard, panel: Panel) => void;

const target = (panel: Panel): Record<string, unknown> => panel.targets?.[0] ?? {};
const ask = (panel: Panel, expr: string): void => void (target(panel)['expr'] = expr);
const SELECTED = '{job=~"$job", instance=~"$instance"}';

function spoilt(spoil: Spoil): string[] {
  const boards = structuredClone(dashboards);
  const [first] = boards;
  const panel = first?.panels?.find((one): one is Panel => !isRow(one) && one.type === 'timeseries');
  assert(first !== undefined && panel !== undefined);
  spoil(boards, first, panel);
  return lint(boards);
}

test('what is generated has no fault', () => assert.deepEqual(lint(dashboards), []));

const cases: [name: string, finds: RegExp, spoil: Spoil][] = [
  ['a dashboard is missing', /no such dashboard/, (boards) => void boards.pop()],
  ['a dashboard has another title', /is titled/, (_, board) => void (board.title = 'Analytics')],
  ['a dashboard has no description', /has no description/, (_, board) => void (board.description = '')],
  ['a variable is missing', /has no variable instance/, (_, board) => void (board.templating = { list: board.templating?.list?.filter(({ name }) => name !== 'instance') ?? [] })],
  ['a variable is unknown', /unknown variable nobody/, (_, __, panel) => ask(panel, 'sum(up{job=~"$nobody", instance=~"$instance"})')],
  ['deploys are not marked', /no annotation of deploys/, (_, board) => void (board.annotations = { list: [] })],
  ['an id is taken twice', /missing or taken/, (_, __, panel) => void (panel.id = 1)],
  ['a panel has no title', /has no title/, (_, __, panel) => void (panel.title = '')],
  ['two panels have one title', /two panels with the title/, (_, board, panel) => void (panel.title = board.panels?.at(-1)?.title ?? '')],
  ['a panel does not say what is normal', /what is normal/, (_, __, panel) => void (panel.description = 'Shows this and that.\n\n**Otherwise:** look.')],
  ['a panel does not say what to do', /what to do otherwise/, (_, __, panel) => void (panel.description = 'Shows this and that.\n\n**Normal:** 0.')],
  ['a unit is misspelt', /has the unit "second"/, (_, __, panel) => void (panel.fieldConfig!.defaults.unit = 'second')],
  ['thresholds are out of order', /out of order/, (_, __, panel) => void (panel.fieldConfig!.defaults.thresholds!.steps = [{ color: 'green', value: null }, { color: 'red', value: 2 }, { color: 'blue', value: 1 }])],
  ['a panel asks nothing', /asks nothing/, (_, __, panel) => void (panel.targets = [])],
  ['a data source is named', /names a data source/, (_, __, panel) => void (panel.datasource = { type: 'prometheus', uid: 'prometheus' })],
  ['the data source of a query is named', /names a data source/, (_, __, panel) => void (target(panel)['datasource'] = { uid: 'prometheus' })],
  ['an instance is named', /names an instance/, (_, __, panel) => ask(panel, `sum(up${SELECTED}) + sum(up{job=~"$job", instance="127.0.0.1:8081"})`)],
  ['a job is named', /names a job/, (_, __, panel) => ask(panel, 'sum(up{job="producer", instance=~"$instance"})')],
  ['a job is not chosen', /of any job/, (_, __, panel) => ask(panel, 'sum(up{instance=~"$instance"})')],
  ['an instance is not chosen', /of any instance/, (_, __, panel) => ask(panel, 'sum(up{job=~"$job"})')],
  ['a query is repeated', /repeats a query/, (boards, _, panel) => ask(panel, String(boards[1]?.panels?.flatMap((one) => (isRow(one) ? [] : (one.targets ?? []))).find((one) => 'expr' in one)?.['expr']))],
  ['a window is too short for its step', /wants \$__rate_interval/, (_, __, panel) => ask(panel, `sum(rate(events_accepted_total${SELECTED}[$__interval]))`)],
  ['a latency has no exemplars', /without exemplars/, (_, __, panel) => ask(panel, `histogram_quantile(0.5, sum by (le) (rate(event_end_to_end_seconds_bucket${SELECTED}[$__rate_interval])))`)],
  ['a metric does not exist', /which nothing exports/, (_, __, panel) => ask(panel, `sum(events_acepted_total${SELECTED})`)],
  ['a label does not exist', /by kind, which it does not have/, (_, __, panel) => ask(panel, 'sum(events_failed_total{job=~"$job", instance=~"$instance", kind="full"})')],
  ['a grouping does not exist', /groups by kind/, (_, __, panel) => ask(panel, `sum by (kind) (events_failed_total${SELECTED})`)],
  ['panels overlap', /lies over/, (_, board, panel) => void (panel.gridPos = { ...board.panels!.at(-2)!.gridPos! })],
  ['a panel does not fit', /does not fit the grid/, (_, __, panel) => void (panel.gridPos!.x = 20)],
  ['a link leads to no dashboard', /links to sg-nothing/, (_, __, panel) => void (panel.links![0] = { ...panel.links![0]!, url: '/d/sg-nothing' })],
  ['a dashboard does not link to another', /has no link to/, (_, board) => void (board.links = board.links!.slice(1))],
  ['a link leads to no alert', /is no alert/, (_, __, panel) => void (panel.links = [{ asDropdown: false, icon: '', includeVars: false, keepTime: false, tags: [], targetBlank: true, tooltip: '', title: 'x', type: 'link', url: 'https://github.com/streamgauge/streamgauge/blob/main/docs/runbooks/Nothing.md' }])],
  ['there are too few panels', /panels; at least/, (boards) => boards.forEach((board) => void (board.panels = board.panels?.slice(0, 3) ?? []))],
  ['rows are read whichever are served', /asking which are served/, (boards) => {
    for (const one of boards.flatMap(({ panels }) => panels ?? []).flatMap((panel) => (isRow(panel) ? panel.panels : []))) {
      const sql = target(one)['rawSql'];
      if (typeof sql === 'string') target(one)['rawSql'] = sql.replaceAll('SELECT slot FROM served', 'SELECT 0');
    }
  }],
];

for (const [name, finds, spoil] of cases) {
  test(`found: ${name}`, () => assert.match(spoilt(spoil).join('\n'), finds));
}

const provisioned: [name: string, finds: RegExp, spoil: (given: Provisioning) => void][] = [
  ['a data source is missing', /no data source with the uid postgres/, (given) => void given.datasources.pop()],
  ['a data source has another type', /no data source with the uid jaeger/, (given) => void (given.datasources[1]!.type = 'tempo')],
  ['exemplars lead nowhere', /exemplars do not lead/, (given) => void (given.datasources[0]!.jsonData.exemplarTraceIdDestinations = [])],
  ['a span asks for what is not exported', /which nothing exports/, (given) => void (given.datasources[1]!.jsonData.tracesToMetrics!.queries[0]!.query = 'sum(spans{$$__tags})')],
  ['a span asks about every service', /not about the span/, (given) => void (given.datasources[1]!.jsonData.tracesToMetrics!.queries[0]!.query = 'sum(errors_total)')],
  ['no folder is read', /no folder of dashboards/, (given) => void given.providers.pop()],
];

test('what is provisioned has no fault', () => assert.deepEqual(lintProvisioning(readProvisioning('provisioning')), []));
for (const [name, finds, spoil] of provisioned) {
  test(`found: ${name}`, () => {
    const given = readProvisioning('provisioning');
    spoil(given);
    assert.match(lintProvisioning(given).join('\n'), finds);
  });
}

test('selectors are read with their labels', () => {
  const expr = 'sum by (a) (rate(x_total{job=~"$job", b!="c(d{"}[5m])) / clamp_min(y - on (e) group_left (f) z offset 1h, 1e-9) or vector(0)';
  assert.deepEqual(selectors(expr), [
    { metric: 'x_total', labels: ['job', 'b'] },
    { metric: 'y', labels: [] },
    { metric: 'z', labels: [] },
  ]);
  assert.deepEqual(grouping(expr), ['a', 'e']);
});

test('a scrape is read with its labels', () => {
  const text = '# HELP a b\n# TYPE a counter\na_total{x="1",y="}\\" "} 1 # {trace_id="00"} 1 1\nb 2\n# EOF\n';
  assert.deepEqual([...scraped(text)], [['a_total', new Set(['x', 'y'])], ['b', new Set()]]);
});
