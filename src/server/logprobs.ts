/**
 * Log-probabilities in the two shapes of OpenAI's API.
 * @module
 */
import type { TokenDetail } from '../engine/generation-stream.ts';
import type { TokenLogprob } from '../engine/sampler.ts';
import type { TokenLogprobBody } from './chat-schema.ts';
import type { CompletionLogprobs } from './completion-schema.ts';
import type { TokenTexts } from './token-texts.ts';

/** JSON has no infinity; a masked token may have one. */
const LOGPROB_MIN = -9999;
const finite = (logprob: number): number => Math.max(LOGPROB_MIN, logprob);

const entry = ({ token, logprob }: TokenLogprob, texts: TokenTexts) => ({
  token: texts.textOf(token),
  logprob: finite(logprob),
  bytes: [...texts.bytesOf(token)],
});

/** Of chat completions. */
export function chatLogprobs(
  details: readonly TokenDetail[],
  texts: TokenTexts,
): { content: TokenLogprobBody[]; refusal: null } {
  const content = details.map((detail) => ({
    ...entry(detail, texts),
    top_logprobs: detail.top.map((each) => entry(each, texts)),
  }));
  return { content, refusal: null };
}

/**
 * Of completions.
 * @param offset characters before the first of these tokens
 */
export function completionLogprobs(
  details: readonly TokenDetail[],
  texts: TokenTexts,
  offset: number,
): NonNullable<CompletionLogprobs> {
  const tokens = details.map(({ token }) => texts.textOf(token));
  const textOffset: number[] = [];
  let at = offset;
  for (const token of tokens) {
    textOffset.push(at);
    at += token.length;
  }
  return {
    tokens,
    token_logprobs: details.map(({ logprob }) => finite(logprob)),
    top_logprobs: details.map(({ top }) =>
      Object.fromEntries(top.map((each) => [texts.textOf(each.token), finite(each.logprob)])),
    ),
    text_offset: textOffset,
  };
}
