/**
 * A runner whose "model" is a hash of the tokens that a row can see through forest and pages: a
 * wrong slot, a wrong page or a token never written changes the answer. It checks every plan.
 * @module
 */
import assert from 'node:assert/strict';
import type { Runner, StepInput, StepOutput } from '../../src/backend/backend.ts';
import { randomStream } from '../../src/base/math.ts';
import type { HostKv } from '../../src/kvcache/host-cache.ts';
import { defaultProfile } from '../../src/plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS } from '../../src/plan/make-plan.ts';
import { checkPlan, pathOf } from '../helpers/plan-checks.ts';

export interface FakeOptions {
  readonly pages?: number;
  readonly pageSize?: number;
  readonly maxRows?: number;
  readonly vocab?: number;
  /** Pages of host memory for evicted KV; default none. */
  readonly hostPages?: number;
  /** Turns of the event loop that a step takes, as on a device that works by itself. */
  readonly turns?: number;
}

/** (vocab) logits after these tokens. */
export function fakeLogits(tokens: readonly number[], vocab: number): Float32Array {
  let hash = 17;
  for (const token of tokens) hash = (Math.imul(hash, 31) + token + 1) | 0;
  const random = randomStream(hash);
  return Float32Array.from({ length: vocab }, () => 4 * random());
}

export const argmax = (logits: Float32Array): number => logits.indexOf(Math.max(...logits));

const logSumExp = (logits: Float32Array): number =>
  Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));

/** What greedy decoding gives, computed without any engine. */
export function greedyOracle(prompt: readonly number[], count: number, vocab: number): number[] {
  const tokens = [...prompt];
  for (let step = 0; step < count; step++) tokens.push(argmax(fakeLogits(tokens, vocab)));
  return tokens.slice(prompt.length);
}

interface Kv {
  readonly token: number;
  readonly position: number;
}

export class FakeRunner implements Runner {
  readonly device = 'reference';
  readonly provider = 'fake';
  readonly providerWhy = 'a test';
  readonly tokenBytes = 100;
  readonly pages: number;
  readonly pageSize: number;
  readonly maxRows: number;
  readonly vocab: number;
  readonly planSpec: Runner['planSpec'];
  /** Rows of every step so far; how often each (token, position) was written. */
  readonly steps: { rows: number; requests: number; logits: number; written: number }[] = [];
  /** Makes the next step fail. */
  broken = false;
  readonly #turns: number;
  readonly #kv = new Map<number, Kv>();
  readonly hostKv: HostKv | undefined;
  /** Copies that were asked for while a step is under way: they come after it. */
  #later: (() => void)[] | null = null;

  constructor(options: FakeOptions = {}) {
    this.pages = options.pages ?? 200;
    this.pageSize = options.pageSize ?? 4;
    this.maxRows = options.maxRows ?? 64;
    this.vocab = options.vocab ?? 16;
    this.#turns = options.turns ?? 0;
    if (options.hostPages !== undefined) this.hostKv = this.#hostMemory(options.hostPages);
    this.planSpec = {
      kvHeads: 2,
      groupSize: 2,
      headDim: 8,
      pageSize: this.pageSize,
      workers: 2,
      taskRows: 8,
      profile: defaultProfile('cpu', 8),
      options: DEFAULT_PLAN_OPTIONS,
    };
  }

  async step(input: StepInput): Promise<StepOutput> {
    if (this.broken) throw new Error('the device is gone');
    this.#later = [];
    for (let turn = 0; turn < this.#turns; turn++) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    const later = this.#later;
    this.#later = null;
    const output = this.#compute(input);
    for (const copy of later) copy();
    return output;
  }

  #compute(input: StepInput): StepOutput {
    const { forest, tokens, writeSlots, logitRows } = input;
    assert.equal(tokens.length, forest.rows);
    assert.ok(forest.rows <= this.maxRows, 'too many rows');
    checkPlan(input.plan, forest);
    const written = writeSlots.filter((slot) => slot >= 0).length;
    assert.equal(
      new Set(writeSlots.filter((slot) => slot >= 0)).size,
      written,
      'slot written twice',
    );
    this.steps.push({
      rows: forest.rows,
      requests: forest.requests,
      logits: logitRows.length,
      written,
    });
    for (let row = 0; row < forest.rows; row++) {
      if (writeSlots[row] < 0) continue;
      this.#kv.set(writeSlots[row], { token: tokens[row], position: forest.rowPosition[row] });
    }
    for (let row = 0; row < forest.rows; row++) {
      assert.equal(this.#visible(input, row).at(-1), tokens[row], 'a row sees itself last');
    }
    const rows = [...logitRows].map((row) => fakeLogits(this.#visible(input, row), this.vocab));
    const logits = new Float32Array(rows.length * this.vocab);
    rows.forEach((row, index) => {
      logits.set(row, index * this.vocab);
    });
    return {
      logits,
      argmax: Int32Array.from(rows, argmax),
      logSumExp: Float32Array.from(rows, logSumExp),
      stepMs: 1,
      attentionMs: 0.5,
    };
  }

  async dispose(): Promise<void> {}

  #hostMemory(pages: number): HostKv {
    const host: (Kv | undefined)[] = [];
    const eachToken = (
      pageList: Int32Array,
      slots: Int32Array,
      copy: (slot: number, place: number) => void,
    ): void => {
      const [from, to] = [slots.slice(), pageList.slice()];
      assert.equal(from.length, to.length * this.pageSize);
      const run = (): void =>
        from.forEach((slot, at) => {
          const place = to[Math.floor(at / this.pageSize)] * this.pageSize + (at % this.pageSize);
          if (slot >= 0) copy(slot, place);
        });
      if (this.#later === null) run();
      else this.#later.push(run);
    };
    return {
      pages,
      save: (slots, to) =>
        eachToken(to, slots, (slot, place) => {
          host[place] = this.#kv.get(slot);
        }),
      load: (from, slots) =>
        eachToken(from, slots, (slot, place) => {
          const kv = host[place];
          assert.ok(kv !== undefined, 'host memory that nobody wrote');
          this.#kv.set(slot, kv);
        }),
    };
  }

  /** The tokens that a row attends to, read through the forest's pages. */
  #visible({ forest }: StepInput, row: number): number[] {
    const tokens: number[] = [];
    for (const node of pathOf(forest, row)) {
      for (let at = 0; at < forest.length[node]; at++) {
        if (forest.start[node] + at > forest.rowPosition[row]) break;
        const slot = forest.firstSlot[node] + at;
        const page = forest.pages[forest.pageBegin[node] + Math.floor(slot / this.pageSize)];
        const kv = this.#kv.get(page * this.pageSize + (slot % this.pageSize));
        assert.ok(kv !== undefined, 'a slot that nobody wrote');
        assert.equal(kv.position, tokens.length, 'KV of another position');
        tokens.push(kv.token);
      }
    }
    return tokens;
  }
}
