// Holds the generated files to what every dashboard must be: lint.js [FOLDER] [PROVISIONING] [RUNBOOKS]. Prints what is wrong and how
// many panels were looked at; exits with 1 when anything is.
import { existsSync } from 'node:fs';
import { join } from 'node:path';

import type { Dashboard, DashboardLink, Panel, RowPanel } from '@grafana/schema';

import { ALERTS } from '../alerts.js';
import { BOARDS, RUNBOOKS } from '../grafana.js';
import { ANNOUNCED, EXPORTED, OF_PROMETHEUS, OF_TARGET } from './metrics.js';
import { annotationQueries, isRow, panels, prometheusQueries, read, sqlQueries, variableQuery } from './panels.js';
import type { Found } from './panels.js';
import { grouping, selectors } from './promql.js';
import { lintProvisioning, readProvisioning } from './provisioning.js';

const PANELS_MIN = 90;
const COLUMNS = 24;

export function lint(boards: Dashboard[], runbooks?: string): string[] {
  const wrong: string[] = [];
  const say = (place: string, what: string): void => void wrong.push(`${place}: ${what}`);

  for (const board of boards) lintBoard(board, say);
  for (const found of panels(boards)) lintPanel(found, say);
  lintLinks(boards, runbooks, say);
  lintQueries(boards, say);
  lintMetrics(boards, say);

  const expected = Object.entries(BOARDS);
  for (const [uid, title] of expected) {
    const board = boards.find((one) => one.uid === uid);
    if (board === undefined) say(uid, 'there is no such dashboard');
    else if (board.title !== title) say(uid, `is titled "${board.title}", not "${title}"`);
  }
  if (boards.length !== expected.length) say('all', `${boards.length} dashboards in place of ${expected.length}`);
  const count = panels(boards).filter(({ panel }) => panel.type !== 'text').length;
  if (count < PANELS_MIN) say('all', `${count} panels; at least ${PANELS_MIN} are promised`);
  return wrong;
}

type Say = (place: string, what: string) => void;

function lintBoard(board: Dashboard, say: Say): void {
  const place = board.uid ?? '(no uid)';
  if (!/^sg-[a-z-]+$/.test(board.uid ?? '')) say(place, 'has no uid of the form sg-name');
  if ((board.title ?? '') === '') say(place, 'has no title');
  if ((board.description ?? '').length < 40) say(place, 'has no description');
  if (!board.tags?.includes('streamgauge')) say(place, 'lacks the tag streamgauge');

  const names = (board.templating?.list ?? []).map(({ name }) => name);
  for (const needed of ['datasource', 'job', 'instance']) {
    if (!names.includes(needed)) say(place, `has no variable ${needed}`);
  }
  const text = JSON.stringify(board);
  for (const [, braced, bare] of text.matchAll(/\$(?:\{(\w+)[^}]*\}|(\w+))/g)) {
    const used = braced ?? bare ?? '';
    if (!used.startsWith('__') && !/^\d/.test(used) && !names.includes(used)) say(place, `uses the unknown variable ${used}`);
  }
  for (const name of names) {
    if (!text.replaceAll('\\"', '"').includes(`$${name}`) && !text.includes(`\${${name}`)) say(place, `never uses its variable ${name}`);
  }

  const deploys = annotationQueries(board).find(({ name }) => name === 'Deploys');
  if (!deploys?.expr.includes('build_info')) say(place, 'has no annotation of deploys from build_info');

  const ids = new Set<number>();
  const titles = new Set<string>();
  let rows = 0;
  for (const panel of board.panels ?? []) {
    if (isRow(panel)) rows += 1;
    for (const one of isRow(panel) ? [panel, ...panel.panels] : [panel]) {
      if (one.id === undefined || ids.has(one.id)) say(place, `the id of "${one.title}" is missing or taken`);
      else ids.add(one.id);
      const title = one.title ?? '';
      if (titles.has(title)) say(place, `has two panels with the title "${title}"`);
      titles.add(title);
    }
    if (isRow(panel)) lintGrid(place, panel.panels, say);
  }
  if (rows < 3) say(place, 'tells no story: it has fewer than three rows');
  lintGrid(place, board.panels ?? [], say);
}

