/*
 * The consumers: groups of four warps that each hold up to 64 query vectors and their running
 * softmax. Items with more query vectors than that are shared out by rows; otherwise the groups
 * take turns at the tiles and combine their states at the end of the item.
 */
#pragma once
#include "plan-image.cuh"
#include "product-mma.cuh"
#include "product-wgmma.cuh"

template <class Shape>
struct Consumer {
  static constexpr int kHeadDim = Shape::kHeadDim;
  static constexpr int kBlocks = kHeadDim / 8;
  static constexpr int kScoreBlocks = Shape::kTile / 8;
  static constexpr int kEntries = Shape::kTile / kUnitTokens;
  static constexpr int kRowsPerGroup = 64 / Shape::kGroup;
  static constexpr float kNone = -1e30f;   /* maximum of a row that has seen nothing */
  static constexpr float kMasked = -3e38f; /* a score that does not count: below kNone, scaled */
  static constexpr float kLog2e = 1.4426950408889634f;

  const Attention& a;
  typename Shape::Shared& shared;
  int group; /* of warps */
  int warp;  /* within the group */
  int lane;
  u32 tile = 0;

  /* State of the current item. */
  Item item;
  int row_first, row_count; /* this group's rows, relative to the item */
  int row[2];               /* this thread's two rows, relative to the item */
  int position[2];
  int slot[2]; /* where the two rows go, see RowRecord */
  int counter; /* merge to tell about the row whose number is this thread's, or -1 */
  float o[kBlocks][4];
  float maximum[2], sum[2];

  __device__ bool shares_rows() const {
    return Shape::kGroups > 1 && item.row_count > kRowsPerGroup;
  }

  __device__ void group_sync() const { block_sync(1 + group, 128); }

  __device__ void take_rows() {
    row_first = shares_rows() ? group * kRowsPerGroup : 0;
    const int left = item.row_count - row_first;
    row_count = left < kRowsPerGroup ? left : kRowsPerGroup;
    const RowRecord* records = reinterpret_cast<const RowRecord*>(a.image) + item.row_record;
    const int mine = warp * 32 + lane;
    counter = -1;
    if (mine < row_count) {
      const RowRecord record = records[row_first + mine];
      if (record.slot >= 0) counter = record.counter;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      row[half] = row_first + (warp * 16 + (lane >> 2) + half * 8) / Shape::kGroup;
      const bool real = row[half] < row_first + row_count;
      position[half] = real ? __ldg(a.row_position + item.row_begin + row[half]) : -1;
      slot[half] = real ? __ldg(&records[row[half]].slot) : -2;
      if (!real) row[half] = 0xffff;
      maximum[half] = kNone;
      sum[half] = 0.0f;
    }
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[b][i] = 0.0f;
  }

  /* Starts the copy of an item's query vectors of this group. */
  __device__ void fetch_queries(const Item& of, int buffer) {
    const int first = Shape::kGroups > 1 && of.row_count > kRowsPerGroup ? group * kRowsPerGroup : 0;
    const int left = of.row_count - first;
    const int vectors = (left < kRowsPerGroup ? left : kRowsPerGroup) * Shape::kGroup;
    const u32 to = smem_address(shared.q[group][buffer]);
    for (int i = warp * 32 + lane; i < vectors * kBlocks; i += 128) {
      const int vector = i / kBlocks, chunk = i % kBlocks;
      const int r = of.row_begin + first + vector / Shape::kGroup;
      const int head = of.kv_head * Shape::kGroup + vector % Shape::kGroup;
      copy16(to + ((vector >> 3) * kBlocks + chunk) * 128 + (vector & 7) * 16,
             a.q + static_cast<u64>(r) * a.q_stride + head * kHeadDim + chunk * 8);
    }
    copy_commit();
  }

