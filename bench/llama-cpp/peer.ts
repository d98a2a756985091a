/**
 * One case through node-llama-cpp (llama.cpp's prebuilt CPU library), in a process of its own.
 * Usage: peer.ts MODEL.gguf SHARED BATCH NEW THREADS; prints one JSON line.
 *
 * The prompt is evaluated once (its time is the time to first token) and its state is loaded into
 * the other sequences, which is cheaper for the peer than evaluating it for each.
 * @module
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';

const [modelPath, ...numbers] = process.argv.slice(2);
const [shared, batch, steps, threads] = numbers.map(Number);

const llama = await getLlama({
  gpu: false,
  build: 'never',
  logLevel: LlamaLogLevel.error,
  maxThreads: threads,
});
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  sequences: batch,
  contextSize: shared + steps + 64,
  batchSize: 512,
  flashAttention: true,
  threads: { ideal: threads, min: threads },
});
const prompt = Array.from({ length: shared }, (_, i) => (1000 + ((i * 7919) % 40000)) as never);
const greedy = { generateNext: { token: true, options: { temperature: 0 } } } as const;
const sequences = Array.from({ length: batch }, () => context.getSequence());

const start = performance.now();
await sequences[0].controlledEvaluate([...prompt.slice(0, -1), [prompt[shared - 1], greedy]]);
const ttftMs = performance.now() - start;

const folder = mkdtempSync(join(tmpdir(), 'llama-state-'));
const state = join(folder, 'state.bin');
await sequences[0].saveStateToFile(state);
for (const sequence of sequences.slice(1)) {
  await sequence.loadStateFromFile(state, { acceptRisk: true });
}
rmSync(folder, { recursive: true });

let tokens: number[] = sequences.map((_, i) => 2000 + i);
const stepMs: number[] = [];
for (let step = 0; step < steps; step++) {
  const begin = performance.now();
  const outputs = await Promise.all(
    sequences.map((sequence, i) => sequence.controlledEvaluate([[tokens[i] as never, greedy]])),
  );
  stepMs.push(performance.now() - begin);
  tokens = outputs.map((output) => Number(output.at(-1)?.next.token));
}
stepMs.sort((a, b) => a - b);
console.log(JSON.stringify({ ttft_ms: ttftMs, step_ms: stepMs[stepMs.length >> 1] }));
process.exit(0);
