/**
 * Evicted KV on the host: over random histories every token that comes back must be the right one,
 * in the right namespace; and the rules one by one.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import { HostCache, type HostKv } from '../../src/kvcache/host-cache.ts';
import { type Namespace, PUBLIC } from '../../src/kvcache/path.ts';
import { TreeModel } from './tree-model.ts';

/** Host memory whose content is the text that the model keeps in the device's slots. */
class TextMemory implements HostKv {
  readonly pages: number;
  readonly texts: string[] = [];
  saves = 0;
  readonly #device: string[];
  readonly #pageSize: number;

  constructor(device: string[], pages: number, pageSize: number) {
    this.#device = device;
    this.pages = pages;
    this.#pageSize = pageSize;
  }

  save(slots: Int32Array, pages: Int32Array): void {
    this.saves++;
    assert.equal(new Set(pages).size, pages.length, 'a page is written twice in one copy');
    this.#each(slots, pages, (slot, place) => {
      assert.ok(this.#device[slot] !== undefined, 'a slot that nobody wrote');
      this.texts[place] = this.#device[slot];
    });
  }

  load(pages: Int32Array, slots: Int32Array): void {
    this.#each(slots, pages, (slot, place) => {
      if (slot >= 0) this.#device[slot] = this.texts[place];
    });
  }

  #each(slots: Int32Array, pages: Int32Array, copy: (slot: number, place: number) => void): void {
    assert.equal(slots.length, pages.length * this.#pageSize);
    slots.forEach((slot, index) => {
      const page = pages[Math.floor(index / this.#pageSize)];
      assert.ok(page >= 0 && page < this.pages, 'host memory has that page');
      copy(slot, page * this.#pageSize + (index % this.#pageSize));
    });
  }
}

/** The naive cache with host memory beside it. */
class HostModel extends TreeModel {
  readonly memory: TextMemory;
  readonly host: HostCache;

  constructor(pages: number, pageSize: number, hostPages: number) {
    super(pages, pageSize);
    this.memory = new TextMemory(this.kv, hostPages, pageSize);
    this.host = new HostCache(this.tree, this.memory);
  }

  /** Admits a sequence as the engine does; returns the number of tokens that came back. */
  admit(tokens: number[], namespace: Namespace = PUBLIC): number {
    const before = this.host.stats(1).restoredTokens;
    this.attempt(() => {
      this.host.admit(tokens, namespace, () => {
        const count = this.sequences.length;
        this.insert(tokens, namespace);
        if (this.sequences.length > count) return this.sequences[count].path;
        throw new FlashForgeError('out-of-pages', 'as the model saw');
      });
    });
    return this.host.stats(1).restoredTokens - before;
  }

  /** Admits, computes and releases. */
  serve(tokens: number[], namespace: Namespace = PUBLIC): number {
    const count = this.sequences.length;
    const restored = this.admit(tokens, namespace);
    if (this.sequences.length === count) return 0;
    this.compute(this.sequences[count], tokens.length);
    this.check();
    this.release(this.sequences[count]);
    return restored;
  }
}

const token = fc.integer({ min: 0, max: 1 });
/** Prompts of few pieces, so that they meet again. */
const PIECES = [[0, 1, 0], [1, 1, 0, 1, 0], [0], [1, 0, 0, 1, 1, 0, 1]];
const tokens = fc
  .array(fc.constantFrom(...PIECES), { minLength: 1, maxLength: 4, size: 'max' })
  .map((pieces) => pieces.flat());
const pick = fc.nat(1_000_000);
const operation = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant('admit' as const),
      release: fc.boolean(),
      tokens,
      salt: fc.constantFrom('', '', '', 'one', '1:one'),
      publicTokens: fc.constantFrom(0, 3, 4, 9),
    }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('computeAll' as const) }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('release' as const), pick }) },
  fc.record({ kind: fc.constant('fork' as const), pick, at: pick }),
  fc.record({ kind: fc.constant('append' as const), pick, token }),
  fc.record({ kind: fc.constant('compute' as const), pick, count: fc.integer({ min: 1, max: 9 }) }),
  fc.record({ kind: fc.constant('evictAll' as const) }),
);
type Operation = typeof operation extends fc.Arbitrary<infer T> ? T : never;

function apply(model: HostModel, step: Operation): void {
  const { sequences } = model;
  if (step.kind === 'admit') {
    const namespace = { salt: step.salt, publicTokens: step.publicTokens };
    if (step.release) model.serve(step.tokens, namespace);
    else model.admit(step.tokens, namespace);
  } else if (step.kind === 'evictAll') model.tree.evictAll();
  else if (step.kind === 'computeAll') for (const each of sequences) model.compute(each, 1000);
  else if (sequences.length > 0) {
    const sequence = sequences[step.pick % sequences.length];
    if (step.kind === 'release') model.release(sequence);
    else if (step.kind === 'append') model.append(sequence, step.token);
    else if (step.kind === 'compute') model.compute(sequence, step.count);
    else model.fork(sequence, step.at % (sequence.tokens.length + 1));
  }
}

