// The generated files as the checks see them: every panel with the row it lies in, every query with its panel.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import type { Dashboard, Panel, RowPanel, VariableModel } from '@grafana/schema';

import type { PromTarget, SqlTarget } from '../grafana.js';

export interface Found {
  board: Dashboard;
  panel: Panel;
  /** Where to look: dashboard and title. */
  place: string;
}
export interface FoundQuery<T> extends Found {
  target: T;
}

export const isRow = (panel: Panel | RowPanel): panel is RowPanel => panel.type === 'row';

export function read(folder: string): Dashboard[] {
  const files = readdirSync(folder).filter((file) => file.endsWith('.json')).sort();
  return files.map((file) => JSON.parse(readFileSync(join(folder, file), 'utf8')) as Dashboard);
}

/** All panels but rows, those in folded rows too. */
export function panels(boards: Dashboard[]): Found[] {
  const found: Found[] = [];
  for (const board of boards) {
    for (const panel of board.panels ?? []) {
      for (const inner of isRow(panel) ? panel.panels : [panel]) {
        found.push({ board, panel: inner, place: `${board.uid} / ${inner.title}` });
      }
    }
  }
  return found;
}

export function prometheusQueries(boards: Dashboard[]): FoundQuery<PromTarget>[] {
  return panels(boards).flatMap((found) =>
    (found.panel.targets ?? [])
      .filter((target) => 'expr' in target)
      .map((target) => ({ ...found, target: target as unknown as PromTarget })),
  );
}

export function sqlQueries(boards: Dashboard[]): FoundQuery<SqlTarget>[] {
  return panels(boards).flatMap((found) =>
    (found.panel.targets ?? [])
      .filter((target) => 'rawSql' in target)
      .map((target) => ({ ...found, target: target as unknown as SqlTarget })),
  );
}

/** The text that a variable asks Prometheus with. */
export function variableQuery(variable: VariableModel): string | undefined {
  if (variable.type !== 'query' || typeof variable.query !== 'object') return undefined;
  const { query } = variable.query;
  return typeof query === 'string' ? query : undefined;
}

/** The expressions of the annotations. */
export function annotationQueries(board: Dashboard): { name: string; expr: string }[] {
  return (board.annotations?.list ?? []).map((annotation) => {
    const { expr } = annotation as unknown as { expr?: unknown };
    return { name: annotation.name, expr: typeof expr === 'string' ? expr : '' };
  });
}
