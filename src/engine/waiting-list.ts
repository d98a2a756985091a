/**
 * Sequences that are not admitted yet, the most urgent first, and why one is not.
 * @module
 */
import { FlashForgeError, isOutOfPages } from '../base/errors.ts';
import { byUrgency, type Sequence } from './sequence.ts';

export class WaitingList {
  readonly #sequences: Sequence[] = [];

  get length(): number {
    return this.#sequences.length;
  }

  get first(): Sequence | undefined {
    return this.#sequences[0];
  }

  all(): readonly Sequence[] {
    return [...this.#sequences];
  }

  /** Adds a sequence with all of its tokens, behind those that are as urgent. */
  add(sequence: Sequence, tokens: Int32Array): void {
    sequence.waiting = tokens;
    let at = this.#sequences.length;
    while (at > 0 && byUrgency(this.#sequences[at - 1], sequence) > 0) at--;
    this.#sequences.splice(at, 0, sequence);
  }

  remove(sequence: Sequence): void {
    const at = this.#sequences.indexOf(sequence);
    if (at >= 0) this.#sequences.splice(at, 1);
  }
}

export function withToken(tokens: Int32Array, token: number): Int32Array {
  const longer = new Int32Array(tokens.length + 1);
  longer.set(tokens);
  longer[tokens.length] = token;
  return longer;
}

/** Why a sequence does not fit: `held` prefixes and branches keep pages. Other errors pass. */
export function tooFull(error: unknown, held: number): FlashForgeError {
  if (!isOutOfPages(error)) throw error;
  if (held === 0) return error;
  return new FlashForgeError(
    'out-of-pages',
    `${error.message}: ${held} held prefixes and branches keep their pages until disposed`,
  );
}