  /* Removes the scores that the entries do not give to this thread's rows. */
  __device__ void mask(float (&s)[kScoreBlocks][4], const Entry (&entries)[kEntries]) {
#pragma unroll
    for (int e = 0; e < kEntries; e++) {
      const int lo = entries[e].rows & 0xffff, hi = entries[e].rows >> 16;
      const int begin = entries[e].tokens & 0xff, end = (entries[e].tokens >> 8) & 0xff;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int from = begin, to = end;
        if (entries[e].tokens & kCausal) {
          const int last = position[half] - entries[e].position + 1;
          to = last < to ? last : to;
          if (a.window > 0 && last - a.window > from) from = last - a.window;
        }
        if (row[half] < lo || row[half] >= hi) to = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int token = (i >> 1) * 8 + (lane & 3) * 2 + (i & 1);
          float& value = s[e * 2 + (i >> 1)][half * 2 + (i & 1)];
          if (token < from || token >= to) value = kMasked;
        }
      }
    }
  }

  /*
   * s becomes exp2 of the scaled scores; maximum and sum are brought up to date. Returns in `scale`
   * by how much o has to shrink. Touches neither o nor p, which a product may still be using.
   */
  __device__ void soften(float (&s)[kScoreBlocks][4], float (&scale)[2]) {
    if constexpr (Shape::kSoftcap) {
      /* softcap * tanh(x / softcap) = softcap * (1 - 2 / (exp(2 x / softcap) + 1)) */
      const float in = 2.0f * a.scale_log2 / a.softcap;
      const float out = a.softcap / a.scale_log2 * kLog2e;
#pragma unroll
      for (int b = 0; b < kScoreBlocks; b++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (s[b][i] > kMasked)
            s[b][i] = out * (1.0f - 2.0f / (exp2_fast(s[b][i] * in) + 1.0f));
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = s[0][half * 2];
#pragma unroll
      for (int b = 0; b < kScoreBlocks; b++)
        top = fmaxf(top, fmaxf(s[b][half * 2], s[b][half * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(maximum[half], top * a.scale_log2);
      scale[half] = exp2_fast(maximum[half] - top);
      maximum[half] = top;
      float add = 0.0f;
#pragma unroll
      for (int b = 0; b < kScoreBlocks; b++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float& value = s[b][half * 2 + i];
          value = exp2_fast(value * a.scale_log2 - top);
          add += value;
        }
      sum[half] = sum[half] * scale[half] + add;
    }
  }

  /* Packs s as the A fragments of the second product. */
  __device__ static void pack(const float (&s)[kScoreBlocks][4], u32 (&p)[Shape::kTile / 16][4]) {
#pragma unroll
    for (int step = 0; step < Shape::kTile / 16; step++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* from = &s[step * 2 + (i >> 1)][(i & 1) * 2];
        p[step][i] = pack16(from[0], from[1]);
      }
  }

  __device__ void shrink(const float (&scale)[2]) {
    if (!__any_sync(~0u, scale[0] != 1.0f || scale[1] != 1.0f)) return;
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[b][i] *= scale[i >> 1];
  }

  /* What the entries of a tile ask of this group. */
  enum Use { kSkip, kPlain, kMask };

  __device__ Use use_of(const Entry (&entries)[kEntries]) const {
    bool any = false, plain = true;
#pragma unroll
    for (int e = 0; e < kEntries; e++) {
      const int lo = entries[e].rows & 0xffff, hi = entries[e].rows >> 16;
      any |= lo < row_first + row_count && hi > row_first;
      plain &= lo <= row_first && hi >= row_first + row_count && entries[e].tokens == 0x1000;
    }
    return !any ? kSkip : plain ? kPlain : kMask;
  }

  __device__ bool is_mine(int t) const {
    return Shape::kGroups == 1 || shares_rows() || t % Shape::kGroups == group;
  }

  __device__ u32 full_bar() const { return smem_address(&shared.full[tile % Shape::kStages]); }
  __device__ u32 parity() const { return (tile / Shape::kStages) & 1; }
  __device__ u32 kv_address(u32 number) const {
    return smem_address(shared.kv[number % Shape::kStages]);
  }

  __device__ void read_entries(Entry (&entries)[kEntries]) const {
#pragma unroll
    for (int e = 0; e < kEntries; e++) entries[e] = shared.entries[tile % Shape::kStages][e];
  }

  __device__ void release(u32 number) const {
    __syncwarp();
    if (lane == 0) barrier_arrive(smem_address(&shared.empty[number % Shape::kStages]));
  }

  /* Goes on to the item's next tile that this group computes on; false at the item's end. */
  __device__ bool advance(int& t, int tiles, Entry (&entries)[kEntries], Use& use) {
    for (; t < tiles; t++, tile++) {
      barrier_wait(full_bar(), parity(), a.abort_flag, Shape::kAbortFull);
      if (is_mine(t)) {
        read_entries(entries);
        use = use_of(entries);
        if (use != kSkip) return true;
      }
      release(tile);
    }
    return false;
  }

  /*
   * The same for the very next tile of this group and without waiting: true if it has arrived and
   * is used. All warps of the group get the same answer.
   */
  __device__ bool advance_now(int& t, int tiles, Entry (&entries)[kEntries], Use& use) {
    const int others = Shape::kGroups > 1 && !is_mine(t) ? 1 : 0;
    if (t + others >= tiles) return false;
    bool ready = barrier_test(full_bar(), parity());
    if (others > 0) {
      const u32 next = tile + 1;
      ready &= barrier_test(smem_address(&shared.full[next % Shape::kStages]),
                            (next / Shape::kStages) & 1);
    }
    if (!block_all(1 + group, 128, ready)) return false;
    if (others > 0) release(tile), t++, tile++;
    read_entries(entries);
    use = use_of(entries);
    return use != kSkip;
  }

#if FF_HOPPER && !FF_PORTABLE
  /*
   * While the tensor cores do P V of one tile, the scores of the next are softened, provided that
   * it has arrived: its Q K^T is issued first.
   */
  __device__ void consume_tiles(u32 q) {
    using Product = WgmmaProduct<kHeadDim, Shape::kTile>;
    const int tiles = (item.entry_count + kEntries - 1) / kEntries;
    Entry entries[kEntries];
    Use use = kSkip;
    float s[kScoreBlocks][4], scale[2];
    u32 p[Shape::kTile / 16][4];
    int t = 0;
    while (advance(t, tiles, entries, use)) {
      Product::scores(s, q, kv_address(tile));
      wgmma_wait<0>();
      if (use == kMask) mask(s, entries);
      soften(s, scale);
      shrink(scale);
      pack(s, p);
      u32 held = tile;
      t++, tile++;
      while (advance_now(t, tiles, entries, use)) {
        Product::scores(s, q, kv_address(tile));
        Product::values(o, p, kv_address(held));
        wgmma_wait<1>();
        if (use == kMask) mask(s, entries);
        soften(s, scale);
        wgmma_wait<0>();
        release(held);
        shrink(scale);
        pack(s, p);
        held = tile;
        t++, tile++;
      }
      Product::values(o, p, kv_address(held));
      wgmma_wait<0>();
      release(held);
    }
    finish_sums();
  }
#else
  __device__ void consume_tiles(u32 q) {
    using Product = MmaProduct<kHeadDim, Shape::kTile>;
    const int tiles = (item.entry_count + kEntries - 1) / kEntries;
    const bool padding = warp * 16 >= row_count * Shape::kGroup;
    Entry entries[kEntries];
    Use use = kSkip;
    int t = 0;
    while (advance(t, tiles, entries, use)) {
      if (!padding) {
        float s[kScoreBlocks][4], scale[2];
        u32 p[Shape::kTile / 16][4];
        Product::scores(s, q, kv_address(tile), warp, lane);
        if (use == kMask) mask(s, entries);
        soften(s, scale);
        pack(s, p);
        shrink(scale);
        Product::values(o, p, kv_address(tile), lane);
      }
      release(tile);
      t++, tile++;
    }
    finish_sums();
  }
#endif

  __device__ void finish_sums() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
  }
};
