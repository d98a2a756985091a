/**
 * The device's energy since a moment: what the engine's statistics say of it.
 * @module
 */
import type { EnergyMeter } from '../backend/backend.ts';

/** Energy of the whole device, whoever else uses it. */
export interface EnergyUse {
  /** Since the engine started, or since statistics were reset; null where it is not measured. */
  readonly joules: number | null;
  /** Why it is not measured; null where it is. */
  readonly absent: string | null;
}

export class EnergyCount {
  readonly #meter: EnergyMeter | undefined;
  #from: number | null = null;

  constructor(meter: EnergyMeter | undefined) {
    this.#meter = meter;
    this.reset();
  }

  reset(): void {
    this.#from = this.#meter?.recentJoules() ?? null;
  }

  use(): EnergyUse {
    if (this.#meter === undefined) return { joules: null, absent: 'this device has no meter' };
    const now = this.#meter.recentJoules();
    const joules = now === null || this.#from === null ? null : now - this.#from;
    return { joules, absent: this.#meter.absent };
  }
}
