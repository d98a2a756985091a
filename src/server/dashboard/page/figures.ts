/**
 * The row of figures at the top.
 * @module
 */
import { make, setText } from './dom.ts';
import { bytes, count, ms, round } from './format.ts';
import type { Second, State } from './state.ts';

const MEAN_S = 3;

const find = (kind: string, name: string): HTMLElement => {
  const found = document.querySelector<HTMLElement>(`[data-${kind}="${name}"]`);
  if (found === null) throw new Error(`${kind} ${name} is missing`);
  return found;
};

/** A number with a smaller unit after it. */
function figure(name: string, text: string): void {
  const element = find('figure', name);
  if (element.textContent === text) return;
  const [number, ...unit] = text.split(' ');
  element.replaceChildren(number, ' ', make('small', '', unit.join(' ')));
}

const note = (name: string, text: string): void => setText(find('note', name), text);

function bar(name: string, share: number): void {
  find('bar', name).style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
}

/** Tokens a second, over full seconds only. */
export function throughput(recent: readonly Second[], now: number): number {
  const second = Math.floor(now);
  const tokens = recent
    .filter(({ time }) => time >= second - MEAN_S && time < second)
    .reduce((sum, each) => sum + each.tokens, 0);
  return tokens / MEAN_S;
}

function newest(recent: readonly Second[], field: 'tpot_ms' | 'ttft_ms'): number | null {
  for (let i = recent.length - 1; i >= 0; i--) {
    if (recent[i][field] !== null) return recent[i][field];
  }
  return null;
}

export function showFigures({ kv, recent, time, pages, running, waiting, prefixes }: State): void {
  figure('throughput', `${round(throughput(recent, time))} tokens/s`);
  figure('tpot', ms(newest(recent, 'tpot_ms')));
  figure('ttft', ms(newest(recent, 'ttft_ms')));
  figure('running', `${running} running`);
  note('running', `${waiting} waiting · ${count(prefixes, 'held prefix', 'held prefixes')}`);

  const used = pages.held + pages.cached;
  figure('pages', `${round((100 * used) / pages.total)} %`);
  bar('held', pages.held / pages.total);
  bar('cached', pages.cached / pages.total);
  note('pages', `${pages.held} held, ${pages.cached} cached of ${count(pages.total, 'page')}`);

  if (kv.bytes_flat === 0) return;
  figure('saved', bytes(kv.bytes_flat - kv.bytes_read));
  bar('read', kv.bytes_read / kv.bytes_flat);
  note(
    'saved',
    `read ${bytes(kv.bytes_read)}; without sharing ${bytes(kv.bytes_flat)} ` +
      `(${round(kv.reduction)} ×), since the server started`,
  );
}
