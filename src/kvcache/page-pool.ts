/**
 * Physical KV pages: who owns each, how far it is written, which are free. A page may belong to
 * several nodes (a split node shares its middle page, a child may continue its parent's last one),
 * so pages are counted by owners. The pool never touches KV itself; a page is a number.
 * @module
 */
import { assert } from '../base/errors.ts';

export class PagePool {
  readonly pages: number;
  /** Tokens of a page. */
  readonly pageSize: number;
  /** (pages) nodes that own the page. */
  readonly owners: Int32Array;
  /** (pages) owners that some sequence or held prefix passes through. */
  readonly busy: Int32Array;
  /** (pages) high-water mark: slots below it are taken; whoever ends there may continue. */
  readonly used: Int32Array;
  /** Stack of free page ids; the first `freePages` entries are valid. */
  readonly #free: Int32Array;
  #freePages: number;
  #idlePages = 0;

  constructor(pages: number, pageSize: number) {
    this.pages = pages;
    this.pageSize = pageSize;
    this.owners = new Int32Array(pages);
    this.busy = new Int32Array(pages);
    this.used = new Int32Array(pages);
    this.#free = Int32Array.from({ length: pages }, (_, index) => pages - 1 - index);
    this.#freePages = pages;
  }

  /** Pages without an owner. */
  get freePages(): number {
    return this.#freePages;
  }

  /** Owned pages that no sequence needs: eviction can free all of them. */
  get idlePages(): number {
    return this.#idlePages;
  }

  /** Takes a free page for one owner; the caller has made sure that there is one. */
  take(isBusy: boolean): number {
    assert(this.#freePages > 0, 'page pool is empty');
    const page = this.#free[--this.#freePages];
    this.owners[page] = 1;
    this.used[page] = 0;
    this.busy[page] = isBusy ? 1 : 0;
    if (!isBusy) this.#idlePages++;
    return page;
  }

  /** Adds an owner to a page that has one. */
  share(page: number, isBusy: boolean): void {
    assert(this.owners[page] > 0, 'shared page has no owner');
    this.owners[page]++;
    if (isBusy) this.setBusy(page, 1);
  }

  /**
   * Removes an owner whose slots in the page are begin <= slot < end. A page that stays gives the
   * slots back when they were its last ones, so that another node may continue there.
   */
  drop(page: number, isBusy: boolean, begin: number, end: number): void {
    assert(this.owners[page] > 0, 'dropped page has no owner');
    if (isBusy) this.setBusy(page, -1);
    if (--this.owners[page] > 0) {
      if (this.used[page] === end) this.used[page] = begin;
      return;
    }
    assert(this.busy[page] === 0, 'free page is busy');
    this.#idlePages--;
    this.#free[this.#freePages++] = page;
  }

  /** Adds `change` (1 or -1) to the number of busy owners of a page. */
  setBusy(page: number, change: number): void {
    const before = this.busy[page];
    this.busy[page] = before + change;
    if (before === 0) this.#idlePages--;
    else if (before + change === 0) this.#idlePages++;
  }
}
