/**
 * Every route of the API.
 * @module
 */
import { chatCompletions } from './chat.ts';
import { chatChunk, chatRequest, chatResponse } from './chat-schema.ts';
import { completionChunk, completionRequest, completionResponse } from './completion-schema.ts';
import { completions } from './completions.ts';
import { branchRoutes } from './dashboard/branch-streams.ts';
import { dashboardRoutes } from './dashboard-routes.ts';
import {
  detokenize,
  embeddings,
  getModel,
  health,
  listModels,
  metrics,
  tokenize,
} from './misc-routes.ts';
import * as misc from './misc-schema.ts';
import { prefixRoutes } from './prefix-routes.ts';
import { responses } from './responses.ts';
import { responsesBody, responsesEvent, responsesRequest } from './responses-schema.ts';
import type { Route } from './route.ts';

const MODEL = { name: 'Model', schema: misc.modelBody };

const COMPLETION_ROUTES: readonly Route[] = [
  {
    method: 'POST',
    path: '/v1/chat/completions',
    operation: 'createChatCompletion',
    summary: "The assistant's answer to messages",
    tag: 'completions',
    body: { name: 'ChatCompletionRequest', schema: chatRequest },
    status: 200,
    answer: { name: 'ChatCompletion', schema: chatResponse },
    event: { name: 'ChatCompletionChunk', schema: chatChunk },
    errors: [404, 408],
    savings: true,
    access: 'key',
    promptField: 'messages',
    handle: chatCompletions,
  },
  {
    method: 'POST',
    path: '/v1/completions',
    operation: 'createCompletion',
    summary: 'Continuations of plain prompts',
    tag: 'completions',
    body: { name: 'CompletionRequest', schema: completionRequest },
    status: 200,
    answer: { name: 'Completion', schema: completionResponse },
    event: { name: 'CompletionChunk', schema: completionChunk },
    errors: [404, 408],
    savings: true,
    access: 'key',
    handle: completions,
  },
  {
    method: 'POST',
    path: '/v1/responses',
    operation: 'createResponse',
    summary: "OpenAI's newer API, for text; nothing is stored",
    tag: 'completions',
    body: { name: 'ResponsesRequest', schema: responsesRequest },
    status: 200,
    answer: { name: 'Response', schema: responsesBody },
    event: { name: 'ResponseEvent', schema: responsesEvent },
    errors: [404, 408],
    savings: true,
    access: 'key',
    promptField: 'input',
    handle: responses,
  },
  {
    method: 'POST',
    path: '/v1/embeddings',
    operation: 'createEmbedding',
    summary: 'Not offered: always refused',
    tag: 'completions',
    status: 200,
    answer: 'application/json',
    access: 'key',
    handle: embeddings,
  },
];

const MISC_ROUTES: readonly Route[] = [
  {
    method: 'GET',
    path: '/v1/models',
    operation: 'listModels',
    summary: 'Names of the model',
    tag: 'models',
    status: 200,
    answer: { name: 'ModelList', schema: misc.modelList },
    access: 'key',
    handle: listModels,
  },
  {
    method: 'GET',
    path: '/v1/models/{model}',
    operation: 'getModel',
    summary: 'The model under one of its names',
    tag: 'models',
    status: 200,
    answer: MODEL,
    errors: [404],
    access: 'key',
    handle: getModel,
  },
  {
    method: 'POST',
    path: '/tokenize',
    operation: 'tokenize',
    summary: 'Token ids of a text or of messages',
    tag: 'tokens',
    body: { name: 'TokenizeRequest', schema: misc.tokenizeRequest },
    status: 200,
    answer: { name: 'Tokens', schema: misc.tokenizeResponse },
    errors: [404],
    access: 'key',
    handle: tokenize,
  },
  {
    method: 'POST',
    path: '/detokenize',
    operation: 'detokenize',
    summary: 'The text of token ids',
    tag: 'tokens',
    body: { name: 'DetokenizeRequest', schema: misc.detokenizeRequest },
    status: 200,
    answer: { name: 'Text', schema: misc.detokenizeResponse },
    errors: [404],
    access: 'key',
    promptField: 'tokens',
    handle: detokenize,
  },
  {
    method: 'GET',
    path: '/health',
    operation: 'health',
    summary: '200 when requests can be served, 503 until then',
    tag: 'operation',
    status: 200,
    answer: { name: 'Health', schema: misc.health },
    access: 'open',
    handle: health,
  },
  {
    method: 'GET',
    path: '/metrics',
    operation: 'metrics',
    summary: "Prometheus metrics, with vLLM's names where the meaning is the same",
    tag: 'operation',
    status: 200,
    answer: 'text/plain',
    access: 'key',
    handle: metrics,
  },
];

export const ROUTES: readonly Route[] = [
  ...COMPLETION_ROUTES,
  ...prefixRoutes,
  ...MISC_ROUTES,
  ...dashboardRoutes,
  ...branchRoutes,
];
