/**
 * Beam search for both kinds of completions.
 * @module
 */
import type { BeamResult } from '../engine/requests.ts';
import type { PromptSource } from '../engine/rpc.ts';
import type { Exchange } from './exchange.ts';
import { admitted } from './jobs.ts';
import { placementOf } from './request-checks.ts';
import { beamOptionsOf, type SamplingFields } from './sampling-fields.ts';
import { type Usage, UsageCounter } from './usage.ts';

/** The n likeliest continuations of a prompt, likeliest first. */
export async function beamJob(
  exchange: Exchange,
  prompt: PromptSource,
  body: SamplingFields,
  maxTokens: number,
): Promise<{ found: BeamResult[]; usage: Usage }> {
  const options = beamOptionsOf(body, maxTokens);
  const placement = placementOf(exchange, body);
  const counter = new UsageCounter();
  const found = await admitted(exchange, () =>
    exchange.parts.host.call(
      { kind: 'beamSearch', prompt, options, placement },
      (reply) => {
        if (reply.kind === 'end') counter.add(reply.end);
      },
      exchange.signal,
    ),
  );
  return { found: found as BeamResult[], usage: counter.usage };
}
