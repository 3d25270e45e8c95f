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

// Bits of a field of a signed byte in 32 bits, its own sign spread above it.
template <int BITS>
INL I field(I x, int at) { return shift_right(shift_left(x, 32 - BITS - at), 32 - BITS); }

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

// N tables of codes, `step` bytes apart, as floats: row r of table i goes to out + i * out_step + r * stride.
// scale and zero: one per row of all tables; LANEWISE: one per row and lane, and N is 1.
//
// Up to four bits a row's numbers are sixteen at most: they are worked out once, by the same operation, and looked up.
template <int BITS, bool LANEWISE, int N>
INL void spread(const uint8_t* codes, size_t step, int rows, const float* scale, const float* zero, float* out, size_t out_step, size_t stride) {
  static_assert(!LANEWISE || N == 1);
  constexpr int PER = BITS == 8 ? 1 : BITS == 4 ? 2 : BITS == 2 ? 4 : 8;
  auto some = [&](int r, int count) __attribute__((always_inline)) {
    I x[N], more[N], sign[N];
    for (int i = 0; i < N; i++) {
      const uint8_t* table = codes + i * step;
      x[i] = bytes(table + r / (BITS == 3 ? 4 : PER) * LANES);
      if constexpr (BITS == 3) {
        more[i] = count > 4 ? bytes(table + (r / 4 + 1) * LANES) : set(0);
        sign[i] = bytes(table + ((rows + 3) / 4 + r / 8) * LANES);
      }
    }
    _Pragma("GCC unroll 8") for (int k = 0; k < count; k++) {
      F s = LANEWISE ? load(scale + (r + k) * LANES) : set(scale[r + k]);
      F z = LANEWISE ? load(zero + (r + k) * LANES) : set(zero[r + k]);
#if defined(__AVX512F__)
      constexpr bool LOOKED_UP = BITS < 8 && !LANEWISE;
      F numbers = s;
      if constexpr (LOOKED_UP) {
        alignas(64) static constexpr float values[3][16] = {{0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1},
                                                            {0, 1, 2, 3, -4, -3, -2, -1, 0, 1, 2, 3, -4, -3, -2, -1},
                                                            {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1}};
        numbers = fma(s, load(values[BITS - 2]), z);
      }
#endif
      for (int i = 0; i < N; i++) {
        I low = BITS == 3 && k >= 4 ? more[i] : x[i];
        F y;
#if defined(__AVX512F__)
        if constexpr (LOOKED_UP) {  // of an index only the lowest four bits count
          I index = shift_right(low, BITS == 3 ? k % 4 * 2 : k * BITS);
          if constexpr (BITS == 3) index = (index & set(3)) | (shift_left(shift_right(sign[i], k), 2) & set(4));
          y.v[0] = (vf)_mm512_permutexvar_ps((__m512i)index.v[0], (__m512)numbers.v[0]);
        } else
#endif
        {
          I code = BITS == 8   ? low
                   : BITS == 3 ? (shift_right(low, k % 4 * 2) & set(3)) | shift_left(field<1>(sign[i], k), 2)
                               : field<BITS == 8 ? 4 : BITS>(low, k * BITS);
          y = fma(s, to_float(code), z);
        }
        store(out + i * out_step + (r + k) * stride, y);
      }
    }
  };
  int r = 0;
  for (; r + PER <= rows; r += PER) some(r, PER);
  if (r < rows) some(r, rows - r);
}

template <bool LANEWISE, int N>
INL void spread(int bits, const uint8_t* codes, size_t step, int rows, const float* scale, const float* zero, float* out, size_t out_step, size_t stride) {
  if (bits == 8) spread<8, LANEWISE, N>(codes, step, rows, scale, zero, out, out_step, stride);
  else if (bits == 4) spread<4, LANEWISE, N>(codes, step, rows, scale, zero, out, out_step, stride);
  else if (bits == 3) spread<3, LANEWISE, N>(codes, step, rows, scale, zero, out, out_step, stride);
  else spread<2, LANEWISE, N>(codes, step, rows, scale, zero, out, out_step, stride);
}

INL void spread_halves(const uint8_t* from, int rows, float* out, size_t stride) {
  for (int r = 0; r < rows; r++) store(out + r * stride, halves((const uint16_t*)from + r * LANES));
}

// Sixteen codes as bytes.
INL void narrow(I a, uint8_t* p) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)a.v[0]));
#else
  int32_t lane[16];
  store(lane, a);
  for (int j = 0; j < 16; j++) p[j] = (uint8_t)lane[j];
#endif
}

// Rows [row, row + count) of a table, from int32 codes `stride` apart. row is a multiple of 8; bytes are written whole.
INL void pack(const int32_t* codes, size_t stride, int row, int count, int bits, int rows, uint8_t* table) {
  int per = bits == 3 ? 4 : 8 / bits, width = bits == 3 ? 2 : bits;
  I mask = set((1 << width) - 1);
  for (int r = 0; r < count; r += per) {
    I byte = set(0);
    for (int k = 0; k < per && r + k < count; k++) byte = byte | shift_left(load(codes + (r + k) * stride) & mask, k * width);
    narrow(byte, table + (row + r) / per * LANES);
  }
  if (bits != 3) return;
  I byte = set(0);
  for (int k = 0; k < count; k++) byte = byte | shift_left(shift_right(load(codes + k * stride), 2) & set(1), k);
  narrow(byte, table + ((rows + 3) / 4 + row / 8) * LANES);
}

}  // namespace steno::STENO_TARGET
