/**
 * The device's sampler without a model: logits are uploaded, drawn from, and read back the way
 * that a step does it.
 * @module
 */
import type { RowDraw, StepInput } from '../../src/backend/backend.ts';
import type { DeviceMemory, Event, Stream } from '../../src/backend/cuda/driver.ts';
import type { KernelLoader } from '../../src/backend/cuda/kernel-loader.ts';
import { DRAW_WORDS, INPUTS } from '../../src/backend/cuda/model/cuda-model.ts';
import { Sampler } from '../../src/backend/cuda/model/sampler.ts';
import { StepSlot } from '../../src/backend/cuda/model/step-slot.ts';

export class SamplerBed {
  readonly sampler: Sampler;
  readonly slot: StepSlot;
  readonly stream: Stream;
  readonly #loader: KernelLoader;
  readonly #maxRows: number;
  readonly #logits: DeviceMemory;
  readonly #inputs: DeviceMemory;
  readonly #abort: DeviceMemory;

  constructor(loader: KernelLoader, vocab: number, maxRows: number) {
    const { cuda } = loader;
    this.#loader = loader;
    this.#maxRows = maxRows;
    this.stream = cuda.stream();
    this.#logits = cuda.alloc(maxRows * vocab * 4);
    this.#inputs = cuda.alloc(maxRows * 4 * (INPUTS.length + DRAW_WORDS));
    this.#abort = cuda.alloc(16);
    cuda.fill(this.#abort.address, 0, 16, this.stream);
    const buffers = { maxRows, inputs: this.#inputs, logits: this.#logits };
    this.sampler = new Sampler(loader, buffers, vocab, this.stream);
    this.slot = new StepSlot(cuda, this.stream, maxRows);
  }

  /** @param logits (rows, vocab) */
  upload(logits: Float32Array): void {
    this.stream.synchronize();
    this.#loader.cuda.upload(this.#logits.address, logits);
  }

  /** Brings the inputs of a step to the device and returns the tokens as they lie there. */
  enter(tokens: Int32Array, draws: readonly (RowDraw | null)[]): Int32Array {
    this.#put(tokens, draws);
    this.stream.synchronize();
    const there = new Int32Array(tokens.length);
    this.#loader.cuda.download(there, this.#inputs.address);
    return there;
  }

  /** Returns the rows that have draws. */
  #put(tokens: Int32Array, draws: readonly (RowDraw | null)[]): number {
    const rows = tokens.length;
    const zeros = new Int32Array(rows);
    const forest = { rows, rowPosition: zeros };
    const logitRows = Int32Array.from(zeros, (_, row) => row);
    const input = { tokens, forest, writeSlots: zeros, logitRows, draws };
    const count = this.slot.fill(input as unknown as StepInput, rows, rows);
    this.sampler.readInputs(this.slot.inputsAddress, rows, rows, count, this.stream);
    return count;
  }

  /** Draws tokens, of rows whose own are `tokens`; the slot has the results then. */
  draw(draws: readonly (RowDraw | null)[], tokens = new Int32Array(draws.length)): void {
    const rows = draws.length;
    const drawn = this.#put(tokens, draws);
    this.sampler.stats(rows, this.stream);
    if (drawn > 0) this.sampler.draw(drawn, this.slot.changesAddress, this.stream);
    this.sampler.writeResults(this.#abort.address, this.slot.resultsAddress, rows, this.stream);
    this.stream.synchronize();
    this.slot.takeResults(rows);
  }

  /** Time of `work`, us: as a graph, the mean over `turns` replays. */
  timeUs(work: () => void, turns = 20): number {
    const { cuda } = this.#loader;
    const graph = cuda.capture(this.stream, work);
    const [from, to]: Event[] = [cuda.event(), cuda.event()];
    graph.launch(this.stream);
    from.record(this.stream);
    for (let turn = 0; turn < turns; turn++) graph.launch(this.stream);
    to.record(this.stream);
    this.stream.synchronize();
    const us = cuda.elapsedUs(from, to) / turns;
    for (const part of [graph, from, to]) part.free();
    return us;
  }

  get maxRows(): number {
    return this.#maxRows;
  }

  free(): void {
    this.sampler.free();
    this.slot.free();
    for (const memory of [this.#logits, this.#inputs, this.#abort]) memory.free();
    this.stream.free();
  }
}
