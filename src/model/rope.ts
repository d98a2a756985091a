/**
 * Rotary position embedding (Su et al., 2021) as tables of cosines and sines, with the scalings
 * that models use to reach longer contexts.
 * @module
 */
import type { DecoderConfig, RopeScaling } from '../checkpoint/checkpoint.ts';

/** Tables of (positions, headDim / 2); pair i of a head is its elements i and i + headDim / 2. */
export interface RopeTables {
  readonly positions: number;
  readonly cosine: Float32Array;
  readonly sine: Float32Array;
}

/** (headDim / 2) radians a token of each rotary pair. */
export function inverseFrequencies(config: DecoderConfig): Float64Array {
  const { headDim, ropeTheta, ropeScaling } = config;
  const plain = Float64Array.from(
    { length: headDim / 2 },
    (_, i) => ropeTheta ** ((-2 * i) / headDim),
  );
  if (ropeScaling === null) return plain;
  switch (ropeScaling.type) {
    case 'linear':
      return plain.map((frequency) => frequency / ropeScaling.factor);
    case 'factors':
      return plain.map((frequency, i) => frequency / ropeScaling.factors[i]);
    case 'llama3':
      return plain.map((frequency) => llama3(frequency, ropeScaling));
    case 'yarn':
      return yarn(plain, config, ropeScaling);
    default:
      return ropeScaling satisfies never;
  }
}

/** Llama 3.1: long wavelengths are slowed by the factor, short ones kept, a ramp in between. */
function llama3(frequency: number, scaling: RopeScaling & { type: 'llama3' }): number {
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalContext } = scaling;
  const turns = (originalContext * frequency) / (2 * Math.PI);
  const ramp = (turns - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
  const keep = Math.min(1, Math.max(0, ramp));
  return frequency * (keep + (1 - keep) / factor);
}

/** YaRN (Peng et al., 2023), "NTK by parts": a ramp over dimensions instead of wavelengths. */
function yarn(
  plain: Float64Array,
  { headDim, ropeTheta }: DecoderConfig,
  scaling: RopeScaling & { type: 'yarn' },
): Float64Array {
  /** The dimension whose pair turns so often within the original context. */
  const dimension = (turns: number): number =>
    (headDim * Math.log(scaling.originalContext / (turns * 2 * Math.PI))) /
    (2 * Math.log(ropeTheta));
  const low = Math.max(0, Math.floor(dimension(scaling.betaFast)));
  const high = Math.min(headDim - 1, Math.ceil(dimension(scaling.betaSlow)));
  return plain.map((frequency, i) => {
    const slow = Math.min(1, Math.max(0, (i - low) / Math.max(0.001, high - low)));
    return frequency * (1 - slow + slow / scaling.factor);
  });
}

/** What cosines and sines are multiplied by: YaRN sharpens attention over longer contexts. */
export function ropeMagnitude(scaling: RopeScaling | null): number {
  if (scaling?.type !== 'yarn') return 1;
  return scaling.attentionFactor ?? 0.1 * Math.log(scaling.factor) + 1;
}

/** Tables for positions 0 to positions - 1. Angles are computed in double precision. */
export function ropeTables(config: DecoderConfig, positions: number): RopeTables {
  const frequencies = inverseFrequencies(config);
  const magnitude = ropeMagnitude(config.ropeScaling);
  const pairs = frequencies.length;
  const cosine = new Float32Array(positions * pairs);
  const sine = new Float32Array(positions * pairs);
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < pairs; i++) {
      const angle = position * frequencies[i];
      cosine[position * pairs + i] = Math.cos(angle) * magnitude;
      sine[position * pairs + i] = Math.sin(angle) * magnitude;
    }
  }
  return { positions, cosine, sine };
}
