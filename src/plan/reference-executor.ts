/**
 * Executes a plan in float64, item by item as a kernel would: partial attention with LSE, then
 * merges. The oracle for what a plan means; it also checks that every result is written once.
 * (Partial attention and merge are PAC and POR of CoDec; LSE is the natural logarithm here.)
 * @module
 */
import { assert } from '../base/errors.ts';
import type { Forest } from '../kvcache/forest.ts';
import { OPEN_END, type Plan } from './plan.ts';

/** Queries and keys of one step. */
export interface AttentionInput {
  readonly groupSize: number;
  readonly headDim: number;
  /** (rows, kvHeads, groupSize, headDim) */
  readonly q: Float64Array;
  /** K and V of one token, (headDim) each; the arrays are only read before the next call. */
  key(node: number, token: number, kvHead: number): Float64Array;
  value(node: number, token: number, kvHead: number): Float64Array;
}

/** Softmax state of one query vector: sum of weights relative to `max`, and weighted values. */
class State {
  max = Number.NEGATIVE_INFINITY;
  sum = 0;
  readonly out: Float64Array;

  constructor(headDim: number) {
    this.out = new Float64Array(headDim);
  }

  /** Takes in values `out` with weight sum `sum`, relative to `max`. */
  merge(max: number, sum: number, out: Float64Array): void {
    if (sum === 0) return;
    const top = Math.max(this.max, max);
    const mine = this.sum === 0 ? 0 : Math.exp(this.max - top);
    const theirs = Math.exp(max - top);
    this.sum = this.sum * mine + sum * theirs;
    for (let d = 0; d < out.length; d++) this.out[d] = this.out[d] * mine + out[d] * theirs;
    this.max = top;
  }

  /** Output scaled to weights of sum 1, and the LSE; zeros and -Infinity without any key. */
  finish(): { out: Float64Array; lse: number } {
    if (this.sum === 0) return { out: this.out.fill(0), lse: Number.NEGATIVE_INFINITY };
    return { out: this.out.map((x) => x / this.sum), lse: this.max + Math.log(this.sum) };
  }
}

/**
 * Returns the attention output (rows, kvHeads, groupSize, headDim) that the plan computes.
 * @throws Error if an item or a row is written twice or not at all, or indices are out of range.
 */
export function executePlan(plan: Plan, forest: Forest, input: AttentionInput): Float64Array {
  const run = new Execution(plan, forest, input);
  const seen = new Uint8Array(plan.items);
  for (let worker = 0; worker < plan.workers; worker++) {
    for (let i = plan.workerItem[worker]; i < plan.workerItem[worker + 1]; i++) {
      const item = plan.schedule[i];
      assert(item >= 0 && item < plan.items && seen[item] === 0, `item ${item} runs twice`);
      seen[item] = 1;
      run.item(Math.floor(item / plan.kvHeads), item % plan.kvHeads);
    }
  }
  assert(!seen.includes(0), 'an item is not scheduled');
  for (let merge = 0; merge < plan.merges; merge++) run.merge(merge);
  return run.output;
}

class Execution {
  readonly output: Float64Array;
  readonly #plan: Plan;
  readonly #forest: Forest;
  readonly #input: AttentionInput;
  readonly #written: Uint8Array;
  /** (slots, kvHeads, groupSize) */
  readonly #partials: ({ out: Float64Array; lse: number } | undefined)[];

  constructor(plan: Plan, forest: Forest, input: AttentionInput) {
    this.#plan = plan;
    this.#forest = forest;
    this.#input = input;
    const vectors = plan.rows * plan.kvHeads * input.groupSize;
    this.output = new Float64Array(vectors * input.headDim);
    this.#written = new Uint8Array(vectors);
    this.#partials = new Array(plan.slots * plan.kvHeads * input.groupSize).fill(undefined);
  }

  item(task: number, head: number): void {
    const plan = this.#plan;
    for (let row = plan.taskRowBegin[task]; row < plan.taskRowEnd[task]; row++) {
      const at = plan.taskDestination[task] + row - plan.taskRowBegin[task];
      const destination = plan.destination[at];
      if (destination === -2) continue;
      for (let member = 0; member < this.#input.groupSize; member++) {
        const state = this.#attend(task, row, head, member);
        if (destination === -1) this.#write(row, head, member, state.out);
        else this.#keep(destination, head, member, state);
      }
    }
  }

  merge(index: number): void {
    const plan = this.#plan;
    assert(plan.mergeCount[index] >= 2, 'a merge needs at least two partials');
    for (let head = 0; head < plan.kvHeads; head++) {
      for (let member = 0; member < this.#input.groupSize; member++) {
        const state = new State(this.#input.headDim);
        for (let i = 0; i < plan.mergeCount[index]; i++) {
          const partial = this.#partials[this.#slotAt(plan.mergeSlot[index] + i, head, member)];
          assert(partial !== undefined, `slot ${plan.mergeSlot[index] + i} was not written`);
          if (partial.lse > Number.NEGATIVE_INFINITY) state.merge(partial.lse, 1, partial.out);
        }
        this.#write(plan.mergeRow[index], head, member, state.finish().out);
      }
    }
  }

  #attend(task: number, row: number, head: number, member: number) {
    const [plan, forest, input] = [this.#plan, this.#forest, this.#input];
    const q = this.#vectorAt(row, head, member) * input.headDim;
    const state = new State(input.headDim);
    for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
      if (row < plan.segmentRowBegin[s] || row >= plan.segmentRowEnd[s]) continue;
      const node = plan.segmentNode[s];
      const open = plan.segmentEnd[s] === OPEN_END;
      const end = open ? forest.length[node] : plan.segmentEnd[s];
      const seen = Math.min(end, forest.rowPosition[row] - forest.start[node] + 1);
      for (let token = plan.segmentBegin[s]; token < seen; token++) {
        const key = input.key(node, token, head);
        let score = 0;
        for (let d = 0; d < input.headDim; d++) score += input.q[q + d] * key[d];
        state.merge(score / Math.sqrt(input.headDim), 1, input.value(node, token, head));
      }
    }
    return state.finish();
  }

  #write(row: number, head: number, member: number, out: Float64Array): void {
    const vector = this.#vectorAt(row, head, member);
    assert(this.#written[vector] === 0, `row ${row} is written twice`);
    this.#written[vector] = 1;
    this.output.set(out, vector * this.#input.headDim);
  }

  #keep(slot: number, head: number, member: number, state: { out: Float64Array; lse: number }) {
    assert(slot >= 0 && slot < this.#plan.slots, `slot ${slot} is out of range`);
    const at = this.#slotAt(slot, head, member);
    assert(this.#partials[at] === undefined, `slot ${slot} is written twice`);
    this.#partials[at] = state;
  }

  #vectorAt(row: number, head: number, member: number): number {
    return (row * this.#plan.kvHeads + head) * this.#input.groupSize + member;
  }

  #slotAt(slot: number, head: number, member: number): number {
    return (slot * this.#plan.kvHeads + head) * this.#input.groupSize + member;
  }
}
