#include "rope.h"

#include <cstdint>
#include <cstring>

namespace steno {
namespace {

// pi / 2 in three pieces; the first two have 33 bits, so that a multiple below 2^20 of each is exact.
constexpr double PIECE1 = 0x1.921fb544p+0, PIECE2 = 0x1.0b4611a6p-34, PIECE3 = 0x1.3198a2e037073p-69;
constexpr double TWO_OVER_PI = 0x1.45f306dc9c883p-1;

// Angle in [0, 1.6e6]. Error below 1e-15 before the final rounding to float.
void sine_cosine(float angle, float* sine, float* cosine) {
  double x = angle;
  double shifted = x * TWO_OVER_PI + 0x1.8p52;  // nearest integer in the low bits
  double k = shifted - 0x1.8p52;
  uint64_t low;
  std::memcpy(&low, &shifted, 8);
  int quadrant = (int)(low & 3);
  double r = ((x - k * PIECE1) - k * PIECE2) - k * PIECE3;
  double z = r * r;
  double s = 0, c = 0;
  // Series of sin(r) / r and cos(r) in z, |r| <= pi / 4, up to r^17 and r^18.
  for (int n = 8; n >= 1; n--) s = (s + 1.0) * z * (-1.0 / ((2 * n) * (2 * n + 1)));
  for (int n = 9; n >= 1; n--) c = (c + 1.0) * z * (-1.0 / ((2 * n - 1) * (2 * n)));
  s = (s + 1.0) * r;
  c = c + 1.0;
  double out_s = quadrant & 1 ? c : s, out_c = quadrant & 1 ? s : c;
  if (quadrant & 2) out_s = -out_s;
  if (quadrant == 1 || quadrant == 2) out_c = -out_c;
  *sine = (float)out_s;
  *cosine = (float)out_c;
}

}  // namespace

void Rope::reach(int positions) {
  if (positions <= positions_) return;
  int to = positions_ * 2 > positions ? positions_ * 2 : positions;
  size_t h = frequency_.size();
  cos_.resize((size_t)to * h);
  sin_.resize((size_t)to * h);
  for (int p = positions_; p < to; p++)
    for (size_t j = 0; j < h; j++)
      // The angle is rounded to float first, as in training.
      sine_cosine((float)p * frequency_[j], &sin_[p * h + j], &cos_[p * h + j]);
  positions_ = to;
}

}  // namespace steno
