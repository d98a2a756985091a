/**
 * Checks of a plan against its forest, written independently of the planner.
 * @module
 */
import assert from 'node:assert/strict';
import { randomStream } from '../../src/base/math.ts';
import type { Forest } from '../../src/kvcache/forest.ts';
import { OPEN_END, type Plan } from '../../src/plan/plan.ts';
import type { AttentionInput } from '../../src/plan/reference-executor.ts';

/** Nodes with `row` on their path that have tokens. */
export function pathOf(forest: Forest, row: number): number[] {
  const path: number[] = [];
  for (let node = 0; node < forest.nodes; node++) {
    if (forest.rowBegin[node] <= row && row < forest.rowEnd[node]) path.push(node);
  }
  return path;
}

/** Every visible (row, ancestor token) is covered once; destinations and merges fit together. */
export function checkPlan(plan: Plan, forest: Forest): void {
  assert.equal(plan.rows, forest.rows);
  assert.equal(plan.items, plan.tasks * plan.kvHeads);
  const covered = new Map<string, number>();
  const outputs = new Int32Array(plan.rows);
  const slotRow = new Int32Array(plan.slots).fill(-1);
  for (let task = 0; task < plan.tasks; task++) {
    const rows = checkSegments(plan, forest, task, covered);
    for (let row = plan.taskRowBegin[task]; row < plan.taskRowEnd[task]; row++) {
      const at = plan.taskDestination[task] + row - plan.taskRowBegin[task];
      assert.ok(at < plan.taskDestination[task + 1], 'destination lies outside of its task');
      const destination = plan.destination[at];
      assert.equal(destination !== -2, rows.has(row), `task ${task}, row ${row}`);
      if (destination === -1) outputs[row]++;
      if (destination < 0) continue;
      assert.equal(slotRow[destination], -1, `slot ${destination} is written twice`);
      slotRow[destination] = row;
    }
  }
  for (let merge = 0; merge < plan.merges; merge++) {
    outputs[plan.mergeRow[merge]]++;
    for (let i = 0; i < plan.mergeCount[merge]; i++) {
      assert.equal(slotRow[plan.mergeSlot[merge] + i], plan.mergeRow[merge]);
    }
  }
  const merged = plan.mergeCount.subarray(0, plan.merges).reduce((sum, count) => sum + count, 0);
  assert.equal(merged, plan.slots, 'a slot is not merged');
  checkCover(forest, covered, outputs);
}

function checkSegments(
  plan: Plan,
  forest: Forest,
  task: number,
  covered: Map<string, number>,
): Set<number> {
  const rows = new Set<number>();
  for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
    const node = plan.segmentNode[s];
    const open = plan.segmentEnd[s] === OPEN_END;
    const end = open ? forest.length[node] : plan.segmentEnd[s];
    assert.ok(plan.segmentBegin[s] < end && end <= forest.length[node], 'bad token interval');
    assert.ok(plan.segmentRowBegin[s] >= plan.taskRowBegin[task]);
    assert.ok(plan.segmentRowEnd[s] <= plan.taskRowEnd[task]);
    assert.ok(plan.segmentRowBegin[s] < plan.segmentRowEnd[s], 'segment without rows');
    for (let row = plan.segmentRowBegin[s]; row < plan.segmentRowEnd[s]; row++) {
      assert.ok(forest.rowBegin[node] <= row && row < forest.rowEnd[node], 'row not under node');
      rows.add(row);
      for (let token = plan.segmentBegin[s]; token < end; token++) {
        const key = `${row}/${node}/${token}`;
        covered.set(key, (covered.get(key) ?? 0) + 1);
      }
    }
  }
  return rows;
}

function checkCover(forest: Forest, covered: Map<string, number>, outputs: Int32Array): void {
  for (let row = 0; row < forest.rows; row++) {
    let tokens = 0;
    for (const node of pathOf(forest, row)) {
      const seen = Math.min(forest.length[node], forest.rowPosition[row] - forest.start[node] + 1);
      for (let token = 0; token < seen; token++) {
        assert.equal(covered.get(`${row}/${node}/${token}`), 1, `row ${row} node ${node} ${token}`);
      }
      tokens += Math.max(0, seen);
    }
    if (tokens > 0) assert.equal(outputs[row], 1, `row ${row} has ${outputs[row]} results`);
  }
}

/** Random Q, K and V for a forest. */
export function randomInput(
  forest: Forest,
  kvHeads: number,
  groupSize: number,
  headDim: number,
  seed: number,
): AttentionInput {
  const random = randomStream(seed);
  const vector = (count: number): Float64Array =>
    Float64Array.from({ length: count }, () => random() * 4 - 2);
  const offset = new Int32Array(forest.nodes + 1);
  for (let n = 0; n < forest.nodes; n++) offset[n + 1] = offset[n] + forest.length[n];
  const size = offset[forest.nodes] * kvHeads * headDim;
  const [keys, values] = [vector(size), vector(size)];
  const at = (node: number, token: number, head: number): number =>
    ((offset[node] + token) * kvHeads + head) * headDim;
  const part = (data: Float64Array, from: number) => data.subarray(from, from + headDim);
  return {
    groupSize,
    headDim,
    q: vector(forest.rows * kvHeads * groupSize * headDim),
    key: (node, token, head) => part(keys, at(node, token, head)),
    value: (node, token, head) => part(values, at(node, token, head)),
  };
}

/** softmax(q K^T / sqrt(headDim)) V over each row's whole path, in float64. */
export function directAttention(
  forest: Forest,
  kvHeads: number,
  input: AttentionInput,
): Float64Array {
  const { groupSize, headDim, q } = input;
  const output = new Float64Array(q.length);
  for (let row = 0; row < forest.rows; row++) {
    const tokens = pathOf(forest, row).flatMap((node) => {
      const seen = Math.min(forest.length[node], forest.rowPosition[row] - forest.start[node] + 1);
      return Array.from({ length: Math.max(0, seen) }, (_, token) => [node, token] as const);
    });
    for (let head = 0; head < kvHeads; head++) {
      for (let member = 0; member < groupSize; member++) {
        const from = ((row * kvHeads + head) * groupSize + member) * headDim;
        const scores = tokens.map(([node, token]) => {
          const key = input.key(node, token, head);
          let score = 0;
          for (let d = 0; d < headDim; d++) score += q[from + d] * key[d];
          return score / Math.sqrt(headDim);
        });
        const top = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - top));
        const sum = weights.reduce((a, b) => a + b, 0);
        tokens.forEach(([node, token], i) => {
          const value = input.value(node, token, head);
          for (let d = 0; d < headDim; d++) output[from + d] += (weights[i] / sum) * value[d];
        });
      }
    }
  }
  return output;
}
