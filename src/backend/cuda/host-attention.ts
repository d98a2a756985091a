/**
 * One row's attention in float64 on the host, from KV copied back page by page: what the device's
 * float64 reference is itself compared with.
 * @module
 */
import type { Forest } from '../../kvcache/forest.ts';
import type { AttentionOptions } from './attention.ts';
import { type BenchTools, KV_SCALES } from './bench-tools.ts';
import { type AttentionSpec, kvNumberBytes } from './variants.ts';

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
  const tokens = rowTokens(tools, spec, forest, row, options.window ?? 0);
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
  spec: AttentionSpec,
  forest: Forest,
  row: number,
  window: number,
): Token[] {
  const { kvHeads, headDim, pageSize } = spec;
  const position = forest.rowPosition[row];
  const from = window > 0 ? position + 1 - window : 0;
  const page = new Uint16Array(pageSize * kvHeads * headDim * kvNumberBytes(spec));
  const read = readerOf(spec, page);
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
      const numbers = (part: 0 | 1): Float64Array =>
        Float64Array.from({ length: kvHeads * headDim }, (_, i) =>
          read(part, Math.floor(i / headDim), slot % pageSize, i % headDim),
        );
      tokens.push({ keys: numbers(0), values: numbers(1) });
    }
  }
  return tokens;
}

type Reader = (part: 0 | 1, head: number, token: number, d: number) => number;

/** Reads K (part 0) or V of a page's token; blocks are 8 tokens of 16 bytes each. */
function readerOf({ headDim, pageSize, dtype, kv }: AttentionSpec, page: Uint16Array): Reader {
  const width = kv === 'e4m3' ? 16 : 8;
  const bytes = new Uint8Array(page.buffer);
  const number = dtype === 'bf16' ? fromBf16 : fromF16;
  return (part, head, token, d) => {
    const group = head * (pageSize / 8) + Math.floor(token / 8);
    const block = (group * 2 + part) * headDim * 8 + Math.floor(d / width) * 8 * width;
    const at = block + (token % 8) * width + (d % width);
    return kv === 'e4m3' ? KV_SCALES[head * 2 + part] * fromE4m3(bytes[at]) : number(page[at]);
  };
}

function fromE4m3(bits: number): number {
  const exponent = (bits >> 3) & 15;
  const fraction = bits & 7;
  const sign = bits & 0x80 ? -1 : 1;
  if (exponent === 15 && fraction === 7) return Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -9;
  return sign * (1 + fraction / 8) * 2 ** (exponent - 7);
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
