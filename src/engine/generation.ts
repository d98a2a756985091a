/**
 * One request for new text: a prompt, prefilled once, and n samples that share all of it and
 * fork at their first token.
 * @module
 */
import { FlashForgeError, requestAborted } from '../base/errors.ts';
import type { Namespace } from '../kvcache/path.ts';
import type { Engine } from './engine.ts';
import { type Sampled, Sampler, type TokenLogprob, topLogprobs } from './sampler.ts';
import type { SamplingParams } from './sampling-params.ts';
import type { Draw, LogitsRow, Sequence, SequenceOwner } from './sequence.ts';
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

/** A token of the prompt. Null: the model says nothing about a text's first token. */
export interface PromptToken {
  readonly token: number;
  readonly logprob: number | null;
  readonly top: readonly TokenLogprob[] | null;
}

/** The prompt is computed. */
export interface PromptEnd {
  readonly promptTokens: number;
  /** Prompt tokens that the cache already held. */
  readonly cachedTokens: number;
  /** The prompt's own tokens, where promptLogprobs were asked for. */
  readonly tokens: readonly PromptToken[] | null;
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
  /** Once, before any sample's token. */
  onPrompt?(end: PromptEnd): void;
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
  /** Tokens of the prompt that a held branch brings: `promptLogprobs` are of what follows them. */
  readonly branchTokens?: number | undefined;
  /** The model's end-of-sequence tokens. */
  readonly eosIds: ReadonlySet<number>;
  readonly namespace?: Namespace | undefined;
  readonly priority?: number | undefined;
  /** Makes the text of a sample; absent: token ids only. */
  readonly text?: (() => TextStream) | undefined;
  /** What the samples' text must conform to. */
  readonly constraint?: TokenConstraint | undefined;
}

/** Follows samples through a grammar. */
export interface TokenConstraint {
  /** Sample `index` has drawn a token. */
  accept(index: number, token: number): void;
  /** Mask (vocab) of the tokens that it may continue with; a promise while it is being made. */
  allowed(index: number): Uint8Array | Promise<Uint8Array>;
}

interface Sample {
  readonly index: number;
  readonly sequence: Sequence;
  readonly sampler: Sampler;
  readonly stops: StopStrings;
  readonly text: TextStream | null;
  readonly tokens: number[];
}

/** Log-probabilities of prompts in one answer: some tens of MB of JSON. */
const PROMPT_LOGPROBS_MAX = 1 << 18;