test('random histories: whatever comes back is what was computed for those tokens', () => {
  let restored = 0;
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 4, max: 24 }),
      fc.integer({ min: 1, max: 30 }),
      fc.array(operation, { minLength: 20, maxLength: 60, size: 'max' }),
      (pageSize, pages, hostPages, history) => {
        const model = new HostModel(pages, pageSize, hostPages);
        for (const step of history) {
          apply(model, step);
          model.check();
          const { pagesUsed } = model.host.stats(1);
          assert.ok(pagesUsed <= hostPages, 'the bound is kept');
        }
        model.finish();
        restored += model.host.stats(1).restoredTokens;
        model.host.evictAll();
        assert.equal(model.host.stats(1).pagesUsed, 0);
      },
    ),
    { numRuns: 1500, seed: 21 },
  );
  assert.ok(restored > 5000, `histories that exercise it: ${restored} tokens came back`);
});

const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, index) => from + index);

test('an evicted prompt comes back but for the last part of a page', () => {
  const model = new HostModel(4, 4, 8);
  assert.equal(model.serve(range(0, 14)), 0);
  model.serve(range(100, 16));
  assert.equal(model.tree.match(range(0, 14)).computed, 0, 'the device has forgotten it');
  assert.equal(model.serve(range(0, 14)), 12);
  assert.deepEqual(model.host.stats(10), {
    pages: 8,
    pagesUsed: 7,
    bytes: 320,
    bytesUsed: 280,
    savedTokens: 28,
    restoredTokens: 12,
  });
});

test('what the host has already is not copied again', () => {
  const model = new HostModel(4, 4, 8);
  for (let round = 0; round < 3; round++) {
    model.serve(range(0, 16));
    model.serve(range(100, 16));
  }
  assert.equal(model.host.stats(1).savedTokens, 32);
  assert.equal(model.host.stats(1).restoredTokens, 4 * 16);
});

test('a continuation of what the device still has comes back, from inside a page', () => {
  const model = new HostModel(6, 4, 8);
  const shared = range(0, 6);
  model.admit(shared);
  const held = model.sequences[0];
  model.compute(held, 6);
  // Two answers: one continues in the shared page, the other one in a page of its own.
  const answers = [10, 20].map((first) => [...shared, ...range(first, 10)]);
  for (const answer of answers) model.serve(answer);
  model.serve(range(100, 16));
  for (const answer of answers) {
    assert.equal(model.tree.match(answer).computed, 6);
    assert.equal(model.serve(answer), 10, 'tokens 6 to 15');
  }
});

test('the least recently used chunks go first, ends before beginnings', () => {
  const model = new HostModel(4, 4, 6);
  model.serve(range(0, 16));
  model.serve(range(100, 16));
  model.serve(range(200, 16));
  // Six pages: all of the second prompt and the first half of the first one.
  assert.equal(model.serve(range(0, 16)), 8);
});

test('a host cache smaller than one eviction keeps the beginning', () => {
  const model = new HostModel(8, 4, 2);
  model.serve(range(0, 32));
  model.tree.evictAll();
  assert.equal(model.memory.saves, 1, 'one copy for one eviction');
  assert.equal(model.serve(range(0, 32)), 8);
});

test('the pages that an admission is about to read are not given to what it evicts', () => {
  const model = new HostModel(4, 4, 5);
  model.serve(range(0, 16));
  model.serve(range(100, 16));
  // The first prompt's pages are the oldest; its own admission evicts the second prompt.
  assert.equal(model.host.stats(1).pagesUsed, 4);
  assert.equal(model.serve(range(0, 16)), 16);
});

test('salts share nothing on the host either, public beginnings excepted', () => {
  const alice = { salt: 'alice', publicTokens: 8 };
  const bob = { salt: 'bob', publicTokens: 8 };
  const model = new HostModel(4, 4, 16);
  model.serve(range(0, 16), alice);
  model.tree.evictAll();
  assert.equal(model.serve(range(0, 16), bob), 8);
  model.tree.evictAll();
  assert.equal(model.serve(range(0, 16), alice), 16);
  model.tree.evictAll();
  assert.equal(model.serve(range(0, 16)), 8, 'nobody sees what is private');
  model.tree.evictAll();
  assert.equal(model.serve(range(0, 16), { salt: 'alice', publicTokens: 0 }), 0);
});
