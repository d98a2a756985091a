/**
 * Throughput and latencies over time.
 * @module
 */
import { byId, cssValue, make, onColours, setText } from './dom.ts';
import { ms, round } from './format.ts';
import type { Second } from './state.ts';
import uPlot from './uplot.js';

/** Windows in s; the smallest that holds what there is. */
const WINDOWS = [60, 120, 300];
const HEIGHT = 130;

interface Series {
  readonly title: string;
  readonly field: 'tokens' | 'tpot_ms' | 'ttft_ms';
  readonly unit: string;
  readonly text: (value: number) => string;
}

const SERIES: readonly Series[] = [
  {
    title: 'Throughput',
    field: 'tokens',
    unit: 'tokens/s',
    text: round,
  },
  { title: 'Time per output token (TPOT)', field: 'tpot_ms', unit: 'ms', text: ms },
  { title: 'Time to first token (TTFT)', field: 'ttft_ms', unit: 'ms', text: ms },
];

interface Chart {
  readonly series: Series;
  readonly figure: HTMLElement;
  readonly value: HTMLElement;
  readonly box: HTMLElement;
  plot: uPlot;
}

export class Charts {
  readonly #charts: Chart[];
  #data: (readonly (readonly (number | null)[])[])[] = SERIES.map(() => [[0], [null]]);

  constructor() {
    const into = byId('charts');
    this.#charts = SERIES.map((series, index) => {
      const figure = make('figure', 'chart');
      const caption = make('figcaption');
      const value = make('span', 'chart-value', '–');
      caption.append(make('span', '', `${series.title}, ${series.unit}`), value);
      const box = make('div', 'chart-box');
      box.setAttribute('role', 'img');
      figure.append(caption, box);
      into.append(figure);
      return { series, figure, value, box, plot: this.#plot(series, box, index) };
    });
    onColours(() => this.#remake());
    new ResizeObserver(() => this.#resize()).observe(into);
  }

  /** @param now the server's time in s */
  show(recent: readonly Second[], now: number): void {
    const last = Math.floor(now) - 1;
    const age = recent.length === 0 ? 0 : last - recent[0].time;
    const window = WINDOWS.find((each) => each >= age) ?? WINDOWS[WINDOWS.length - 1];
    setText(byId('charts-window'), `last ${window / 60} min, a point a second`);
    const known = new Map(recent.map((second) => [second.time, second]));
    const times = Array.from({ length: window + 1 }, (_, index) => index - window);
    this.#data = SERIES.map(({ field }) => [
      times,
      times.map((time) => known.get(last + time)?.[field] ?? (field === 'tokens' ? 0 : null)),
    ]);
    this.#charts.forEach((chart, index) => {
      const values = this.#data[index][1].filter((value) => value !== null);
      const { series } = chart;
      const newest = values.at(-1);
      const text =
        newest === undefined
          ? 'nothing yet'
          : `${series.text(newest)} now, ${series.text(Math.max(...values))} at most`;
      setText(chart.value, text);
      chart.box.setAttribute(
        'aria-label',
        `${series.title} in ${series.unit}, last ${window} s: ${text}`,
      );
      chart.plot.setData(this.#data[index] as uPlot.AlignedData);
    });
  }

  #plot({ field }: Series, box: HTMLElement, index: number): uPlot {
    const muted = cssValue('--muted');
    const grid = { stroke: cssValue('--line'), width: 1 };
    const axis = { stroke: muted, font: '12px system-ui, sans-serif', grid, ticks: grid };
    const accent = cssValue('--accent');
    const options: uPlot.Options = {
      width: box.clientWidth || 300,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false }, y: { range: (_, __, high) => [0, Math.max(1, high * 1.15)] } },
      axes: [
        { ...axis, size: 24, space: 70, values: (_, at) => at.map(ago) },
        { ...axis, size: 48, space: 30 },
      ],
      series: [
        {},
        {
          stroke: accent,
          width: 2,
          ...(field === 'tokens' ? { fill: cssValue('--accent-soft') } : {}),
          points: { show: field === 'ttft_ms', size: 6, fill: accent },
          spanGaps: false,
        },
      ],
    };
    return new uPlot(options, this.#data[index] as uPlot.AlignedData, box);
  }

  #remake(): void {
    this.#charts.forEach((chart, index) => {
      chart.plot.destroy();
      chart.plot = this.#plot(chart.series, chart.box, index);
    });
  }

  #resize(): void {
    for (const { plot, box } of this.#charts) {
      if (box.clientWidth > 0 && box.clientWidth !== plot.width) {
        plot.setSize({ width: box.clientWidth, height: HEIGHT });
      }
    }
  }
}

const ago = (seconds: number): string => (seconds === 0 ? 'now' : `${seconds} s`);
