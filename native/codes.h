// Halves and packed codes, sixteen lanes at a time: what sealed tokens are written down in.
#pragma once
#include "lanes.h"

namespace steno::STENO_TARGET {

// Sixteen signed bytes.
INL I bytes(const uint8_t* p) {
  I r;
#if defined(__AVX512F__)
  r.v[0] = (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  for (int i = 0; i < REGS; i++) r.v[i] = (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8 * i)));
#else
  int32_t lane[16];
  for (int j = 0; j < 16; j++) lane[j] = (int8_t)p[j];
  r = load(lane);
#endif
  return r;
}

INL I shift_right(I a, int n) { EACH a.v[i] = a.v[i] >> n; return a; }
INL I operator|(I a, I b) { EACH a.v[i] = a.v[i] | b.v[i]; return a; }

// Bits of a field of a signed byte in 32 bits, its own sign spread above it.
template <int BITS>
INL I field(I x, int at) { return shift_right(shift_left(x, 32 - BITS - at), 32 - BITS); }

// Sixteen float16 as floats, exactly. A float16's exponent and fraction in a float's place are 2^-112 of its value.
INL F halves(const uint16_t* p) {
#if defined(__AVX512F__)
  F r;
  r.v[0] = (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  return r;
#else
  int32_t lane[16];
  for (int j = 0; j < 16; j++) lane[j] = p[j];
  I h = load(lane), size = h & set((int32_t)0x7FFF);
  F r = as_float(shift_left(size, 13)) * set(0x1p112f);
  r = pick(size > set((int32_t)0x7BFF), as_float(shift_left(size, 13) | set((int32_t)0x7F800000)), r);
  return as_float(bits(r) | shift_left(h & set((int32_t)0x8000), 16));
#endif
}

// The nearest float16, ties to even; infinity beyond its range.
INL uint16_t half(float x) {
  uint32_t b;
  __builtin_memcpy(&b, &x, 4);
  uint16_t sign = (b >> 16) & 0x8000;
  b &= 0x7FFFFFFF;
  if (b > 0x7F800000) return sign | 0x7E00;
  if (b >= 0x47800000) return sign | 0x7C00;
  if (b >= 0x38800000) return sign | (uint16_t)((b + 0xFFF + (b >> 13 & 1) - 0x38000000) >> 13);
  float size;  // below 2^-14 a float16 is a multiple of 2^-24, the worth of the last bit of 0.5
  __builtin_memcpy(&size, &b, 4);
  size += 0.5f;
  __builtin_memcpy(&b, &size, 4);
  return sign | (uint16_t)(b - 0x3F000000);
}

INL float whole(uint16_t h) {
  uint32_t b = (uint32_t)(h & 0x7FFF) << 13;
  float x;
  __builtin_memcpy(&x, &b, 4);
  x *= 0x1p112f;
  if ((h & 0x7C00) == 0x7C00) x = x - x == 0 && (h & 0x3FF) == 0 ? __builtin_inff() : __builtin_nanf("");
  return h & 0x8000 ? -x : x;
}

INL bool finite(uint16_t h) { return (h & 0x7C00) != 0x7C00; }

// A table of `rows` rows as floats. scale and zero: one per row, or one per row and lane.
template <int BITS, bool LANEWISE>
INL void spread(const uint8_t* codes, int rows, const float* scale, const float* zero, float* out, size_t stride) {
  constexpr int PER = BITS == 8 ? 1 : BITS == 4 ? 2 : BITS == 2 ? 4 : 8;
  auto put = [&](int r, I code) __attribute__((always_inline)) {
    F s = LANEWISE ? load(scale + r * LANES) : set(scale[r]), z = LANEWISE ? load(zero + r * LANES) : set(zero[r]);
    store(out + r * stride, fma(s, to_float(code), z));
  };
  auto some = [&](int r, int count) __attribute__((always_inline)) {
    if constexpr (BITS == 3) {
      I low[2] = {bytes(codes + r / 4 * LANES), count > 4 ? bytes(codes + (r / 4 + 1) * LANES) : set(0)};
      I sign = bytes(codes + ((rows + 3) / 4 + r / 8) * LANES);
      _Pragma("GCC unroll 8") for (int k = 0; k < count; k++)
        put(r + k, (shift_right(low[k / 4], k % 4 * 2) & set(3)) | shift_left(field<1>(sign, k), 2));
    } else {
      I x = bytes(codes + r / PER * LANES);
      _Pragma("GCC unroll 4") for (int k = 0; k < count; k++) put(r + k, BITS == 8 ? x : field<BITS>(x, k * BITS));
    }
  };
  int r = 0;
  for (; r + PER <= rows; r += PER) some(r, PER);
  if (r < rows) some(r, rows - r);
}

INL void spread_halves(const uint8_t* from, int rows, float* out, size_t stride) {
  for (int r = 0; r < rows; r++) store(out + r * stride, halves((const uint16_t*)from + r * LANES));
}

template <bool LANEWISE>
INL void spread(int bits, const uint8_t* codes, int rows, const float* scale, const float* zero, float* out, size_t stride) {
  if (bits == 8) spread<8, LANEWISE>(codes, rows, scale, zero, out, stride);
  else if (bits == 4) spread<4, LANEWISE>(codes, rows, scale, zero, out, stride);
  else if (bits == 3) spread<3, LANEWISE>(codes, rows, scale, zero, out, stride);
  else spread<2, LANEWISE>(codes, rows, scale, zero, out, stride);
}

}  // namespace steno::STENO_TARGET
