// Sixteen lanes of float or int32, whatever the width of the registers.
//
// Every sum in the engine is written in terms of these lanes (or runs in one fixed order inside a lane), so that its bits
// do not depend on the instruction set. Only operations that IEEE 754 rounds in one way are used: + - * / sqrt, fused
// multiply-add where it is spelled out, and int32 arithmetic.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INL static inline __attribute__((always_inline))

namespace steno::STENO_TARGET {

#if defined(__AVX512F__)
#define REG_BYTES 64
#elif defined(__AVX2__)
#define REG_BYTES 32
#else
#define REG_BYTES 16
#endif

typedef float vf __attribute__((vector_size(REG_BYTES)));
typedef int32_t vi __attribute__((vector_size(REG_BYTES)));
constexpr int REGS = 64 / REG_BYTES;
constexpr int REG_LANES = REG_BYTES / 4;
constexpr int LANES = 16;

struct F { vf v[REGS]; };
struct I { vi v[REGS]; };

#define EACH _Pragma("GCC unroll 4") for (int i = 0; i < REGS; i++)

INL void fetch(const void* p) { __builtin_prefetch(p, 0, 2); }
INL F load(const float* p) { F r; EACH __builtin_memcpy(&r.v[i], p + i * REG_LANES, REG_BYTES); return r; }
INL void store(float* p, F a) { EACH __builtin_memcpy(p + i * REG_LANES, &a.v[i], REG_BYTES); }
INL I load(const int32_t* p) { I r; EACH __builtin_memcpy(&r.v[i], p + i * REG_LANES, REG_BYTES); return r; }
INL void store(int32_t* p, I a) { EACH __builtin_memcpy(p + i * REG_LANES, &a.v[i], REG_BYTES); }
INL F set(float x) { F r; EACH r.v[i] = x - (vf){}; return r; }
INL I set(int32_t x) { I r; EACH r.v[i] = x - (vi){}; return r; }

INL F operator+(F a, F b) { EACH a.v[i] = a.v[i] + b.v[i]; return a; }
INL F operator-(F a, F b) { EACH a.v[i] = a.v[i] - b.v[i]; return a; }
INL F operator*(F a, F b) { EACH a.v[i] = a.v[i] * b.v[i]; return a; }
INL F operator/(F a, F b) { EACH a.v[i] = a.v[i] / b.v[i]; return a; }
INL I operator+(I a, I b) { EACH a.v[i] = a.v[i] + b.v[i]; return a; }
INL I operator-(I a, I b) { EACH a.v[i] = a.v[i] - b.v[i]; return a; }
INL I operator&(I a, I b) { EACH a.v[i] = a.v[i] & b.v[i]; return a; }
INL I operator<(F a, F b) { I r; EACH r.v[i] = a.v[i] < b.v[i]; return r; }
INL I operator>(F a, F b) { I r; EACH r.v[i] = a.v[i] > b.v[i]; return r; }
INL I operator>(I a, I b) { I r; EACH r.v[i] = a.v[i] > b.v[i]; return r; }
INL F pick(I m, F a, F b) { F r; EACH r.v[i] = m.v[i] ? a.v[i] : b.v[i]; return r; }
INL I pick(I m, I a, I b) { I r; EACH r.v[i] = m.v[i] ? a.v[i] : b.v[i]; return r; }
INL I bits(F a) { I r; EACH r.v[i] = (vi)a.v[i]; return r; }
INL F as_float(I a) { F r; EACH r.v[i] = (vf)a.v[i]; return r; }
INL F to_float(I a) { F r; EACH r.v[i] = __builtin_convertvector(a.v[i], vf); return r; }
INL I operator|(I a, I b) { EACH a.v[i] = a.v[i] | b.v[i]; return a; }
INL I operator^(I a, I b) { EACH a.v[i] = a.v[i] ^ b.v[i]; return a; }
INL I shift_right(I a, int n) { EACH a.v[i] = a.v[i] >> n; return a; }
INL I shift_zeros(I a, int n) {  // right, zeros come in from the left
  typedef uint32_t vu __attribute__((vector_size(REG_BYTES)));
  EACH a.v[i] = (vi)((vu)a.v[i] >> n);
  return a;
}
INL I shift_left(I a, int n) { EACH a.v[i] = a.v[i] << n; return a; }

#if defined(__x86_64__) && !defined(__FMA__)
// a * b + c with one rounding, for processors without such an instruction. The product is exact in double; the sum is
// rounded to odd, which makes the second rounding (to float) the only one that counts: where the sum was inexact and its
// last bit is even, it moves to its odd neighbour on the side of the error.
typedef double vd __attribute__((vector_size(16)));
typedef int64_t vl __attribute__((vector_size(16)));

INL vd round_to_odd(vd a, vd b, vd c) {
  vd p = a * b, s = p + c;
  vd t = s - p, e = (p - (s - t)) + (c - t);
  vl inexact = (vl)(e != 0) & (vl)(s - s == 0);  // the second is false for infinity and NaN
  vl even = ((vl)s & 1) - 1;
  typedef uint64_t vu __attribute__((vector_size(16)));
  vl away = (vl)(((vu)e ^ (vu)s) >> 63);
  vl step = 1 - away - away;  // +1, or -1 where the sum was rounded away from zero
  return (vd)((vl)s + (step & inexact & even));
}
#endif

INL vf fma1(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif !defined(__x86_64__)
  vf r;
  for (int j = 0; j < REG_LANES; j++) r[j] = __builtin_fmaf(a[j], b[j], c[j]);
  return r;
#else
  // Conversions by name: GCC 12 miscompiles the same thing written as casts of single lanes (constant operands, -O2).
  __m128 x = (__m128)a, y = (__m128)b, z = (__m128)c;
  vd low = round_to_odd((vd)_mm_cvtps_pd(x), (vd)_mm_cvtps_pd(y), (vd)_mm_cvtps_pd(z));
  x = _mm_movehl_ps(x, x), y = _mm_movehl_ps(y, y), z = _mm_movehl_ps(z, z);
  vd high = round_to_odd((vd)_mm_cvtps_pd(x), (vd)_mm_cvtps_pd(y), (vd)_mm_cvtps_pd(z));
  return (vf)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
#endif
}
INL F fma(F a, F b, F c) { EACH c.v[i] = fma1(a.v[i], b.v[i], c.v[i]); return c; }

// The larger of two; the second where either is NaN.
INL F larger(F a, F b) { return pick(a > b, a, b); }

// The one way sixteen lanes become one number: distance 8, 4, 2, 1.
INL float tree(F a) {
  float s[16];
  store(s, a);
  for (int d = 8; d > 0; d >>= 1)
    for (int j = 0; j < d; j++) s[j] = s[j] + s[j + d];
  return s[0];
}

// Nearest integer, ties to even, for |x| < 2^22: the sum's last bit is worth 1.
INL I nearest(F x) { return bits(x + set(12582912.0f)) - set((int32_t)0x4B400000); }

// e^x, relative error below 2e-7; 0 below -87, e^88 above 88, NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2, e^r by its series to r^7, 2^n through the exponent bits.
INL F exp(F x) {
  I tiny = x < set(-87.0f);
  x = pick(tiny, set(-87.0f), x);
  x = pick(x > set(88.0f), set(88.0f), x);
  I n = nearest(x * set(1.44269504f));
  F nf = to_float(n);
  F r = fma(nf, set(-0.693359375f), x);
  r = fma(nf, set(2.12194440e-4f), r);
  F p = set(1.0f / 5040);
  p = fma(p, r, set(1.0f / 720));
  p = fma(p, r, set(1.0f / 120));
  p = fma(p, r, set(1.0f / 24));
  p = fma(p, r, set(1.0f / 6));
  p = fma(p, r, set(0.5f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  p = p * as_float(shift_left(n + set(127), 23));
  return pick(tiny, set(0.0f), p);
}

// ln x for positive normal x, relative error below 3e-7 (absolute near 1). x = 2^e m with m in [sqrt(1/2), sqrt(2)), and
// ln m by the series of the inverse hyperbolic tangent in s = (m - 1) / (m + 1), |s| < 0.172.
INL F log(F x) {
  I u = bits(x) - set((int32_t)0x3F3504F3);  // sqrt(1/2)
  I e = shift_zeros(u, 23);
  e = pick(e > set((int32_t)255), e - set((int32_t)512), e);  // nine bits with sign
  F m = as_float((u & set((int32_t)0x007FFFFF)) + set((int32_t)0x3F3504F3));
  F n = to_float(e), s = (m - set(1.0f)) / (m + set(1.0f)), z = s * s;
  F p = set(2.0f / 9);
  p = fma(p, z, set(2.0f / 7));
  p = fma(p, z, set(2.0f / 5));
  p = fma(p, z, set(2.0f / 3));
  p = fma(p, z, set(2.0f));
  F low = fma(n, set(-2.12194440e-4f), p * s);
  return fma(n, set(0.693359375f), low);
}

// Sixteen float16 as floats, exactly. A float16's exponent and fraction in a float's place are 2^-112 of its value.
INL F halves(const uint16_t* p) {
#if defined(__AVX512F__)
  F r;
  r.v[0] = (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  return r;
#elif defined(__AVX2__)
  F r;
  for (int i = 0; i < 2; i++) r.v[i] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8 * i)));
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

// Low and high halves of the products of 16 unsigned numbers with one.
INL void multiply(I a, uint32_t by, I& low, I& high) {
  typedef uint64_t vl __attribute__((vector_size(REG_BYTES)));
  auto times = [&](vl x) {  // of the lower halves; named, as compilers otherwise multiply all 64 bits
#if defined(__AVX512F__)
    return (vl)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(by));
#elif defined(__AVX2__)
    return (vl)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(by));
#elif defined(__SSE2__)
    return (vl)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(by));
#else
    return (x & 0xFFFFFFFFu) * (vl)((vl){} + by);
#endif
  };
  EACH {
    vl even = times((vl)a.v[i]), odd = times((vl)a.v[i] >> 32);
    high.v[i] = (vi)((even >> 32) | (odd & ~(uint64_t)0xFFFFFFFFu));
    low.v[i] = (vi)((even & 0xFFFFFFFFu) | (odd << 32));
  }
}

}  // namespace