export class Generation implements SequenceOwner {
  readonly #engine: Engine;
  readonly #init: GenerationInit;
  readonly #sink: GenerationSink;
  readonly #maxTokens: number;
  readonly #stopIds: ReadonlySet<number>;
  readonly #samples = new Map<Sequence, Sample>();
  /** What is known of the prompt's tokens; null where nobody asks. */
  readonly #promptTokens: PromptToken[] | null;
  readonly #arrivedMs = performance.now();
  /** The first sample's; it may draw before there are samples. */
  readonly #sampler: Sampler;
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
    this.#sampler = new Sampler(params, 0, prompt);
    this.#maxTokens = Math.min(params.maxTokens, contextLength - prompt.length);
    this.#stopIds = new Set([...params.stopTokenIds, ...(params.ignoreEos ? [] : init.eosIds)]);
    const { namespace, priority, branchTokens = 0 } = init;
    const scored = params.promptLogprobs !== null;
    this.#promptTokens = scored ? [] : null;
    if (scored && branchTokens === 0) {
      this.#promptTokens?.push({ token: prompt[0], logprob: null, top: null });
    }
    // A token's log-probability stands in the row of the token before it.
    const rowsFrom = scored ? Math.max(0, branchTokens - 1) : undefined;
    this.#first = engine.add(prompt, this, { namespace, priority, rowsFrom });
  }

  /** Ends all samples at once; the sink gets 'aborted'. After the end it does nothing. */
  abort(): void {
    this.#stop(requestAborted());
  }

  onComputed(sequence: Sequence, row: LogitsRow): void {
    if (sequence === this.#first) {
      this.#split(sequence, row);
      return;
    }
    const sample = this.#samples.get(sequence);
    if (sample !== undefined) this.#advance(sample, row);
  }

  onRow(sequence: Sequence, position: number, row: LogitsRow): void {
    const { params, prompt } = this.#init;
    if (sequence !== this.#first || this.#promptTokens === null) return;
    const token = prompt[position + 1];
    const { logits, logSumExp } = row;
    const top = topLogprobs(logits, logSumExp, params.promptLogprobs ?? 0);
    this.#promptTokens.push({ token, logprob: logits[token] - logSumExp, top });
  }

  /** Several samples draw their first tokens from one row: that takes its logits. */
  draw(sequence: Sequence, ahead: number): Draw | null {
    const { constraint, params } = this.#init;
    const sample = this.#samples.get(sequence);
    if (constraint !== undefined || (sample === undefined && params.n > 1)) return null;
    const position = (sample?.tokens.length ?? 0) + ahead;
    if (ahead > 0 && position >= this.#maxTokens) return null;
    if (position < params.minTokens && this.#stopIds.size > 0) return null;
    return (sample?.sampler ?? this.#sampler).draw(ahead);
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
      sampler: index === 0 ? this.#sampler : new Sampler(params, index, prompt),
      stops: new StopStrings(params.stop),
      text: this.#init.text?.() ?? null,
      tokens: [],
    }));
    for (const sample of samples) this.#samples.set(sample.sequence, sample);
    this.#firstTokenMs = performance.now();
    if (this.#maxTokens > 0) {
      this.#engine.stats.recordFirstToken(this.#firstTokenMs - this.#arrivedMs);
    }
    const { cachedTokens } = sequence.cost;
    this.#sink.onPrompt?.({
      promptTokens: prompt.length,
      cachedTokens,
      tokens: this.#promptTokens,
    });
    for (const sample of samples) {
      if (!this.#samples.has(sample.sequence)) continue;
      if (params.maxTokens === 0) this.#finish(sample, 'length', '');
      else this.#advance(sample, row);
    }
  }

  #advance(sample: Sample, row: LogitsRow): void {
    const mask = this.#init.constraint?.allowed(sample.index) ?? null;
    if (mask instanceof Promise) this.#later(sample, row, mask);
    else this.#draw(sample, row, mask);
  }

  /** Others go on while the mask is being made. */
  #later(sample: Sample, row: LogitsRow, mask: Promise<Uint8Array>): void {
    const { argmax, logSumExp } = row;
    const kept = { logits: row.logits.slice(), argmax, logSumExp };
    this.#engine.stall(sample.sequence);
    mask.then(
      (allowed) => {
        if (this.#samples.get(sample.sequence) === sample) this.#draw(sample, kept, allowed);
      },
      (error: FlashForgeError) => this.#stop(error),
    );
  }

  #draw(sample: Sample, row: LogitsRow, mask: Uint8Array | null): void {
    const { minTokens } = this.#init.params;
    const drawn = this.#sampled(sample, row, mask);
    if (this.#stopIds.has(drawn.token)) {
      this.#finish(sample, 'stop', endOfText(sample).text);
      return;
    }
    sample.tokens.push(drawn.token);
    this.#init.constraint?.accept(sample.index, drawn.token);
    const piece = sample.text?.push(drawn.token) ?? '';
    const { text, stopped } =
      sample.tokens.length < minTokens ? { text: piece, stopped: false } : sample.stops.push(piece);
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

  #sampled({ sampler, tokens }: Sample, row: LogitsRow, mask: Uint8Array | null): Sampled {
    if (row.drawn !== undefined) {
      return sampler.take(row.drawn.token, row.drawn.logit - row.logSumExp);
    }
    const { minTokens } = this.#init.params;
    const allowed = tokens.length < minTokens ? this.#withoutStops(row, mask) : mask;
    return sampler.sample(row.logits, row.argmax, row.logSumExp, allowed);
  }

  /** Stop tokens are out, unless a grammar leaves nothing else. */
  #withoutStops({ logits }: LogitsRow, mask: Uint8Array | null): Uint8Array | null {
    if (this.#stopIds.size === 0) return mask;
    const without = mask?.slice() ?? new Uint8Array(logits.length).fill(1);
    for (const id of this.#stopIds) without[id] = 0;
    return without.includes(1) ? without : mask;
  }

  #finish(sample: Sample, finishReason: FinishReason, text: string): void {
    const { sequence, index, tokens } = sample;
    const { cachedTokens, kvBytes, kvBytesFlat } = sequence.cost;
    const decodeMs = performance.now() - this.#firstTokenMs;
    this.#samples.delete(sequence);
    this.#engine.end(sequence);
    const tpotMs = tokens.length > 1 ? decodeMs / (tokens.length - 1) : 0;
    this.#engine.stats.recordSample(tokens.length, tpotMs);
    const stats: SampleStats = {
      promptTokens: this.#init.prompt.length,
      cachedTokens: index === 0 ? cachedTokens : this.#init.prompt.length,
      newTokens: tokens.length,
      ttftMs: this.#firstTokenMs - this.#arrivedMs,
      tpotMs,
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

/**
 * @param tokens of all prompts of a call
 * @throws FlashForgeError 'request' for more log-probabilities than an answer can hold.
 */
export function checkPromptLogprobs(tokens: number, { promptLogprobs, n }: SamplingParams): void {
  if (promptLogprobs === null) return;
  const count = tokens * (promptLogprobs + 1) * n;
  if (count <= PROMPT_LOGPROBS_MAX) return;
  throw new FlashForgeError(
    'request',
    `promptLogprobs must be at most ${PROMPT_LOGPROBS_MAX} in all, as prompt tokens x (best ` +
      `tokens + 1) x samples, got ${count}: ask with fewer prompts at a time`,
  );
}
