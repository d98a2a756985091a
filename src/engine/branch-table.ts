/**
 * The held branches by the caller's handles, and who may share what with whom.
 * @module
 */
import { FlashForgeError, show } from '../base/errors.ts';
import type { Namespace } from '../kvcache/path.ts';
import type { Branch } from './branch.ts';

export class BranchTable {
  /** A fork that failed leaves its error: it shows when the fork is used. */
  readonly #branches = new Map<number, Branch | FlashForgeError>();
  /** Branches that every salt may share; operators make few of them. */
  readonly #public = new Map<number, Branch>();

  set(handle: number, branch: Branch | FlashForgeError): void {
    this.#branches.set(handle, branch);
  }

  /** @throws FlashForgeError 'request' for a disposed branch, and what a fork failed with. */
  get(handle: number): Branch {
    const branch = this.#branches.get(handle) ?? null;
    if (branch === null) throw new FlashForgeError('request', 'the prefix was disposed');
    if (branch instanceof FlashForgeError) throw branch;
    return branch;
  }

  /** Lets every salt share the branch, as it is now, and nothing below it. */
  publish(handle: number): void {
    this.#public.set(handle, this.get(handle).fork());
  }

  /** Ends a branch; unknown handles do nothing. */
  release(handle: number): void {
    const branch = this.#branches.get(handle);
    this.#branches.delete(handle);
    if (branch !== undefined && !(branch instanceof FlashForgeError)) branch.end();
    this.#public.get(handle)?.end();
    this.#public.delete(handle);
  }

  /**
   * Forks a branch; under another salt where the part that is shared is public.
   * @throws FlashForgeError 'request'
   */
  fork(handle: number, length: number | undefined, salt: string | undefined): Branch {
    const origin = this.get(handle);
    const own = origin.namespace.salt;
    if (salt === undefined || salt === own) return origin.fork(length);
    const shared = this.#public.get(handle);
    if (shared === undefined) throw otherSalt(own, salt);
    return origin.fork(Math.min(length ?? origin.length, shared.length), salt);
  }

  /**
   * Where a request lives: under its own salt or its branch's, but for the longest public prefix
   * that its tokens begin with.
   * @throws FlashForgeError 'request' for a salt that is not the branch's.
   */
  namespaceOf(handle: number | undefined, salt: string | undefined, tokens: Int32Array): Namespace {
    const own = handle === undefined ? '' : this.get(handle).namespace.salt;
    const wanted = salt ?? own;
    if (handle !== undefined && wanted !== own && !this.#public.has(handle)) {
      throw otherSalt(own, wanted);
    }
    let publicTokens = 0;
    if (wanted !== '') {
      for (const branch of this.#public.values()) {
        if (branch.length > publicTokens && startsWith(tokens, branch.tokens())) {
          publicTokens = branch.length;
        }
      }
    }
    return { salt: wanted, publicTokens };
  }
}

const otherSalt = (own: string, salt: string): FlashForgeError =>
  new FlashForgeError(
    'request',
    `cacheSalt must be the prefix's own (${show(own)}) or absent, got ${show(salt)}`,
  );

function startsWith(tokens: Int32Array, prefix: Int32Array): boolean {
  return prefix.length <= tokens.length && prefix.every((token, at) => tokens[at] === token);
}
