/**
 * POST /v1/chat/completions: messages in, the assistant's turns out, at once or as they grow.
 * @module
 */
import type { FinishReason } from '../engine/generation.ts';
import type { GrammarSource } from '../engine/grammar-source.ts';
import type { PromptSource } from '../engine/rpc.ts';
import type { SamplingOptions } from '../engine/sampling-params.ts';
import { badRequest } from './api-error.ts';
import { beamJob } from './beams.ts';
import type { ApiMessage, ChatRequest, ChatResponse } from './chat-schema.ts';
import type { ServedModel } from './engine-host.ts';
import type { Exchange } from './exchange.ts';
import { Choices, type Finished, type Job, type Piece, runJob } from './jobs.ts';
import { chatLogprobs } from './logprobs.ts';
import { knowsTools, templateMessages, withToolTexts } from './messages.ts';
import { maxTokensOf, placementOf, servedModel } from './request-checks.ts';
import { grammarOf, toolGrammar } from './response-format.ts';
import { samplingOptions, wantsRunningUsage } from './sampling-fields.ts';
import { streamResponse } from './stream-response.ts';
import { type Parsed, ToolCallReader, type ToolForm, toolForm } from './tool-calls.ts';
import { runningUsage, type Usage, usageHeaders } from './usage.ts';

/** What all answers and chunks of a request begin with. */
interface Head {
  readonly id: string;
  readonly created: number;
  readonly model: string;
}

/** A checked request. */
interface Chat {
  readonly body: ChatRequest;
  readonly model: ServedModel;
  readonly head: Head;
  readonly source: PromptSource;
  readonly options: SamplingOptions;
  readonly grammar: GrammarSource | undefined;
  /** How calls are written, where the request has tools. */
  readonly tools: ToolForm | null;
}

const PROMPT = 'messages';

export async function chatCompletions(exchange: Exchange): Promise<Response> {
  const chat = readChat(exchange);
  const { body } = chat;
  if (body.use_beam_search) return beams(exchange, chat);
  const job: Job = {
    prompts: [chat.source],
    options: chat.options,
    placement: placementOf(exchange, body),
    grammar: chat.grammar,
    grammarField: chat.grammar?.kind === 'tags' ? 'tools' : undefined,
  };
  if (body.stream) return stream(exchange, chat, job);
  const choices = new Choices(body.n ?? 1);
  const usage = await runJob(exchange, job, (piece) => choices.add(withMarker(piece, chat)));
  return answer(chat, choices.finished, usage);
}

function readChat(exchange: Exchange): Chat {
  const body = exchange.body as ChatRequest;
  const model = servedModel(exchange, body.model);
  const { contextLength } = model.info.config;
  const field = body.max_completion_tokens == null ? 'max_tokens' : 'max_completion_tokens';
  const maxTokens = maxTokensOf(exchange, model, field, body[field], contextLength);
  if (body.top_logprobs != null && !body.logprobs) {
    throw badRequest('top_logprobs must not be given without logprobs', 'top_logprobs');
  }
  const wantsTools = (body.tools?.length ?? 0) > 0 && body.tool_choice !== 'none';
  const template = model.texts.chatTemplate ?? '';
  const form = wantsTools ? toolForm(template) : null;
  const forced = form === null ? forcedWithoutTools(body) : toolGrammar(body, form);
  return {
    body,
    model,
    head: {
      id: `chatcmpl-${exchange.id}`,
      created: Math.floor(Date.now() / 1000),
      model: model.names[0],
    },
    source: chatSource(exchange, body, template, form),
    options: {
      ...samplingOptions(body, maxTokens),
      ...(body.logprobs ? { logprobs: body.top_logprobs ?? 0 } : {}),
    },
    grammar: forced ?? grammarOf(body.response_format),
    tools: form,
  };
}

function forcedWithoutTools({ tool_choice: choice, tools }: ChatRequest): undefined {
  if (choice == null || choice === 'none' || choice === 'auto') return undefined;
  if (tools?.length) return undefined;
  throw badRequest('tool_choice must not be given without tools', 'tool_choice');
}

/** The messages, with those of the prefix before them. */
function chatSource(
  exchange: Exchange,
  body: ChatRequest,
  template: string,
  form: ToolForm | null,
): PromptSource {
  const before = body.prefix_id == null ? [] : prefixMessages(exchange, body.prefix_id);
  let messages = templateMessages([...before, ...body.messages]);
  const tools = form === null ? [] : (body.tools ?? []);
  const plain = tools.length > 0 && !knowsTools(template);
  if (plain) messages = withToolTexts(messages, tools);
  return {
    messages,
    chat: {
      addGenerationPrompt: body.add_generation_prompt ?? true,
      ...(plain || tools.length === 0 ? {} : { tools }),
      ...(body.chat_template_kwargs == null ? {} : { variables: body.chat_template_kwargs }),
    },
  };
}

function prefixMessages(exchange: Exchange, id: string): readonly ApiMessage[] {
  const { messages } = exchange.parts.prefixes.use(id, exchange.tenant, 'prefix_id');
  if (messages !== null) return messages;
  throw badRequest(
    'prefix_id must name a prefix made of messages here; one of text or tokens goes with ' +
      '/v1/completions',
    'prefix_id',
  );
}

