// The vocabulary in which the dashboards are written: queries, panels, rows and how they become a `Dashboard`.
//
// A panel cannot be made without saying what it shows, what is normal and what to do otherwise; every query
// names its variables by the helpers below, so that none is tied to a data source or an instance.

import {
  AxisPlacement,
  BarGaugeDisplayMode,
  BarGaugeNamePlacement,
  BarGaugeSizing,
  BarGaugeValueMode,
  BigValueColorMode,
  BigValueGraphMode,
  BigValueJustifyMode,
  BigValueTextMode,
  DashboardCursorSync,
  FieldColorModeId,
  GraphDrawStyle,
  GraphGradientMode,
  GraphThresholdsStyleMode,
  HeatmapCellLayout,
  LegendDisplayMode,
  LineInterpolation,
  MappingType,
  PercentChangeColorMode,
  ScaleDistribution,
  SortOrder,
  StackingMode,
  ThresholdsMode,
  TooltipDisplayMode,
  VariableHide,
  VariableRefresh,
  VariableSort,
  VisibilityMode,
  VizOrientation,
} from '@grafana/schema';
import type {
  AnnotationQuery,
  Dashboard,
  DashboardLink,
  DataSourceRef,
  DataTransformerConfig,
  FieldConfig,
  FieldConfigSource,
  Panel,
  RowPanel,
  ThresholdsConfig,
  ValueMapping,
  VariableModel,
} from '@grafana/schema';
import type { Options as BarChartOptions } from '@grafana/schema/dist/esm/raw/composable/barchart/panelcfg/x/BarChartPanelCfg_types.gen';
import type { Options as BarGaugeOptions } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type { Options as HeatmapOptions } from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type {
  FieldConfig as StateFieldConfig,
  Options as StateOptions,
} from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type { Options as TableOptions } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { Options as TextOptions } from '@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen';
import type {
  FieldConfig as TimeSeriesFieldConfig,
  Options as TimeSeriesOptions,
} from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

import type { Alert } from './alerts.js';

/** The dashboards, by uid. */
export const BOARDS = {
  'sg-overview': 'Overview and SLOs',
  'sg-real-time': 'Real-Time Analytics',
  'sg-kafka': 'Kafka Metrics',
  'sg-health': 'Service Health',
  'sg-producer': 'Producer',
  'sg-consumer': 'Consumer and lag',
  'sg-ledger': 'Ledger and canary',
} as const;
export type BoardUid = keyof typeof BOARDS;

/** Where the runbooks lie; each file is named after its alert. */
export const RUNBOOKS = 'https://github.com/streamgauge/streamgauge/blob/main/docs/runbooks';

export const PROMETHEUS: DataSourceRef = { type: 'prometheus', uid: '${datasource}' };
export const POSTGRES: DataSourceRef = { type: 'grafana-postgresql-datasource', uid: '${postgres}' };

// ---------------------------------------------------------------- queries

/** A query in PromQL. */
export interface PromTarget extends Record<string, unknown> {
  refId: string;
  datasource: DataSourceRef;
  editorMode: 'code';
  expr: string;
  legendFormat: string;
  range: boolean;
  instant: boolean;
  exemplar: boolean;
  format: 'time_series' | 'heatmap' | 'table';
}

/** A query in SQL. */
export interface SqlTarget extends Record<string, unknown> {
  refId: string;
  datasource: DataSourceRef;
  editorMode: 'code';
  rawQuery: true;
  rawSql: string;
  format: 'time_series' | 'table';
}

/** A query before it has its place in a panel. */
export interface Query {
  expr: string;
  legend: string;
  exemplar?: boolean;
  /** The value of now alone, not one per step. */
  instant?: boolean;
}

/** A query and the legend of its series, in which {{label}} stands for a label's value. */
export const q = (expr: string, legend: string): Query => ({ expr, legend });

/** A selector of one metric, narrowed to the jobs and instances chosen above the dashboard. */
export const sel = (metric: string, filter = '', job = 'job'): string => {
  const own = job === 'job' ? ', instance=~"$instance"' : '';
  return `${metric}{job=~"$${job}"${own}${filter === '' ? '' : `, ${filter}`}}`;
};

/** What a counter gains in a second. */
export const rate = (metric: string, filter = '', job = 'job'): string =>
  `rate(${sel(metric, filter, job)}[$__rate_interval])`;

