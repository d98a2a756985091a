/**
 * What the routes work with: made once for a server.
 * @module
 */
import type { Admission } from './admission.ts';
import type { BranchStreams } from './dashboard/branch-streams.ts';
import type { EngineHost } from './engine-host.ts';
import type { Log, LogWriter } from './log.ts';
import type { PrefixStore } from './prefix-store.ts';
import type { Recent } from './recent.ts';
import type { ServerMetrics } from './server-metrics.ts';
import type { Settings } from './server-options.ts';
import type { Tenants } from './tenants.ts';
import type { Tracing } from './tracing.ts';

export interface Parts {
  readonly settings: Settings;
  readonly log: Log;
  readonly logWriter: LogWriter;
  readonly host: EngineHost;
  readonly tenants: Tenants;
  readonly admission: Admission;
  readonly prefixes: PrefixStore;
  readonly metrics: ServerMetrics;
  readonly recent: Recent;
  readonly branchStreams: BranchStreams;
  readonly tracing: Tracing;
}
