// Which metrics there are. `catalogue.json` was made of a scrape of each service, by `make-catalogue.js`; what is
// announced and not exported yet is listed here, and only that.
import catalogue from '../catalogue.json' with { type: 'json' };

/** Metrics that panels may use before they exist. The lint fails as soon as one of them does: then it goes from here. */
export const ANNOUNCED: Record<string, string[]> = {};

/** Durations that belong to no single trace: the services give them no exemplars, however much is sampled. */
export const WITHOUT_TRACE = /stage="poll"|stage=~"emit\|confirm"|db_operation_duration_seconds/;

/** What Prometheus makes itself, with the labels that it gives. */
export const OF_PROMETHEUS: Record<string, string[]> = {
  up: [],
  scrape_duration_seconds: [],
  ALERTS: ['alertname', 'alertstate', 'severity'],
};

/** Metrics that the services export, with the labels of each. */
export const EXPORTED: Record<string, string[]> = catalogue;

/** Labels that the scrape adds to everything. */
export const OF_TARGET = ['job', 'instance'];

/** The metrics of a text in the OpenMetrics format, with the labels of each. */
export function scraped(text: string): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  for (const line of text.split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*?)\})? /.exec(line);
    if (match === null) continue;
    const [, name = '', labels = ''] = match;
    const known = found.get(name) ?? new Set();
    for (const [, label = ''] of labels.matchAll(/(\w+)="(?:[^"\\]|\\.)*"/g)) known.add(label);
    found.set(name, known);
  }
  return found;
}