/** What a counter gained over the range that the dashboard shows. */
export const gained = (metric: string, filter = '', job = 'job'): string =>
  `increase(${sel(metric, filter, job)}[$__range])`;

/** `part / whole`, and 0 where the whole is: a quiet system shows a figure, not a hole. */
export const share = (part: string, whole: string): string => `${part} / clamp_min(${whole}, 1e-9)`;

/** A quantile of a histogram, over all or by labels. */
export const quantile = (at: number, histogram: string, filter = '', by: string[] = [], job = 'job'): string =>
  `histogram_quantile(${at}, sum by (${['le', ...by].join(', ')}) (${rate(`${histogram}_bucket`, filter, job)}))`;

/** Median, p95 and p99. The exemplars of all three are the same, so that only the last one asks for them. */
export const quantiles = (histogram: string, filter = '', job = 'job'): Query[] => [
  q(quantile(0.5, histogram, filter, [], job), 'median'),
  q(quantile(0.95, histogram, filter, [], job), 'p95'),
  { ...q(quantile(0.99, histogram, filter, [], job), 'p99'), exemplar: true },
];

/** One quantile by labels, with exemplars. */
export const quantileBy = (at: number, histogram: string, by: string[], filter = ''): Query => ({
  ...q(quantile(at, histogram, filter, by), by.map((label) => `{{${label}}}`).join(' ')),
  exemplar: true,
});

// ---------------------------------------------------------------- panels

/** What each panel must say for itself. */
export interface Words {
  title: string;
  /** What it shows. */
  shows: string;
  /** What is normal. */
  normal: string;
  /** What to do when it is not. */
  otherwise: string;
  /** Alerts whose runbooks help. */
  runbooks?: Alert[];
  /** The dashboard to go on with. */
  next?: BoardUid[];
}

/** Width and height on the grid of 24 columns. */
export interface Size {
  w?: number;
  h?: number;
}

/** From this value on, this colour. The first one holds below everything. */
export type Steps = [base: string, ...above: [from: number, color: string][]];

interface Common extends Words, Size {
  /** An id of Grafana's list of units. */
  unit: string;
  decimals?: number;
  min?: number;
  max?: number;
  thresholds?: Steps;
  mappings?: ValueMapping[];
  /** Shown in place of "No data" where there cannot be any. */
  noValue?: string;
}

interface Drawn {
  queries: Query[];
}

/** A panel without its place. */
export type Placed = { panel: Panel; w: number; h: number };

export const boardPath = (uid: BoardUid): string => `/d/${uid}`;

const link = (title: string, url: string, targetBlank = false): DashboardLink => ({
  asDropdown: false,
  icon: 'external link',
  includeVars: false,
  keepTime: false,
  tags: [],
  targetBlank,
  title,
  tooltip: '',
  type: 'link',
  url,
});

// The other dashboard gets the time and the data source along; its own jobs are others.
const toBoard = (uid: BoardUid): DashboardLink =>
  link(`Next: ${BOARDS[uid]}`, `${boardPath(uid)}?\${__url_time_range}&\${datasource:queryparam}`);

export const runbookUrl = (alert: Alert): string => `${RUNBOOKS}/${alert}.md`;

const steps = (given: Steps): ThresholdsConfig => {
  const [base, ...above] = given;
  return {
    mode: ThresholdsMode.Absolute,
    steps: [{ color: base, value: null }, ...above.map(([value, color]) => ({ color, value }))],
  };
};

function prometheusTargets(queries: Query[], format: PromTarget['format'] = 'time_series'): PromTarget[] {
  return queries.map(({ expr, legend, exemplar = false, instant = false }, index) => ({
    refId: String.fromCharCode(65 + index),
    datasource: PROMETHEUS,
    editorMode: 'code',
    expr,
    legendFormat: legend,
    range: !instant,
    instant,
    exemplar,
    format,
  }));
}

function base<T>(type: string, given: Common, options: T, defaults: FieldConfig, overrides: FieldConfigSource['overrides'] = []): Panel {
  const fields: FieldConfig = {
    unit: given.unit,
    color: { mode: given.thresholds === undefined ? FieldColorModeId.PaletteClassic : FieldColorModeId.Thresholds },
    thresholds: steps(given.thresholds ?? ['green']),
    mappings: given.mappings ?? [],
    ...defaults,
  };
  if (given.decimals !== undefined) fields.decimals = given.decimals;
  if (given.min !== undefined) fields.min = given.min;
  if (given.max !== undefined) fields.max = given.max;
  if (given.noValue !== undefined) fields.noValue = given.noValue;
  return {
    type,
    title: given.title,
    description: `${given.shows}\n\n**Normal:** ${given.normal}\n\n**Otherwise:** ${given.otherwise}`,
    links: [
      ...(given.runbooks ?? []).map((alert) => link(`Runbook: ${alert}`, runbookUrl(alert), true)),
      ...(given.next ?? []).map(toBoard),
    ],
    datasource: PROMETHEUS,
    fieldConfig: { defaults: fields, overrides },
    options: options as Record<string, unknown>,
  };
}

