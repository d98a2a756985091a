/**
 * `flashforge demo`: reads a document once, answers 8 questions about it with 2 samples each as
 * one prefix tree, then decodes the same batch flat and shows what sharing saved.
 * @module
 */
import { readFileSync } from 'node:fs';
import { median } from '../base/math.ts';
import { assetPath } from '../base/package-files.ts';
import type { BatchPrompt, Generated, Llm } from '../index.ts';
import { BranchView } from './branch-view.ts';
import { type Command, type Context, JSON_OPTION } from './command.ts';
import type { Mode } from './decode-bench.ts';
import { deviceOptions, loadModel, MODEL_OPTIONS } from './load-model.ts';
import { integerOption } from './parse-arguments.ts';
import { table } from './table.ts';

const QUESTIONS = [
  'Describe the town of Skerry Mouth.',
  'How many steps does the tower have?',
  'What does the town live from?',
  'Who was Marta Quill?',
  'Who was Ruth Adeyemi?',
  'What is the Anvil?',
  'Why is the bell left in the sea?',
  'What happened on 11 November 1953?',
];
const MAX_TOKENS_DEFAULT = 64;
/** Runs of the batch in each mode; single runs differ by some percent. */
const TURNS = 3;
const MODES: readonly Mode[] = ['tree', 'flat'];
/** The second sample of each question is drawn, so that the branches differ. */
const DRAWN = { temperature: 0.6, topP: 0.9, frequencyPenalty: 0.3, seed: 1 };

export const demoCommand: Command = {
  name: 'demo',
  summary: 'Reads a document, asks 8 questions with 2 samples each, and shows what sharing saves.',
  positionals: [],
  options: [
    ...MODEL_OPTIONS,
    { name: 'max-tokens', value: 'T', help: 'most new tokens of an answer (default 64)' },
    JSON_OPTION,
  ],
  examples: ['flashforge demo', 'flashforge demo --provider wasm --json demo.json'],
  run: async (context, given) => {
    const maxTokens = integerOption(given, 'max-tokens', MAX_TOKENS_DEFAULT, 1);
    const device = deviceOptions(given);
    const llm = await loadModel(context, given.text('model'), device);
    try {
      await demonstrate(context, llm, maxTokens);
    } finally {
      await llm.dispose();
    }
  },
};

async function demonstrate(context: Context, llm: Llm, maxTokens: number): Promise<void> {
  const text = readFileSync(assetPath('document.txt'), 'utf8').trim();
  const prompts = await Promise.all(
    QUESTIONS.map((question) => llm.tokenize(promptOf(llm, text, question))),
  );
  const shared = prompts[0].slice(0, commonLength(prompts));
  const started = performance.now();
  const document = await llm.prefill(shared, { signal: context.signal });
  const prefillMs = performance.now() - started;
  context.print(
    `Read the document (${shared.length} tokens) in ${seconds(prefillMs)}; ` +
      `asking ${QUESTIONS.length} questions, 2 samples each:\n`,
  );
  QUESTIONS.forEach((question, index) => {
    context.print(`  ${index + 1}. ${question}`);
  });
  context.print('');

  const runs: Record<Mode, BatchRun[]> = { tree: [], flat: [] };
  for (let turn = 0; turn < TURNS; turn++) {
    // Tree, flat, flat, tree, ...: a machine that slows down or speeds up meets both alike.
    for (const mode of turn % 2 === 0 ? MODES : MODES.toReversed()) {
      const first = runs[mode].length === 0;
      if (first && mode === 'flat') {
        context.note('\nThe same batch flat: every branch reads the whole document by itself ...');
      }
      runs[mode].push(await runBatch(context, llm, prompts, maxTokens, mode, first));
    }
  }
  const [tree, flat] = [medianFigures(runs.tree), medianFigures(runs.flat)];

  const gaps = await divergences(llm, prompts, runs.tree[0].greedy, runs.flat[0].greedy);
  context.print(`\n${comparisonTable(tree, flat)}\n`);
  context.print(verdict(tree, flat, gaps));
  document.dispose();
  await context.report({
    model: llm.info.reference,
    device: llm.info.device,
    provider: llm.info.provider,
    shared_tokens: shared.length,
    prefill_ms: prefillMs,
    turns: TURNS,
    tree,
    flat,
    time_ratio: flat.step_ms / tree.step_ms,
    kv_reduction: flat.kv_bytes / tree.kv_bytes,
    outputs_equal: gaps.length === 0,
    diverged: gaps.length,
  });
}

function promptOf(llm: Llm, text: string, question: string): BatchPrompt {
  if (!llm.info.hasChatTemplate) return `${text}\n\nQuestion: ${question}\nAnswer:`;
  return {
    messages: [
      { role: 'system', content: text },
      { role: 'user', content: question },
    ],
  };
}

function commonLength(prompts: readonly (readonly number[])[]): number {
  const [first, ...rest] = prompts;
  let length = 0;
  while (length < first.length && rest.every((prompt) => prompt[length] === first[length])) {
    length++;
  }
  return length;
}