/** The text of a token that opens tool calls, which as a special token has none. */
function withMarker(piece: Piece, { tools, model }: Chat): Piece {
  if (tools === null || tools.openToken === null || piece.token === null) return piece;
  if (piece.token !== model.texts.idOf(tools.openToken)) return piece;
  return { ...piece, text: tools.open + piece.text };
}

function answer({ body, head, model, tools }: Chat, all: readonly Finished[], usage: Usage) {
  const choices: ChatResponse['choices'] = all.map((each) => {
    const { text, calls } = tools === null ? { text: each.text, calls: [] } : readAll(each, tools);
    return {
      index: each.choice,
      message: {
        role: 'assistant',
        content: text === '' && calls.length > 0 ? null : text,
        refusal: null,
        ...(calls.length === 0 ? {} : { tool_calls: [...calls] }),
      },
      logprobs: body.logprobs ? chatLogprobs(each.details, model.texts) : null,
      finish_reason: reasonOf(each.finishReason, calls.length > 0),
    };
  });
  const result: ChatResponse = { ...head, object: 'chat.completion', choices, usage };
  return Response.json(result, { headers: usageHeaders(usage) });
}

function readAll({ text }: Finished, form: ToolForm): Parsed {
  const reader = new ToolCallReader(form);
  const [first, last] = [reader.push(text), reader.end()];
  return { text: first.text + last.text, calls: [...first.calls, ...last.calls] };
}

const reasonOf = (reason: FinishReason, called: boolean): 'stop' | 'length' | 'tool_calls' =>
  called ? 'tool_calls' : reason;

async function beams(exchange: Exchange, chat: Chat): Promise<Response> {
  const { body, source, options, head, grammar, tools } = chat;
  if (grammar !== undefined || tools !== null) {
    const field = tools === null ? 'response_format' : 'tools';
    throw badRequest(`${field} must not be given with use_beam_search`, field);
  }
  if (body.logprobs)
    throw badRequest('logprobs must not be given with use_beam_search', 'logprobs');
  const { found, usage } = await beamJob(exchange, source, body, options.maxTokens ?? 1);
  const choices: ChatResponse['choices'] = found.map((each, index) => ({
    index,
    message: { role: 'assistant', content: each.text, refusal: null },
    logprobs: null,
    finish_reason: each.finishReason,
    cumulative_logprob: each.logprob,
  }));
  const result: ChatResponse = { ...head, object: 'chat.completion', choices, usage };
  return Response.json(result, { headers: usageHeaders(usage) });
}

function stream(exchange: Exchange, chat: Chat, job: Job): Promise<Response> {
  const { body, head } = chat;
  return streamResponse(exchange, PROMPT, async (send) => {
    const counts = wantsRunningUsage(body);
    const writer = new ChunkWriter(chat, (choice, { progress }) =>
      send({
        ...head,
        object: 'chat.completion.chunk',
        choices: [choice],
        ...(counts ? { usage: runningUsage(progress) } : {}),
      }),
    );
    const usage = await runJob(exchange, job, (piece) => writer.add(withMarker(piece, chat)));
    if (body.stream_options?.include_usage) {
      send({ ...head, object: 'chat.completion.chunk', choices: [], usage });
    }
  });
}

/** Turns pieces into the chunks of a stream. */
class ChunkWriter {
  readonly #chat: Chat;
  readonly #send: (choice: object, piece: Piece) => void;
  readonly #readers = new Map<number, ToolCallReader>();
  readonly #begun = new Set<number>();
  readonly #calls = new Map<number, number>();

  constructor(chat: Chat, send: (choice: object, piece: Piece) => void) {
    this.#chat = chat;
    this.#send = send;
  }

  add(piece: Piece): void {
    const { choice, detail, finishReason } = piece;
    const { body, model } = this.#chat;
    if (!this.#begun.has(choice)) {
      this.#begun.add(choice);
      this.#chunk(piece, { role: 'assistant', content: '' });
    }
    const logprobs = body.logprobs && detail !== null ? chatLogprobs([detail], model.texts) : null;
    const { text, calls } = this.#read(piece);
    if (text !== '' || logprobs !== null) this.#chunk(piece, { content: text }, logprobs);
    if (calls.length > 0) {
      const first = this.#calls.get(choice) ?? 0;
      this.#calls.set(choice, first + calls.length);
      const toolCalls = calls.map((call, index) => ({ index: first + index, ...call }));
      this.#chunk(piece, { tool_calls: toolCalls });
    }
    if (finishReason === null) return;
    this.#chunk(piece, {}, null, reasonOf(finishReason, this.#calls.has(choice)));
  }

  #read({ choice, text, finishReason }: Piece): Parsed {
    const { tools } = this.#chat;
    if (tools === null) return { text, calls: [] };
    let reader = this.#readers.get(choice);
    if (reader === undefined) {
      reader = new ToolCallReader(tools);
      this.#readers.set(choice, reader);
    }
    const parsed = reader.push(text);
    if (finishReason === null) return parsed;
    const last = reader.end();
    return { text: parsed.text + last.text, calls: [...parsed.calls, ...last.calls] };
  }

  #chunk(
    piece: Piece,
    delta: object,
    logprobs: object | null = null,
    finish_reason: string | null = null,
  ): void {
    this.#send({ index: piece.choice, delta, logprobs, finish_reason }, piece);
  }
}