interface TimeSeries extends Common, Drawn {
  stack?: boolean;
  /** Bars in place of lines: for what happens now and then. */
  bars?: boolean;
  logarithmic?: boolean;
}

const timeSeriesLook = (given: TimeSeries | SqlSeries): { options: TimeSeriesOptions; custom: TimeSeriesFieldConfig } => ({
  options: {
    legend: { calcs: ['mean', 'max', 'lastNotNull'], displayMode: LegendDisplayMode.Table, placement: 'bottom', showLegend: true },
    tooltip: { mode: TooltipDisplayMode.Multi, sort: SortOrder.Descending },
  },
  custom: {
    drawStyle: given.bars ? GraphDrawStyle.Bars : GraphDrawStyle.Line,
    lineInterpolation: LineInterpolation.Linear,
    lineWidth: 1,
    fillOpacity: given.stack ? 30 : given.bars ? 60 : 8,
    gradientMode: GraphGradientMode.None,
    showPoints: VisibilityMode.Never,
    spanNulls: false,
    axisPlacement: AxisPlacement.Auto,
    scaleDistribution: given.logarithmic ? { type: ScaleDistribution.Log, log: 10 } : { type: ScaleDistribution.Linear },
    stacking: { mode: given.stack ? StackingMode.Normal : StackingMode.None, group: 'A' },
    thresholdsStyle: { mode: given.thresholds === undefined ? GraphThresholdsStyleMode.Off : GraphThresholdsStyleMode.Dashed },
  },
});

/** Lines over time. */
export function timeseries(given: TimeSeries): Placed {
  const { options, custom } = timeSeriesLook(given);
  const panel = base('timeseries', { min: given.logarithmic ? undefined : 0, ...given } as Common, options, {
    // Lines keep colours of their own; a threshold is a line across them.
    color: { mode: FieldColorModeId.PaletteClassic },
    custom: custom as Record<string, unknown>,
  });
  panel.targets = prometheusTargets(given.queries);
  return { panel, w: given.w ?? 12, h: given.h ?? 8 };
}

interface Stat extends Common, Drawn {
  /** Without the small graph. */
  plain?: boolean;
  text?: BigValueTextMode;
}

/** One figure, or a few. */
export function stat(given: Stat): Placed {
  const options: StatOptions = {
    colorMode: given.thresholds === undefined ? BigValueColorMode.None : BigValueColorMode.Value,
    graphMode: given.plain || given.queries.some((query) => query.instant) ? BigValueGraphMode.None : BigValueGraphMode.Area,
    justifyMode: BigValueJustifyMode.Auto,
    orientation: VizOrientation.Auto,
    percentChangeColorMode: PercentChangeColorMode.Standard,
    reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false },
    showPercentChange: false,
    textMode: given.text ?? BigValueTextMode.Auto,
    wideLayout: true,
  };
  const panel = base('stat', given, options, {});
  panel.targets = prometheusTargets(given.queries);
  return { panel, w: given.w ?? 4, h: given.h ?? 4 };
}

/** Bars that compare, one per series. */
export function bargauge(given: Common & Drawn): Placed {
  const options: BarGaugeOptions = {
    displayMode: BarGaugeDisplayMode.Basic,
    legend: { calcs: [], displayMode: LegendDisplayMode.List, placement: 'bottom', showLegend: false },
    maxVizHeight: 300,
    minVizHeight: 16,
    minVizWidth: 8,
    namePlacement: BarGaugeNamePlacement.Auto,
    orientation: VizOrientation.Horizontal,
    reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false },
    showUnfilled: true,
    sizing: BarGaugeSizing.Auto,
    valueMode: BarGaugeValueMode.Color,
  };
  const panel = base('bargauge', { min: 0, ...given }, options, {});
  panel.targets = prometheusTargets(given.queries.map((query) => ({ ...query, instant: true })));
  return { panel, w: given.w ?? 8, h: given.h ?? 8 };
}

