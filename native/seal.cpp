// Writing sealed tokens down: the numbers of src/steno/cache/_quant.py, operation for operation.
#include "arch.h"
#include "codes.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

constexpr int MOST = 1024;  // numbers in a range: tokens of a key group or channels of a value group

const float* open_keys(const Seal& s, int slot) {
  const float* part = (const float*)(s.open.page[slot / s.open.slots] + s.open.at);
  int local = slot % s.open.slots;
  return part + (size_t)(local / LANES) * s.head_dim * LANES + local % LANES;
}

const float* open_values(const Seal& s, int slot) {
  const float* part = (const float*)(s.open.page[slot / s.open.slots] + s.open.at);
  return part + (size_t)s.open.slots * s.head_dim + (size_t)(slot % s.open.slots) * s.head_pad;
}

// Codes, scale and zero of x[0 .. n): the zero rounded down and the scale up, codes taken against what was rounded.
// x has room for whole lanes; codes come without the offset that centres them.
bool encode(float* x, int n, int bits, int32_t* codes, uint16_t* scale, uint16_t* zero) {
  for (int j = n; j < round_up(n, LANES); j++) x[j] = x[0];
  F least = load(x), most = least;
  I odd = set(0);  // where x - x is not 0, x is not finite
  for (int j = 0; j < n; j += LANES) {
    F v = load(x + j);
    least = pick(v < least, v, least);
    most = pick(v > most, v, most);
    F gap = v - v;
    odd = odd | pick(gap < set(1.0f), set(0), set(1));
  }
  float lane[16], low, high;
  int32_t flag[16], any = 0;
  store(flag, odd);
  store(lane, least);
  low = lane[0];
  for (int j = 0; j < LANES; j++) low = lane[j] < low ? lane[j] : low, any |= flag[j];
  store(lane, most);
  high = lane[0];
  for (int j = 1; j < LANES; j++) high = lane[j] > high ? lane[j] : high;
  if (any) return false;
  float levels = (float)((1 << bits) - 1);
  uint16_t z = half(low);
  if (whole(z) > low) z = whole(z) > 0 ? z - 1 : whole(z) == 0 ? 0x8001 : z + 1;
  float reach = high - whole(z);
  uint16_t s = half(reach / levels);
  if (finite(s) && whole(s) * levels < reach) s++;
  if (!finite(s) || !finite(z)) return false;
  *scale = s;
  *zero = z;
  F step = set(s ? whole(s) : 1.0f), from = set(whole(z));
  for (int j = 0; j < n; j += LANES) store(codes + j, nearest((load(x + j) - from) / step) - set(1 << (bits - 1)));
  return true;
}

// Puts the code of a row and lane into its table.
INL void put(uint8_t* table, int bits, int rows, int row, int lane, int32_t code) {
  auto field = [&](int per, int from, int width, int32_t value) {
    uint8_t* p = table + (from + row / per) * LANES + lane;
    int at = row % per * width, mask = ((1 << width) - 1) << at;
    *p = (uint8_t)((*p & ~mask) | ((value << at) & mask));
  };
  if (bits == 8) field(1, 0, 8, code);
  else if (bits == 4) field(2, 0, 4, code);
  else field(4, 0, 2, code);
  if (bits == 3) field(8, (rows + 3) / 4, 1, code >> 2);
}

}  // namespace

bool seal(const Seal& s) {
  const Coding& c = s.coding;
  int d = s.head_dim, per_panel = s.head_pad / LANES, slots = s.sealed.slots;
  alignas(64) float x[MOST];
  alignas(64) int32_t codes[MOST];
  auto page = [&](int slot) { return s.sealed.page[slot / slots] + s.sealed.at; };
  auto key_table = [&](int slot) { return page(slot) + slot % slots / LANES * table_bytes(c.key_bits, d); };
  auto value_table = [&](int slot, int channel) {
    return page(slot) + s.places.values + ((size_t)(slot % slots / LANES) * per_panel + channel / LANES) * table_bytes(c.value_bits, LANES);
  };
  if (c.key_bits == 16) {
    bool fits = true;
    for (int slot = s.from; slot < s.to; slot++) {
      const float *k = open_keys(s, slot), *v = open_values(s, slot);
      uint16_t* keys = (uint16_t*)key_table(slot) + slot % LANES;
      for (int j = 0; j < d; j++) {
        keys[j * LANES] = half(k[j * LANES]);
        uint16_t h = half(v[j]);
        ((uint16_t*)value_table(slot, j))[slot % LANES * LANES + j % LANES] = h;
        fits = fits && finite(keys[j * LANES]) && finite(h);
      }
    }
    return fits;
  }
  for (int first = s.from; first < s.to; first += c.group) {
    uint16_t* scales = (uint16_t*)(page(first) + s.places.key_scales) + (size_t)(first % slots / c.group) * 2 * s.head_pad;
    for (int j = 0; j < d; j++) {
      for (int i = 0; i < c.group; i++) x[i] = open_keys(s, first + i)[j * LANES];
      if (!encode(x, c.group, c.key_bits, codes, scales + j, scales + s.head_pad + j)) return false;
      for (int i = 0; i < c.group; i++) put(key_table(first + i), c.key_bits, d, j, (first + i) % LANES, codes[i]);
    }
  }
  int groups = d / c.channels;
  for (int slot = s.from; slot < s.to; slot++) {
    const float* v = open_values(s, slot);
    uint16_t* scales = (uint16_t*)(page(slot) + s.places.value_scales) + (size_t)(slot % slots / LANES) * groups * 2 * LANES + slot % LANES;
    for (int g = 0; g < groups; g++) {
      for (int i = 0; i < c.channels; i++) x[i] = v[g * c.channels + i];
      if (!encode(x, c.channels, c.value_bits, codes, scales + g * 2 * LANES, scales + (g * 2 + 1) * LANES)) return false;
      for (int i = 0; i < c.channels; i++) {
        int j = g * c.channels + i;
        put(value_table(slot, j), c.value_bits, LANES, slot % LANES, j % LANES, codes[i]);
      }
    }
  }
  return true;
}

}  // namespace steno::STENO_TARGET
