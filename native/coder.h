// Entropy coding for steno.codecs: scores to integer frequencies, a range coder, and the adaptive mixer between them.
// Integers only after `frequencies`; the reference is Python (codecs/frequencies.py, ranges.py, mixer.py), bit for bit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace steno::coder {

// What codecs/_tables.py makes; data, so that no library's rounding takes part.
struct Tables {
  std::vector<uint32_t> exp;      // exp(-i / 16), Q30; the last entry is 0
  std::vector<int32_t> ln;        // ln(1 + i / 2048), Q16; the last entry is ln 2
  std::vector<int32_t> logistic;  // Q16, by log-odds + ODDS
  std::vector<uint8_t> after;     // [256][2]
  std::vector<uint8_t> total;     // [256]
  std::vector<uint16_t> guess;    // [256], Q16
  std::vector<int32_t> stretch;   // log-odds of p, by p >> 4; made here from `ln`

  void finish();
  int log(uint64_t x) const;                  // ln x in Q16, x >= 1
  int odds(uint64_t yes, uint64_t no) const;  // log-odds in units of 1 / 256 nat
  int squash(int x) const;                    // P in Q16
};

constexpr int ODDS = 12 * 256 - 1;
constexpr uint32_t OPEN = 0xffffffffu;  // a place of the history not coded yet

// Scores [V] to frequencies [V] that sum to 1 << bits, each at least 1. `places`: optional order of the output.
void frequencies(const Tables& t, const float* scores, int vocab, int bits, const int32_t* places, uint16_t* steps, uint32_t* out);

class RangeEncoder {
 public:
  void encode(uint32_t low, uint32_t freq, int bits);
  std::vector<uint8_t> finish();
  size_t size() const { return out_.size() + pending_; }

 private:
  void shift();
  uint64_t low_ = 0;
  uint32_t range_ = 0xffffffffu;
  uint8_t cache_ = 0;
  uint64_t pending_ = 0;
  bool first_ = true;
  std::vector<uint8_t> out_;
};

class RangeDecoder {
 public:
  RangeDecoder(const uint8_t* data, size_t size);
  uint32_t target(int bits);
  void consume(uint32_t low, uint32_t freq, int bits);
  bool bit(uint32_t p);  // P(1) in Q16
  size_t overrun() const { return overrun_; }

 private:
  uint8_t next();
  std::vector<uint8_t> data_;
  size_t at_ = 0, overrun_ = 0;
  uint32_t range_ = 0xffffffffu, code_ = 0;
};

class Mixer;
class Guide;

// One chunk: `lanes` equal stretches of a symbol sequence, coded in step, sharing one mixer and one range coder.
class Chunk {
 public:
  Chunk(std::shared_ptr<Tables> tables, int vocab, std::vector<int32_t> places, int lanes, int64_t symbols, bool adapt);
  ~Chunk();

  // Scores may be null: then all symbols are equally likely to the model, and the mixer alone knows better.
  // scores[lane * lane_stride + step * step_stride + id]; steps [0, width) of every lane, as far as it reaches.
  void encode(const float* scores, int64_t lane_stride, int64_t step_stride, const int32_t* ids, int width);
  std::vector<uint8_t> finish();

  void open(const uint8_t* data, size_t size);
  // tokens [lanes, width]: column 0 is what each lane last took, the others drafts. Decodes while every lane's scores
  // are known to be right; returns the steps taken, their ids in out [lanes, width].
  int decode(const float* scores, int64_t lane_stride, int64_t step_stride, const int32_t* tokens, const int32_t* counts, int width, int32_t* out);

  // What followed the longest context of each lane that stood before: out [lanes, width], -1 where there is nothing.
  void draft(int width, int32_t* out) const;
  int64_t taken() const { return step_; }
  int64_t per_lane() const { return per_lane_; }
  size_t overrun() const;

  const int vocab, lanes;
  const int64_t symbols;

 private:
  bool active(int lane) const { return lane * per_lane_ + step_ < symbols; }
  template <bool ENCODE>
  int symbol(int lane, const float* scores, int id);

  std::shared_ptr<Tables> t_;
  std::vector<int32_t> rank_, id_;
  int64_t per_lane_, step_ = 0;
  int depth_, bits_;
  bool flat_ = false;
  std::vector<uint16_t> steps_;
  std::vector<uint32_t> freq_;
  std::unique_ptr<Mixer> mixer_;
  std::unique_ptr<Guide> guide_;
  RangeEncoder encoder_;
  std::unique_ptr<RangeDecoder> decoder_;
};

}  // namespace steno::coder