/** Where the observations of a histogram lie, over time. */
export function heatmap(given: Common & { query: Query }): Placed {
  const options: HeatmapOptions = {
    calculate: false,
    cellGap: 1,
    color: { exponent: 0.5, fill: 'dark-orange', mode: 'scheme' as NonNullable<HeatmapOptions['color']['mode']>, reverse: false, scheme: 'Oranges', steps: 64 },
    exemplars: { color: 'rgba(255,0,255,0.7)' },
    filterValues: { le: 1e-9 },
    legend: { show: true },
    rowsFrame: { layout: HeatmapCellLayout.auto },
    showValue: VisibilityMode.Never,
    tooltip: { mode: TooltipDisplayMode.Single, yHistogram: true, showColorScale: true },
    yAxis: { axisPlacement: AxisPlacement.Left, unit: given.unit },
  };
  const panel = base('heatmap', given, options, {});
  panel.targets = prometheusTargets([given.query], 'heatmap');
  return { panel, w: given.w ?? 12, h: given.h ?? 8 };
}

/** What was in which state, when. */
export function states(given: Common & Drawn & { mappings: ValueMapping[] }): Placed {
  const options: StateOptions = {
    legend: { calcs: [], displayMode: LegendDisplayMode.List, placement: 'bottom', showLegend: true },
    tooltip: { mode: TooltipDisplayMode.Single, sort: SortOrder.None },
    mergeValues: true,
    rowHeight: 0.9,
    showValue: VisibilityMode.Auto,
  };
  const custom: StateFieldConfig = { fillOpacity: 80, lineWidth: 0 };
  const panel = base('state-timeline', given, options, { custom: custom as Record<string, unknown> });
  panel.targets = prometheusTargets(given.queries);
  return { panel, w: given.w ?? 12, h: given.h ?? 8 };
}

const tableOptions: TableOptions = { cellHeight: undefined, showHeader: true, frameIndex: 0 };

/** Labels and figures of now, as a table. */
export function table(given: Common & Drawn & { transformations?: DataTransformerConfig[] }): Placed {
  const panel = base('table', given, { ...tableOptions }, {});
  panel.targets = prometheusTargets(given.queries.map((query) => ({ ...query, instant: true })), 'table');
  panel.transformations = given.transformations ?? [];
  return { panel, w: given.w ?? 12, h: given.h ?? 8 };
}

// ---------------------------------------------------------------- SQL panels

function sqlTarget(sql: string, format: SqlTarget['format']): SqlTarget {
  return { refId: 'A', datasource: POSTGRES, editorMode: 'code', rawQuery: true, rawSql: sql, format };
}

interface SqlCommon extends Common {
  sql: string;
}
interface SqlSeries extends SqlCommon {
  stack?: boolean;
  bars?: boolean;
  logarithmic?: boolean;
}

/** A query with the columns time, metric and value, as lines or bars. */
export function sqlSeries(given: SqlSeries): Placed {
  const { options, custom } = timeSeriesLook(given);
  const panel = base('timeseries', { min: 0, ...given }, options, { custom: custom as Record<string, unknown> });
  panel.datasource = POSTGRES;
  panel.targets = [sqlTarget(given.sql, 'time_series')];
  return { panel, w: given.w ?? 12, h: given.h ?? 8 };
}

/** A query whose rows are shown as they are. `units` gives columns a unit other than the panel's. */
export function sqlTable(given: SqlCommon & { units?: Record<string, string> }): Placed {
  const overrides = Object.entries(given.units ?? {}).map(([column, unit]) => ({
    matcher: { id: 'byName', options: column },
    properties: [{ id: 'unit', value: unit }],
  }));
  const panel = base('table', given, { ...tableOptions }, {}, overrides);
  panel.datasource = POSTGRES;
  panel.targets = [sqlTarget(given.sql, 'table')];
  return { panel, w: given.w ?? 12, h: given.h ?? 8 };
}

