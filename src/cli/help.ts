/**
 * The texts of `--help`, made from the descriptions of the commands.
 * @module
 */
import type { Command, Option } from './command.ts';
import { optionsOf } from './parse-arguments.ts';

/** Names and one-line descriptions in two columns. */
function columns(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([left]) => left.length));
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}\n`).join('');
}

function spell(option: Option): string {
  const short = option.short === undefined ? '' : `-${option.short}, `;
  const value =
    option.value === undefined
      ? ''
      : option.bareValue === undefined
        ? ` ${option.value}`
        : ` [${option.value}]`;
  return `${short}--${option.name}${value}`;
}

export function commandHelp(command: Command): string {
  const positionals = command.positionals.map(({ name }) => ` ${name}`).join('');
  const described = command.positionals.map(({ name, help }) => [name, help] as const);
  const options = optionsOf(command).map((option) => [spell(option), option.help] as const);
  return (
    `${command.summary}\n\nUsage: flashforge ${command.name}${positionals} [options]\n\n` +
    (described.length > 0 ? `${columns(described)}\n` : '') +
    `Options:\n${columns(options)}` +
    (command.examples.length > 0
      ? `\nExamples:\n${command.examples.map((line) => `  ${line}\n`).join('')}`
      : '')
  );
}

/** @param commands names and summaries */
export function generalHelp(commands: readonly (readonly [string, string])[]): string {
  return (
    'FlashForge decodes LLM requests that share prefixes and reads each shared page once.\n\n' +
    `Usage: flashforge COMMAND [options]\n\nCommands:\n${columns(commands)}\n` +
    'Options:\n' +
    columns([
      ['-h, --help', 'show this help, or that of a command'],
      ['-v, --version', 'show the version'],
    ]) +
    '\nErrors are one sentence on standard error; DEBUG=1 adds the stack.\n' +
    'Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n'
  );
}
