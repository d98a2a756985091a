/*
 * What the kernels read of a plan: the device's view of what plan-image.ts writes. All offsets
 * are in the units named here, from the image's first byte.
 */
#pragma once
#include "common.cuh"

/* Tokens of one entry, the unit in which KV is addressed and masked. */
constexpr int kUnitTokens = 16;
/* Entries that stand in a worker's own record, so that its first copies wait for one read only. */
constexpr int kFirstEntries = 32;

/* A work item: one task for one KV head. 32 bytes. */
struct Item {
  int entry_begin; /* first entry, in entries */
  int entry_count;
  int row_begin; /* first row of the step */
  int row_count;
  int kv_head;
  int row_record; /* first row record, in records */
  int partials;   /* rows that go to partial slots */
  int unused;
};

/* Up to 16 tokens of one page for an interval of the task's rows. 16 bytes. */
struct Entry {
  int unit;     /* page * (page size / 16) + unit within the page */
  int position; /* absolute position of the unit's first slot */
  u32 rows;     /* first row | one past the last row << 16, relative to the task */
  u32 tokens;   /* first slot | one past the last slot << 8 | kCausal | kNarrow */
};
constexpr u32 kWholeUnit = kUnitTokens << 8; /* all tokens, for whoever sees the rows */
constexpr u32 kCausal = 1u << 16; /* compare positions, row by row */
constexpr u32 kNarrow = 1u << 17; /* for rows of a warp or two, which compute on it by themselves */

/* What the entries of a tile have in common. */
constexpr int kTileMixed = 0;
constexpr int kTilePlain = 1; /* 16 tokens each, for all rows of the item */
constexpr int kTileAlone = 2; /* narrow ones and padding */

/* Where one row of a task goes: 8 bytes. */
struct RowRecord {
  int slot;    /* -1: the output itself; -2: nowhere; otherwise a partial slot */
  int counter; /* merge to be told, when slot >= 0 */
};

/* One merge of a row for one KV head: 16 bytes. */
struct Merge {
  int row;
  int slot; /* first partial slot */
  int count;
  int counter; /* merge * kv_heads + kv_head */
};

/* A worker's record; the first item stands here as well. 576 bytes. */
struct Worker {
  int item_begin; /* in items */
  int item_count;
  int vector_begin; /* of the split rows: (merge, head of the group), counted from `merges` */
  int vector_count;
  int merges; /* first merge of the plan, in merges */
  int unused[3];
  Item first;
  Entry entries[kFirstEntries];
};

/* Arguments of a launch: fixed addresses, so that a captured graph stays valid over plans. */
struct Attention {
  const unsigned char* kv; /* this layer's pages */
  const u16* q;            /* (rows, q_stride): all query heads of a row are consecutive */
  u16* out;                /* (rows, out_stride) */
  const unsigned char* image;
  const int* row_position;
  float* partial;      /* (slots, kv_heads, group, head_dim), not normalised */
  float2* partial_sum; /* (slots, kv_heads, group): maximum (base 2, scaled) and sum */
  int* counters;       /* (merges, kv_heads, 2): partials written in launches of each parity */
  int* abort_flag;     /* [0] code of a wait that did not end, [1] see LaunchCount */
  const float* kv_scale; /* with 8-bit KV: (kv_heads, 2), scales of K and V */
  float scale_log2; /* softmax scale * log2(e) */
  float softcap;    /* 0 = none; otherwise s = softcap * tanh(s / softcap) */
  int window;       /* 0 = none; otherwise only the last `window` positions are seen */
  int kv_heads;
  int q_stride;
  int out_stride;
};

__device__ __forceinline__ const Worker* worker_of(const Attention& a, int worker) {
  return reinterpret_cast<const Worker*>(a.image) + worker;
}
__device__ __forceinline__ Item load_item(const Item* p) {
  const int4* v = reinterpret_cast<const int4*>(p);
  const int4 x = __ldg(v), y = __ldg(v + 1);
  return {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
}
__device__ __forceinline__ Entry load_entry(const Entry* p) {
  const int4 v = __ldg(reinterpret_cast<const int4*>(p));
  return {v.x, v.y, static_cast<u32>(v.z), static_cast<u32>(v.w)};
}
