/**
 * One scale for how many share something, in the tree and in the plan: the hotter, the more.
 * @module
 */
import { make } from './dom.ts';

/** First count of each step; step 0 is what nobody uses now. */
const STEPS = [0, 1, 2, 4, 8, 16];

/** The step of a count; the style sheet has --heat-N and --heat-text-N for each. */
export function heat(count: number): number {
  let step = 0;
  while (step + 1 < STEPS.length && count >= STEPS[step + 1]) step++;
  return step;
}

const label = (step: number): string => {
  if (step === STEPS.length - 1) return `${STEPS[step]}+`;
  const last = STEPS[step + 1] - 1;
  return STEPS[step] === last ? `${last}` : `${STEPS[step]}–${last}`;
};

/** Fills an element with the key to the colours. */
export function drawLegend(into: HTMLElement): void {
  into.append(make('span', '', 'Sharers:'));
  for (let step = 0; step < STEPS.length; step++) {
    const item = make('span', 'key-item');
    item.append(make('i', `swatch heat-${step}`), step === 0 ? 'none, only cached' : label(step));
    into.append(item);
  }
  into.append(make('span', 'hint', 'Length of a node: square root of its tokens.'));
}
