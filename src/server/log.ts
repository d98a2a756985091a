/**
 * Structured logs: a line of JSON for each event, with the request's id. A log that cannot be
 * written (a full disk) never stops a request.
 * @module
 */
import { type DestinationStream, destination, type Logger, pino } from 'pino';
import type { Settings } from './server-options.ts';

export type Log = Logger;

export function makeLog({ logLevel, logFile }: Settings): Log {
  const stream =
    logFile === undefined
      ? destination({ dest: 2, sync: false })
      : destination({ dest: logFile, sync: false, mkdir: true });
  // Without a listener a failed write would end the process.
  let failures = 0;
  stream.on('error', (error: Error) => {
    if (failures++ === 0) process.stderr.write(`flashforge: the log fails: ${error.message}\n`);
  });
  return pino(
    {
      level: logLevel,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    stream as DestinationStream,
  );
}
