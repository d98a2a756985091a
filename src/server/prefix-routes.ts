/**
 * The routes of the branching API.
 * @module
 */
import * as prefix from './prefix-schema.ts';
import { createPrefix, deletePrefix, forkPrefix, getPrefix, listPrefixes } from './prefixes.ts';
import type { Route } from './route.ts';

const PREFIX = { name: 'Prefix', schema: prefix.prefixBody };

export const prefixRoutes: readonly Route[] = [
  {
    method: 'POST',
    path: '/v1/prefixes',
    operation: 'createPrefix',
    summary: 'Computes text, tokens or messages once and holds them in the tree',
    tag: 'prefixes',
    body: { name: 'PrefixCreateRequest', schema: prefix.prefixCreateRequest },
    status: 201,
    answer: PREFIX,
    errors: [403, 408, 409],
    access: 'key',
    promptField: 'text',
    handle: createPrefix,
  },
  {
    method: 'GET',
    path: '/v1/prefixes',
    operation: 'listPrefixes',
    summary: 'Prefixes that this key may use',
    tag: 'prefixes',
    status: 200,
    answer: { name: 'PrefixList', schema: prefix.prefixList },
    access: 'key',
    handle: listPrefixes,
  },
  {
    method: 'GET',
    path: '/v1/prefixes/{id}',
    operation: 'getPrefix',
    summary: 'Size, sharers and last use of a prefix',
    tag: 'prefixes',
    status: 200,
    answer: PREFIX,
    errors: [404],
    access: 'key',
    handle: getPrefix,
  },
  {
    method: 'DELETE',
    path: '/v1/prefixes/{id}',
    operation: 'deletePrefix',
    summary: 'Lets a prefix go; requests that run on it are not disturbed',
    tag: 'prefixes',
    status: 200,
    answer: { name: 'PrefixDeleted', schema: prefix.prefixDeleted },
    errors: [403, 404],
    access: 'key',
    handle: deletePrefix,
  },
  {
    method: 'POST',
    path: '/v1/prefixes/{id}/fork',
    operation: 'forkPrefix',
    summary: 'A new prefix that shares the first tokens of this one, and continues them',
    tag: 'prefixes',
    body: { name: 'PrefixForkRequest', schema: prefix.prefixForkRequest },
    status: 201,
    answer: PREFIX,
    errors: [404, 408, 409],
    access: 'key',
    promptField: 'text',
    handle: forkPrefix,
  },
];
