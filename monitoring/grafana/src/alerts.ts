// The alerts that have a runbook, by name. A panel links to them; the lint holds each to docs/runbooks.

export const ALERTS = [
  'IngestErrorBudgetBurnFast',
  'IngestErrorBudgetBurnSlow',
  'FreshnessSLOBurn',
  'QueryLatencySLOBurn',
  'ConsumerStopped',
  'ConsumerFallingBehind',
  'DrainTooSlow',
  'LagBeyondRetention',
  'ConsumerMetricsAbsent',
  'PartitionSkew',
  'RebalanceStorm',
  'CanaryEventsLost',
  'LedgerImbalance',
  'EventsMissing',
  'DeadLettersGrowing',
  'CircuitBreakerOpen',
  'RateLimitingHeavy',
  'ProducerQueueFilling',
  'DatabaseDown',
  'CardinalityHigh',
  'SpansDropped',
  'FileDescriptorsNearLimit',
  'TargetDown',
] as const;
export type Alert = (typeof ALERTS)[number];
