/**
 * What host memory knows: page-sized chunks of token sequences, as a trie whose edges are the
 * tokens themselves, so that a chunk is found by all the tokens before it and never by a hash
 * alone. Chunks with KV have a page of host memory; the least recently used ones lose it first.
 * @module
 */
import { assert } from '../base/errors.ts';

/** One page's worth of tokens after those of its parent. */
export class Chunk {
  /** Null at the root only. */
  readonly parent: Chunk | null;
  /** Key among the parent's children, see `chunkKey`. */
  readonly key: string;
  readonly children = new Map<string, Chunk>();
  /** Page of host memory that has the KV; -1 = the chunk only leads to others. */
  page = -1;
  /** False once it was taken out of the trie. */
  alive = true;

  constructor(parent: Chunk | null, key: string) {
    this.parent = parent;
    this.key = key;
  }
}

/**
 * Names of the chunks of one sequence: a chunk's tokens' bytes, then whose it is. Tokens come
 * first and have a fixed length, so that no salt can pass for another one.
 * @param publicTokens how many of the sequence's first tokens do not belong to the salt
 */
export function chunkKeys(
  tokens: Int32Array,
  size: number,
  salt: string,
  publicTokens: number,
): (chunk: number) => string {
  const bytes = Buffer.from(tokens.buffer, tokens.byteOffset, tokens.byteLength);
  return (chunk) => {
    const at = chunk * size;
    const text = bytes.toString('latin1', at * 4, (at + size) * 4);
    if (salt === '' || publicTokens >= at + size) return text;
    return `${text}${Math.max(0, publicTokens - at)}:${salt}`;
  };
}

export class HostChunks {
  /** Pages of host memory. */
  readonly pages: number;
  #root: Chunk = new Chunk(null, '');
  /** Chunks with a page that may lose it, the least recently used first. */
  readonly #held = new Set<Chunk>();
  readonly #pinned = new Set<Chunk>();
  #free: number[] = [];

  constructor(pages: number) {
    assert(pages > 0, 'host memory without pages');
    this.pages = pages;
    this.clear();
  }

  get root(): Chunk {
    return this.#root;
  }

  get pagesUsed(): number {
    return this.#held.size + this.#pinned.size;
  }

  /** Pages that chunks without one could get. */
  get pagesToGive(): number {
    return this.pages - this.#pinned.size;
  }

  /** The child of that name, made where it is missing. */
  child(parent: Chunk, key: string): Chunk {
    const known = parent.children.get(key);
    if (known !== undefined) return known;
    const chunk = new Chunk(parent, key);
    parent.children.set(key, chunk);
    return chunk;
  }

  /**
   * Gives a chunk a page and makes it the most recently used one. True where the page is new: its
   * KV has to be copied there. Where none is free, the oldest chunk's page is taken.
   */
  keep(chunk: Chunk): boolean {
    assert(chunk.alive && chunk.parent !== null, 'a chunk out of the trie');
    if (this.#pinned.has(chunk)) return false;
    const isNew = !this.#held.delete(chunk);
    if (isNew) chunk.page = this.#free.pop() ?? this.#dropOldest(chunk);
    this.#held.add(chunk);
    return isNew;
  }

  /** Those of the chunks that have a page cannot lose it before `unpin`. */
  pin(chunks: readonly Chunk[]): void {
    for (const chunk of chunks) {
      if (this.#held.delete(chunk)) this.#pinned.add(chunk);
    }
  }

  /** Ends `pin`; the first chunks are the most recently used ones now: others are of no use. */
  unpin(chunks: readonly Chunk[]): void {
    for (let at = chunks.length - 1; at >= 0; at--) {
      if (this.#pinned.delete(chunks[at])) this.#held.add(chunks[at]);
    }
  }

  /** Forgets everything. */
  clear(): void {
    this.#held.clear();
    this.#pinned.clear();
    this.#free = Array.from({ length: this.pages }, (_, index) => this.pages - 1 - index);
    this.#root = new Chunk(null, '');
  }

  #dropOldest(forChunk: Chunk): number {
    const [oldest] = this.#held;
    assert(oldest !== undefined, 'every page of host memory is pinned');
    const { page } = oldest;
    this.#held.delete(oldest);
    oldest.page = -1;
    // Chunks that lead nowhere go with it.
    let chunk = oldest;
    while (chunk.parent !== null && chunk !== forChunk && chunk.page < 0) {
      if (chunk.children.size > 0) break;
      chunk.alive = false;
      chunk.parent.children.delete(chunk.key);
      chunk = chunk.parent;
    }
    return page;
  }
}
