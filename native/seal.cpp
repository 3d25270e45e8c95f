// Writing sealed tokens down: the numbers of src/steno/cache/_quant.py, operation for operation.
#include "arch.h"
#include "codes.h"
#include "lanes.h"

namespace steno::STENO_TARGET {
namespace {

constexpr int ROWS = 8;      // of a table that are packed together: whole bytes at any number of bits
constexpr int MOST = 1024, APART = MOST + LANES;  // numbers in a range: tokens of a key group or channels of a value group

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
  float lows[16], highs[16];
  int32_t flag[16];
  store(flag, odd);
  store(lows, least);
  store(highs, most);
  for (int by = LANES / 2; by > 0; by /= 2)
    for (int j = 0; j < by; j++) {
      lows[j] = lows[j + by] < lows[j] ? lows[j + by] : lows[j];
      highs[j] = highs[j + by] > highs[j] ? highs[j + by] : highs[j];
      flag[j] |= flag[j + by];
    }
  float low = lows[0], high = highs[0];
  if (flag[0]) return false;
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
  alignas(64) int32_t codes[ROWS][APART] = {}, some[MOST];
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
    bool whole = c.group % LANES == 0;
    for (int row = 0; row < d; row += ROWS) {
      int count = d - row < ROWS ? d - row : ROWS;
      for (int k = 0; k < count; k++) {
        for (int i = 0; i < c.group; i += whole ? LANES : 1) {
          const float* from = open_keys(s, first + i) + (row + k) * LANES;
          if (whole) store(x + i, load(from));
          else x[i] = *from;
        }
        if (!encode(x, c.group, c.key_bits, codes[k], scales + row + k, scales + s.head_pad + row + k)) return false;
      }
      if (whole)
        for (int i = 0; i < c.group; i += LANES) pack(codes[0] + i, APART, row, count, c.key_bits, d, key_table(first + i));
      else
        for (int i = 0; i < c.group; i++)
          for (int k = 0; k < count; k++) put(key_table(first + i), c.key_bits, d, row + k, (first + i) % LANES, codes[k][i]);
    }
  }
  int groups = d / c.channels;
  for (int slot = s.from, count; slot < s.to; slot += count) {
    count = slot % ROWS == 0 && slot + ROWS <= s.to ? ROWS : 1;
    uint16_t* scales = (uint16_t*)(page(slot) + s.places.value_scales) + (size_t)(slot % slots / LANES) * groups * 2 * LANES + slot % LANES;
    for (int k = 0; k < count; k++) {
      const float* v = open_values(s, slot + k);
      for (int g = 0; g < groups; g++) {
        for (int i = 0; i < c.channels; i++) x[i] = v[g * c.channels + i];
        uint16_t* scale = scales + g * 2 * LANES + k;
        if (!encode(x, c.channels, c.value_bits, some, scale, scale + LANES)) return false;
        for (int i = 0; i < c.channels; i++) codes[k][g * c.channels + i] = some[i];
      }
    }
    for (int j = 0; j < d; j += LANES) {
      uint8_t* table = value_table(slot, j);
      if (count == ROWS) pack(codes[0] + j, APART, slot % LANES, ROWS, c.value_bits, LANES, table);
      else
        for (int i = j; i < j + LANES && i < d; i++) put(table, c.value_bits, LANES, slot % LANES, i % LANES, codes[0][i]);
    }
  }
  return true;
}

}  // namespace steno::STENO_TARGET
