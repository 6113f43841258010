// Every dashboard there is.
import type { Dashboard } from '@grafana/schema';

import { consumer } from './boards/consumer.js';
import { health } from './boards/health.js';
import { kafka } from './boards/kafka.js';
import { ledger } from './boards/ledger.js';
import { overview } from './boards/overview.js';
import { producer } from './boards/producer.js';
import { realTime } from './boards/real-time.js';

export const dashboards: Dashboard[] = [realTime, kafka, health, overview, producer, consumer, ledger];
