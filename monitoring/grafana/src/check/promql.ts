// As much of PromQL as the lint needs: which metrics an expression selects, and by which labels.

export interface Selector {
  metric: string;
  labels: string[];
}

const KEYWORDS = new Set(['by', 'without', 'on', 'ignoring', 'group_left', 'group_right', 'and', 'or', 'unless', 'offset', 'bool', 'inf', 'nan']);

/** An expression with nothing in its quotes, so that no text in them is taken for a name. */
const unquoted = (expr: string): string => expr.replace(/"(?:[^"\\]|\\.)*"/g, '""');

export function selectors(expr: string): Selector[] {
  // Labels after `by` and the like are names too, and no metrics; so are durations and functions.
  const text = unquoted(expr)
    .replace(/\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)/g, ' ')
    .replace(/\[[^\]]*\]/g, ' ');
  const found: Selector[] = [];
  for (const match of text.matchAll(/(?<![\w$.])([a-zA-Z_:][\w:]*)\s*(\{([^}]*)\})?(\s*\()?/g)) {
    const [, metric = '', braces, inner = '', call] = match;
    if (call !== undefined && braces === undefined) continue;
    if (KEYWORDS.has(metric) || /^\d/.test(metric)) continue;
    // `offset 1m`: the duration has a digit before its letter and is not matched; a lone unit is none.
    const labels = [...inner.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)].map(([, label = '']) => label);
    found.push({ metric, labels });
  }
  return found;
}

/** Labels by which an expression groups or matches. */
export function grouping(expr: string): string[] {
  return [...unquoted(expr).matchAll(/\b(?:by|without|on|ignoring)\s*\(([^)]*)\)/g)]
    .flatMap(([, list = '']) => list.split(','))
    .map((label) => label.trim())
    .filter((label) => label !== '');
}
