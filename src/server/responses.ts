/**
 * POST /v1/responses: OpenAI's newer API, for text in and text out. Nothing is stored.
 * @module
 */
import type { FinishReason } from '../engine/generation.ts';
import type { GrammarSource } from '../engine/grammar-source.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import type { Exchange } from './exchange.ts';
import { type Job, runJob } from './jobs.ts';
import { maxTokensOf, placementOf, servedModel } from './request-checks.ts';
import type { OutputMessage, ResponsesBody, ResponsesRequest } from './responses-schema.ts';
import { type Send, streamResponse } from './stream-response.ts';
import { type Usage, usageHeaders } from './usage.ts';

const PROMPT = 'input';

export async function responses(exchange: Exchange): Promise<Response> {
  const body = exchange.body as ResponsesRequest;
  const model = servedModel(exchange, body.model);
  const { contextLength } = model.info.config;
  const wanted = body.max_output_tokens;
  const job: Job = {
    prompts: [{ messages: messagesOf(body), chat: { addGenerationPrompt: true } }],
    options: {
      maxTokens: maxTokensOf(exchange, model, 'max_output_tokens', wanted, contextLength),
      temperature: body.temperature ?? 1,
      topP: body.top_p ?? 1,
    },
    placement: placementOf(exchange, body),
    grammar: grammarOf(body.text?.format),
    grammarField: 'text.format',
  };
  const begun = begin(exchange, body, model.names[0]);
  if (body.stream) {
    return streamResponse(exchange, PROMPT, (send) => stream(exchange, job, begun, send));
  }
  let text = '';
  let reason: FinishReason = 'stop';
  const usage = await runJob(exchange, job, (piece) => {
    text += piece.text;
    reason = piece.finishReason ?? reason;
  });
  return Response.json(finish(begun, exchange.id, text, reason, usage), {
    headers: usageHeaders(usage),
  });
}

function grammarOf(
  format: NonNullable<ResponsesRequest['text']>['format'],
): GrammarSource | undefined {
  switch (format?.type) {
    case 'json_object':
      return { kind: 'json' };
    case 'json_schema':
      return { kind: 'schema', schema: format.schema };
    default:
      return undefined;
  }
}

function messagesOf({ instructions, input }: ResponsesRequest): ChatMessage[] {
  const system = instructions == null ? [] : [{ role: 'system', content: instructions }];
  if (typeof input === 'string') return [...system, { role: 'user', content: input }];
  const items = input.map(({ role, content }) => ({
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : content.map(({ text }) => text).join(''),
  }));
  return [...system, ...items];
}

function begin(exchange: Exchange, body: ResponsesRequest, model: string): ResponsesBody {
  return {
    id: `resp_${exchange.id}`,
    object: 'response',
    created_at: Math.floor(Date.now() / 1000),
    status: 'in_progress',
    error: null,
    incomplete_details: null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    model,
    output: [],
    parallel_tool_calls: true,
    previous_response_id: null,
    store: false,
    temperature: body.temperature ?? 1,
    text: { format: body.text?.format ?? { type: 'text' } },
    tool_choice: 'none',
    tools: [],
    top_p: body.top_p ?? 1,
    metadata: {},
    usage: null,
  };
}

const part = (text: string): OutputMessage['content'][number] => ({
  type: 'output_text',
  text,
  annotations: [],
  logprobs: [],
});

function item(
  id: string,
  status: OutputMessage['status'],
  content: OutputMessage['content'],
): OutputMessage {
  return { type: 'message', id: `msg_${id}`, status, role: 'assistant', content };
}

function finish(
  begun: ResponsesBody,
  id: string,
  text: string,
  reason: FinishReason,
  { prompt_tokens: input, completion_tokens: output, ...usage }: Usage,
): ResponsesBody {
  const status = reason === 'stop' ? 'completed' : 'incomplete';
  return {
    ...begun,
    status,
    incomplete_details: reason === 'stop' ? null : { reason: 'max_output_tokens' },
    output: [item(id, status, [part(text)])],
    usage: {
      input_tokens: input,
      input_tokens_details: usage.prompt_tokens_details,
      output_tokens: output,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: usage.total_tokens,
      kv_cache: usage.kv_cache,
    },
  };
}

async function stream(
  exchange: Exchange,
  job: Job,
  begun: ResponsesBody,
  send: Send,
): Promise<void> {
  const { id } = exchange;
  let sequence = 0;
  let text = '';
  let reason: FinishReason = 'stop';
  const emit = (type: string, fields: object): void =>
    send({ type, sequence_number: sequence++, ...fields });
  const where = { item_id: `msg_${id}`, output_index: 0, content_index: 0 };
  const open = (): void => {
    if (sequence > 0) return;
    emit('response.created', { response: begun });
    emit('response.in_progress', { response: begun });
    emit('response.output_item.added', { output_index: 0, item: item(id, 'in_progress', []) });
    emit('response.content_part.added', { ...where, part: part('') });
  };
  const usage = await runJob(exchange, job, (piece) => {
    open();
    reason = piece.finishReason ?? reason;
    text += piece.text;
    if (piece.text === '') return;
    emit('response.output_text.delta', { ...where, delta: piece.text, logprobs: [] });
  });
  const response = finish(begun, id, text, reason, usage);
  emit('response.output_text.done', { ...where, text, logprobs: [] });
  emit('response.content_part.done', { ...where, part: part(text) });
  emit('response.output_item.done', { output_index: 0, item: response.output[0] });
  emit(`response.${response.status}`, { response });
}
