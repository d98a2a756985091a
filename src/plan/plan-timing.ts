/**
 * How long planning takes, as in a process that has planned for a while: code is compiled while it
 * runs, so that the first few hundred plans take several times as long as later ones.
 * @module
 */
import { median } from '../base/math.ts';
import type { Forest } from '../kvcache/forest.ts';
import type { Planner, ReusablePlan } from './make-plan.ts';

/** Plans that are made, fewer where they take long; the second half is timed. */
const PLANS = 600;
const PLANS_MS_MAX = 150;

/** A plan of `forest` and the median time of making it, in us; takes up to 150 ms. */
export function timePlans(
  planner: Planner,
  forest: Forest,
): { readonly plan: ReusablePlan; readonly planUs: number } {
  const times: number[] = [];
  const start = performance.now();
  let plan: ReusablePlan;
  let end = start;
  do {
    const begin = end;
    plan = planner.plan(forest);
    end = performance.now();
    times.push((end - begin) * 1000);
  } while (times.length < PLANS && end - start < PLANS_MS_MAX);
  return { plan, planUs: median(times.slice(times.length >> 1)) };
}
