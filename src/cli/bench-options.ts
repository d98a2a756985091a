/**
 * What the benchmarks of decoding are told alike on the command line.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import type { Arguments, Context, Option } from './command.ts';
import type { Mode } from './decode-bench.ts';
import { usageError } from './parse-arguments.ts';

export const MODE_OPTIONS: readonly Option[] = [
  { name: 'flat', help: 'measure flat decoding only' },
  { name: 'both', help: 'measure tree and flat in turn and compare them' },
];

export function readModes(given: Arguments): readonly Mode[] {
  if (given.has('flat') && given.has('both')) throw usageError('give --flat or --both, not both');
  return given.has('both') ? ['tree', 'flat'] : given.has('flat') ? ['flat'] : ['tree'];
}

/**
 * @param own tokens that a sequence has after the shared ones
 * @throws FlashForgeError 'request' where a case is longer than the model's context.
 */
export function checkContext(shared: readonly number[], own: number, limit: number): void {
  const longest = Math.max(...shared);
  if (longest + own <= limit) return;
  throw new FlashForgeError(
    'request',
    `--shared must be at most ${limit - own}, as the model's context is ${limit} tokens and a ` +
      `sequence has ${own} of its own, got ${longest}`,
  );
}

/** Ends a benchmark between steps when the user wants that. */
export const abortCheck = (context: Context) => (): void => {
  if (context.signal.aborted) throw new FlashForgeError('aborted', 'interrupted');
};