/** A query whose first column names a bar and whose second is its length. */
export function sqlBars(given: SqlCommon): Placed {
  const options: BarChartOptions = {
    barWidth: 0.9,
    fullHighlight: false,
    groupWidth: 0.7,
    legend: { calcs: [], displayMode: LegendDisplayMode.List, placement: 'bottom', showLegend: false },
    orientation: VizOrientation.Auto,
    showValue: VisibilityMode.Auto,
    stacking: StackingMode.None,
    tooltip: { mode: TooltipDisplayMode.Single, sort: SortOrder.None },
    xTickLabelMaxLength: 0,
    xTickLabelRotation: 0,
  };
  const panel = base('barchart', { min: 0, ...given }, options, {});
  panel.datasource = POSTGRES;
  panel.targets = [sqlTarget(given.sql, 'table')];
  return { panel, w: given.w ?? 12, h: given.h ?? 8 };
}

// ---------------------------------------------------------------- values as words

/** Each number as a word with a colour. */
export const words = (given: Record<number, [text: string, color: string]>): ValueMapping[] => [
  {
    type: MappingType.ValueToText,
    options: Object.fromEntries(
      Object.entries(given).map(([value, [text, color]], index) => [value, { text, color, index }]),
    ),
  },
];

export const UP_OR_DOWN = words({ 0: ['down', 'red'], 1: ['up', 'green'] });
export const BREAKER = words({ 0: ['closed', 'green'], 1: ['half-open', 'yellow'], 2: ['open', 'red'] });

// ---------------------------------------------------------------- rows and dashboards

/** A row, under whose title lie panels. */
export interface Row {
  title: string;
  collapsed?: boolean;
  panels: Placed[];
}

export const row = (title: string, ...panels: Placed[]): Row => ({ title, panels });

/** A row that asks nothing of its data source before somebody opens it. */
export const folded = (title: string, ...panels: Placed[]): Row => ({ title, panels, collapsed: true });

/** Which jobs a variable offers. The names are those of the scrape configuration. */
export type Service = 'producer' | 'consumer' | 'analytics';

export interface Board {
  uid: BoardUid;
  description: string;
  tags?: string[];
  /** What a reader who has never seen the system needs to know, in Markdown. */
  guide: string;
  guideHeight?: number;
  /** The service that `job` offers; all of them when absent. */
  service?: Service;
  /** Services of which single figures are shown beside `job`; each has a variable of its own name. */
  beside?: Service[];
  /** Whether it has panels that ask PostgreSQL. */
  sql?: boolean;
  range?: string;
  rows: Row[];
}

const ALL = { selected: true, text: ['All'], value: ['$__all'] };

const jobVariable = (name: string, label: string, description: string, jobs: string): VariableModel => ({
  type: 'query',
  name,
  label,
  description,
  datasource: PROMETHEUS,
  query: { qryType: 1, query: `label_values(up{job=~"${jobs}"}, job)`, refId: name },
  // Of the range, so that what is dead by now is offered as well.
  refresh: VariableRefresh.onTimeRangeChanged,
  sort: VariableSort.alphabeticalAsc,
  multi: true,
  includeAll: true,
  allValue: jobs,
  current: ALL,
  options: [],
  hide: VariableHide.dontHide,
});

const sourceVariable = (name: string, label: string, type: string, uid: string): VariableModel => ({
  type: 'datasource',
  name,
  label,
  description: `The ${label} that this dashboard asks.`,
  query: type,
  refresh: VariableRefresh.onDashboardLoad,
  multi: false,
  includeAll: false,
  current: { selected: true, text: label, value: uid },
  options: [],
  regex: '',
  hide: VariableHide.dontHide,
});

const jobsOf = (service?: Service): string => (service === undefined ? 'streamgauge-.*' : `streamgauge-${service}.*`);

function variables(board: Board): VariableModel[] {
  const list = [sourceVariable('datasource', 'Prometheus', 'prometheus', 'prometheus')];
  if (board.sql) list.push(sourceVariable('postgres', 'PostgreSQL', 'grafana-postgresql-datasource', 'postgres'));
  list.push(
    jobVariable('job', 'Job', 'Which services are shown.', jobsOf(board.service)),
    {
      type: 'query',
      name: 'instance',
      label: 'Instance',
      description: 'Which instances of the chosen jobs are shown.',
      datasource: PROMETHEUS,
      query: { qryType: 1, query: 'label_values(up{job=~"$job"}, instance)', refId: 'instance' },
      refresh: VariableRefresh.onTimeRangeChanged,
      sort: VariableSort.alphabeticalAsc,
      multi: true,
      includeAll: true,
      allValue: '.*',
      current: ALL,
      options: [],
      hide: VariableHide.dontHide,
    },
  );
  for (const service of board.beside ?? []) {
    list.push(
      jobVariable(service, `${service} job`, `Where figures of the ${service} beside the chosen jobs come from.`, jobsOf(service)),
    );
  }
  return list;
}

