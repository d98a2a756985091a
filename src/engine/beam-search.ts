/**
 * Beam search, built on branches alone: beams that share a history share its KV, and a step
 * computes one token of every beam.
 * @module
 */
import { checkInteger, checkNumber, FlashForgeError } from '../base/errors.ts';
import type { Branch } from './branch.ts';
import { topLogprobs } from './sampler.ts';
import type { LogitsRow } from './sequence.ts';

export interface BeamOptions {
  /** Beams kept in every step, and hypotheses returned; default 4. */
  readonly beams?: number | undefined;
  /** Most new tokens; default 64. */
  readonly maxTokens?: number | undefined;
  /**
   * Hypotheses are compared by logprob / length ^ lengthPenalty; default 1 (the mean), 0 = the
   * sum. (GNMT, Wu et al. 2016, with the plain length as Hugging Face has it.)
   */
  readonly lengthPenalty?: number | undefined;
}

export interface Hypothesis {
  /** New tokens, without the end-of-sequence token. */
  readonly tokens: readonly number[];
  /** Natural log of the probability of all tokens, the end-of-sequence token included. */
  readonly logprob: number;
  /** What hypotheses are ordered by. */
  readonly score: number;
  readonly finishReason: 'stop' | 'length';
}

interface Beam {
  readonly branch: Branch;
  readonly row: LogitsRow;
  readonly tokens: readonly number[];
  readonly logprob: number;
}

interface Candidate {
  readonly beam: Beam;
  readonly token: number;
  readonly logprob: number;
}

/** @throws FlashForgeError 'request' naming the field, the value and what is allowed. */
export function beamOptions(options: BeamOptions): Required<{ [K in keyof BeamOptions]: number }> {
  for (const field of Object.keys(options)) {
    if (!['beams', 'maxTokens', 'lengthPenalty'].includes(field)) {
      throw new FlashForgeError(
        'request',
        `unknown option ${field}; allowed are beams, maxTokens, lengthPenalty`,
      );
    }
  }
  return {
    beams: checkInteger('request', 'beams', options.beams ?? 4, 1, 64),
    maxTokens: checkInteger('request', 'maxTokens', options.maxTokens ?? 64, 1),
    lengthPenalty: checkNumber('request', 'lengthPenalty', options.lengthPenalty ?? 1, 0, 10),
  };
}

/**
 * The best continuations of a branch, best first. The branch itself stays as it is.
 * @param room most tokens that fit the context
 * @throws FlashForgeError 'aborted' when the signal says so, and what branches throw.
 */
export async function beamSearch(
  origin: Branch,
  options: BeamOptions,
  eosIds: ReadonlySet<number>,
  room: number,
  signal?: AbortSignal,
): Promise<Hypothesis[]> {
  const { beams: width, maxTokens, lengthPenalty } = beamOptions(options);
  const most = Math.min(maxTokens, room);
  const score = (logprob: number, length: number): number => logprob / length ** lengthPenalty;
  const done: Hypothesis[] = [];
  const row = await origin.row();
  let beams: Beam[] = [{ branch: origin.fork(), row, tokens: [], logprob: 0 }];
  try {
    for (let length = 1; length <= most && beams.length > 0; length++) {
      if (signal?.aborted) throw new FlashForgeError('aborted', 'the beam search was aborted');
      const next: Candidate[] = [];
      for (const candidate of bestCandidates(beams, 2 * width)) {
        const { beam, token, logprob } = candidate;
        if (eosIds.has(token)) {
          done.push(finished(beam.tokens, logprob, score(logprob, length), 'stop'));
        } else if (next.length < width) next.push(candidate);
      }
      done.sort((a, b) => b.score - a.score).splice(width);
      // No running beam can still beat the worst of the kept ones: later tokens only lower it.
      const best = next.length === 0 ? Number.NEGATIVE_INFINITY : next[0].logprob;
      if (done.length === width && done[width - 1].score >= score(best, most)) break;
      beams = await advance(beams, next);
    }
    for (const { tokens, logprob } of beams) {
      if (tokens.length === 0) continue;
      done.push(finished(tokens, logprob, score(logprob, tokens.length), 'length'));
    }
  } finally {
    for (const { branch } of beams) branch.end();
  }
  return done.sort((a, b) => b.score - a.score).slice(0, width);
}

const finished = (
  tokens: readonly number[],
  logprob: number,
  score: number,
  finishReason: Hypothesis['finishReason'],
): Hypothesis => ({ tokens, logprob, score, finishReason });

/** The likeliest continuations by one token over all beams, likeliest first. */
function bestCandidates(beams: readonly Beam[], count: number): Candidate[] {
  return beams
    .flatMap((beam) =>
      topLogprobs(beam.row.logits, beam.row.logSumExp, count).map(({ token, logprob }) => ({
        beam,
        token,
        logprob: beam.logprob + logprob,
      })),
    )
    .sort((a, b) => b.logprob - a.logprob)
    .slice(0, count);
}

/**
 * One step of all chosen candidates. A beam's last candidate takes the beam's own branch, so that
 * a beam that does not split goes on in its own page.
 */
async function advance(beams: readonly Beam[], chosen: readonly Candidate[]): Promise<Beam[]> {
  const moved: Omit<Beam, 'row'>[] = [];
  try {
    for (const beam of beams) {
      const mine = chosen.filter((candidate) => candidate.beam === beam);
      mine.forEach(({ token, logprob }, index) => {
        const branch = index === mine.length - 1 ? beam.branch : beam.branch.fork();
        moved.push({ branch, tokens: [...beam.tokens, token], logprob });
      });
      if (mine.length === 0) beam.branch.end();
    }
    for (const { branch, tokens } of moved) branch.append([tokens[tokens.length - 1]]);
    const rows = await Promise.all(moved.map(({ branch }) => branch.row()));
    return moved.map((beam, index) => ({ ...beam, row: rows[index] }));
  } catch (error) {
    for (const { branch } of moved) branch.end();
    throw error;
  }
}
