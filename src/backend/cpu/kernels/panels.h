/*
 * How weights lie in memory once repacked: panels of 16 output columns. A panel of a quantised
 * form holds all its quants (blocks of 32 inputs: bytes (8, 16, 4), or 4 rows of nibbles whose low
 * halves are input groups 0 to 3 and high halves groups 4 to 7), then all its scales (16 a block,
 * or 32 with two per block), each followed by 16 minima where the form has them. Dense forms are
 * (inputs, 16) elements. WebAssembly cannot convert float16 in one instruction, which would cost a
 * third of the time with nibbles: there all scales are float32. repack.ts computes the same sizes.
 */
#ifndef FF_PANELS_H
#define FF_PANELS_H

#include "blocks.h"

#define PANEL 16

enum {
  FORM_F32,
  FORM_F16,
  FORM_BF16,
  /* Bytes, float16 scale: Q8_0, Q5_0. */
  FORM_B8,
  /* Nibbles minus 8, float16 scale: Q4_0. */
  FORM_N4,
  /* Nibbles, float16 scale and minimum: Q4_1. */
  FORM_N4_MIN,
  /* Nibbles, float32 scale and minimum: Q4_K. */
  FORM_N4_MIN32,
  /* Bytes, float32 scale and minimum: Q5_1, Q5_K. */
  FORM_B8_MIN32,
  /* Bytes, two float32 scales, one for 16 inputs: Q6_K. */
  FORM_B8_HALVES,
};

FF_INLINE int form_is_nibbles(int form) { return form >= FORM_N4 && form <= FORM_N4_MIN32; }
FF_INLINE int form_has_minimum(int form) { return form >= FORM_N4_MIN && form <= FORM_B8_MIN32; }
FF_INLINE int form_has_f16_scale(int form) {
#if defined(__wasm__)
  return (void)form, 0;
#else
  return form >= FORM_B8 && form <= FORM_N4_MIN;
#endif
}

/* Bytes of a block's scales (and minima) for 16 columns. */
FF_INLINE int form_scale_bytes(int form) {
  int numbers = form == FORM_B8_HALVES || form_has_minimum(form) ? 2 * PANEL : PANEL;
  return numbers * (form_has_f16_scale(form) ? 2 : 4);
}

FF_INLINE int64_t form_panel_bytes(int form, int64_t columns) {
  if (form == FORM_F32) return columns * PANEL * 4;
  if (form == FORM_F16 || form == FORM_BF16) return columns * PANEL * 2;
  int quants = form_is_nibbles(form) ? 16 * PANEL : 32 * PANEL;
  return (columns / 32 * (quants + form_scale_bytes(form)) + 63) / 64 * 64;
}

#endif
