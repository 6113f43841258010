// Writes the dashboards as Grafana reads them: generate.js FOLDER.
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { dashboards } from './all.js';

const folder = process.argv[2] ?? 'dashboards';
mkdirSync(folder, { recursive: true });
for (const file of readdirSync(folder)) {
  if (file.endsWith('.json')) rmSync(join(folder, file));
}
for (const dashboard of dashboards) {
  writeFileSync(join(folder, `${dashboard.uid}.json`), `${JSON.stringify(dashboard, null, 2)}\n`);
}
