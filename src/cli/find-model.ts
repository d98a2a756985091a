/**
 * The model that a command works with, brought here if need be, with a progress bar.
 * @module
 */
import { type ResolvedModel, resolveDefaultModel, resolveModel } from '../checkpoint/reference.ts';
import { megabytes } from '../checkpoint/reference-download.ts';
import type { Context } from './command.ts';
import { ProgressBar } from './progress-bar.ts';

/** @param reference undefined = the default model */
export async function findModel(
  context: Context,
  reference: string | undefined,
): Promise<ResolvedModel> {
  const bar = new ProgressBar();
  const options = {
    signal: context.signal,
    log: (line: string) => {
      bar.clear();
      context.note(line);
    },
    onProgress: (progress: { file: string; receivedBytes: number; totalBytes: number }) => {
      const { file, receivedBytes, totalBytes } = progress;
      const detail = `${megabytes(receivedBytes)} of ${megabytes(totalBytes)}`;
      bar.update(file, receivedBytes, totalBytes, detail);
    },
  };
  try {
    return await (reference === undefined
      ? resolveDefaultModel(options)
      : resolveModel(reference, options));
  } finally {
    bar.clear();
  }
}