/** One run of the batch over the document that is in the cache. */
interface BatchRun {
  readonly greedy: readonly Generated[];
  readonly tokens: number;
  /** Wall time from the questions to the last token. */
  readonly wallMs: number;
  /** Sum of the decode steps. */
  readonly decodeMs: number;
  readonly steps: number;
  readonly attentionMs: number;
  readonly kvBytes: number;
  readonly tpotMs: number;
}

async function runBatch(
  context: Context,
  llm: Llm,
  prompts: readonly BatchPrompt[],
  maxTokens: number,
  mode: Mode,
  first: boolean,
): Promise<BatchRun> {
  llm.setFlat(mode === 'flat');
  // Only the document stays: questions and answers of an earlier run must be computed again.
  await llm.clearCache();
  await llm.resetStats();
  const labels = QUESTIONS.flatMap((_, i) => [`${i + 1}a`, `${i + 1}b`]);
  const view = first && mode === 'tree' ? new BranchView(context, labels) : null;
  const started = performance.now();
  const { signal } = context;
  const streams = [
    llm.batch(prompts, { maxTokens, signal }),
    llm.batch(prompts, { maxTokens, signal, ...DRAWN }),
  ];
  const [greedy, drawn] = await Promise.all(
    streams.map(async (stream, sample) => {
      for await (const { prompt, text, finishReason } of stream) {
        view?.append(2 * prompt + sample, text);
        if (finishReason !== undefined) view?.finish(2 * prompt + sample);
      }
      return stream;
    }),
  );
  const wallMs = performance.now() - started;
  const { steps } = llm.stats();
  const all = [...greedy, ...drawn];
  return {
    greedy,
    tokens: all.reduce((sum, { tokens }) => sum + tokens.length, 0),
    wallMs,
    decodeMs: steps.decodeStepMs,
    steps: steps.decodeSteps,
    attentionMs: steps.decodeAttentionMs,
    kvBytes: steps.kvBytes,
    tpotMs: all.reduce((sum, { stats }) => sum + stats.tpotMs, 0) / all.length,
  };
}

/**
 * For each greedy answer that differs: how far the two best logits were apart where it does,
 * which tells rounding from a mistake.
 */
async function divergences(
  llm: Llm,
  prompts: readonly (readonly number[])[],
  tree: readonly Generated[],
  flat: readonly Generated[],
): Promise<number[]> {
  const gaps: number[] = [];
  for (const [index, prompt] of prompts.entries()) {
    const [a, b] = [tree[index].tokens, flat[index].tokens];
    const at = commonLength([a, b]);
    if (at === a.length && at === b.length) continue;
    const branch = await llm.prefill([...prompt, ...a.slice(0, at)]);
    const [best, second] = await branch.top(2);
    branch.dispose();
    gaps.push(best.logprob - second.logprob);
  }
  return gaps;
}

function figures(run: BatchRun) {
  return {
    wall_ms: run.wallMs,
    tokens: run.tokens,
    tokens_per_s: (run.tokens / run.wallMs) * 1000,
    tpot_ms: run.tpotMs,
    step_ms: run.decodeMs / Math.max(1, run.steps),
    attention_ms: run.attentionMs / Math.max(1, run.steps),
    kv_bytes: run.kvBytes,
  };
}

type Figures = ReturnType<typeof figures>;

/** Each figure's median over the turns. */
function medianFigures(runs: readonly BatchRun[]): Figures {
  const all = runs.map(figures);
  const keys = Object.keys(all[0]) as (keyof Figures)[];
  const medians = keys.map((key) => [key, median(all.map((each) => each[key]))]);
  return Object.fromEntries(medians) as Figures;
}

function comparisonTable(tree: Figures, flat: Figures): string {
  const row = (title: string, key: keyof Figures, text: (value: number) => string) => {
    const ratio = key === 'tokens_per_s' ? tree[key] / flat[key] : flat[key] / tree[key];
    return [title, text(tree[key]), text(flat[key]), `${ratio.toFixed(2)}x`];
  };
  const ms = (value: number): string => `${value.toFixed(1)} ms`;
  return table(
    [`median of ${TURNS} turns`, 'prefix tree', 'flat', 'tree is better by'],
    [
      row('tokens a second', 'tokens_per_s', (value) => value.toFixed(1)),
      row('time per token (TPOT)', 'tpot_ms', ms),
      row('decode step', 'step_ms', ms),
      row('of it attention', 'attention_ms', ms),
      row('KV bytes read', 'kv_bytes', (value) => `${(value / 1e9).toFixed(2)} GB`),
      row('whole batch', 'wall_ms', seconds),
    ],
  );
}

function verdict(tree: Figures, flat: Figures, gaps: readonly number[]): string {
  const time = `a decode step took ${(flat.step_ms / tree.step_ms).toFixed(2)} times as long`;
  const bytes = `read ${(flat.kv_bytes / tree.kv_bytes).toFixed(1)} times the KV bytes`;
  const outputs =
    gaps.length === 0
      ? `all ${QUESTIONS.length} greedy answers are identical`
      : `${gaps.length} of ${QUESTIONS.length} greedy answers differ, where the two best tokens ` +
        `were ${gaps.map((gap) => gap.toFixed(2)).join(', ')} apart in logits`;
  return `With sharing off, ${time} and the batch ${bytes}; ${outputs}.`;
}

const seconds = (ms: number): string => `${(ms / 1000).toFixed(2)} s`;
