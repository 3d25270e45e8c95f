#pragma once
#include <cstddef>
#include <utility>
#include <vector>

namespace steno {

// cos and sin of position * frequency, [positions][half], grown on demand. Computed with + - * alone, so that no maths
// library has a say in the model's bits.
class Rope {
 public:
  explicit Rope(std::vector<float> frequency) : frequency_(std::move(frequency)) {}
  void reach(int positions);
  int half() const { return (int)frequency_.size(); }
  const float* cos(int position) const { return cos_.data() + (size_t)position * frequency_.size(); }
  const float* sin(int position) const { return sin_.data() + (size_t)position * frequency_.size(); }

 private:
  std::vector<float> frequency_, cos_, sin_;
  int positions_ = 0;
};

}  // namespace steno