function lintGrid(place: string, inside: (Panel | RowPanel)[], say: Say): void {
  const taken = new Map<string, string>();
  for (const { title = '', gridPos } of inside) {
    if (gridPos === undefined) {
      say(place, `"${title}" has no place`);
      continue;
    }
    const { x, y, w, h } = gridPos;
    if (w < 1 || h < 1 || x < 0 || x + w > COLUMNS) say(place, `"${title}" does not fit the grid`);
    for (let column = x; column < x + w; column += 1) {
      for (let line = y; line < y + h; line += 1) {
        const other = taken.get(`${column},${line}`);
        if (other !== undefined && other !== title) {
          say(place, `"${title}" lies over "${other}"`);
          return;
        }
        taken.set(`${column},${line}`, title);
      }
    }
  }
}

/** Units of Grafana that are in use here; a typing error would be shown as a suffix. */
const UNITS = ['s', 'short', 'percentunit', 'eps', 'ops', 'reqps', 'bytes', 'Bps', 'suffix:x'];

function lintPanel({ panel, place }: Found, say: Say): void {
  if ((panel.title ?? '') === '') say(place, 'has no title');
  if (panel.type === 'text') {
    const content = (panel.options as { content?: string } | undefined)?.content ?? '';
    if (content.length < 200) say(place, 'tells too little');
    return;
  }
  const description = panel.description ?? '';
  const [shows = '', ...rest] = description.split('\n\n');
  if (shows.length < 20) say(place, 'does not say what it shows');
  if (!rest.some((part) => part.startsWith('**Normal:** '))) say(place, 'does not say what is normal');
  if (!rest.some((part) => part.startsWith('**Otherwise:** '))) say(place, 'does not say what to do otherwise');

  const unit = panel.fieldConfig?.defaults.unit ?? '';
  if (!UNITS.includes(unit)) say(place, `has the unit "${unit}", which is none of ${UNITS.join(', ')}`);
  const thresholds = panel.fieldConfig?.defaults.thresholds?.steps ?? [];
  if (thresholds[0]?.value !== null) say(place, 'has thresholds without a base');
  for (let at = 2; at < thresholds.length; at += 1) {
    if ((thresholds[at]?.value ?? 0) <= (thresholds[at - 1]?.value ?? 0)) say(place, 'has thresholds out of order');
  }

  const targets = panel.targets ?? [];
  if (targets.length === 0) say(place, 'asks nothing');
  for (const source of [panel.datasource, ...targets.map((target) => target['datasource'] as { uid?: string } | undefined)]) {
    if (!['${datasource}', '${postgres}'].includes(source?.uid ?? '')) say(place, 'names a data source instead of a variable');
  }
}