interface EventQuery {
  name: string;
  color: string;
  expr: string;
  title: string;
  text: string;
  on: boolean;
}

const event = ({ name, color, expr, title, text, on }: EventQuery): AnnotationQuery => {
  const query = {
    enable: on,
    hide: false,
    iconColor: color,
    name,
    datasource: PROMETHEUS,
    expr,
    step: '60s',
    titleFormat: title,
    textFormat: text,
    useValueForTime: 'false',
  };
  return query;
};

/** What happened to the system itself, on every graph. */
const events: AnnotationQuery[] = [
  event({
    name: 'Deploys',
    color: 'blue',
    // A version that was not there a minute ago.
    expr: 'count by (service, version, revision) (build_info{job=~"$job"}) unless count by (service, version, revision) (build_info{job=~"$job"} offset 1m)',
    title: 'Deploy: {{service}} {{version}}',
    text: 'revision {{revision}}',
    on: true,
  }),
  event({
    name: 'Restarts',
    color: 'orange',
    expr: 'changes(process_start_time_seconds{job=~"$job"}[1m]) > 0',
    title: 'Restart: {{job}}',
    text: '{{instance}}',
    on: true,
  }),
  event({
    name: 'Alerts',
    color: 'red',
    expr: 'max by (alertname, severity) (ALERTS{alertstate="firing", severity=~"critical|warning"})',
    title: 'Firing: {{alertname}}',
    text: '{{severity}}',
    on: false,
  }),
];

/** Puts panels side by side from the left, and below when the line is full. Returns where the next line begins. */
function flow(panels: Placed[], top: number, id: { next: number }): { placed: Panel[]; bottom: number } {
  let [x, y, lineHeight] = [0, top, 0];
  const placed = panels.map(({ panel, w, h }) => {
    if (x + w > 24) [x, y, lineHeight] = [0, y + lineHeight, 0];
    const here: Panel = { ...panel, id: id.next++, gridPos: { x, y, w, h } };
    x += w;
    lineHeight = Math.max(lineHeight, h);
    return here;
  });
  return { placed, bottom: y + lineHeight };
}

function guide(board: Board): Placed {
  const options: TextOptions = { mode: 'markdown' as TextOptions['mode'], content: board.guide.trim() };
  const panel: Panel = {
    type: 'text',
    title: 'How to read this',
    description: 'What this dashboard is for and in which order to read it.',
    options: options as unknown as Record<string, unknown>,
    fieldConfig: { defaults: {}, overrides: [] },
  };
  return { panel, w: 24, h: board.guideHeight ?? 5 };
}

export function dashboard(board: Board): Dashboard {
  const id = { next: 1 };
  const panels: (Panel | RowPanel)[] = [];
  const head = flow([guide(board)], 0, id);
  panels.push(...head.placed);
  let y = head.bottom;
  for (const { title, collapsed = false, panels: inside } of board.rows) {
    const own = { id: id.next++, type: 'row' as const, title, collapsed, gridPos: { x: 0, y, w: 24, h: 1 } };
    const { placed, bottom } = flow(inside, y + 1, id);
    if (collapsed) {
      panels.push({ ...own, panels: placed });
      y += 1;
    } else {
      panels.push({ ...own, panels: [] }, ...placed);
      y = bottom;
    }
  }
  const others = (Object.keys(BOARDS) as BoardUid[]).filter((uid) => uid !== board.uid);
  return {
    uid: board.uid,
    title: BOARDS[board.uid],
    description: board.description,
    tags: ['streamgauge', ...(board.tags ?? [])],
    schemaVersion: 41,
    version: 1,
    editable: true,
    graphTooltip: DashboardCursorSync.Crosshair,
    timezone: 'browser',
    refresh: '15s',
    time: { from: board.range ?? 'now-1h', to: 'now' },
    timepicker: { refresh_intervals: ['5s', '15s', '1m', '5m', '15m'] },
    links: [
      ...others.map((uid) => ({
        ...link(BOARDS[uid], `${boardPath(uid)}?\${datasource:queryparam}`),
        icon: 'dashboard',
        keepTime: true,
      })),
      { ...link('Runbooks', RUNBOOKS, true), icon: 'doc' },
    ],
    annotations: { list: events },
    templating: { list: variables(board) },
    panels,
  };
}
