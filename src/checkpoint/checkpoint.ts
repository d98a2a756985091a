/**
 * What a model on disk is to the rest of the program: one description of a decoder and named
 * weight matrices, whatever the file format.
 * @module
 */

/** Storage types of weights; block types as in GGUF. */
export type TensorType =
  | 'F32'
  | 'F16'
  | 'BF16'
  | 'Q8_0'
  | 'Q4_0'
  | 'Q4_1'
  | 'Q5_0'
  | 'Q5_1'
  | 'Q4_K'
  | 'Q5_K'
  | 'Q6_K';

/** Rotary embedding scaling, as in the models' own configuration files. */
export type RopeScaling =
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalContext: number;
    }
  | {
      readonly type: 'yarn';
      readonly factor: number;
      readonly originalContext: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly attentionFactor: number | null;
    }
  /** Per-dimension divisors given by the file (GGUF rope_freqs). */
  | { readonly type: 'factors'; readonly factors: readonly number[] };

/** A Llama-like decoder: every supported family is a setting of these options. */
export interface DecoderConfig {
  /** Name of the family in the file: llama, mistral, qwen2, qwen3, ... */
  readonly architecture: string;
  readonly layers: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocab: number;
  /** Largest number of tokens of one sequence. */
  readonly contextLength: number;
  readonly normEpsilon: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling | null;
  readonly qkvBias: boolean;
  /** RMSNorm over each head of q and k before RoPE (Qwen3). */
  readonly qkNorm: boolean;
  readonly tiedEmbeddings: boolean;
  /** A token sees at most this many tokens back, itself included; null = all. */
  readonly slidingWindow: number | null;
}

/** Weights of one layer. */
export type LayerWeight =
  | 'attnNorm'
  | 'q'
  | 'k'
  | 'v'
  | 'o'
  | 'qBias'
  | 'kBias'
  | 'vBias'
  | 'qNorm'
  | 'kNorm'
  | 'mlpNorm'
  | 'gate'
  | 'up'
  | 'down';

/** Names of the weights, the same for every file format. N is the layer, from 0. */
export type WeightName = 'embed' | 'outputNorm' | 'output' | `${number}.${LayerWeight}`;

export interface TensorInfo {
  readonly name: WeightName;
  readonly type: TensorType;
  /** Output features (1 for vectors). */
  readonly rows: number;
  /** Input features: the contiguous dimension, along which blocks run. */
  readonly columns: number;
  readonly bytes: number;
}

/**
 * An opened model. Rotary pairs are always (i, i + headDim / 2): a file that interleaves them
 * (GGUF llama) is permuted when q and k are read.
 */
export interface Checkpoint {
  /** Where it came from, for messages. */
  readonly source: string;
  readonly format: 'gguf' | 'safetensors';
  readonly config: DecoderConfig;
  readonly tensors: ReadonlyMap<WeightName, TensorInfo>;
  /** Reads a whole tensor's blocks, row after row; the caller owns the bytes. */
  read(name: WeightName): Uint8Array;
  close(): void;
}
