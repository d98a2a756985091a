/**
 * A naive model of the cache for the tests: every sequence is a plain array of tokens, every slot
 * holds the text of the token path whose KV was written there.
 * @module
 */
import assert from 'node:assert/strict';
import { FlashForgeError } from '../../src/base/errors.ts';
import type { TreeNode } from '../../src/kvcache/node.ts';
import type { Namespace, Path } from '../../src/kvcache/path.ts';
import { PrefixTree } from '../../src/kvcache/prefix-tree.ts';
import { treeStats } from '../../src/kvcache/tree-stats.ts';

export interface ModelSequence {
  readonly path: Path;
  readonly namespace: Namespace;
  readonly tokens: number[];
}

/** The KV that belongs to position `at` of a sequence, as text: public or its salt's own. */
const content = ({ salt, publicTokens }: Namespace, tokens: readonly number[], at: number) =>
  `${at < publicTokens ? '' : salt}:${tokens.slice(0, at + 1).join(' ')}`;

export class TreeModel {
  readonly tree: PrefixTree;
  readonly sequences: ModelSequence[] = [];
  /** [slot] what is written there. */
  readonly kv: string[] = [];

  constructor(pages: number, pageSize: number) {
    this.tree = new PrefixTree(pages, pageSize);
  }

  /** Runs an operation that may find the cache full; true if it was done. */
  attempt(operation: () => void): boolean {
    try {
      operation();
      return true;
    } catch (error) {
      assert.ok(error instanceof FlashForgeError && error.code === 'out-of-pages', String(error));
      return false;
    }
  }

  insert(tokens: number[], namespace: Namespace): void {
    const { tree } = this;
    const match = tree.match(tokens, namespace);
    const available = tree.availablePages;
    const done = this.attempt(() => {
      const path = tree.insert(tokens, namespace);
      this.sequences.push({ path, namespace, tokens: [...tokens] });
    });
    assert.equal(done, match.pages <= available, 'match foretells whether insert has room');
    const taken = available - tree.availablePages;
    if (!done) assert.equal(taken, 0, 'a refused insert takes nothing');
    // One fewer where eviction freed the rest of a page that the new run can continue.
    else assert.ok(taken === match.pages || taken === match.pages - 1, 'pages as foretold');
  }

  extend(sequence: ModelSequence, tokens: number[]): void {
    if (this.attempt(() => this.tree.extend(sequence.path, tokens)))
      sequence.tokens.push(...tokens);
  }

  append(sequence: ModelSequence, token: number): void {
    if (this.attempt(() => this.tree.append(sequence.path, token))) sequence.tokens.push(token);
  }

  fork(sequence: ModelSequence, length: number): void {
    const path = this.tree.fork(sequence.path, length);
    const { salt, publicTokens } = sequence.namespace;
    const namespace = { salt, publicTokens: Math.min(publicTokens, length) };
    this.sequences.push({ path, namespace, tokens: sequence.tokens.slice(0, length) });
  }

  /** Computes up to `count` tokens of what the sequence may compute now. */
  compute(sequence: ModelSequence, count: number): void {
    const { from, to } = this.tree.claim(sequence.path);
    const end = Math.min(to, from + count);
    for (let at = from; at < end; at++) {
      this.kv[this.tree.slotOf(sequence.path, at)] = content(
        sequence.namespace,
        sequence.tokens,
        at,
      );
    }
    this.tree.commit(sequence.path, end);
  }

  release(sequence: ModelSequence): void {
    this.sequences.splice(this.sequences.indexOf(sequence), 1);
    this.tree.release(sequence.path);
  }

  /** Checks all that must hold between operations. */
  check(): void {
    for (const { path, namespace, tokens } of this.sequences) {
      assert.deepEqual([...path.tokens()], tokens);
      for (let at = 0; at < path.computed; at++) {
        assert.equal(
          this.kv[this.tree.slotOf(path, at)],
          content(namespace, tokens, at),
          `KV of ${at}`,
        );
      }
    }
    this.#checkNodes();
    this.#checkAccounts();
  }

  #checkNodes(): void {
    const refs = new Map<TreeNode, number>();
    for (const { path } of this.sequences) {
      for (let node = path.tip; node !== null; node = node.parent) {
        refs.set(node, (refs.get(node) ?? 0) + 1);
      }
    }
    for (const node of this.tree.nodes()) {
      assert.equal(node.refs, refs.get(node) ?? 0, 'references');
      assert.ok(node.length > 0, 'empty node');
      assert.equal(node.start, node.parent!.end);
      const first = node.parent!.children.get(node.edge);
      if (node.isPrivate) assert.ok(first !== undefined && first !== node && node.refs > 0);
      else assert.equal(first, node, 'child is found by its first token');
      if (node.computed > 0) assert.equal(node.parent!.computed, node.parent!.length);
      if (node.refs === 0) assert.equal(node.computed, node.length, 'cached KV is written');
      if (node.writer !== null) assert.ok(node.writer.live, 'writer is alive');
    }
  }

  #checkAccounts(): void {
    const { pool } = this.tree;
    const owners = new Int32Array(pool.pages);
    const busy = new Int32Array(pool.pages);
    const slots = new Set<number>();
    for (const node of this.tree.nodes()) {
      for (const page of node.pages.subarray(0, node.pageCount)) {
        owners[page]++;
        if (node.refs > 0) busy[page]++;
      }
      for (let token = 0; token < node.length; token++) {
        const slot = node.firstSlot + token;
        const page = node.pages[Math.floor(slot / pool.pageSize)];
        assert.ok(slot % pool.pageSize < pool.used[page], 'slot beyond the high-water mark');
        slots.add(page * pool.pageSize + (slot % pool.pageSize));
      }
    }
    assert.deepEqual(pool.owners, owners);
    assert.deepEqual(pool.busy, busy);
    const stats = treeStats(this.tree, 10);
    assert.equal(stats.tokens, slots.size, 'no two tokens share a slot');
    assert.equal(stats.bytes, 10 * slots.size);
    assert.equal(stats.pagesFree, owners.filter((count) => count === 0).length);
    assert.equal(stats.pagesUsed, pool.pages - stats.pagesFree);
    assert.equal(
      stats.pagesEvictable,
      owners.filter((n, page) => n > 0 && busy[page] === 0).length,
    );
    const flat = this.sequences.reduce((sum, { tokens }) => sum + tokens.length, 0);
    assert.equal(stats.tokensFlat, flat);
  }

  /** Everything released and evicted: nothing may be left. */
  finish(): void {
    for (const sequence of [...this.sequences]) {
      this.release(sequence);
      this.check();
    }
    const { tree } = this;
    assert.equal(tree.availablePages, tree.pool.pages, 'all is evictable');
    tree.evictAll();
    assert.equal(tree.pool.freePages, tree.pool.pages);
    assert.equal(tree.roots.size, 0, 'no root is left');
    assert.equal([...tree.nodes()].length, 0);
  }
}