function lintQueries(boards: Dashboard[], say: Say): void {
  const seen = new Map<string, string>();
  const once = (text: string, place: string): void => {
    const query = text.replace(/\s+/g, '');
    const other = seen.get(query);
    if (other !== undefined) say(place, `repeats a query of ${other}`);
    seen.set(query, place);
  };
  for (const { panel, target, place } of prometheusQueries(boards)) {
    once(target.expr, place);
    if (/\brate\(/.test(target.expr) && /rate\([^[]*\[\$__interval\]/.test(target.expr)) say(place, 'wants $__rate_interval');
    if (/127\.0\.0\.1|localhost|:\d{4,5}\b/.test(target.expr)) say(place, 'names an instance');
    for (const { metric, labels } of selectors(target.expr)) {
      if (metric !== 'ALERTS' && !labels.includes('job')) say(place, `selects ${metric} of any job`);
      if (metric !== 'ALERTS' && !labels.includes('instance') && !/job=~"\$(producer|consumer|analytics)"/.test(target.expr)) {
        say(place, `selects ${metric} of any instance`);
      }
    }
    if (/(?<!\w)job\s*=~?\s*"[^$]/.test(target.expr)) say(place, 'names a job');
    if (target.expr.includes('histogram_quantile') && ['timeseries', 'heatmap'].includes(panel.type)) {
      const asks = (panel.targets ?? []).some((one) => one['exemplar'] === true);
      if (!asks) say(place, 'is a latency without exemplars');
    }
  }
  for (const { target, place } of sqlQueries(boards)) {
    once(target.rawSql, place);
    if (/\bbucket\b/.test(target.rawSql) && !target.rawSql.includes('SELECT slot FROM served')) say(place, 'reads rows without asking which are served');
  }
}

function lintMetrics(boards: Dashboard[], say: Say): void {
  const known: Record<string, string[]> = { ...EXPORTED, ...ANNOUNCED, ...OF_PROMETHEUS };
  const check = (expr: string, place: string): void => {
    const used = selectors(expr);
    for (const { metric, labels } of used) {
      const has = known[metric];
      if (has === undefined) {
        say(place, `uses ${metric}, which nothing exports`);
        continue;
      }
      for (const label of labels) {
        if (![...OF_TARGET, ...has].includes(label)) say(place, `selects ${metric} by ${label}, which it does not have`);
      }
    }
    for (const label of grouping(expr)) {
      if (!OF_TARGET.includes(label) && !used.some(({ metric }) => known[metric]?.includes(label))) {
        say(place, `groups by ${label}, which none of its metrics has`);
      }
    }
  };
  for (const { target, place } of prometheusQueries(boards)) check(target.expr, place);
  for (const board of boards) {
    for (const { name, expr } of annotationQueries(board)) check(expr, `${board.uid} / annotation ${name}`);
    for (const variable of board.templating?.list ?? []) {
      const query = variableQuery(variable);
      if (query !== undefined) check(query.replace(/^label_values\((.*),\s*\w+\)$/, '$1'), `${board.uid} / variable ${variable.name}`);
    }
  }
  for (const metric of Object.keys(ANNOUNCED)) {
    if (metric in EXPORTED) say('announced', `${metric} exists by now; take it off the list of what is announced`);
  }
}

function lintLinks(boards: Dashboard[], runbooks: string | undefined, say: Say): void {
  const uids = new Set(boards.map(({ uid }) => uid));
  const check = (place: string, { url = '' }: DashboardLink): void => {
    const [, uid] = /^\/d\/([\w-]+)(?:[/?]|$)/.exec(url) ?? [];
    if (uid !== undefined) {
      if (!uids.has(uid)) say(place, `links to ${uid}, which does not exist`);
      return;
    }
    if (url === RUNBOOKS) return;
    const [, alert] = new RegExp(`^${RUNBOOKS.replaceAll('.', '\\.')}/(\\w+)\\.md$`).exec(url) ?? [];
    if (alert === undefined) {
      say(place, `links to ${url}, which is neither a dashboard nor a runbook`);
    } else if (!(ALERTS as readonly string[]).includes(alert)) {
      say(place, `links to the runbook of ${alert}, which is no alert`);
    } else if (runbooks !== undefined && existsSync(runbooks) && !existsSync(join(runbooks, `${alert}.md`))) {
      say(place, `links to the runbook of ${alert}, which is not in ${runbooks}`);
    }
  };
  for (const board of boards) {
    for (const link of board.links ?? []) check(board.uid ?? '', link);
    for (const uid of uids) {
      const there = board.links?.some(({ url }) => url?.startsWith(`/d/${uid}?`));
      if (uid !== board.uid && !there) say(board.uid ?? '', `has no link to ${uid}`);
    }
  }
  for (const { panel, place } of panels(boards)) {
    for (const link of panel.links ?? []) check(place, link);
  }
}

if (import.meta.filename === process.argv[1]) {
  const [, , folder = 'dashboards', provisioning = 'provisioning', runbooks] = process.argv;
  const boards = read(folder);
  const wrong = [...lint(boards, runbooks), ...lintProvisioning(readProvisioning(provisioning))];
  for (const line of wrong) console.error(line);
  const count = (type: (panel: Panel) => boolean): number => panels(boards).filter(({ panel }) => type(panel)).length;
  const figures = [
    `${boards.length} dashboards`,
    `${count(({ type }) => type !== 'text')} panels`,
    `${prometheusQueries(boards).length} queries in PromQL`,
    `${sqlQueries(boards).length} in SQL`,
    `${count(({ targets }) => targets?.some((target) => target['exemplar'] === true) ?? false)} panels with exemplars`,
    `${count(({ links }) => links?.some(({ url }) => url?.startsWith(RUNBOOKS)) ?? false)} with a runbook`,
  ];
  console.log(`lint: ${figures.join(', ')}; ${wrong.length} faults`);
  process.exitCode = wrong.length === 0 ? 0 : 1;
}
