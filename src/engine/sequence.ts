/**
 * The scheduler's unit: one token sequence that wants its KV computed and the logits after its
 * last token. Samples of a request, held prefixes and search branches are all sequences; what
 * happens with the result is their owner's matter.
 * @module
 */
import type { RowDraw } from '../backend/backend.ts';
import type { FlashForgeError } from '../base/errors.ts';
import { type Namespace, type Path, PUBLIC } from '../kvcache/path.ts';

/** The model's answer after a sequence's last token; valid until the next step. */
export interface LogitsRow {
  /** (vocab); not there for a row whose token the device drew. */
  readonly logits: Float32Array;
  /** Index of the largest logit. */
  readonly argmax: number;
  /** Natural log of the sum of exp(logit). */
  readonly logSumExp: number;
  /** The token that the device drew as the owner's `draw` said, and its logit. */
  readonly drawn?: { readonly token: number; readonly logit: number } | undefined;
}

/** How a device draws a row's token: at random, or the largest logit. */
export type Draw = RowDraw | 'argmax';

/** Called by the engine between steps; it may add, fork, append to, pause and end sequences. */
export interface SequenceOwner {
  /** All tokens are computed. The owner appends, pauses, stalls or ends before it returns. */
  onComputed(sequence: Sequence, row: LogitsRow): void;
  /**
   * How the device may draw the token that follows the sequence and then `ahead` more (0 or 1),
   * which are drawn but not known yet. The owner appends what was drawn, or ends the sequence.
   * Null: it wants to see the logits, or there will be no such token. May be asked again for the
   * same token, and must answer the same.
   */
  draw?(sequence: Sequence, ahead: number): Draw | null;
  /** Rows before the last token's, in order, from the sequence's `rowsFrom` on; see there. */
  onRow?(sequence: Sequence, position: number, row: LogitsRow): void;
  /** The sequence was ended by the engine: it does not fit, or the device failed. */
  onError(sequence: Sequence, error: FlashForgeError): void;
}

/** What a sequence has cost so far. */
export interface SequenceCost {
  /**
   * Tokens that were found in the cache when the sequence was first admitted, and that need not
   * be computed again for the sake of their logits.
   */
  cachedTokens: number;
  /** Its share of the KV bytes that the steps read, and what flat decoding would have read. */
  kvBytes: number;
  kvBytesFlat: number;
}

export class Sequence {
  readonly owner: SequenceOwner;
  /** Who may share its KV. */
  readonly namespace: Namespace;
  /** Larger goes first. */
  readonly priority: number;
  /** Order of arrival; forks keep their origin's. */
  readonly arrival: number;
  /** May lose its pages to others and start again later; false for what users hold. */
  readonly preemptible: boolean;
  /** Null while the sequence waits for admission, and after its end. */
  path: Path | null = null;
  /** All tokens while the sequence waits; null otherwise. */
  waiting: Int32Array | null = null;
  /** False while paused and after the end. */
  active = true;
  /** The owner has the last row and will append later; nobody may take the pages until then. */
  stalled = false;
  ended = false;
  /** Tokens at the path's end, 0 or 1, that the device draws in a step under way. */
  ahead = 0;
  /** Rows of last tokens, placeholders included, that are under way: their answers will come. */
  underWay = 0;
  /**
   * Position of the next row that the owner wants to see before the last one: those rows are
   * computed even where the cache has their KV, as it has no logits. Infinity = none.
   */
  rowsFrom: number;
  /** Number of the last step that it took part in. */
  lastStep = -1;
  readonly cost: SequenceCost = { cachedTokens: -1, kvBytes: 0, kvBytesFlat: 0 };

  constructor(owner: SequenceOwner, init: SequenceInit) {
    this.owner = owner;
    this.namespace = init.namespace ?? PUBLIC;
    this.priority = init.priority ?? 0;
    this.arrival = init.arrival;
    this.preemptible = init.preemptible ?? true;
    this.rowsFrom = init.rowsFrom ?? Number.POSITIVE_INFINITY;
  }

  /** Number of known tokens. */
  get length(): number {
    return (this.path?.length ?? this.waiting?.length ?? 0) - this.ahead;
  }

  /** All known tokens, as a new array. */
  tokens(): Int32Array {
    if (this.path !== null) return this.path.tokens().subarray(0, this.length);
    return this.waiting?.slice() ?? new Int32Array(0);
  }

  /** True while the path's last token is in a step, so that nothing is left to compute. */
  get awaitsAnswer(): boolean {
    return this.underWay > this.ahead;
  }

  /** How the device may draw the token after the path; null: the owner wants the logits. */
  nextDraw(): Draw | null {
    return this.owner.draw?.(this, this.ahead) ?? null;
  }

  /** Takes the path away, and with it what is under way for it: its results are dropped. */
  leavePath(): void {
    this.path = null;
    this.ahead = 0;
    this.underWay = 0;
  }
}

export interface SequenceInit {
  readonly namespace?: Namespace | undefined;
  readonly priority?: number | undefined;
  readonly arrival: number;
  readonly preemptible?: boolean | undefined;
  /** Default: the owner sees the last row only. */
  readonly rowsFrom?: number | undefined;
}

/** Who goes first: higher priority, then earlier arrival. */
export const byUrgency = (a: Sequence, b: Sequence): number =>
  b.priority - a.priority || a.arrival - b.arrival;
