/**
 * `flashforge inspect`: what a model is and what memory it needs, from its headers alone.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import type { DecoderConfig } from '../checkpoint/checkpoint.ts';
import { type CheckpointSummary, inspectCheckpoint } from '../checkpoint/inspect-checkpoint.ts';
import { openCheckpoint } from '../checkpoint/open-checkpoint.ts';
import { openTokenizer } from '../checkpoint/open-tokenizer.ts';
import { megabytes } from '../checkpoint/reference-download.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type Command, JSON_OPTION } from './command.ts';
import { findModel } from './find-model.ts';
import { table } from './table.ts';

export const inspectCommand: Command = {
  name: 'inspect',
  summary: 'Shows architecture, tensors, quantisation, tokenizer and memory of a model.',
  positionals: [
    { name: 'REF', help: 'a path, hf:owner/repo[@revision][:file] or pip:package==version' },
  ],
  options: [{ name: 'tensors', help: 'list every tensor' }, JSON_OPTION],
  examples: ['flashforge inspect model.gguf', 'flashforge inspect hf:owner/repo --json -'],
  run: async (context, given) => {
    const model = await findModel(context, given.positionals[0]);
    const checkpoint = openCheckpoint(model.path);
    let summary: CheckpointSummary;
    try {
      summary = inspectCheckpoint(checkpoint);
    } finally {
      checkpoint.close();
    }
    const tokenizer = describeTokenizer(model.path);
    context.print(modelText(summary, tokenizer));
    if (given.has('tensors')) {
      const rows = summary.tensors.map(({ name, type, shape, bytes }) => [
        name,
        type,
        shape.join(' x '),
        megabytes(bytes),
      ]);
      context.print(table(['tensor', 'type', 'shape', 'size'], rows));
    }
    await context.report({ reference: model.reference, ...summary, tokenizer });
  },
};

interface TokenizerSummary {
  readonly vocabulary: number;
  readonly bosId: number | null;
  readonly stopIds: readonly number[];
  readonly chatTemplate: boolean;
}

/** A model may come without a tokenizer; what is wrong with it is part of the answer. */
function describeTokenizer(path: string): TokenizerSummary | { readonly problem: string } {
  try {
    const parts = openTokenizer(path);
    const tokenizer = new Tokenizer(parts);
    return {
      vocabulary: tokenizer.vocabSize,
      bosId: tokenizer.bosId,
      stopIds: [...tokenizer.stopIds],
      chatTemplate: parts.chatTemplate !== null,
    };
  } catch (error) {
    if (!(error instanceof FlashForgeError)) throw error;
    return { problem: error.message };
  }
}

function modelText(
  summary: CheckpointSummary,
  tokenizer: TokenizerSummary | { readonly problem: string },
): string {
  const { config, types } = summary;
  const parameters = `${(summary.parameters / 1e6).toFixed(1)} M`;
  const stored = types.map(({ type, tensors }) => `${type} (${tensors} tensors)`).join(', ');
  const lines: [string, string][] = [
    ['model', `${summary.source} (${summary.format})`],
    ['architecture', `${config.architecture}, ${parameters} parameters`],
    ['layers', `${config.layers} x ${config.hidden}, MLP ${config.intermediate}`],
    ['attention', attentionText(config)],
    ['context', `${config.contextLength} tokens`],
    ['quantisation', `${summary.quantization}; ${stored}`],
    ['tokenizer', tokenizerText(tokenizer)],
    ['weights', megabytes(summary.bytes)],
    [
      'KV cache',
      `${summary.kvBytesPerToken} bytes a token, ` +
        `${megabytes(summary.kvBytesOfContext)} for a whole context`,
    ],
    ['memory', `about ${megabytes(summary.bytes + summary.kvBytesOfContext)} for both`],
  ];
  return lines.map(([left, right]) => `${left.padEnd(13)} ${right}`).join('\n');
}

function attentionText(config: DecoderConfig): string {
  const extras = [
    config.qkNorm ? 'q/k norm' : '',
    config.qkvBias ? 'qkv bias' : '',
    config.slidingWindow === null ? '' : `sliding window ${config.slidingWindow}`,
    config.ropeScaling === null ? '' : `rope scaling ${config.ropeScaling.type}`,
    config.tiedEmbeddings ? 'tied embeddings' : '',
  ].filter((text) => text !== '');
  return [
    `${config.heads} query heads, ${config.kvHeads} KV heads of ${config.headDim}`,
    ...extras,
  ].join(', ');
}

function tokenizerText(tokenizer: TokenizerSummary | { readonly problem: string }): string {
  if ('problem' in tokenizer) return `cannot be used: ${tokenizer.problem}`;
  const template = tokenizer.chatTemplate ? 'chat template' : 'no chat template';
  return `${tokenizer.vocabulary} tokens, stops at ${tokenizer.stopIds.join(', ')}, ${template}`;
}
