/**
 * Adds to test/fixtures/smollm2/*.json what llama.cpp computes on the same GGUF file for the same
 * tokens, and its distance to the float32 logits that bench/fixtures/huggingface.py put there.
 * Usage: logits.ts MODEL.gguf FOLDER
 * @module
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { getLlama, type LlamaContextSequence, LlamaLogLevel, type Token } from 'node-llama-cpp';
import { logitDistance } from '../../test/helpers/logit-distance.ts';

interface Fixture {
  ids: number[];
  float32: {
    positions: number[];
    topIds: number[][];
    topLogits: number[][];
    logSumExp: number[];
    greedy: number[];
  };
  llamaCpp?: unknown;
}

const [modelPath, folder] = process.argv.slice(2);
const llama = await getLlama({
  gpu: false,
  build: 'never',
  logLevel: LlamaLogLevel.error,
  maxThreads: 1,
});
const model = await llama.loadModel({ modelPath });
const round = (value: number, digits: number): number => Number(value.toFixed(digits));

/** The most likely token of every position; log-probabilities where the fixture wants them. */
async function evaluate(sequence: LlamaContextSequence, { ids, float32 }: Fixture) {
  const wanted = new Map(float32.positions.map((position, i) => [position, float32.topIds[i]]));
  const top1: number[] = [];
  const logits: number[][] = [];
  const logSumExp: number[] = [];
  const greedy = { token: true, options: { temperature: 0 } } as const;
  await sequence.controlledEvaluate(
    ids.map((id, i) => [id as Token, { generateNext: { ...greedy, logits: wanted.has(i) } }]),
    {
      onTokenResult: (index, { next }) => {
        top1[index] = Number(next.token);
        const chosen = wanted.get(index);
        if (!chosen || !next.logits) return;
        const all = [...next.logits.values()];
        const max = all.reduce((a, b) => Math.max(a, b));
        const sum = all.reduce((total, value) => total + Math.exp(value - max), 0);
        const at = float32.positions.indexOf(index);
        logits[at] = chosen.map((id) => round(next.logits!.get(id as Token)!, 4));
        logSumExp[at] = round(max + Math.log(sum), 4);
      },
    },
  );
  return { top1, logits, logSumExp };
}

async function continuation(sequence: LlamaContextSequence, first: number, count: number) {
  const tokens = [first];
  while (tokens.length < count) {
    const next = { generateNext: { token: true, options: { temperature: 0 } } } as const;
    const [output] = await sequence.controlledEvaluate([[tokens.at(-1) as Token, next]]);
    tokens.push(Number(output?.next.token));
  }
  return tokens;
}

for (const name of readdirSync(folder).filter((file) => file.endsWith('.json'))) {
  const path = join(folder, name);
  const fixture = JSON.parse(readFileSync(path, 'utf8')) as Fixture;
  const { ids, float32 } = fixture;
  // Flash attention as in compare.ts, so that speed and distance are of the same computation.
  const context = await model.createContext({
    contextSize: 2048,
    batchSize: 512,
    flashAttention: true,
  });
  const sequence = context.getSequence();
  const { top1, logits, logSumExp } = await evaluate(sequence, fixture);
  const greedy = await continuation(sequence, top1.at(-1)!, float32.greedy.length);
  const oracle = { logits: float32.topLogits, logSumExp: float32.logSumExp };
  const { rms, kl } = logitDistance(oracle, { logits, logSumExp });
  const llamaCpp = { top1, logits, logSumExp, greedy, rms: round(rms, 6), kl: round(kl, 8) };
  console.log(name, ids.length, { rms, kl });
  await context.dispose();
  writeFileSync(path, `${JSON.stringify({ ...fixture, llamaCpp })}\n`);
}
process.exit(0);
