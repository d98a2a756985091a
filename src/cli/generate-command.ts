/**
 * `flashforge generate`: completes prompts; beginnings that they share are computed and read once.
 * @module
 */
import type { BatchPrompt, Completion, Llm, SamplingOptions } from '../index.ts';
import { type Arguments, type Command, type Context, JSON_OPTION } from './command.ts';
import { deviceOptions, loadModel, MODEL_OPTIONS } from './load-model.ts';
import { integerOption, numberOption, usageError } from './parse-arguments.ts';
import { ProgressBar } from './progress-bar.ts';
import { type Prompt, parsePrompts, readText, withPrefix } from './prompt-file.ts';

const MAX_TOKENS_DEFAULT = 128;
const SAMPLES_MAX = 1024;
const TEMPERATURE_MAX = 100;

export const generateCommand: Command = {
  name: 'generate',
  summary: 'Completes one prompt or a file of prompts; what they share is computed and read once.',
  positionals: [],
  options: [
    ...MODEL_OPTIONS,
    { name: 'prefix-file', value: 'F', help: 'text that stands before every prompt' },
    { name: 'prompt', value: 'P', help: 'the prompt, taken as it is: no template, no added text' },
    {
      name: 'prompts',
      value: 'FILE',
      help: 'one prompt a line, or JSONL: {"prompt"} or {"messages"}',
    },
    { name: 'n', short: 'n', value: 'N', help: 'samples of each prompt (default 1)' },
    { name: 'max-tokens', value: 'T', help: 'most new tokens of a sample (default 128)' },
    { name: 'temperature', value: 'X', help: '0 = the likeliest token each time (default 0)' },
    { name: 'top-k', value: 'K', help: 'keep the K likeliest tokens' },
    { name: 'top-p', value: 'P', help: 'keep the likeliest tokens that together reach P' },
    { name: 'min-p', value: 'P', help: 'drop tokens less likely than P times the likeliest' },
    { name: 'seed', value: 'S', help: 'makes sampling repeatable' },
    { name: 'stop', value: 'TEXT', help: 'end before this text' },
    { name: 'flat', help: 'attention without sharing, to compare' },
    JSON_OPTION,
  ],
  examples: [
    'flashforge generate --prompt "The capital of France is" --max-tokens 8',
    'flashforge generate --prompts q.jsonl --prefix-file doc.txt -n 4 --temperature 1 --json | jq',
  ],
  run: async (context, given) => {
    const sampling = readSampling(given);
    const device = deviceOptions(given);
    const prompts = readPrompts(given);
    const model = given.text('model');
    const llm = await loadModel(context, model, { ...device, flat: given.has('flat') });
    try {
      const completions = await complete(context, llm, prompts, sampling);
      await context.report(report(llm, completions));
    } finally {
      await llm.dispose();
    }
  },
};

function readSampling(given: Arguments): SamplingOptions {
  const optional = {
    topP: numberOption(given, 'top-p', 0, 1),
    minP: numberOption(given, 'min-p', 0, 1),
    seed: integerOption(given, 'seed', undefined, Number.MIN_SAFE_INTEGER),
    stop: given.text('stop'),
  };
  if (optional.stop === '') throw usageError('--stop must have at least one character, got ""');
  if (optional.topP === 0) throw usageError('--top-p must be above 0 and at most 1, got "0"');
  return {
    maxTokens: integerOption(given, 'max-tokens', MAX_TOKENS_DEFAULT, 1),
    n: integerOption(given, 'n', 1, 1, SAMPLES_MAX),
    temperature: numberOption(given, 'temperature', 0, TEMPERATURE_MAX) ?? 0,
    topK: integerOption(given, 'top-k', 0, 0),
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)),
  };
}

function readPrompts(given: Arguments): BatchPrompt[] {
  const [prompt, file] = [given.text('prompt'), given.text('prompts')];
  if ((prompt === undefined) === (file === undefined)) {
    throw usageError('generate needs either --prompt P or --prompts FILE');
  }
  if (prompt === '') throw usageError('--prompt must have at least one character, got ""');
  const prompts: readonly Prompt[] =
    prompt !== undefined
      ? [{ text: prompt }]
      : parsePrompts(readText(file as string, '--prompts'), file as string);
  const prefixFile = given.text('prefix-file');
  const prefix = prefixFile === undefined ? '' : readText(prefixFile, '--prefix-file');
  return prompts.map((each) => {
    const whole = withPrefix(prefix, each);
    return 'text' in whole ? whole.text : whole;
  });
}

async function complete(
  context: Context,
  llm: Llm,
  prompts: readonly BatchPrompt[],
  sampling: SamplingOptions,
): Promise<readonly Completion[]> {
  const stream = llm.batch(prompts, { ...sampling, signal: context.signal });
  const total = prompts.length * (sampling.n ?? 1);
  const bar = new ProgressBar();
  let done = 0;
  for await (const chunk of stream) {
    if (total === 1) context.write(chunk.text);
    else if (chunk.finishReason !== undefined) {
      bar.update('completions', ++done, total, `${done} of ${total}`);
    }
  }
  bar.clear();
  const completions = (await stream).flatMap(({ samples }) => samples);
  if (total === 1) context.print('');
  else for (const completion of completions) context.print(blockOf(completion, prompts.length));
  return completions;
}

function blockOf({ prompt, index, text, finishReason }: Completion, prompts: number): string {
  const where = prompts > 1 ? `prompt ${prompt + 1}, sample ${index + 1}` : `sample ${index + 1}`;
  return `--- ${where} (${finishReason})\n${text}`;
}

function report(llm: Llm, completions: readonly Completion[]): object {
  const { steps, times, reduction } = llm.stats();
  const firsts = completions.filter(({ index }) => index === 0);
  const longer = completions.filter(({ stats }) => stats.newTokens > 1);
  return {
    model: llm.info.reference,
    device: llm.info.device,
    provider: llm.info.provider,
    completions: completions.map(({ prompt, index, text, tokens, finishReason }) => ({
      prompt_index: prompt,
      index,
      text,
      token_ids: tokens,
      finish_reason: finishReason,
    })),
    stats: {
      ttft_ms: mean(firsts.map(({ stats }) => stats.ttftMs)),
      tpot_ms: mean(longer.map(({ stats }) => stats.tpotMs)),
      kv_bytes: steps.kvBytes,
      kv_bytes_flat: steps.kvBytesFlat,
      reduction,
      prompt_tokens: firsts.reduce((sum, { stats }) => sum + stats.promptTokens, 0),
      new_tokens: completions.reduce((sum, { stats }) => sum + stats.newTokens, 0),
      steps: steps.steps,
      // Percentiles in ms: of requests, samples and steps.
      times: {
        ttft_ms: times.ttftMs,
        tpot_ms: times.tpotMs,
        host_ms: times.hostMs,
        idle_ms: times.idleMs,
      },
    },
  };
}

const mean = (values: readonly number[]): number =>
  values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
