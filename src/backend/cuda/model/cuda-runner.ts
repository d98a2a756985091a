/**
 * A CUDA device as a runner of depth 2. A step is enqueued whole: inputs and plan by way of pinned
 * memory, the forward pass, draws, results. Then an event is waited for, without blocking the
 * thread, so that the next step is handed in while the device works on this one, and may take
 * tokens that nobody has seen yet. Logits stay on the device until somebody reads them.
 * @module
 */
import { assert } from '../../../base/errors.ts';
import type { HostKv } from '../../../kvcache/host-cache.ts';
import type { PlanSpec } from '../../../plan/plan.ts';
import type { EnergyMeter, Runner, StepInput, StepOutput } from '../../backend.ts';
import type { DeviceMemory, Event, PinnedMemory } from '../driver.ts';
import { bucketOf } from './buckets.ts';
import { freeBuffers } from './cuda-model.ts';
import type { CudaParts } from './cuda-ops.ts';
import type { Sampler } from './sampler.ts';
import { type Forward, StepGraphs } from './step-graphs.ts';
import { StepSlot } from './step-slot.ts';

export interface CudaRunnerOptions {
  readonly parts: CudaParts;
  readonly sampler: Sampler;
  readonly forward: Forward;
  readonly planSpec: PlanSpec;
  readonly pages: number;
  readonly tokenBytes: number;
  /** Whose memory is given back at the end: weights, KV pages. */
  readonly owned: readonly DeviceMemory[];
  readonly providerWhy: string;
  readonly readBytesPerSecond: number;
  readonly energy: EnergyMeter & { close(): void };
  readonly hostKv: HostKv | undefined;
}

/** Two steps under way, and the one before, whose end the time between steps begins with. */
const SLOTS = 3;
/** No step takes this long: the device hangs, although every wait in a kernel has an end. */
const STEP_MS_MAX = 120_000;

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A step that is enqueued. */
interface Flight {
  readonly slot: StepSlot;
  /** The step before's, absent for the first. */
  readonly last: StepSlot | undefined;
  readonly count: number;
  readonly serial: number;
  readonly attentionMs: () => number;
}

export class CudaRunner implements Runner {
  readonly depth = 2;
  readonly device = 'cuda';
  readonly provider = 'nvrtc';
  readonly providerWhy: string;
  readonly pageSize: number;
  readonly pages: number;
  readonly tokenBytes: number;
  readonly maxRows: number;
  readonly planSpec: PlanSpec;
  readonly readBytesPerSecond: number;
  readonly energy: EnergyMeter;
  readonly hostKv: HostKv | undefined;
  readonly #closeEnergy: () => void;
  readonly #parts: CudaParts;
  readonly #sampler: Sampler;
  readonly #owned: readonly DeviceMemory[];
  readonly #graphs: StepGraphs;
  readonly #slots: readonly StepSlot[];
  /** Steps handed in; those of them that were enqueued, and the logit rows of the last. */
  #serial = 0;
  #enqueued = 0;
  #lastCount = 0;
  /** Steps that have not ended, and the promise of the last. */
  #underWay = 0;
  #last: Promise<StepOutput> | undefined;
  #logitsStaging: PinnedMemory | undefined;
  #disposed = false;

  constructor(options: CudaRunnerOptions) {
    const { parts } = options;
    const { cuda, stream, buffers } = parts;
    this.#parts = parts;
    this.#sampler = options.sampler;
    this.#owned = options.owned;
    this.providerWhy = options.providerWhy;
    this.pageSize = parts.attention.spec.pageSize;
    this.pages = options.pages;
    this.tokenBytes = options.tokenBytes;
    this.maxRows = buffers.maxRows;
    this.planSpec = options.planSpec;
    this.readBytesPerSecond = options.readBytesPerSecond;
    this.energy = options.energy;
    this.hostKv = options.hostKv;
    this.#closeEnergy = () => options.energy.close();
    this.#graphs = new StepGraphs(parts, options.sampler, options.forward);
    this.#slots = Array.from({ length: SLOTS }, () => new StepSlot(cuda, stream, buffers.maxRows));
  }

