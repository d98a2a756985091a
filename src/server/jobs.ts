/**
 * A request's work in the engine: admission, samples as they grow, figures at the end.
 * @module
 */

import { FlashForgeError } from '../base/errors.ts';
import type { StreamReply } from '../engine/engine-client.ts';
import type {
  FinishReason,
  PromptEnd,
  PromptToken,
  SampleEnd,
  SampleStats,
  TokenEvent,
} from '../engine/generation.ts';
import type { TokenDetail } from '../engine/generation-stream.ts';
import type { GrammarSource } from '../engine/grammar-source.ts';
import type { Placement, PromptSource } from '../engine/rpc.ts';
import type { SamplingOptions } from '../engine/sampling-params.ts';
import { badRequest } from './api-error.ts';
import type { Exchange } from './exchange.ts';
import { type Progress, type Usage, UsageCounter } from './usage.ts';

export interface Job {
  readonly prompts: readonly PromptSource[];
  readonly options: SamplingOptions;
  readonly placement: Placement;
  /** What the text must conform to. */
  readonly grammar?: GrammarSource | undefined;
  /** The request's field that the grammar comes from; default 'response_format'. */
  readonly grammarField?: string | undefined;
}

/** A piece of one choice; `choice` counts over prompts and their samples. */
export interface Piece {
  readonly choice: number;
  readonly text: string;
  /** Null in a choice's last piece. */
  readonly token: number | null;
  readonly detail: TokenDetail | null;
  readonly finishReason: FinishReason | null;
  readonly progress: Progress;
}

/** A finished choice. */
export interface Finished {
  readonly choice: number;
  readonly text: string;
  readonly tokens: readonly number[];
  readonly details: readonly TokenDetail[];
  readonly finishReason: FinishReason;
}

function detailOf({ token, logprob, top }: TokenEvent): TokenDetail | null {
  return logprob === undefined || top === undefined ? null : { token, logprob, top };
}

/**
 * Runs a job to its end.
 * @param onPiece told of everything that happens, in order
 * @param onPrompt told of a prompt's tokens before any of its pieces, where promptLogprobs are on
 * @throws ApiError or FlashForgeError; nothing is left in the engine then.
 */
export async function runJob(
  exchange: Exchange,
  job: Job,
  onPiece: (piece: Piece) => void,
  onPrompt: (prompt: number, tokens: readonly PromptToken[]) => void = () => {},
): Promise<Usage> {
  const { host, metrics, recent } = exchange.parts;
  const counter = new UsageCounter();
  const n = job.options.n ?? 1;
  const lastTokenMs = new Map<number, number>();
  const prompts = new Map<number, PromptEnd>();
  const newTokens = new Map<number, number>();
  const started = performance.now();

  const progressOf = (prompt: number, choice: number, more: number): Progress => {
    const { promptTokens = 0, cachedTokens = 0 } = prompts.get(prompt) ?? {};
    const count = (newTokens.get(choice) ?? 0) + more;
    newTokens.set(choice, count);
    return { promptTokens, cachedTokens, newTokens: count };
  };
  const onEnd = (prompt: number, end: SampleEnd): void => {
    const { index, text, finishReason, stats } = end;
    counter.add(end);
    sampleDone(exchange, stats, finishReason, index === 0);
    const choice = prompt * n + index;
    const progress = progressOf(prompt, choice, 0);
    onPiece({ choice, text, token: null, detail: null, finishReason, progress });
  };
  const onToken = (prompt: number, event: TokenEvent): void => {
    const choice = prompt * n + event.index;
    const now = performance.now();
    const last = lastTokenMs.get(choice);
    lastTokenMs.set(choice, now);
    if (last === undefined) {
      metrics.firstToken(now - started);
      recent.ttft(now - started);
    } else metrics.nextToken(now - last);
    recent.token(last === undefined ? null : now - last);
    const { text, token } = event;
    const progress = progressOf(prompt, choice, 1);
    onPiece({ choice, text, token, detail: detailOf(event), finishReason: null, progress });
  };
  const onReply = (reply: StreamReply): void => {
    const { prompt } = reply;
    if (reply.kind === 'token') onToken(prompt, reply.event);
    else if (reply.kind === 'end') onEnd(prompt, reply.end);
    else {
      prompts.set(prompt, reply.end);
      if (reply.end.tokens !== null) onPrompt(prompt, reply.end.tokens);
    }
  };

  await admitted(exchange, async () => {
    try {
      await host.call({ kind: 'generate', ...job }, onReply, exchange.signal);
    } catch (error) {
      if (!isGrammarError(error)) throw error;
      throw badRequest(error.message, job.grammarField ?? 'response_format', 'invalid_grammar');
    }
  });
  return counter.usage;
}

const isGrammarError = (error: unknown): error is FlashForgeError =>
  error instanceof FlashForgeError && error.message.startsWith('the grammar ');

/** Runs one call of the engine with a place in the queue. */
export async function admitted<T>(exchange: Exchange, run: () => Promise<T>): Promise<T> {
  const { admission, metrics } = exchange.parts;
  const leave = admission.enter();
  const started = performance.now();
  try {
    return await run();
  } catch (error) {
    metrics.failed(exchange.reason ?? 'error');
    throw exchange.errorOf(error);
  } finally {
    leave();
    metrics.requestDone(performance.now() - started);
  }
}

function sampleDone(
  exchange: Exchange,
  stats: SampleStats,
  reason: FinishReason,
  first: boolean,
): void {
  exchange.parts.metrics.sampleDone(stats, reason, first);
}

/** Collects the choices of a job. */
export class Choices {
  readonly #choices: {
    text: string;
    tokens: number[];
    details: TokenDetail[];
    finishReason: FinishReason | null;
  }[];

  constructor(count: number) {
    this.#choices = Array.from({ length: count }, () => ({
      text: '',
      tokens: [],
      details: [],
      finishReason: null,
    }));
  }

  add({ choice, text, token, detail, finishReason }: Piece): void {
    const into = this.#choices[choice];
    into.text += text;
    if (token !== null) into.tokens.push(token);
    if (detail !== null) into.details.push(detail);
    if (finishReason !== null) into.finishReason = finishReason;
  }

  get finished(): Finished[] {
    return this.#choices.map((each, choice) => ({
      ...each,
      choice,
      finishReason: each.finishReason ?? 'stop',
    }));
  }
}
