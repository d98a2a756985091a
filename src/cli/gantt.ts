/**
 * Draws a plan's schedule as SVG: a line a worker, a bar a work item, one colour a KV head.
 * @module
 */
import type { Plan } from '../plan/plan.ts';

const WIDTH = 960;
const LEFT = 64;
const RIGHT = 16;
const TITLE = 46;
const FOOT = 28;
const HEIGHT_MAX = 640;
const LINE_MAX = 18;
/** More lines than this would be thinner than a pixel. */
const WORKERS_MAX = 640;

/** One chart: a plan and the estimated us of each of its tasks. */
export interface Chart {
  readonly title: string;
  readonly plan: Plan;
  readonly taskUs: Float64Array;
}

/** An SVG document with the charts one below the other. */
export function ganttSvg(charts: readonly Chart[]): string {
  let top = 0;
  const parts: string[] = [];
  for (const chart of charts) {
    const { svg, height } = drawChart(chart, top);
    parts.push(svg);
    top += height;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${top}" width="${WIDTH}"`,
    ` height="${top}" font-family="sans-serif" font-size="12">\n`,
    '<style>.bound{stroke:#c00;stroke-dasharray:4 3}.axis{fill:#555}</style>\n',
    `<rect width="${WIDTH}" height="${top}" fill="#fff"/>\n`,
    ...parts,
    '</svg>\n',
  ].join('');
}

function drawChart({ title, plan, taskUs }: Chart, top: number) {
  const workers = Math.min(plan.workers, WORKERS_MAX);
  const line = Math.min(LINE_MAX, HEIGHT_MAX / workers);
  const height = TITLE + workers * line + FOOT;
  const end = Math.max(plan.makespanUs, plan.lowerBoundUs, Number.MIN_VALUE);
  const scale = (WIDTH - LEFT - RIGHT) / end;
  const x = (us: number): string => (LEFT + us * scale).toFixed(2);
  const bars: string[] = [];
  for (let worker = 0; worker < workers; worker++) {
    let us = 0;
    for (let i = plan.workerItem[worker]; i < plan.workerItem[worker + 1]; i++) {
      const task = Math.floor(plan.schedule[i] / plan.kvHeads);
      const head = plan.schedule[i] % plan.kvHeads;
      const y = TITLE + worker * line;
      const width = (taskUs[task] * scale).toFixed(2);
      bars.push(bar(x(us), y, width, line, colour(head, plan.kvHeads, task)));
      us += taskUs[task];
    }
  }
  const shown = workers < plan.workers ? `, first ${workers} shown` : '';
  const facts =
    `${plan.workers} workers${shown}, ${plan.tasks} tasks x ${plan.kvHeads} KV heads, ` +
    `${plan.merges} rows merged, makespan ${plan.makespanUs.toFixed(1)} us, ` +
    `lower bound ${plan.lowerBoundUs.toFixed(1)} us (dashed)`;
  const bottom = TITLE + workers * line;
  const bound = x(plan.lowerBoundUs);
  const svg = [
    `<g transform="translate(0 ${top.toFixed(1)})">\n`,
    `<text x="${LEFT}" y="18" font-size="14">${escapeXml(title)}</text>\n`,
    `<text x="${LEFT}" y="36" class="axis">${facts}</text>\n`,
    ...bars,
    `<line class="bound" x1="${bound}" x2="${bound}" y1="${TITLE - 6}" y2="${bottom + 6}"/>\n`,
    `<text x="8" y="${TITLE + 12}" class="axis">worker</text>\n`,
    ...[0, 0.25, 0.5, 0.75, 1].map(
      (part) =>
        `<text x="${x(end * part)}" y="${bottom + 18}" class="axis" text-anchor="middle">` +
        `${(end * part).toFixed(1)}</text>\n`,
    ),
    '</g>\n',
  ].join('');
  return { svg, height: Math.ceil(height) };
}

function bar(x: string, y: number, width: string, height: number, fill: string): string {
  const inner = Math.max(0.5, height - 1).toFixed(2);
  return `<rect x="${x}" y="${y.toFixed(2)}" width="${width}" height="${inner}" fill="${fill}"/>\n`;
}

/** A hue for the head; neighbouring tasks differ in lightness. */
function colour(head: number, heads: number, task: number): string {
  const hue = Math.round((head * 360) / heads);
  return `hsl(${hue} 60% ${task % 2 === 0 ? 52 : 64}%)`;
}

const escapeXml = (text: string): string =>
  text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