  async step(input: StepInput): Promise<StepOutput> {
    this.#checkStep(input);
    const flight = this.#enqueue(input);
    const step = this.#finish(flight, this.#last);
    this.#last = step;
    this.#underWay++;
    try {
      return await step;
    } finally {
      this.#underWay--;
      if (this.#last === step) this.#last = undefined;
    }
  }

  #checkStep({ tokens, forest, plan, writeSlots, logitRows, draws }: StepInput): void {
    const { rows, rowPosition } = forest;
    const { config, positions } = this.#parts.model;
    assert(!this.#disposed, 'a step on a runner that was disposed of');
    assert(this.#underWay < this.depth, `more than ${this.depth} steps under way`);
    assert(rows > 0 && rows <= this.maxRows, `a step of ${rows} rows, at most maxRows`);
    assert(plan.rows === rows, 'the plan is not for this step');
    assert(logitRows.length <= rows, 'more logit rows than rows');
    assert(!draws || draws.length === logitRows.length, 'a draw for each logit row');
    for (let row = 0; row < rows; row++) {
      // The kernels would read or write outside of their tables.
      const token = tokens[row];
      assert(token >= -this.#lastCount && token < config.vocab, `no token ${token}`);
      assert(rowPosition[row] < positions, `no position ${rowPosition[row]}`);
      assert(writeSlots[row] < this.pages * this.pageSize, `no KV slot ${writeSlots[row]}`);
    }
  }

  /** All of a step's work goes into the stream; nothing here waits for the device. */
  #enqueue(input: StepInput): Flight {
    const { stream, attention } = this.#parts;
    const count = input.logitRows.length;
    const rows = bucketOf(input.forest.rows, this.maxRows);
    const logitRows = bucketOf(count, this.maxRows);
    const serial = ++this.#serial;
    const turn = this.#enqueued;
    const slot = this.#slots[turn % SLOTS];
    const last = turn > 0 ? this.#slots[(turn - 1) % SLOTS] : undefined;
    attention.setPlan(input.plan, input.forest, stream);
    const draws = slot.fill(input, rows, logitRows);
    this.#sampler.readInputs(slot.inputsAddress, rows, logitRows, draws, stream);
    slot.start.record(stream);
    const attentionMs = this.#graphs.run(rows, logitRows, input.plan.kvTokens, slot.timer);
    if (draws > 0) this.#sampler.draw(draws, slot.changesAddress, stream);
    this.#sampler.writeResults(attention.abortAddress, slot.resultsAddress, count, stream);
    slot.end.record(stream);
    this.#enqueued++;
    this.#lastCount = count;
    return { slot, last, count, serial, attentionMs };
  }

  /** Waits for a step to end; it fails if the one before it does. */
  async #finish(
    { slot, last, count, serial, attentionMs }: Flight,
    before: Promise<StepOutput> | undefined,
  ): Promise<StepOutput> {
    const { cuda, stream, attention } = this.#parts;
    let failure: unknown;
    await before?.catch((error: unknown) => {
      failure = error;
    });
    await this.#passed(slot.end);
    const attentionTime = attentionMs();
    if (failure !== undefined) throw failure;
    attention.raise(slot.abortCode, stream);
    slot.takeResults(count);
    const read = (begin: number, rows: number): Float32Array => {
      assert(this.#serial === serial, 'logits are gone once the next step is handed in');
      return this.#readLogits(begin, rows, count);
    };
    let logits: Float32Array | undefined;
    return {
      get logits() {
        logits ??= read(0, count);
        return logits;
      },
      logitsOf: (row) => read(row, 1),
      argmax: slot.argmax.subarray(0, count),
      logSumExp: slot.logSumExp.subarray(0, count),
      drawn: slot.drawn.subarray(0, count),
      drawnLogit: slot.drawnLogit.subarray(0, count),
      stepMs: cuda.elapsedUs(slot.start, slot.end) / 1000,
      attentionMs: attentionTime,
      idleMs: last && cuda.elapsedUs(last.end, slot.start) / 1000,
    };
  }

  /**
   * Asks once in each turn of the event loop: messages are taken meanwhile, and the end is seen
   * within microseconds.
   */
  async #passed(event: Event): Promise<void> {
    const deadline = performance.now() + STEP_MS_MAX;
    while (!event.done()) {
      if (performance.now() > deadline) {
        throw this.#parts.cuda.giveUp(`a step did not end within ${STEP_MS_MAX / 1000} s`);
      }
      await nextTurn();
    }
  }

  /** (rows, vocab) of the step's (count, vocab), valid until these rows are read again. */
  #readLogits(begin: number, rows: number, count: number): Float32Array {
    const { cuda, stream, buffers, model } = this.#parts;
    const rowBytes = model.config.vocab * 4;
    if (!this.#logitsStaging || this.#logitsStaging.bytes < count * rowBytes) {
      this.#logitsStaging?.free();
      this.#logitsStaging = cuda.pinned(count * rowBytes);
    }
    const staging = this.#logitsStaging;
    const at = begin * rowBytes;
    const to = { ...staging, address: staging.address + BigInt(at) };
    const from = buffers.logits.address + BigInt(at);
    if (rows > 0) cuda.downloadAsync(to, from, rows * rowBytes, stream);
    stream.synchronize();
    return new Float32Array(staging.buffer, at, rows * model.config.vocab);
  }

  async dispose(): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    await this.#last?.catch(() => {});
    const { cuda, stream, kernels, cublas, attention, buffers } = this.#parts;
    this.#closeEnergy();
    this.#graphs.free();
    for (const slot of this.#slots) slot.free();
    this.#logitsStaging?.free();
    this.#sampler.free();
    freeBuffers(buffers);
    attention.free();
    cublas.free();
    kernels.module.free();
    for (const memory of this.#owned) memory.free();
    stream.free();
    cuda.close();
  }
}
