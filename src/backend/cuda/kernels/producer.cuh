/*
 * The producer: one warp that walks its worker's items and keeps the ring of KV tiles full. A
 * tile is kTile tokens, gathered entry by entry, so that short nodes share a tile.
 */
#pragma once
#include "rows.cuh"

template <class Shape>
struct Producer {
  static constexpr int kEntries = Shape::kTile / kUnitTokens; /* of one tile */
  static constexpr u32 kUnitBytes = kUnitTokens * Shape::kTokenBytes;

  const Attention& a;
  typename Shape::Shared& shared;
  int lane;
  u32 tile = 0; /* running number of the tile over all items */

  __device__ const unsigned char* address(const Entry& e, int kv_head) const {
    constexpr int kUnits = Shape::kPageTokens / kUnitTokens;
    const int page = e.unit / kUnits, unit = e.unit % kUnits;
    const u64 index = (static_cast<u64>(page) * a.kv_heads + kv_head) * kUnits + unit;
    return a.kv + index * kUnitBytes;
  }

  /* What the warps of a group do with a tile, of which each lane holds one entry. */
  __device__ int kind_of(const Entry& e, const Item& item) const {
    const bool whole = e.tokens == kWholeUnit && (e.rows & 0xffff) == 0 &&
                       static_cast<int>(e.rows >> 16) >= item.row_count;
    if (__all_sync(~0u, whole)) return kTilePlain;
    return __all_sync(~0u, e.tokens == 0 || (e.tokens & kNarrow) != 0) ? kTileAlone : kTileMixed;
  }

  /* Which warps have rows in which entries: bit warp of the block * entries + entry. */
  __device__ u32 lanes_alone(const Entry& e, const Item& item) const {
    const int warp = lane / kEntries;
    const int row = Rows<Shape>::shared_out(item) ? warp / 4 * Rows<Shape>::kPerGroup : 0;
    const int first = row + warp % 4 * 16 / Shape::kGroup;
    const int end = row + (warp % 4 * 16 + 15) / Shape::kGroup + 1;
    return __ballot_sync(~0u, static_cast<int>(e.rows & 0xffff) < end &&
                                  static_cast<int>(e.rows >> 16) > first);
  }

  /* One tile from the entries that lanes first to first + kEntries - 1 hold. */
  __device__ void fill(const Entry& held, int first, int count, const Item& item) {
    const u32 stage = tile % Shape::kStages;
    const u32 round = tile / Shape::kStages;
    const u32 full = smem_address(&shared.full[stage]);
    /* Absent entries repeat the first one with no rows: the products read defined numbers. */
    const int from = first + (lane % kEntries < count ? lane % kEntries : 0);
    Entry e;
    e.unit = __shfl_sync(~0u, held.unit, from);
    e.position = __shfl_sync(~0u, held.position, from);
    e.rows = __shfl_sync(~0u, held.rows, from);
    e.tokens = __shfl_sync(~0u, held.tokens, from);
    if (lane % kEntries >= count) e.rows = 0, e.tokens = 0;
    const unsigned char* from_page = address(e, item.kv_head);
    const u32 alone = lanes_alone(e, item);
    const int kind = kind_of(e, item);
    if (round > 0)
      barrier_wait(smem_address(&shared.empty[stage]), (round - 1) & 1, a.abort_flag,
                   Shape::kAbortEmpty);
    if (lane < kEntries) shared.entries[stage][lane] = e;
    if (lane == 0) shared.kind[stage] = kind, shared.alone[stage] = alone;
    __syncwarp();
    const u32 to = smem_address(shared.bulk.kv[stage]);
#if FF_HOPPER
    if (lane == 0) barrier_expect(full, kEntries * kUnitBytes);
    __syncwarp();
    if (lane < kEntries) copy_bulk(to + lane * kUnitBytes, from_page, kUnitBytes, full);
#else
#pragma unroll 1
    for (int i = 0; i < kEntries; i++) {
      Entry one;
      one.unit = __shfl_sync(~0u, e.unit, i);
      const unsigned char* from = address(one, item.kv_head);
#pragma unroll 8
      for (u32 byte = lane * 16; byte < kUnitBytes; byte += 512)
        copy16(to + i * kUnitBytes + byte, from + byte);
    }
    copy_arrive(full); /* every lane: the barrier counts 32 */
#endif
    tile++;
  }

  __device__ void run() {
    const Worker* worker = worker_of(a, blockIdx.x);
    const Entry* all = reinterpret_cast<const Entry*>(a.image);
    const int items = __ldg(&worker->item_count);
    Entry held = load_entry(&worker->entries[lane]);
    Item item = load_item(&worker->first);
    if (items == 0) return;
    dependency_wait(); /* the plan was here before; KV of this step's tokens may not be */
    const Item* list = reinterpret_cast<const Item*>(a.image) + __ldg(&worker->item_begin);
    for (int i = 0; i < items; i++) {
      /* The next item's record and first entries are on their way while this one is read. */
      Item next = item;
      if (i + 1 < items) next = load_item(list + i + 1);
      Entry ahead = held;
      for (int base = 0; base < item.entry_count; base += kFirstEntries) {
        const int left = item.entry_count - base;
        if (left > kFirstEntries) {
          const int index = base + kFirstEntries + lane;
          ahead = load_entry(all + item.entry_begin +
                             (index < item.entry_count ? index : item.entry_count - 1));
        } else if (i + 1 < items) {
          ahead = load_entry(all + next.entry_begin +
                             (lane < next.entry_count ? lane : 0));
        }
        for (int first = 0; first < kFirstEntries && first < left; first += kEntries)
          fill(held, first, left - first < kEntries ? left - first : kEntries, item);
        held = ahead;
      }
      item = next;
    }
  }
};
