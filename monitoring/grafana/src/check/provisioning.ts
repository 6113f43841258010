// Holds the provisioning files to the dashboards: every data source that they ask is there under its uid and type, and
// the way from a graph to a trace and back is laid.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { parse } from 'yaml';

import { POSTGRES, PROMETHEUS } from '../grafana.js';
import { EXPORTED } from './metrics.js';
import { grouping, selectors } from './promql.js';

interface Source {
  name: string;
  uid: string;
  type: string;
  url: string;
  jsonData: {
    timeInterval?: string;
    exemplarTraceIdDestinations?: { name: string; datasourceUid: string }[];
    tracesToMetrics?: { datasourceUid: string; tags: { key: string; value: string }[]; queries: { name: string; query: string }[] };
  };
}

export interface Provisioning {
  datasources: Source[];
  providers: { name: string; type: string; options: { path: string } }[];
}

/** What the two files hold, in one. */
export function readProvisioning(folder: string): Provisioning {
  const text = (path: string): unknown => parse(readFileSync(join(folder, path), 'utf8'));
  const { datasources } = text('datasources/streamgauge.yaml') as Pick<Provisioning, 'datasources'>;
  const { providers } = text('dashboards/streamgauge.yaml') as Pick<Provisioning, 'providers'>;
  return { datasources, providers };
}

/** Queries of a span, as they are asked for one service. */
export function spanQueries({ datasources }: Provisioning, service: string): { name: string; expr: string }[] {
  const { tags = [], queries = [] } = datasources.find(({ uid }) => uid === 'jaeger')?.jsonData.tracesToMetrics ?? {};
  const filter = tags.map(({ value }) => `${value}="${service}"`).join(', ');
  return queries.map(({ name, query }) => ({ name, expr: query.replaceAll('$$__tags', filter) }));
}

export function lintProvisioning(given: Provisioning): string[] {
  const wrong: string[] = [];
  const expected: Record<string, string> = {
    prometheus: PROMETHEUS.type ?? '',
    jaeger: 'jaeger',
    alertmanager: 'alertmanager',
    postgres: POSTGRES.type ?? '',
  };
  const sources = new Map(given.datasources.map((source) => [source.uid, source]));
  for (const [uid, type] of Object.entries(expected)) {
    if (sources.get(uid)?.type !== type) wrong.push(`provisioning: no data source with the uid ${uid} and the type ${type}`);
  }
  for (const uid of sources.keys()) {
    if (!(uid in expected)) wrong.push(`provisioning: nothing asks the data source ${uid}`);
  }
  const exemplars = sources.get('prometheus')?.jsonData.exemplarTraceIdDestinations ?? [];
  if (!exemplars.some(({ name, datasourceUid }) => name === 'trace_id' && datasourceUid === 'jaeger')) {
    wrong.push('provisioning: exemplars do not lead to Jaeger by trace_id');
  }
  if (sources.get('jaeger')?.jsonData.tracesToMetrics?.datasourceUid !== 'prometheus') {
    wrong.push('provisioning: traces do not lead back to Prometheus');
  }
  const queries = spanQueries(given, 'producer');
  if (queries.length === 0) wrong.push('provisioning: a span has no queries');
  for (const { name, expr } of queries) {
    const used = selectors(expr);
    if (!expr.includes('service="producer"')) wrong.push(`provisioning: the query "${name}" is not about the span's service`);
    for (const { metric, labels } of used) {
      const has = EXPORTED[metric];
      if (has === undefined || labels.some((label) => !has.includes(label))) wrong.push(`provisioning: the query "${name}" uses ${metric} {${labels}}, which nothing exports`);
    }
    for (const label of grouping(expr)) {
      if (!['job', 'instance'].includes(label) && !used.some(({ metric }) => EXPORTED[metric]?.includes(label))) {
        wrong.push(`provisioning: the query "${name}" groups by ${label}, which none of its metrics has`);
      }
    }
  }
  if (!given.providers.some(({ type, options }) => type === 'file' && options.path.startsWith('/'))) {
    wrong.push('provisioning: no folder of dashboards');
  }
  return wrong;
}
