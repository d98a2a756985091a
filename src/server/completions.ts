/**
 * POST /v1/completions: plain prompts, continued as they are, at once or as they grow.
 * @module
 */
import type { PromptToken } from '../engine/generation.ts';
import type { TokenDetail } from '../engine/generation-stream.ts';
import type { PromptSource } from '../engine/rpc.ts';
import type { SamplingOptions } from '../engine/sampling-params.ts';
import { badRequest } from './api-error.ts';
import { beamJob } from './beams.ts';
import type {
  CompletionLogprobs,
  CompletionRequest,
  CompletionResponse,
} from './completion-schema.ts';
import type { ServedModel } from './engine-host.ts';
import type { Exchange } from './exchange.ts';
import { Choices, type Finished, type Job, type Piece, runJob } from './jobs.ts';
import { completionLogprobs, joinLogprobs, promptLogprobs } from './logprobs.ts';
import { maxTokensOf, placementOf, servedModel } from './request-checks.ts';
import { grammarOf } from './response-format.ts';
import { samplingOptions, wantsRunningUsage } from './sampling-fields.ts';
import { streamResponse } from './stream-response.ts';
import { runningUsage, type Usage, usageHeaders } from './usage.ts';

interface Head {
  readonly id: string;
  readonly object: 'text_completion';
  readonly created: number;
  readonly model: string;
}

interface Plain {
  readonly body: CompletionRequest;
  readonly model: ServedModel;
  readonly head: Head;
  readonly sources: readonly PromptSource[];
  /** With as many samples as best_of says. */
  readonly options: SamplingOptions;
  /** (prompts) what `echo` puts before each answer. */
  readonly echoes: readonly string[];
}

type PromptTokens = readonly PromptToken[];
type Logprobs = CompletionLogprobs;

/** OpenAI's default. */
const MAX_TOKENS = 16;
const PROMPT = 'prompt';

export async function completions(exchange: Exchange): Promise<Response> {
  const plain = await readCompletion(exchange);
  const { body, sources, options } = plain;
  if (body.use_beam_search) return beams(exchange, plain);
  const job: Job = {
    prompts: sources,
    options,
    placement: placementOf(exchange, body),
    grammar: grammarOf(body.response_format),
  };
  if (body.stream) return stream(exchange, plain, job);
  const choices = new Choices(sources.length * (options.n ?? 1));
  const prompts: PromptTokens[] = [];
  const usage = await runJob(
    exchange,
    job,
    (piece) => choices.add(piece),
    (prompt, tokens) => {
      prompts[prompt] = tokens;
    },
  );
  return answer(plain, choices.finished, prompts, usage);
}

async function readCompletion(exchange: Exchange): Promise<Plain> {
  const body = exchange.body as CompletionRequest;
  const model = servedModel(exchange, body.model);
  const n = body.n ?? 1;
  const bestOf = body.best_of ?? n;
  if (bestOf < n) throw badRequest(`best_of must be at least n (${n}), got ${bestOf}`, 'best_of');
  if (body.stream && bestOf > n) {
    throw badRequest('best_of must not be above n in a stream', 'best_of');
  }
  const sources = sourcesOf(exchange, body);
  const maxTokens = maxTokensOf(exchange, model, 'max_tokens', body.max_tokens, MAX_TOKENS);
  // Choosing the best needs each token's log-probability.
  const logprobs = body.logprobs ?? (bestOf > n ? 0 : null);
  return {
    body,
    model,
    head: {
      id: `cmpl-${exchange.id}`,
      object: 'text_completion',
      created: Math.floor(Date.now() / 1000),
      model: model.names[0],
    },
    sources,
    options: {
      ...samplingOptions(body, maxTokens),
      n: bestOf,
      ...(logprobs === null ? {} : { logprobs }),
      ...(body.echo && body.logprobs != null && !body.use_beam_search
        ? { promptLogprobs: body.logprobs }
        : {}),
    },
    echoes: body.echo ? await Promise.all(sources.map((each) => textOf(exchange, each))) : [],
  };
}

function sourcesOf(exchange: Exchange, body: CompletionRequest): PromptSource[] {
  const { prompt, prefix_id: id } = body;
  const branch =
    id == null
      ? {}
      : { branch: exchange.parts.prefixes.use(id, exchange.tenant, 'prefix_id').branch };
  if (typeof prompt === 'string') return [{ ...branch, text: prompt }];
  if (typeof prompt[0] === 'number') return [{ ...branch, tokens: prompt as number[] }];
  return (prompt as (string | number[])[]).map((each) =>
    typeof each === 'string' ? { ...branch, text: each } : { ...branch, tokens: each },
  );
}

