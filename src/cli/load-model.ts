/**
 * Loads the model that a command was given, with progress bars for what takes time.
 * @module
 */

import { megabytes } from '../checkpoint/reference-download.ts';
import { type Llm, type LoadOptions, load } from '../index.ts';
import { DEVICE_CHOICES } from '../model/load-runner.ts';
import {
  type Arguments,
  type Context,
  DEVICE_OPTION,
  MODEL_OPTION,
  type Option,
  PROVIDER_OPTION,
  PROVIDERS,
} from './command.ts';
import { choiceOption } from './parse-arguments.ts';
import { ProgressBar } from './progress-bar.ts';

export const MODEL_OPTIONS: readonly Option[] = [MODEL_OPTION, DEVICE_OPTION, PROVIDER_OPTION];

/** Devices and providers as given; checked before anything is loaded. */
export function deviceOptions(given: Arguments): Pick<LoadOptions, 'device' | 'provider'> {
  return {
    device: choiceOption(given, 'device', DEVICE_CHOICES, 'cpu'),
    provider: choiceOption(given, 'provider', PROVIDERS, 'auto'),
  };
}

/** The caller disposes of the model. */
export async function loadModel(
  context: Context,
  reference: string | undefined,
  options: LoadOptions,
): Promise<Llm> {
  const bar = new ProgressBar();
  try {
    const llm = await load(reference, {
      ...options,
      signal: context.signal,
      log: (line) => {
        bar.clear();
        context.note(line);
      },
      onDownload: ({ file, receivedBytes, totalBytes }) => {
        const detail = `${megabytes(receivedBytes)} of ${megabytes(totalBytes)}`;
        bar.update(file, receivedBytes, totalBytes, detail);
      },
      onProgress: (share) => bar.update('loading weights', share, 1, ''),
    });
    const { info } = llm;
    bar.clear();
    context.note(`${info.reference} on ${info.device}, ${info.provider}: ${info.providerWhy}`);
    return llm;
  } finally {
    bar.clear();
  }
}
