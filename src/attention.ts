/**
 * Public entry `flashforge/attention`: the kernel level. Describe a step's prefix tree as a
 * `Forest`, plan its attention, and execute the plan; no model is needed.
 *
 * @example
 * ```ts
 * import {
 *   defaultProfile, DEFAULT_PLAN_OPTIONS, Planner, planStillGood,
 * } from 'flashforge/attention';
 *
 * const planner = new Planner({
 *   kvHeads: 8, groupSize: 4, headDim: 128, pageSize: 16, workers: 132, taskRows: 16,
 *   profile: defaultProfile('cuda', 128), options: DEFAULT_PLAN_OPTIONS,
 * });
 * let plan = planner.plan(forest);
 * // The next step: only leaves have grown.
 * if (!planStillGood(plan, nextForest)) plan = planner.plan(nextForest);
 * ```
 * @module
 */
export type { ErrorCode } from './base/errors.ts';
export { FlashForgeError } from './base/errors.ts';
export type { Forest } from './kvcache/forest.ts';
export { CostModel } from './plan/cost-model.ts';
export { defaultProfile, PLAN_SHAPES, type ProfileKind } from './plan/default-profile.ts';
export { DEFAULT_PLAN_OPTIONS, makePlan, Planner, type ReusablePlan } from './plan/make-plan.ts';
export {
  type CostProfile,
  OPEN_END,
  type Plan,
  type PlanOptions,
  type PlanSpec,
} from './plan/plan.ts';
export { BALANCE_DECAY, planStillGood } from './plan/plan-reuse.ts';
export { type AttentionInput, executePlan } from './plan/reference-executor.ts';
export {
  parseWorkloads,
  type Workload,
  type WorkloadBytes,
  type WorkloadForest,
  workloadBytes,
  workloadForest,
} from './plan/workload.ts';
