/**
 * Draws the README's chart from a joined report of `flashforge bench tpot`: time per output token
 * against the length of the shared prefix, ours and the fastest peer's, one panel a model.
 *
 *     node dist/scripts/chart.js bench/results/tpot-h200.json docs/images/tpot.svg
 * @module
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import type { JoinedRow } from '../src/cli/tpot-peers.ts';

/** A point of a line. */
interface Point {
  readonly model: string;
  readonly shared: number;
  readonly ms: number;
  readonly engine: string;
  /** The line: engine and batch. */
  readonly line: string;
  readonly batch: string;
}

const OURS = 'FlashForge';
const BATCHES = [16, 64];
const MODELS: Readonly<Record<string, string>> = {
  'qwen3-4b': 'Qwen3-4B',
  'llama-3.1-8b': 'Llama-3.1-8B',
};
const MODEL_ORDER = Object.values(MODELS);
const COLOURS = ['#2f81f7', '#d1570b'];
const DASHES = [
  [1, 0],
  [5, 4],
];
const LIGHT = { text: '#1f2328', line: '#d0d7de', grey: '#848d97' };
const DARK = { ...LIGHT, text: '#e6edf3', line: '#3d444d' };

const batchName = (batch: number): string => `batch ${batch}`;

/**
 * The points of all scenarios of one shared prefix that a peer was measured on too.
 * @param ours what our lines are called
 */
export function chartPoints(rows: readonly JoinedRow[], ours: string = OURS): Point[] {
  const points: Point[] = [];
  for (const row of rows) {
    const match = /^shared-(\d+)-B(\d+)$/.exec(row.name);
    const peers = Object.entries(row.peers);
    if (match === null || peers.length === 0 || !BATCHES.includes(row.batch)) continue;
    const [name, { tpot_ms }] = peers.reduce((a, b) => (a[1].tpot_ms <= b[1].tpot_ms ? a : b));
    const add = (engine: string, ms: number): void => {
      const [model, batch] = [MODELS[row.shape] ?? row.shape, batchName(row.batch)];
      points.push({ model, batch, engine, ms, shared: Number(match[1]), line: engine + batch });
    };
    add(ours, row.tpot_ms);
    add(name.replace(/,.*/, ''), tpot_ms);
  }
  return points;
}

/** @throws Error where no scenario was measured on both sides. */
export async function drawChart(points: readonly Point[]): Promise<string> {
  if (points.length === 0) throw new Error('no scenario of a shared prefix has a peer beside it');
  const view = new View(parse(compile(specOf(points)).spec), { renderer: 'none' });
  const svg = await view.toSVG();
  view.finalize();
  return svg.replace(/(<svg[^>]*>)/, `$1${styleOf()}`);
}

function specOf(points: readonly Point[]): TopLevelSpec {
  const lengths = [...new Set(points.map(({ shared }) => shared))].sort((a, b) => a - b);
  const engines = [...new Set(points.map(({ engine }) => engine))];
  const last = Math.max(...lengths);
  const log = 'log' as const;
  const quantitative = 'quantitative' as const;
  const x = {
    ...{ field: 'shared', type: quantitative },
    scale: { type: log, domain: [lengths[0], last] },
    axis: { values: lengths, format: ',', title: 'shared tokens', labelOverlap: false },
  };
  const y = {
    ...{ field: 'ms', type: quantitative },
    scale: { type: log, domain: [2, 200], clamp: true },
    axis: { title: 'ms per output token', values: [2, 5, 10, 20, 50, 100, 200], format: '~g' },
  };
  const color = {
    ...{ field: 'engine', type: 'nominal' as const },
    scale: { domain: engines, range: COLOURS },
    legend: {
      ...{ title: null, orient: 'top' as const, direction: 'vertical' as const },
      ...{ symbolType: 'stroke', symbolStrokeWidth: 3 },
    },
  };
  const strokeDash = {
    ...{ field: 'batch', type: 'nominal' as const },
    scale: { domain: BATCHES.toReversed().map(batchName), range: DASHES },
    legend: {
      ...{ title: null, orient: 'top' as const, direction: 'vertical' as const },
      ...{ symbolType: 'stroke', symbolStrokeWidth: 2.2 },
      symbolFillColor: 'transparent',
    },
  };
  return {
    background: 'transparent',
    padding: { left: 5, right: 25, top: 5, bottom: 5 },
    data: { values: [...points] },
    facet: {
      column: { field: 'model', type: 'nominal', header: { title: null }, sort: MODEL_ORDER },
    },
    spec: {
      ...{ width: 340, height: 260 },
      mark: { type: 'line', point: { size: 40, filled: true }, strokeWidth: 2.2 },
      encoding: { x, y, color, strokeDash, detail: { field: 'line' } },
    },
    config: {
      font: 'system-ui, -apple-system, Segoe UI, sans-serif',
      view: { stroke: null },
      axis: { gridColor: LIGHT.line, domainColor: LIGHT.line, tickColor: LIGHT.line },
      header: { labelFontSize: 14, labelFontWeight: 'bold' },
      legend: {
        labelFontSize: 12,
        labelLimit: 300,
        symbolStrokeColor: LIGHT.grey,
        symbolSize: 500,
      },
    },
  };
}

/** Attributes give way to rules, so that text and grid follow the reader's colour scheme. */
function styleOf(): string {
  const rules = ({ text, line }: typeof LIGHT): string =>
    `text{fill:${text}}` +
    `.role-axis line,.role-axis-grid line,.role-axis-domain line{stroke:${line}}`;
  return `<style>${rules(LIGHT)}@media(prefers-color-scheme:dark){${rules(DARK)}}</style>`;
}

async function main([from, to, ours]: readonly string[]): Promise<void> {
  const { rows } = JSON.parse(readFileSync(from, 'utf8')) as { rows: readonly JoinedRow[] };
  mkdirSync(dirname(to), { recursive: true });
  writeFileSync(to, `${await drawChart(chartPoints(rows, ours))}\n`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main(process.argv.slice(2));
