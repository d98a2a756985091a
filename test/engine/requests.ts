/**
 * Requests to an engine without text, threads or a server: what comes out of each is collected.
 * @module
 */
import assert from 'node:assert/strict';
import type { Runner } from '../../src/backend/backend.ts';
import type { FlashForgeError } from '../../src/base/errors.ts';
import type { Engine } from '../../src/engine/engine.ts';
import {
  Generation,
  type GenerationInit,
  type PromptToken,
  type TokenConstraint,
} from '../../src/engine/generation.ts';
import { type SamplingOptions, samplingParams } from '../../src/engine/sampling-params.ts';
import { treeStats } from '../../src/kvcache/tree-stats.ts';

/** What came out of one request. */
export interface Outcome {
  readonly generation: Generation;
  readonly tokens: number[][];
  readonly text: string[];
  /** Of each token, where logprobs were asked for. */
  readonly logprobs: number[][];
  readonly reasons: string[];
  readonly cached: number[];
  prompt: readonly PromptToken[] | null;
  error: FlashForgeError | null;
  done: boolean;
}

export function generate(
  engine: Engine,
  prompt: readonly number[],
  options: SamplingOptions = {},
  init: Partial<GenerationInit> = {},
): Outcome {
  const { vocab } = engine.runner as Runner & { readonly vocab: number };
  const params = samplingParams(options, vocab);
  const lists = <T>(make: () => T): T[] => Array.from({ length: params.n }, make);
  const outcome = {
    tokens: lists((): number[] => []),
    text: lists(() => ''),
    logprobs: lists((): number[] => []),
    reasons: lists(() => ''),
    cached: lists(() => -1),
    prompt: null as readonly PromptToken[] | null,
    error: null as FlashForgeError | null,
    done: false,
  };
  const generation = new Generation(
    engine,
    {
      prompt: Int32Array.from(prompt),
      params,
      contextLength: 1000,
      eosIds: new Set(),
      ...init,
    },
    {
      onPrompt: ({ tokens, promptTokens }) => {
        assert.ok(outcome.tokens.every(({ length }) => length === 0));
        assert.equal(promptTokens, prompt.length);
        outcome.prompt = tokens;
      },
      onToken: ({ index, token, text, logprob }) => {
        outcome.tokens[index].push(token);
        if (logprob !== undefined) outcome.logprobs[index].push(logprob);
        outcome.text[index] += text;
      },
      onEnd: ({ index, text, finishReason, stats }) => {
        outcome.text[index] += text;
        outcome.reasons[index] = finishReason;
        outcome.cached[index] = stats.cachedTokens;
      },
      onDone: () => {
        outcome.done = true;
      },
      onError: (error) => {
        outcome.error = error;
      },
    },
  );
  return Object.assign(outcome, { generation });
}

export async function runAll(engine: Engine): Promise<void> {
  for (let steps = 0; (await engine.step()) || engine.running > 0; steps++) {
    assert.ok(steps < 20_000, 'no progress');
    // Masks that are being made arrive with the loop's turns.
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A grammar that allows everything and thinks for some turns of the event loop. */
export function slowConstraint(vocab: number, turns: number): TokenConstraint {
  const all = new Uint8Array(vocab).fill(1);
  let asked = 0;
  return {
    accept: () => {},
    allowed: () => {
      const left = asked++ % (turns + 1);
      if (left === 0) return all;
      return (async () => {
        for (let turn = 0; turn < left; turn++) {
          await new Promise((resolve) => setImmediate(resolve));
        }
        return all;
      })();
    },
  };
}

export function checkEmpty(engine: Engine): void {
  const { tree } = engine;
  assert.equal(engine.running + engine.waiting, 0);
  assert.equal(tree.availablePages, tree.pool.pages, 'a page leaked');
  tree.evictAll();
  assert.equal(treeStats(tree, 1).pagesUsed, 0);
}
