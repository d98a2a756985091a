/**
 * One request for new text: a prompt, prefilled once, and n samples that share all of it and
 * fork at their first token.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import type { Namespace } from '../kvcache/path.ts';
import type { Engine } from './engine.ts';
import { Sampler, type TokenLogprob } from './sampler.ts';
import type { SamplingParams } from './sampling-params.ts';
import type { LogitsRow, Sequence, SequenceOwner } from './sequence.ts';
import { type StopResult, StopStrings } from './stop-strings.ts';

/** 'stop': a stop token or string; 'length': maxTokens or the context is used up. */
export type FinishReason = 'stop' | 'length';

/** A token of a sample as it was drawn. */
export interface TokenEvent {
  /** The sample, from 0 to n - 1. */
  readonly index: number;
  readonly token: number;
  /** Text that became certain with this token; may be empty, never a part of a stop string. */
  readonly text: string;
  /** Natural log of the token's probability; only where logprobs were asked for. */
  readonly logprob?: number;
  /** The best tokens in its place, where they were asked for. */
  readonly top?: readonly TokenLogprob[];
}

/** A finished sample. */
export interface SampleEnd {
  readonly index: number;
  readonly finishReason: FinishReason;
  /** Text that was held back until the end; it follows the text of the token events. */
  readonly text: string;
  readonly stats: SampleStats;
}

export interface SampleStats {
  readonly promptTokens: number;
  /** Prompt tokens that the cache already held. */
  readonly cachedTokens: number;
  readonly newTokens: number;
  /** From the request's arrival to its first token, in ms. */
  readonly ttftMs: number;
  /** Mean time between tokens in ms; 0 for a single token. */
  readonly tpotMs: number;
  /** Its share of the KV bytes read, and what flat decoding would have read. */
  readonly kvBytes: number;
  readonly kvBytesFlat: number;
}

/** Receives what happens; nothing follows `onDone` or `onError`. */
export interface GenerationSink {
  onToken(event: TokenEvent): void;
  onEnd(end: SampleEnd): void;
  onDone(): void;
  onError(error: FlashForgeError): void;
}

/** Turns tokens into text; see tokenizer/detokenizer.ts. */
export interface TextStream {
  push(token: number): string;
  end(): string;
}

export interface GenerationInit {
  /** The whole prompt; at least one token and fewer than `contextLength`. */
  readonly prompt: Int32Array;
  readonly params: SamplingParams;
  readonly contextLength: number;
  /** The model's end-of-sequence tokens. */
  readonly eosIds: ReadonlySet<number>;
  readonly namespace?: Namespace | undefined;
  readonly priority?: number | undefined;
  /** Makes the text of a sample; absent: token ids only. */
  readonly text?: (() => TextStream) | undefined;
  /** Mask (vocab) of the tokens that a sample may continue with, or null for all. */
  readonly allowed?: ((index: number, tokens: readonly number[]) => Uint8Array | null) | undefined;
}

interface Sample {
  readonly index: number;
  readonly sequence: Sequence;
  readonly sampler: Sampler;
  readonly stops: StopStrings;
  readonly text: TextStream | null;
  readonly tokens: number[];
}

export class Generation implements SequenceOwner {
  readonly #engine: Engine;
  readonly #init: GenerationInit;
  readonly #sink: GenerationSink;
  readonly #maxTokens: number;
  readonly #stopIds: ReadonlySet<number>;
  readonly #samples = new Map<Sequence, Sample>();
  readonly #arrivedMs = performance.now();
  #first: Sequence | null;
  #firstTokenMs = 0;

  /**
   * Adds the request to the engine.
   * @throws FlashForgeError 'request' for a prompt that is empty or longer than the context,
   * 'out-of-pages' for one that the cache could never hold.
   */
  constructor(engine: Engine, init: GenerationInit, sink: GenerationSink) {
    const { prompt, params, contextLength } = init;
    checkPrompt(prompt.length, contextLength);
    this.#engine = engine;
    this.#init = init;
    this.#sink = sink;
    this.#maxTokens = Math.min(params.maxTokens, contextLength - prompt.length);
    this.#stopIds = new Set([...params.stopTokenIds, ...(params.ignoreEos ? [] : init.eosIds)]);
    const { namespace, priority } = init;
    this.#first = engine.add(prompt, this, { namespace, priority });
  }

