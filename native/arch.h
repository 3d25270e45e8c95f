// The kernels of one instruction set. Every file that includes this is compiled once per set, each time into a namespace
// of its own (STENO_TARGET); lanes.h says why all of them give the same bits, kernels.h what each function does.
#pragma once
#include "kernels.h"

namespace steno::STENO_TARGET {

// The four-way dot product of AVX-512 VNNI takes one unsigned operand: activations of int8 matrices then carry + 128.
#if defined(__AVX512VNNI__)
constexpr bool UNSIGNED_ACTS = true;
#else
constexpr bool UNSIGNED_ACTS = false;
#endif

void norm(const float* x, const float* w, float eps, int d, float* out);
void quantise(const Matrix& w, const float* x, int8_t* q, float* scale, int32_t* sums);
void matmul(const Matrix& w, int p0, int p1, int rows, const Acts& x, const Rows& y);
void add(float* x, const float* y, int n);
void swiglu(const float* gate, const float* up, float* out, int n);
void rotate(float* x, const float* cos, const float* sin, int half);
void scale(float* x, float by, int n);
void attend(const Attend& a);
bool seal(const Seal& s);
int argmax(const float* x, int from, int to, float* best);
void gumbel(const uint32_t* key, int n, float* out);
int draw(const uint32_t* key, const float* logits, int n);
void top(const float* x, int n, int count, int32_t* ids, float* values);

}  // namespace steno::STENO_TARGET
