// Makes catalogue.json of what the services export: make-catalogue.js URL... > src/catalogue.json
import { scraped } from './metrics.js';

const all = new Map<string, Set<string>>();
for (const url of process.argv.slice(2)) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  for (const [name, labels] of scraped(await answer.text())) {
    all.set(name, new Set([...(all.get(name) ?? []), ...labels]));
  }
}
const sorted = [...all].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, labels]) => [name, [...labels].sort()]);
process.stdout.write(`${JSON.stringify(Object.fromEntries(sorted), null, 1)}\n`);
