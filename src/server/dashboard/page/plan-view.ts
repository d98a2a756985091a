/**
 * The schedule of the last step as a Gantt chart: a line a worker, a bar a work item.
 * @module
 */
import { byId, cssValue, make, onColours, setText } from './dom.ts';
import { count, round, us } from './format.ts';
import { heat } from './palette.ts';
import type { Plan, PlanItem } from './state.ts';

const LEFT = 76;
const RIGHT = 10;
const FOOT = 22;
const LINE_MAX = 40;
const LINE_MIN = 3;
const HEIGHT = 170;
/** Lines lower than this have no room for the worker's name. */
const LINE_TEXT = 12;
const TABLE_ROWS = 256;

export class PlanView {
  readonly #canvas = byId<HTMLCanvasElement>('plan');
  readonly #summary = byId('plan-summary');
  readonly #detail = byId('plan-detail');
  readonly #table = byId('plan-table');
  #plan: Plan | null = null;

  constructor() {
    new ResizeObserver(() => this.#draw()).observe(this.#canvas);
    onColours(() => this.#draw());
    this.#canvas.addEventListener('pointermove', (event) => this.#point(event));
    this.#canvas.addEventListener('pointerleave', () => this.#describe(null));
  }

  show(plan: Plan | null): void {
    this.#plan = plan;
    if (plan === null) return;
    const text =
      `${count(plan.items.length, 'work item')} on ${count(plan.workers, 'worker')}, ` +
      `${count(plan.rows, 'query row')}; makespan ${us(plan.makespan_us)}, ` +
      `lower bound ${us(plan.lower_bound_us)}`;
    setText(this.#summary, text);
    this.#canvas.setAttribute('aria-label', `Gantt chart of attention in a layer: ${text}.`);
    this.#canvas.dataset.items = `${plan.items.length}`;
    this.#draw();
    this.#fillTable(plan);
    this.#describe(null);
  }

  #line({ workers }: Plan): number {
    return Math.max(LINE_MIN, Math.min(LINE_MAX, HEIGHT / workers));
  }

  #scale({ makespan_us, lower_bound_us }: Plan): number {
    const end = Math.max(makespan_us, lower_bound_us, Number.MIN_VALUE);
    return (this.#canvas.clientWidth - LEFT - RIGHT) / end;
  }

  #draw(): void {
    const plan = this.#plan;
    if (plan === null) return;
    const canvas = this.#canvas;
    const [line, scale] = [this.#line(plan), this.#scale(plan)];
    const height = line * plan.workers + FOOT;
    canvas.style.height = `${height}px`;
    const ratio = devicePixelRatio;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext('2d');
    if (context === null) return;
    context.scale(ratio, ratio);
    context.font = '12px system-ui, sans-serif';
    context.textBaseline = 'middle';
    this.#drawWorkers(context, plan, line);
    const colours = Array.from({ length: 6 }, (_, step) => cssValue(`--heat-${step}`));
    for (const { worker, begin_us, us: duration, rows } of plan.items) {
      context.fillStyle = colours[heat(rows)];
      const width = Math.max(1, duration * scale - (duration * scale > 6 ? 2 : 0.5));
      const gap = line > 8 ? 3 : 0.5;
      context.fillRect(LEFT + begin_us * scale, worker * line + gap, width, line - 2 * gap);
    }
    this.#drawAxis(context, plan, line * plan.workers, scale);
  }

  #drawWorkers(context: CanvasRenderingContext2D, { workers }: Plan, line: number): void {
    context.fillStyle = cssValue('--muted');
    context.textAlign = 'left';
    const every = Math.max(1, Math.ceil(LINE_TEXT / line));
    for (let worker = 0; worker < workers; worker += every) {
      context.fillText(`Worker ${worker}`, 0, (worker + Math.min(every, 1) / 2) * line);
    }
    context.fillStyle = cssValue('--track');
    for (let worker = 0; worker < workers; worker++) {
      const gap = line > 8 ? 3 : 0.5;
      const width = this.#canvas.clientWidth - LEFT - RIGHT;
      context.fillRect(LEFT, worker * line + gap, width, line - 2 * gap);
    }
  }

  #drawAxis(context: CanvasRenderingContext2D, plan: Plan, bottom: number, scale: number): void {
    context.fillStyle = cssValue('--muted');
    context.textAlign = 'center';
    const end = (this.#canvas.clientWidth - LEFT - RIGHT) / scale;
    for (const at of ticks(end)) {
      const x = LEFT + at * scale;
      context.fillRect(x, bottom, 1, 4);
      context.fillText(`${round(at)} µs`, Math.max(LEFT + 12, x - (x > LEFT ? 4 : 0)), bottom + 13);
    }
    context.fillStyle = cssValue('--text');
    const bound = Math.min(LEFT + plan.lower_bound_us * scale, this.#canvas.clientWidth - RIGHT);
    for (let y = 0; y < bottom; y += 7) context.fillRect(bound - 1, y, 1.5, 4);
  }

  #fillTable({ workers, items, makespan_us }: Plan): void {
    const busy = Array.from({ length: Math.min(workers, TABLE_ROWS) }, () => ({ items: 0, us: 0 }));
    for (const { worker, us: duration } of items) {
      if (worker >= busy.length) continue;
      busy[worker].items++;
      busy[worker].us += duration;
    }
    const rows = busy.map((each, worker) => {
      const row = make('tr');
      const share = makespan_us === 0 ? 0 : (100 * each.us) / makespan_us;
      const cells = [`${each.items}`, round(each.us), `${round(share)} %`];
      const head = make('th', '', `${worker}`);
      head.scope = 'row';
      row.append(head, ...cells.map((text) => make('td', '', text)));
      return row;
    });
    this.#table.replaceChildren(...rows);
  }

  #point({ offsetX, offsetY }: PointerEvent): void {
    const plan = this.#plan;
    if (plan === null) return;
    const worker = Math.floor(offsetY / this.#line(plan));
    const time = (offsetX - LEFT) / this.#scale(plan);
    const found = plan.items.find(
      (item) => item.worker === worker && item.begin_us <= time && time < item.begin_us + item.us,
    );
    this.#describe(found ?? null);
  }

  #describe(item: PlanItem | null): void {
    setText(
      this.#detail,
      item === null
        ? 'Attention of one layer as the cost model estimates it. Colour: query rows that share ' +
            'the KV (same scale). Dashed: no schedule can end earlier.'
        : `Task ${item.task} for KV head ${item.kv_head} on worker ${item.worker}: ` +
            `${count(item.rows, 'query row')}, ${us(item.us)} from ${us(item.begin_us)}`,
    );
  }
}

/** About four round numbers from 0 to an end. */
function ticks(end: number): number[] {
  const rough = end / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((each) => each * power >= rough) ?? 10);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => index * step);
}
