/**
 * What `bench tpot` measures: batches of requests over a tree of prefixes, each with a suffix of
 * its own. The built-in list stands in assets/tpot, where the peers' script reads it too.
 * @module
 */
import { readFileSync } from 'node:fs';
import { FlashForgeError } from '../base/errors.ts';
import { randomStream } from '../base/math.ts';
import { assetPath } from '../base/package-files.ts';

/** A prefix: what follows its parent's tokens. */
export interface PrefixNode {
  /** An earlier node, or -1. */
  readonly parent: number;
  readonly tokens: number;
}

/** A batch of requests over a tree of prefixes. */
export interface Scenario {
  readonly name: string;
  readonly nodes: readonly PrefixNode[];
  /** For each request the node that its prompt begins with. */
  readonly requests: readonly number[];
  /** Tokens that each request has of its own; 0 = none. */
  readonly suffix: number;
  /** The tokens themselves; absent: random ones. */
  readonly texts?: {
    /** For each node its own tokens. */
    readonly nodes: readonly Int32Array[];
    /** For each request its suffix, in place of one of `suffix` tokens. */
    readonly suffixes: readonly Int32Array[];
  };
}

/** Levels of a regular tree, from the root: each node has as many children as the next. */
interface Level {
  readonly nodes: number;
  readonly tokens: number;
}

interface Entry {
  readonly name: string;
  readonly batch: number;
  readonly suffix: number;
  readonly levels: readonly Level[];
}

const SCENARIO_FILE = 'tpot/scenarios.json';

/** The paper's end-to-end scenarios: one shared prefix, trees, and nothing shared. */
export function builtInScenarios(): readonly Scenario[] {
  const entries: readonly Entry[] = JSON.parse(readFileSync(assetPath(SCENARIO_FILE), 'utf8'));
  return entries.map(({ name, batch, suffix, levels }) => ({
    ...{ name, suffix },
    ...regularTree(levels, batch),
  }));
}

/** One prefix of `shared` tokens under `batch` requests. */
export function sharedScenario(shared: number, batch: number, suffix: number): Scenario {
  const tree = regularTree([{ nodes: 1, tokens: shared }], batch);
  return { name: `shared-${shared}-B${batch}`, suffix, ...tree };
}

/**
 * Built-in scenarios by name, in the list's order.
 * @param names comma-separated, or 'all'
 */
export function scenariosNamed(names: string): readonly Scenario[] {
  const all = builtInScenarios();
  if (names === 'all') return all;
  const wanted = names.split(',');
  for (const name of wanted) {
    if (all.some((scenario) => scenario.name === name)) continue;
    const known = all.map((scenario) => scenario.name).join(', ');
    throw new FlashForgeError('usage', `no scenario "${name}"; there are all, ${known}`);
  }
  return all.filter(({ name }) => wanted.includes(name));
}

function regularTree(
  levels: readonly Level[],
  batch: number,
): Pick<Scenario, 'nodes' | 'requests'> {
  const nodes: PrefixNode[] = [];
  let above = 0;
  for (const [depth, level] of levels.entries()) {
    const first = nodes.length;
    const fanout = depth === 0 ? 1 : level.nodes / levels[depth - 1].nodes;
    for (let i = 0; i < level.nodes; i++) {
      const parent = depth === 0 ? -1 : above + Math.floor(i / fanout);
      nodes.push({ parent, tokens: level.tokens });
    }
    above = first;
  }
  const leaves = nodes.length - above;
  const requests = Array.from(
    { length: batch },
    (_, i) => above + Math.floor((i * leaves) / batch),
  );
  return { nodes, requests };
}

/** Tokens from the root to the end of a node. */
function depthOf({ nodes }: Scenario, node: number): number {
  let tokens = 0;
  for (let at = node; at >= 0; at = nodes[at].parent) tokens += nodes[at].tokens;
  return tokens;
}

const suffixLength = ({ texts, suffix }: Scenario, request: number): number =>
  texts?.suffixes[request].length ?? suffix;

/** Tokens of the longest prompt. */
export function longestPrompt(scenario: Scenario): number {
  const lengths = scenario.requests.map(
    (node, request) => depthOf(scenario, node) + suffixLength(scenario, request),
  );
  return Math.max(...lengths);
}

/** KV tokens that a step reads in the middle of `steps` steps, with sharing and without. */
export interface KvTokens {
  readonly unique: number;
  readonly flat: number;
}

export function kvTokens(scenario: Scenario, steps: number): KvTokens {
  const { nodes, requests } = scenario;
  // The first token comes from the prompt; in step i a request has i tokens of its own more.
  const middle = Math.ceil((steps + 1) / 2);
  let unique = 0;
  let flat = 0;
  for (const [request, node] of requests.entries()) {
    const own = suffixLength(scenario, request) + middle;
    unique += own;
    flat += own + depthOf(scenario, node);
  }
  for (const { tokens } of nodes) unique += tokens;
  return { unique, flat };
}

/**
 * The tokens of a scenario's prompts. Random ones are the same in every run; first roots of all
 * scenarios are one text, so that a longer one continues what a shorter one has computed.
 */
export class Prompts {
  readonly #scenario: Scenario;
  readonly #vocab: number;
  readonly #nodes: Int32Array[] = [];
  #pass = 0;

  constructor(scenario: Scenario, vocab: number) {
    this.#scenario = scenario;
    this.#vocab = vocab;
    for (const [index, { parent, tokens }] of scenario.nodes.entries()) {
      const own = scenario.texts?.nodes[index] ?? randomTokens(tokens, vocab, index);
      this.#nodes.push(parent < 0 ? own : joined(this.#nodes[parent], own));
    }
  }

  /** All prefixes that no other one continues, each from the root. */
  prefixes(): Int32Array[] {
    const inner = new Set(this.#scenario.nodes.map(({ parent }) => parent));
    return this.#nodes.filter((_, index) => !inner.has(index));
  }

  /** Every request's prompt; random suffixes are other ones each time, so that none is cached. */
  next(): Int32Array[] {
    const pass = ++this.#pass;
    return this.#scenario.requests.map((node, request) => {
      const suffix = this.#scenario.texts?.suffixes[request] ?? this.#suffix(pass, request, node);
      return joined(this.#nodes[node], suffix);
    });
  }

  /** Begins with a token by the request's number: no two suffixes share their beginning. */
  #suffix(pass: number, request: number, node: number): Int32Array {
    const { suffix } = this.#scenario;
    const tokens = randomTokens(suffix, this.#vocab, (pass << 16) + (node << 8) + request + 7919);
    if (suffix > 0) tokens[0] = (pass * 4099 + request) % this.#vocab;
    return tokens;
  }
}

function randomTokens(count: number, vocab: number, seed: number): Int32Array {
  const random = randomStream(seed + 1);
  return Int32Array.from({ length: count }, () => Math.floor(random() * vocab));
}

function joined(first: Int32Array, second: Int32Array): Int32Array {
  const out = new Int32Array(first.length + second.length);
  out.set(first);
  out.set(second, first.length);
  return out;
}
