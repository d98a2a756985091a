/**
 * What /metrics shows: vLLM's names where the meaning is the same, so that routers and dashboards
 * made for it work, and our own for what only a prefix tree has.
 * @module
 */
import type { FinishReason, SampleStats } from '../engine/generation.ts';
import type { EngineSnapshot } from '../engine/rpc.ts';
import type { Admission } from './admission.ts';
import type { EngineHost } from './engine-host.ts';
import { Registry } from './metrics.ts';
import { ProcessMetrics } from './process-metrics.ts';

/** vLLM's buckets, in seconds. */
const TTFT_S = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
  160, 640, 2560,
];
const TPOT_S = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
  7.5, 10, 20, 40, 80,
];
const E2E_S = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960];
const TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];
const S = 1000;
const QUANTILES = [
  ['0.5', 'p50'],
  ['0.9', 'p90'],
  ['0.99', 'p99'],
] as const;

/** vLLM's names of the reasons. */
const FINISHED: Readonly<Record<string, string>> = {
  gone: 'abort',
  slow: 'abort',
  timeout: 'abort',
};

export class ServerMetrics {
  readonly #registry = new Registry();
  readonly #own = this.#families();
  readonly #process = new ProcessMetrics(this.#registry);

  #families() {
    const r = this.#registry;
    return {
      running: r.gauge('vllm:num_requests_running', 'Sequences in the running batch.'),
      waiting: r.gauge('vllm:num_requests_waiting', 'Sequences that wait for pages or a place.'),
      usage: r.gauge(
        'vllm:kv_cache_usage_perc',
        'Share of KV pages held by running requests and prefixes, 0 to 1.',
      ),
      usageOld: r.gauge('vllm:gpu_cache_usage_perc', 'The same under its older name.'),
      queries: r.counter(
        'vllm:prefix_cache_queries_total',
        'Prompt tokens looked up in the cache.',
      ),
      hits: r.counter('vllm:prefix_cache_hits_total', 'Prompt tokens found in the cache.'),
      config: r.gauge('vllm:cache_config_info', 'The KV cache: page size and number of pages.'),
      promptTokens: r.counter('vllm:prompt_tokens_total', 'Prompt tokens of finished requests.'),
      newTokens: r.counter('vllm:generation_tokens_total', 'New tokens of finished samples.'),
      success: r.counter('vllm:request_success_total', 'Finished samples by reason.'),
      preemptions: r.gauge(
        'vllm:num_preemptions',
        'Sequences that lost their pages and started again.',
      ),
      ttft: r.histogram('vllm:time_to_first_token_seconds', 'Arrival to first token.', TTFT_S),
      itl: r.histogram('vllm:inter_token_latency_seconds', 'Time between two tokens.', TPOT_S),
      tpotOld: r.histogram(
        'vllm:time_per_output_token_seconds',
        'The same under its older name.',
        TPOT_S,
      ),
      tpot: r.histogram(
        'vllm:request_time_per_output_token_seconds',
        'Mean time per token of a sample.',
        TPOT_S,
      ),
      e2e: r.histogram('vllm:e2e_request_latency_seconds', 'Arrival to end.', E2E_S),
      promptSize: r.histogram('vllm:request_prompt_tokens', 'Prompt tokens of a request.', TOKENS),
      newSize: r.histogram('vllm:request_generation_tokens', 'New tokens of a sample.', TOKENS),
      bytesRead: r.gauge('flashforge:kv_bytes_read', 'KV bytes that attention has read.'),
      bytesFlat: r.gauge('flashforge:kv_bytes_flat', 'What it would have read without sharing.'),
      reduction: r.gauge('flashforge:kv_reduction_factor', 'kv_bytes_flat / kv_bytes_read.'),
      planMs: r.gauge('flashforge:plan_seconds', 'Time spent planning steps.'),
      plansReused: r.gauge(
        'flashforge:plans_reused',
        'Steps that took the plan of the step before.',
      ),
      steps: r.gauge('flashforge:steps', 'Steps of the engine.'),
      stepSeconds: r.gauge('flashforge:step_seconds', 'Time of all steps.'),
      attentionSeconds: r.gauge('flashforge:attention_seconds', 'Time of attention in all steps.'),
      joules: r.gauge('flashforge:energy_joules', 'Energy that the device has used.'),
      stepHost: r.gauge(
        'flashforge:step_host_seconds',
        'Work of the host for a step, by quantile.',
      ),
      stepIdle: r.gauge(
        'flashforge:step_idle_seconds',
        'For how long the device had nothing to do before a step, by quantile.',
      ),
      nodes: r.gauge('flashforge:tree_nodes', 'Nodes of the prefix tree.'),
      treeTokens: r.gauge('flashforge:tree_tokens', 'Tokens in the prefix tree.'),
      pages: r.gauge('flashforge:pages', 'KV pages by state.'),
      hostPages: r.gauge('flashforge:host_pages', 'Pages of host memory for evicted KV, by state.'),
      hostTokens: r.gauge(
        'flashforge:host_tokens',
        'Tokens whose KV was saved to host memory, or restored from it.',
      ),
      prefixes: r.gauge('flashforge:prefixes', 'Prefixes held by clients.'),
      open: r.gauge('flashforge:requests_open', 'Requests accepted and not finished.'),
      failed: r.counter(
        'flashforge:requests_failed_total',
        'Requests that ended early, by reason.',
      ),
      http: r.counter('flashforge:http_responses_total', 'Answers by status.'),
      restarts: r.gauge('flashforge:engine_restarts', 'Engines started again after a failure.'),
    };
  }

  response(status: number): void {
    this.#own.http.add(1, { status: String(status) });
  }

  failed(reason: string): void {
    this.#own.failed.add(1, { reason });
    const finished = FINISHED[reason];
    if (finished !== undefined) this.#own.success.add(1, { finished_reason: finished });
  }

  firstToken(ms: number): void {
    this.#own.ttft.observe(ms / S);
  }

  nextToken(ms: number): void {
    this.#own.itl.observe(ms / S);
    this.#own.tpotOld.observe(ms / S);
  }

  requestDone(ms: number): void {
    this.#own.e2e.observe(ms / S);
  }

  /** @param first the sample that its prompt is counted with */
  sampleDone(stats: SampleStats, reason: FinishReason, first: boolean): void {
    const own = this.#own;
    own.success.add(1, { finished_reason: reason });
    own.newTokens.add(stats.newTokens);
    own.newSize.observe(stats.newTokens);
    if (stats.newTokens > 1) own.tpot.observe(stats.tpotMs / S);
    if (!first) return;
    own.queries.add(stats.promptTokens);
    own.hits.add(stats.cachedTokens);
    own.promptTokens.add(stats.promptTokens);
    own.promptSize.observe(stats.promptTokens);
  }

  /** The page; gauges are taken from the engine now. */
  text(host: EngineHost, admission: Admission, prefixes: number): string {
    const own = this.#own;
    this.#process.update();
    own.open.set(admission.open);
    own.prefixes.set(prefixes);
    own.restarts.set(host.restarts);
    if (host.stats !== null) this.#engine(host.stats);
    if (host.model === null) return this.#registry.text();
    const { info, names } = host.model;
    own.config.set(1, {
      block_size: String(info.pageSize),
      num_gpu_blocks: String(info.pages),
      num_cpu_blocks: String(host.stats?.host?.pages ?? 0),
      cache_dtype: 'auto',
      enable_prefix_caching: 'True',
    });
    return this.#registry.text({ model_name: names[0], engine: '0' });
  }

  #engine({ tree, host, steps, times, energy, running, waiting }: EngineSnapshot): void {
    const own = this.#own;
    const held = (tree.pagesUsed - tree.pagesEvictable) / Math.max(1, tree.pages);
    own.running.set(running);
    own.waiting.set(waiting);
    own.usage.set(held);
    own.usageOld.set(held);
    own.preemptions.set(steps.preemptions);
    own.bytesRead.set(steps.kvBytes);
    own.bytesFlat.set(steps.kvBytesFlat);
    own.reduction.set(steps.kvBytes === 0 ? 1 : steps.kvBytesFlat / steps.kvBytes);
    own.planMs.set(steps.planMs / S);
    own.plansReused.set(steps.plansReused);
    own.steps.set(steps.steps);
    own.stepSeconds.set(steps.stepMs / S);
    own.attentionSeconds.set(steps.attentionMs / S);
    if (energy.joules !== null) own.joules.set(energy.joules);
    for (const [quantile, field] of QUANTILES) {
      own.stepHost.set(times.hostMs[field] / S, { quantile });
      own.stepIdle.set(times.idleMs[field] / S, { quantile });
    }
    own.nodes.set(tree.nodes);
    own.treeTokens.set(tree.tokens);
    own.pages.set(tree.pagesFree, { state: 'free' });
    own.pages.set(tree.pagesEvictable, { state: 'cached' });
    own.pages.set(tree.pagesUsed - tree.pagesEvictable, { state: 'held' });
    if (host === null) return;
    own.hostPages.set(host.pagesUsed, { state: 'used' });
    own.hostPages.set(host.pages - host.pagesUsed, { state: 'free' });
    own.hostTokens.set(host.savedTokens, { way: 'saved' });
    own.hostTokens.set(host.restoredTokens, { way: 'restored' });
  }
}
