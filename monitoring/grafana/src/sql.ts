// How the rows of the PostgreSQL store are read. They are described in analytics/src/store:
//
// - Two sets of rows lie side by side, `bucket` and `bucket_1`; `served.slot` names the one that is served.
// - Each event is in a row of every length of bucket, of 1 s, 1 min, 1 h and 1 d. So exactly one length is read.
// - Short buckets are deleted after a while (`retention.*` of analytics; seconds after 48 h, minutes after 30 d).
// - A key is a JSON array with one text for each dimension of its series.
//
// Distinct users and quantiles are sketches that only the product can read: SQL leaves them out.

const NOW = 'extract(epoch FROM now())';

/** One row: the length of bucket that is fine enough for the range, and that retention has not taken from it. */
const tier = (from: string): string => `
    SELECT CASE
      WHEN $__unixEpochTo() - $__unixEpochFrom() <= 900 AND ${from} > ${NOW} - 47 * 3600 THEN 1
      WHEN $__unixEpochTo() - $__unixEpochFrom() <= 2 * 86400 AND ${from} > ${NOW} - 29 * 86400 THEN 60
      WHEN $__unixEpochTo() - $__unixEpochFrom() <= 60 * 86400 THEN 3600
      ELSE 86400
    END AS s`;

const from = (table: string, slot: 0 | 1, columns: string, where: string): string => `
    SELECT ${columns} FROM ${table} WHERE (SELECT slot FROM served) = ${slot} AND ${where}`;

/** The rows of a table of which there are two sets, from the one that is served. */
export const served = (table: string, columns: string, where: string): string =>
  `${from(table, 0, columns, where)}
    UNION ALL${from(`${table}_1`, 1, columns, where)}`;

const inRange = (series: string, length: string, begin: string): string =>
  `tier_s = ${length} AND series = '${series}' AND bucket_s >= ${begin} / ${length} * ${length} AND bucket_s < $__unixEpochTo()`;

// PostgreSQL refuses to unpack an escaped NUL, which a client may well send.
const name = `CASE WHEN position('\\u0000' IN key) > 0 THEN key ELSE key::json ->> 0 END`;

const LENGTH = '(SELECT s FROM tier)';

/** A query over the buckets of a series in the range shown: `tier` and `cell` stand ready for it. */
export const overBuckets = (series: string, select: string): string => `
WITH tier AS (${tier('$__unixEpochFrom()')}
  ), cell AS (${served('bucket', `bucket_s, ${name} AS name, count, value_count, sum, min, max`, inRange(series, LENGTH, '$__unixEpochFrom()'))}
  )
${select}`.trim();

/** The same, over the range shown and one as long before it; `since` is where the range shown begins. */
export const overTwoRanges = (series: string, select: string): string => {
  // In this order, since twice the time of today is more than an integer holds.
  const begin = '($__unixEpochFrom() - ($__unixEpochTo() - $__unixEpochFrom()))';
  return `
WITH tier AS (${tier(begin)}
  ), since AS (
    SELECT $__unixEpochFrom() / ${LENGTH} * ${LENGTH} AS s
  ), cell AS (${served('bucket', `bucket_s, ${name} AS name, count`, inRange(series, LENGTH, begin))}
  )
${select}`.trim();
};

/** The same, over buckets of a fixed length. */
export const overFixedBuckets = (series: string, seconds: number, select: string): string => `
WITH cell AS (${served('bucket', 'bucket_s, count', inRange(series, String(seconds), '$__unixEpochFrom()'))}
  )
${select}`.trim();

/** Seconds of one point on a graph: no shorter than a bucket, and whole ones. */
export const STEP = '((SELECT s FROM tier) * greatest(1, ceil($__interval_ms / 1000.0 / (SELECT s FROM tier))::bigint))';
