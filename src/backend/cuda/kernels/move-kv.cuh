/*
 * KV on its way between the device's pages and pinned host memory, which the kernel reads and
 * writes itself. A chunk is one page's worth of tokens that lie together in a page of the host, in
 * the device's own layout, while on the device each may be in any slot.
 */
#pragma once
#include "rotate.cuh"

/* Chunks of one launch: a kernel's parameters have 4 KB. As in kv-offload.ts. */
constexpr int kMoveChunks = 3456 / (8 + 4 * kPageTokens);

struct MoveKv {
  u16* kv;         /* the first layer's pages */
  u64 layer_bytes; /* from one layer's pages to the next one's */
  int kv_heads;
  int to_host;                            /* 1 = save, 0 = load */
  u16* host[kMoveChunks];                 /* (layers, a page) of each chunk */
  int slot[kMoveChunks * kPageTokens];    /* (chunks, tokens) on the device; -1 = left out */
};

/* One block a layer and chunk. A piece is 16 bytes: 8 dimensions of one token's K or V. */
extern "C" __global__ void ff_move_kv(const __grid_constant__ MoveKv a) {
  constexpr int kGroup = 2 * kHeadDim; /* pieces of 8 tokens of a head, K and V */
  constexpr int kGroups = kPageTokens / 8;
  __shared__ int slots[kPageTokens];
  const int chunk = blockIdx.y;
  const u64 layer = blockIdx.x;
  for (int t = threadIdx.x; t < kPageTokens; t += blockDim.x) {
    slots[t] = a.slot[chunk * kPageTokens + t];
  }
  __syncthreads();
  const int pieces = a.kv_heads * kGroups * kGroup;
  uint4* host = reinterpret_cast<uint4*>(a.host[chunk]) + layer * pieces;
  uint4* kv = reinterpret_cast<uint4*>(a.kv + layer * (a.layer_bytes / 2));
  for (int i = threadIdx.x; i < pieces; i += blockDim.x) {
    const int group = i / kGroup;
    const int slot = slots[group % kGroups * 8 + i % 8];
    if (slot < 0) continue;
    const u64 token = page_element(slot, group / kGroups, a.kv_heads) / 8;
    const u64 at = token + (i % kGroup - i % 8);
    if (a.to_host) host[i] = kv[at];
    else kv[at] = host[i];
  }
}
