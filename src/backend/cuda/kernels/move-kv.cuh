/*
 * KV on its way between the device's pages and pinned host memory, which the kernel reads and
 * writes itself. A chunk is one page's worth of tokens that lie together in a page of the host, in
 * the device's own layout, while on the device each may be in any slot. Nothing here knows the
 * type of KV: a head's part of a page is groups of 8 tokens, and a group is blocks of 128 bytes
 * with 16 of each token.
 */
#pragma once
#include "common.cuh"

/* Chunks of one launch: a kernel's parameters have 4 KB. As in kv-offload.ts. */
constexpr int kMoveChunks = 3456 / (8 + 4 * FF_PAGE_TOKENS);

struct MoveKv {
  unsigned char* kv;  /* the first layer's pages */
  u64 layer_bytes;    /* from one layer's pages to the next one's */
  int page_groups;    /* groups of 8 tokens in a page: of each KV head in turn */
  int group_pieces;   /* pieces of 16 bytes in a group, K's and V's */
  int to_host;        /* 1 = save, 0 = load */
  int unused;
  uint4* host[kMoveChunks];               /* (layers, a page) of each chunk */
  int slot[kMoveChunks * FF_PAGE_TOKENS]; /* (chunks, tokens) on the device; -1 = left out */
};

/* One block a layer and chunk. */
extern "C" __global__ void ff_move_kv(const __grid_constant__ MoveKv a) {
  constexpr int kTokens = FF_PAGE_TOKENS, kGroups = kTokens / 8;
  __shared__ int slots[kTokens];
  const int chunk = blockIdx.y;
  const u64 layer = blockIdx.x;
  for (int t = threadIdx.x; t < kTokens; t += blockDim.x) slots[t] = a.slot[chunk * kTokens + t];
  __syncthreads();
  const int pieces = a.page_groups * a.group_pieces;
  uint4* host = a.host[chunk] + layer * pieces;
  uint4* kv = reinterpret_cast<uint4*>(a.kv + layer * a.layer_bytes);
  for (int i = threadIdx.x; i < pieces; i += blockDim.x) {
    const int group = i / a.group_pieces, within = i % a.group_pieces;
    const int slot = slots[group % kGroups * 8 + within % 8];
    if (slot < 0) continue;
    const int page = slot / kTokens, first = group - group % kGroups;
    const u64 there = static_cast<u64>(page) * a.page_groups + first + slot % kTokens / 8;
    const u64 at = there * a.group_pieces + (within - within % 8) + slot % 8;
    if (a.to_host) host[i] = kv[at];
    else kv[at] = host[i];
  }
}
