/**
 * What each task of a finished plan costs under the cost model, read from the plan alone: for
 * drawings, and as a check on the planner's own running sums.
 * @module
 */
import type { Forest } from '../kvcache/forest.ts';
import type { CostModel } from './cost-model.ts';
import { OPEN_END, type Plan } from './plan.ts';

/** (tasks) estimated us of each task for one KV head; leaves count with their present length. */
export function taskCosts(plan: Plan, forest: Forest, cost: CostModel): Float64Array {
  const costs = new Float64Array(plan.tasks);
  for (let task = 0; task < plan.tasks; task++) {
    let us = cost.itemUs;
    for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
      const open = plan.segmentEnd[s] === OPEN_END;
      const end = open ? forest.length[plan.segmentNode[s]] : plan.segmentEnd[s];
      const rows = plan.segmentRowEnd[s] - plan.segmentRowBegin[s];
      us += cost.us(rows, end - plan.segmentBegin[s]) + cost.segmentUs;
    }
    for (let i = plan.taskDestination[task]; i < plan.taskDestination[task + 1]; i++) {
      if (plan.destination[i] >= 0) us += cost.partialUs;
    }
    costs[task] = us;
  }
  return costs;
}
