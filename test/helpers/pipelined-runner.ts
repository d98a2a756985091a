/**
 * A runner of depth 2 around one of depth 1, which holds the engine to the contract: it reads the
 * input at the hand-in only, runs steps in order and by itself, draws tokens, and takes results away
 * as soon as they stop being valid.
 * @module
 */
import assert from 'node:assert/strict';
import type { RowDraw, Runner, StepInput, StepOutput } from '../../src/backend/backend.ts';
import { drawToken } from '../../src/engine/draw.ts';
import type { HostKv } from '../../src/kvcache/host-cache.ts';
import { changeLogits } from './change-logits.ts';

export interface PipelineOptions {
  /** Turns of the event loop that each step takes. */
  readonly turns?: (step: number) => number;
  /** The step, from 0, that fails. */
  readonly failAt?: number;
  /** It throws at the hand-in and does not reject later. */
  readonly failAtOnce?: boolean;
}

/** What a step looked like when it was handed in. */
export interface HandIn {
  readonly rows: number;
  readonly requests: number;
  /** Rows whose token the step before draws. */
  readonly pending: number;
  /** Rows whose logits come back, and how many of them are drawn at random. */
  readonly answers: number;
  readonly draws: number;
  /** Steps under way then, itself not counted. */
  readonly underWay: number;
}

type Result = Omit<StepOutput, 'logits'> & {
  readonly argmax: Int32Array;
  readonly logSumExp: Float32Array;
  readonly drawn: Int32Array;
  readonly drawnLogit: Float32Array;
};

export class PipelinedRunner implements Runner {
  readonly depth = 2;
  readonly vocab: number;
  readonly handIns: HandIn[] = [];
  /** Steps whose logits somebody read. */
  readonly logitsRead = new Set<number>();
  readonly #inner: Runner;
  readonly #options: PipelineOptions;
  readonly #results: Result[] = [];
  /** Of the step that ran last: the device's own copy. */
  #drawn = new Int32Array(0);
  #underWay = 0;
  #failed = false;
  #last: Promise<unknown> = Promise.resolve();

  constructor(inner: Runner & { readonly vocab: number }, options: PipelineOptions = {}) {
    this.#inner = inner;
    this.#options = options;
    this.vocab = inner.vocab;
  }

  get device() {
    return this.#inner.device;
  }
  get provider() {
    return this.#inner.provider;
  }
  get providerWhy() {
    return this.#inner.providerWhy;
  }
  get pageSize() {
    return this.#inner.pageSize;
  }
  get pages() {
    return this.#inner.pages;
  }
  get tokenBytes() {
    return this.#inner.tokenBytes;
  }
  get maxRows() {
    return this.#inner.maxRows;
  }
  get planSpec() {
    return this.#inner.planSpec;
  }

  /** In order with the steps, as those are run later. */
  get hostKv(): HostKv | undefined {
    const host = this.#inner.hostKv;
    if (host === undefined) return undefined;
    const after = (copy: () => void): void => {
      this.#last = this.#last.catch(() => {}).then(copy);
    };
    return {
      pages: host.pages,
      save: (slots, pages) => {
        const [from, to] = [slots.slice(), pages.slice()];
        after(() => host.save(from, to));
      },
      load: (pages, slots) => {
        const [from, to] = [pages.slice(), slots.slice()];
        after(() => host.load(from, to));
      },
    };
  }

  step(input: StepInput): Promise<StepOutput> {
    const step = this.handIns.length;
    assert.ok(this.#underWay < 2, 'three steps under way');
    this.#note(input);
    if (step >= 2) poison(this.#results[step - 2]);
    const { failAt, failAtOnce } = this.#options;
    if (failAt === step && failAtOnce === true) {
      this.#failed = true;
      throw new Error('the device is gone');
    }
    const copy: StepInput = structuredClone({ ...input, plan: null }) as never;
    this.#underWay++;
    const before = this.#last;
    const result = (async () => {
      await before.catch(() => {});
      for (let turn = this.#options.turns?.(step) ?? 1; turn > 0; turn--) {
        await new Promise((resolve) => setImmediate(resolve));
      }
      try {
        if (step === failAt) this.#failed = true;
        if (this.#failed) throw new Error('the device is gone');
        return await this.#run({ ...copy, plan: input.plan }, step);
      } finally {
        this.#underWay--;
      }
    })();
    this.#last = result;
    return result;
  }

  async dispose(): Promise<void> {
    assert.equal(this.#underWay, 0, 'disposed of with a step under way');
    await this.#inner.dispose();
  }

  #note({ forest, tokens, logitRows, draws }: StepInput): void {
    if (draws !== undefined) assert.equal(draws.length, logitRows.length);
    for (const draw of draws ?? []) if (draw !== null) checkDraw(draw);
    const pending = tokens.filter((token) => token < 0);
    const { answers } = this.handIns.at(-1) ?? { answers: 0 };
    for (const token of pending) assert.ok(-1 - token < answers, `${token} of ${answers} rows`);
    this.handIns.push({
      rows: forest.rows,
      requests: forest.requests,
      pending: pending.length,
      answers: logitRows.length,
      draws: (draws ?? []).filter((draw) => draw !== null).length,
      underWay: this.#underWay,
    });
  }

  async #run(input: StepInput, step: number): Promise<StepOutput> {
    const tokens = input.tokens.map((token) => (token < 0 ? this.#drawn[-1 - token] : token));
    const output = await this.#inner.step({ ...input, tokens });
    const { argmax, logSumExp, stepMs, attentionMs } = output;
    const logits = output.logits.slice();
    const rowOf = (row: number) => logits.subarray(row * this.vocab, (row + 1) * this.vocab);
    const drawn = argmax.map((best, row) => {
      const draw = input.draws?.[row] ?? null;
      return draw === null ? best : drawRow(rowOf(row), draw, tokens[input.logitRows[row]]);
    });
    this.#drawn = drawn.slice();
    const result: Result = {
      argmax: argmax.slice(),
      logSumExp: logSumExp.slice(),
      drawn,
      drawnLogit: Float32Array.from(drawn, (token, row) => rowOf(row)[token]),
      stepMs,
      attentionMs,
    };
    this.#results[step] = result;
    if (this.handIns.length > step + 2) poison(result);
    const read = (): Float32Array => {
      assert.equal(this.handIns.length, step + 1, 'logits read after the next step was handed in');
      this.logitsRead.add(step);
      return logits;
    };
    return {
      ...result,
      get logits() {
        return read();
      },
    };
  }
}

function checkDraw({ temperature, topK, topP, minP, uniform, changes }: RowDraw): void {
  assert.ok(temperature > 0 || changes !== undefined, 'a largest logit needs no draw');
  assert.ok(topK >= 0 && topP > 0 && topP <= 1 && minP >= 0 && minP <= 1);
  assert.ok(uniform >= 0 && uniform < 1);
  assert.equal(new Set(changes?.tokens).size, changes?.tokens.length ?? 0, 'tokens are distinct');
}

/** @param own the row's token */
function drawRow(logits: Float32Array, draw: RowDraw, own: number): number {
  const changed = logits.slice();
  if (draw.changes) changeLogits(changed, draw.changes, own);
  const best = changed.reduce((a, b) => Math.max(a, b));
  if (draw.temperature === 0) return changed.indexOf(best);
  return drawToken(changed, best, draw, draw.uniform);
}

function poison(result: Result | undefined): void {
  result?.argmax.fill(-77);
  result?.drawn.fill(-77);
  result?.logSumExp.fill(Number.NaN);
  result?.drawnLogit.fill(Number.NaN);
}
