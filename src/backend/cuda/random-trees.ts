/**
 * Random trees of every shape that the kernel has to take, for its tests: forests, chains that
 * are hundreds of nodes deep, stars of a thousand requests, requests that end at inner nodes.
 * @module
 */
import type { Workload } from '../../plan/workload.ts';

type Tree = Pick<Workload, 'parent' | 'tokens' | 'requests'>;
type Below = (n: number) => number;

const DEEP = 0.03;
const WIDE = 0.01;
const DEPTH_MAX = 400;
const REQUESTS_MAX = 1024;

/** Nodes anywhere, one in ten of them long. */
function anyTree(below: Below): Tree {
  const nodes = 1 + below(below(5) === 0 ? 120 : 20);
  const requests = 1 + below(below(5) === 0 ? 300 : 30);
  return {
    parent: Int32Array.from({ length: nodes }, (_, i) => (i === 0 ? -1 : below(i + 1) - 1)),
    tokens: Int32Array.from({ length: nodes }, () => 1 + below(below(10) === 0 ? 2500 : 70)),
    requests: Int32Array.from({ length: requests }, () => below(nodes)),
  };
}

/** One chain of short nodes, with requests that end anywhere on it. */
function deepTree(below: Below): Tree {
  const nodes = 100 + below(DEPTH_MAX - 100);
  return {
    parent: Int32Array.from({ length: nodes }, (_, i) => i - 1),
    tokens: Int32Array.from({ length: nodes }, () => 1 + below(20)),
    requests: Int32Array.from({ length: 1 + below(40) }, () => nodes - 1 - below(nodes)),
  };
}

/** A root and as many leaves as requests. */
function wideTree(below: Below): Tree {
  const leaves = REQUESTS_MAX - below(300);
  return {
    parent: Int32Array.from({ length: leaves + 1 }, (_, i) => (i === 0 ? -1 : 0)),
    tokens: Int32Array.from({ length: leaves + 1 }, () => 1 + below(60)),
    requests: Int32Array.from({ length: leaves }, (_, i) => i + 1),
  };
}

/** @param random numbers in [0, 1). */
export function randomTree(random: () => number): Tree {
  const below = (n: number): number => Math.floor(random() * n);
  const kind = random();
  if (kind < DEEP) return deepTree(below);
  return kind < DEEP + WIDE ? wideTree(below) : anyTree(below);
}
