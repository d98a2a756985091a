#!/usr/bin/env node
/**
 * The `flashforge` command: finds the command, parses its options, runs it, and turns every
 * failure into one sentence and an exit code.
 * @module
 */
import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { FlashForgeError, show } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';
import { packageRoot } from '../base/package-files.ts';
import type { Command } from './command.ts';
import { makeContext } from './console.ts';
import { commandHelp, generalHelp } from './help.ts';
import { parseArguments, usageError } from './parse-arguments.ts';

/** Summaries stand here so that `--help` loads no command; heavy modules are loaded on use. */
const COMMANDS: Readonly<Record<string, { summary: string; load: () => Promise<Command> }>> = {
  demo: {
    summary: 'read a document, ask 8 questions at once, and show what sharing saves',
    load: async () => (await import('./demo-command.ts')).demoCommand,
  },
  generate: {
    summary: 'complete one prompt or a file of prompts',
    load: async () => (await import('./generate-command.ts')).generateCommand,
  },
  serve: {
    summary: 'serve a model over HTTP, as OpenAI does, with prefix sharing',
    load: async () => (await import('./serve-command.ts')).serveCommand,
  },
  pull: {
    summary: 'bring a model onto this machine',
    load: async () => (await import('./pull-command.ts')).pullCommand,
  },
  inspect: {
    summary: 'show what a model is: architecture, tensors, tokenizer, memory',
    load: async () => (await import('./inspect-command.ts')).inspectCommand,
  },
  plan: {
    summary: 'plan the attention of a prefix tree and draw the schedule',
    load: async () => (await import('./plan-command.ts')).planCommand,
  },
  profile: {
    summary: 'measure what attention costs here: what plans are made with',
    load: async () => (await import('./profile-command.ts')).profileCommand,
  },
  'bench attention': {
    summary: 'measure the tree kernel against the flat one on workloads',
    load: async () => (await import('./bench-attention-command.ts')).benchAttentionCommand,
  },
  'bench decode': {
    summary: 'measure decode steps of a model with and without sharing',
    load: async () => (await import('./bench-decode-command.ts')).benchDecodeCommand,
  },
  'bench tpot': {
    summary: 'measure time per output token of batches that share a prompt',
    load: async () => (await import('./bench-tpot-command.ts')).benchTpotCommand,
  },
  'bench soak': {
    summary: 'run random requests for a time and check pages, memory and outputs',
    load: async () => (await import('./bench-soak-command.ts')).benchSoakCommand,
  },
  doctor: {
    summary: 'show what this machine offers',
    load: async () => (await import('./doctor-command.ts')).doctorCommand,
  },
};

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;
/** What shells say of a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM. */
const EXIT_SIGNAL = 128;

async function main(words: readonly string[], signal: AbortSignal): Promise<void> {
  const [first] = words;
  if (first === undefined || first === '-h' || first === '--help' || first === 'help') {
    process.stdout.write(
      generalHelp(Object.entries(COMMANDS).map(([name, { summary }]) => [name, summary])),
    );
    if (first === undefined) throw usageError('a command is needed, see --help');
    return;
  }
  if (first === '-v' || first === '--version') {
    process.stdout.write(`${packageVersion()}\n`);
    return;
  }
  const name = commandName(words);
  const command = await COMMANDS[name].load();
  const given = parseArguments(command, words.slice(name.split(' ').length));
  if (given.has('help')) {
    process.stdout.write(commandHelp(command));
    return;
  }
  writesFiles = ['json', 'svg'].some((name) => ![undefined, '-'].includes(given.text(name)));
  await command.run(makeContext(given.text('json'), signal), given);
  // A command that missed the signal has not done what was asked either.
  if (command.endsBySignal !== true) signal.throwIfAborted();
}

function commandName(words: readonly string[]): string {
  const [first, second] = words;
  for (const name of [first, `${first} ${second}`]) if (Object.hasOwn(COMMANDS, name)) return name;
  const group = Object.keys(COMMANDS).filter((name) => name.startsWith(`${first} `));
  if (group.length > 0 && (second === '--help' || second === '-h')) {
    process.stdout.write(generalHelp(group.map((name) => [name, COMMANDS[name].summary])));
    process.exit(0);
  }
  const known = Object.keys(COMMANDS).join(', ');
  const given = group.length > 0 ? [first, second ?? ''].join(' ').trim() : first;
  throw usageError(`unknown command ${show(given)}, known are ${known}`);
}

function packageVersion(): string {
  const text = readFileSync(join(packageRoot(), 'package.json'), 'utf8');
  return JSON.parse(text).version as string;
}

/** One line, whatever the message holds; the stack only for those who ask. */
function describe(error: unknown): string {
  const known = error instanceof FlashForgeError;
  const message = error instanceof Error ? error.message : String(error);
  const line = message.replace(/\s*\n\s*/g, ' ').trim();
  const text = known ? line : `internal error: ${line.replace(/^internal error: /, '')}`;
  if (!process.env.DEBUG) return text;
  return error instanceof Error ? `${text}\n${error.stack}` : text;
}

function exitCodeOf(error: unknown): number {
  return error instanceof FlashForgeError && error.code === 'usage' ? EXIT_USAGE : EXIT_FAILED;
}

const controller = new AbortController();
let exitInterrupted = EXIT_SIGNAL;
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.on(name, () => {
    exitInterrupted = EXIT_SIGNAL + constants.signals[name];
    // The second time the user does not want to wait for an orderly end.
    if (controller.signal.aborted) process.exit(exitInterrupted);
    controller.abort();
  });
}
/** Whether the command was asked for more than what goes to standard output. */
let writesFiles = false;
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') {
    // A reader that closed the pipe (`| head`) has what it wanted; a file is still to be written.
    if (writesFiles) return;
    process.exit(0);
  }
  process.stderr.write(`flashforge: the output cannot be written: ${fileReason(error)}\n`);
  process.exit(EXIT_FAILED);
});
// Nobody reads remarks then; the command itself goes on.
process.stderr.on('error', () => undefined);

try {
  await main(process.argv.slice(2), controller.signal);
} catch (error) {
  const interrupted = controller.signal.aborted;
  process.stderr.write(`flashforge: ${interrupted ? 'interrupted' : describe(error)}\n`);
  process.exitCode = interrupted ? exitInterrupted : exitCodeOf(error);
}