async function textOf(exchange: Exchange, { text, tokens }: PromptSource): Promise<string> {
  if (text !== undefined) return text;
  const call = { kind: 'decode', tokens: tokens ?? [] } as const;
  return (await exchange.parts.host.call(call)) as string;
}

/** Log-probabilities of what a choice begins with, where they were asked for. */
function echoLogprobs(plain: Plain, prompt: number, tokens: PromptTokens | undefined): Logprobs {
  if (tokens === undefined) return null;
  return promptLogprobs(tokens, plain.model.texts, plain.echoes[prompt]);
}

function answer(
  plain: Plain,
  all: readonly Finished[],
  prompts: readonly PromptTokens[],
  usage: Usage,
): Response {
  const { body, head, options, sources } = plain;
  const [n, drawn] = [body.n ?? 1, options.n ?? 1];
  const choices = sources.flatMap((_, prompt) => {
    const echo = plain.echoes[prompt] ?? '';
    const before = echoLogprobs(plain, prompt, prompts[prompt]);
    const samples = all.slice(prompt * drawn, (prompt + 1) * drawn);
    return best(samples, n).map(({ text, details, ...each }, index) => ({
      index: prompt * n + index,
      text: echo + text,
      logprobs: body.logprobs == null ? null : joined(plain, before, details, echo.length),
      finish_reason: each.finishReason,
      ...(drawn > n ? { cumulative_logprob: logprobOf({ details }) } : {}),
    }));
  });
  const result: CompletionResponse = { ...head, choices, usage };
  return Response.json(result, { headers: usageHeaders(usage) });
}

function joined(
  { model }: Plain,
  before: Logprobs,
  details: readonly TokenDetail[],
  offset: number,
): Logprobs {
  const own = completionLogprobs(details, model.texts, offset);
  return before === null ? own : joinLogprobs(before, own);
}

const logprobOf = ({ details }: Pick<Finished, 'details'>): number =>
  details.reduce((sum, { logprob }) => sum + logprob, 0);

/** The n samples with the highest mean log-probability of a token, as OpenAI has it. */
function best(samples: readonly Finished[], n: number): readonly Finished[] {
  if (samples.length === n) return samples;
  const score = (each: Finished): number => logprobOf(each) / Math.max(1, each.details.length);
  return [...samples].sort((a, b) => score(b) - score(a)).slice(0, n);
}

async function beams(exchange: Exchange, plain: Plain): Promise<Response> {
  const { body, sources, options, head, echoes } = plain;
  for (const field of ['logprobs', 'best_of'] as const) {
    if (body[field] != null)
      throw badRequest(`${field} must not be given with use_beam_search`, field);
  }
  if (sources.length > 1) {
    throw badRequest('prompt must be a single one with use_beam_search', 'prompt');
  }
  const { found, usage } = await beamJob(
    exchange,
    sources[0],
    body,
    options.maxTokens ?? MAX_TOKENS,
  );
  const choices = found.map((each, index) => ({
    index,
    text: (echoes[0] ?? '') + each.text,
    logprobs: null,
    finish_reason: each.finishReason,
    cumulative_logprob: each.logprob,
  }));
  const result: CompletionResponse = { ...head, choices, usage };
  return Response.json(result, { headers: usageHeaders(usage) });
}

function stream(exchange: Exchange, plain: Plain, job: Job): Promise<Response> {
  const { body, head, echoes } = plain;
  const n = body.n ?? 1;
  const counts = wantsRunningUsage(body);
  const offsets = new Map<number, number>();
  const prompts: PromptTokens[] = [];
  return streamResponse(exchange, PROMPT, async (send) => {
    const chunk = ({ choice, text, detail, finishReason, progress }: Piece): void => {
      const prompt = Math.floor(choice / n);
      const isFirst = !offsets.has(choice);
      const echo = isFirst ? (echoes[prompt] ?? '') : '';
      const offset = offsets.get(choice) ?? echo.length;
      const before = isFirst ? echoLogprobs(plain, prompt, prompts[prompt]) : null;
      const details = detail === null ? [] : [detail];
      const some = body.logprobs != null && (detail !== null || before !== null);
      const logprobs = some ? joined(plain, before, details, offset) : null;
      const length = detail === null ? 0 : (logprobs?.tokens.at(-1)?.length ?? 0);
      offsets.set(choice, offset + length);
      if (echo + text === '' && logprobs === null && finishReason === null) return;
      const one = { index: choice, text: echo + text, logprobs, finish_reason: finishReason };
      send({ ...head, choices: [one], ...(counts ? { usage: runningUsage(progress) } : {}) });
    };
    const usage = await runJob(exchange, job, chunk, (prompt, tokens) => {
      prompts[prompt] = tokens;
    });
    if (body.stream_options?.include_usage) send({ ...head, choices: [], usage });
  });
}
