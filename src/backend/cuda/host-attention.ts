/**
 * One row's attention in float64 on the host, from KV copied back page by page: what the device's
 * float64 reference is itself compared with.
 * @module
 */
import type { Forest } from '../../kvcache/forest.ts';
import type { AttentionOptions } from './attention.ts';
import type { BenchTools } from './bench-tools.ts';
import type { AttentionSpec } from './variants.ts';

/** (query heads, head_dim) of one row. */
export function hostAttention(
  tools: BenchTools,
  spec: AttentionSpec,
  forest: Forest,
  row: number,
  options: AttentionOptions,
): Float64Array {
  const { kvHeads, groupSize, headDim } = spec;
  const heads = kvHeads * groupSize;
  const words = new Uint16Array(heads * headDim);
  tools.downloadQueries(words, row * heads * headDim);
  const number = spec.dtype === 'bf16' ? fromBf16 : fromF16;
  const queries = Float64Array.from(words, number);
  const tokens = rowTokens(tools, spec, forest, row, options.window ?? 0, number);
  const out = new Float64Array(heads * headDim);
  for (let head = 0; head < heads; head++) {
    const query = queries.subarray(head * headDim, (head + 1) * headDim);
    const kvHead = Math.floor(head / groupSize);
    const scores = tokens.map(({ keys }) => {
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += query[d] * keys[kvHead * headDim + d];
      const score = dot * (options.scale ?? 1 / Math.sqrt(headDim));
      return options.softcap ? options.softcap * Math.tanh(score / options.softcap) : score;
    });
    const top = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const weights = scores.map((score) => Math.exp(score - top));
    const sum = weights.reduce((a, b) => a + b, 0);
    tokens.forEach(({ values }, t) => {
      for (let d = 0; d < headDim; d++) {
        out[head * headDim + d] += (weights[t] / sum) * values[kvHead * headDim + d];
      }
    });
  }
  return out;
}

interface Token {
  /** (kv heads, head_dim) */
  readonly keys: Float64Array;
  readonly values: Float64Array;
}

/** K and V of all tokens that a row sees; the layout of a page is that of docs/kernel.md. */
function rowTokens(
  tools: BenchTools,
  { kvHeads, headDim, pageSize }: AttentionSpec,
  forest: Forest,
  row: number,
  window: number,
  number: (bits: number) => number,
): Token[] {
  const position = forest.rowPosition[row];
  const from = window > 0 ? position + 1 - window : 0;
  const page = new Uint16Array(pageSize * kvHeads * headDim * 2);
  const tokens: Token[] = [];
  for (let node = 0; node < forest.nodes; node++) {
    if (row < forest.rowBegin[node] || row >= forest.rowEnd[node]) continue;
    let held = -1;
    for (let t = 0; t < forest.length[node]; t++) {
      const at = forest.start[node] + t;
      if (at < from || at > position) continue;
      const slot = forest.firstSlot[node] + t;
      const id = forest.pages[forest.pageBegin[node] + Math.floor(slot / pageSize)];
      if (id !== held) tools.downloadKv(id * page.byteLength, page);
      held = id;
      const within = slot % pageSize;
      const read = (part: number): Float64Array =>
        Float64Array.from({ length: kvHeads * headDim }, (_, i) => {
          const [head, d] = [Math.floor(i / headDim), i % headDim];
          const group = head * (pageSize / 8) + Math.floor(within / 8);
          const block = group * headDim * 16 + part * headDim * 8 + Math.floor(d / 8) * 64;
          return number(page[block + (within % 8) * 8 + (d % 8)]);
        });
      tokens.push({ keys: read(0), values: read(1) });
    }
  }
  return tokens;
}

function fromBf16(bits: number): number {
  return new Float32Array(new Uint32Array([bits << 16]).buffer)[0];
}

function fromF16(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