  /** Ends all samples at once; the sink gets 'aborted'. After the end it does nothing. */
  abort(): void {
    this.#stop(new FlashForgeError('aborted', 'the request was aborted'));
  }

  onComputed(sequence: Sequence, row: LogitsRow): void {
    if (sequence === this.#first) {
      this.#split(sequence, row);
      return;
    }
    const sample = this.#samples.get(sequence);
    if (sample !== undefined) this.#advance(sample, row);
  }

  onError(_sequence: Sequence, error: FlashForgeError): void {
    this.#stop(error);
  }

  /** The prompt is computed: n samples share it, and each draws its first token. */
  #split(sequence: Sequence, row: LogitsRow): void {
    const { params, prompt } = this.#init;
    this.#first = null;
    const sequences = [sequence];
    while (sequences.length < params.n) sequences.push(this.#engine.fork(sequence, this));
    const samples = sequences.map((each, index) => ({
      index,
      sequence: each,
      sampler: new Sampler(params, index, prompt),
      stops: new StopStrings(params.stop),
      text: this.#init.text?.() ?? null,
      tokens: [],
    }));
    for (const sample of samples) this.#samples.set(sample.sequence, sample);
    this.#firstTokenMs = performance.now();
    for (const sample of samples) {
      if (this.#samples.has(sample.sequence)) this.#advance(sample, row);
    }
  }

  #advance(sample: Sample, row: LogitsRow): void {
    const mask = this.#init.allowed?.(sample.index, sample.tokens) ?? null;
    const drawn = sample.sampler.sample(row.logits, row.argmax, row.logSumExp, mask);
    if (this.#stopIds.has(drawn.token)) {
      this.#finish(sample, 'stop', endOfText(sample).text);
      return;
    }
    sample.tokens.push(drawn.token);
    const { text, stopped } = sample.stops.push(sample.text?.push(drawn.token) ?? '');
    this.#sink.onToken({
      index: sample.index,
      token: drawn.token,
      text,
      ...(drawn.top === null ? {} : { logprob: drawn.logprob, top: drawn.top }),
    });
    if (stopped) this.#finish(sample, 'stop', '');
    else if (sample.tokens.length < this.#maxTokens) {
      this.#engine.append(sample.sequence, drawn.token);
    } else {
      const { text, stopped } = endOfText(sample);
      this.#finish(sample, stopped ? 'stop' : 'length', text);
    }
  }

  #finish(sample: Sample, finishReason: FinishReason, text: string): void {
    const { sequence, index, tokens } = sample;
    const { cachedTokens, kvBytes, kvBytesFlat } = sequence.cost;
    const decodeMs = performance.now() - this.#firstTokenMs;
    this.#samples.delete(sequence);
    this.#engine.end(sequence);
    const stats: SampleStats = {
      promptTokens: this.#init.prompt.length,
      cachedTokens: index === 0 ? cachedTokens : this.#init.prompt.length,
      newTokens: tokens.length,
      ttftMs: this.#firstTokenMs - this.#arrivedMs,
      tpotMs: tokens.length > 1 ? decodeMs / (tokens.length - 1) : 0,
      kvBytes,
      kvBytesFlat,
    };
    this.#sink.onEnd({ index, finishReason, text, stats });
    if (this.#samples.size === 0) this.#sink.onDone();
  }

  #stop(error: FlashForgeError): void {
    if (this.#first === null && this.#samples.size === 0) return;
    const sequences = [...this.#samples.keys()];
    if (this.#first !== null) sequences.push(this.#first);
    this.#first = null;
    this.#samples.clear();
    for (const sequence of sequences) this.#engine.end(sequence);
    this.#sink.onError(error);
  }
}

/** What was held back: an unfinished character, the beginning of a stop string. */
function endOfText(sample: Sample): StopResult {
  const { text, stopped } = sample.stops.push(sample.text?.end() ?? '');
  return { text: stopped ? text : text + sample.stops.flush(), stopped };
}

/** @throws FlashForgeError 'request' for a prompt that is empty or leaves no room for a token. */
export function checkPrompt(length: number, contextLength: number): void {
  if (length === 0) {
    throw new FlashForgeError('request', 'prompt must have at least one token, got none');
  }
  if (length >= contextLength) {
    throw new FlashForgeError(
      'request',
      `prompt must have at most ${contextLength - 1} tokens, as the model's context is ` +
        `${contextLength}, got ${length}`,
    );
  }
}
